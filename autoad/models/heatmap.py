"""Heatmaps for people."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from autoad.evaluation import normalize_scores
from autoad.models.artifact import Calibration

__all__ = ["draw_heatmap"]

# Colours of a normalised anomaly of 0.5 (the threshold), 0.75 and 1: yellow, orange, red.
_COLOURS = np.array([[255, 225, 60], [255, 120, 20], [215, 10, 40]], dtype=np.float32)
_MAX_ALPHA = 0.65


def draw_heatmap(
    image: npt.NDArray[np.uint8], anomaly_map: npt.NDArray[np.float32], calibration: Calibration
) -> Image.Image:
    """Lay an anomaly map over its picture.

    Pixels below the pixel threshold keep the picture's own colours; above it they turn from yellow to red. A normal
    picture therefore stays as it is: the colours are not stretched to each picture's own maximum.

    Args:
        image: ``[H, W, 3]`` the original picture.
        anomaly_map: ``[h, w]`` of any size.
        calibration: of the model that made the map.
    """
    height, width = image.shape[:2]
    if calibration.pixel_threshold is None or calibration.pixel_scale is None:
        raise ValueError("calibration must be that of a model with a map but got one without")
    resized = np.asarray(Image.fromarray(anomaly_map).resize((width, height), Image.Resampling.BILINEAR))
    strength = 2 * np.clip(
        normalize_scores(resized, calibration.pixel_threshold, calibration.pixel_scale) - 0.5, 0, 0.5
    )
    positions = [0.0, 0.5, 1.0]
    colours = np.stack([np.interp(strength, positions, _COLOURS[:, channel]) for channel in range(3)], axis=-1)
    alpha = np.where(strength > 0, 0.35 + (_MAX_ALPHA - 0.35) * strength, 0.0)[..., None]
    return Image.fromarray((image * (1 - alpha) + colours * alpha).round().astype(np.uint8))
