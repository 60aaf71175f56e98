"""Heatmaps of a model's own maps."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from autoad.data.heatmaps import lay_over
from autoad.evaluation import normalize_scores
from autoad.models.artifact import Calibration

__all__ = ["draw_heatmap"]


def draw_heatmap(
    image: npt.NDArray[np.uint8], anomaly_map: npt.NDArray[np.float32], calibration: Calibration
) -> Image.Image:
    """Lay an anomaly map over its picture (:func:`autoad.data.heatmaps.lay_over`).

    Args:
        image: ``[H, W, 3]`` the original picture.
        anomaly_map: ``[h, w]`` of any size.
        calibration: of the model that made the map.
    """
    height, width = image.shape[:2]
    if calibration.pixel_threshold is None or calibration.pixel_scale is None:
        raise ValueError("calibration must be that of a model with a map but got one without")
    resized = np.asarray(Image.fromarray(anomaly_map).resize((width, height), Image.Resampling.BILINEAR))
    return lay_over(image, normalize_scores(resized, calibration.pixel_threshold, calibration.pixel_scale))
