"""Heatmaps for people: an anomaly map over its picture, as a file."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from autoad.errors import UsageError
from autoad.files import write_atomically

__all__ = ["heatmap_files", "lay_over", "save_heatmap"]

# Colours of a normalised anomaly of 0.5 (the threshold), 0.75 and 1: yellow, orange, red.
_COLOURS = np.array([[255, 225, 60], [255, 120, 20], [215, 10, 40]], dtype=np.float32)
_MAX_ALPHA = 0.65


def lay_over(image: npt.NDArray[np.uint8], normalized: npt.NDArray[np.floating[Any]]) -> Image.Image:
    """Lay a normalised anomaly map over its picture.

    Pixels below the pixel threshold keep the picture's own colours; above it they turn from yellow to red. A normal
    picture therefore stays as it is: the colours are not stretched to each picture's own maximum.

    Args:
        image: ``[H, W, 3]`` the original picture.
        normalized: ``[h, w]`` of any size, from 0 to 1, 0.5 at the pixel threshold.
    """
    height, width = image.shape[:2]
    if normalized.shape != (height, width):
        small = Image.fromarray(normalized.astype(np.float32))
        normalized = np.asarray(small.resize((width, height), Image.Resampling.BILINEAR))
    strength = 2 * np.clip(normalized - 0.5, 0, 0.5)
    positions = [0.0, 0.5, 1.0]
    colours = np.stack([np.interp(strength, positions, _COLOURS[:, channel]) for channel in range(3)], axis=-1)
    alpha = np.where(strength > 0, 0.35 + (_MAX_ALPHA - 0.35) * strength, 0.0)[..., None]
    return Image.fromarray((image * (1 - alpha) + colours * alpha).round().astype(np.uint8))


def heatmap_files(pictures: Sequence[Path], folder: Path) -> dict[Path, Path]:
    """A file for each picture's heatmap, named after its folder and itself; numbered where that is not enough."""
    files: dict[Path, Path] = {}
    taken: Counter[str] = Counter()
    for picture in dict.fromkeys(pictures):
        name = f"{picture.absolute().parent.name}-{picture.stem}".lstrip("-")
        taken[name] += 1
        files[picture] = folder / (f"{name}.png" if taken[name] == 1 else f"{name}.{taken[name]}.png")
    return files


def save_heatmap(image: Image.Image, target: Path) -> str:
    """Write a heatmap and return where it is.

    Raises:
        UsageError: it cannot be written there.
    """
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, buffer.getvalue())
    except OSError as error:
        raise UsageError(
            f"cannot write heatmaps to {str(target.parent)!r} ({error.strerror}); choose another --heatmaps"
        ) from error
    return str(target)
