"""Arguments are checked once, with messages that name them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["as_labels", "as_maps", "as_scores"]


def as_scores(name: str, scores: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Scores as ``[N]`` float64.

    Raises:
        ValueError: they are not one-dimensional and finite.
    """
    array = np.asarray(scores, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(f"{name} must have the shape [N] but got {list(array.shape)}")
    if not np.isfinite(array).all():
        index = int(np.flatnonzero(~np.isfinite(array))[0])
        raise ValueError(f"{name} must be finite but got {array[index]} at index {index}")
    return array


def as_labels(labels: npt.ArrayLike, scores: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Labels as ``[N]`` bool (True is anomalous), one for each score.

    Raises:
        ValueError: they are not, or are of another number or kind.
    """
    array = np.asarray(labels)
    if array.shape != scores.shape:
        raise ValueError(f"labels must have the shape {list(scores.shape)} of the scores but got {list(array.shape)}")
    if array.dtype != np.bool_ and not np.isin(array, (0, 1)).all():
        raise ValueError(f"labels must be booleans (True is anomalous) but got {array.dtype}")
    return array.astype(np.bool_)


def as_maps(maps: npt.NDArray[Any], masks: npt.NDArray[Any]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Anomaly maps as ``[N, H, W]`` float32 and masks as bool.

    Raises:
        ValueError: shapes differ, a map is not finite, or a mask is not boolean.
    """
    if maps.ndim != 3:
        raise ValueError(f"maps must have the shape [N, H, W] but got {list(maps.shape)}")
    if masks.shape != maps.shape:
        raise ValueError(f"masks must have the shape {list(maps.shape)} of the maps but got {list(masks.shape)}")
    if masks.dtype != np.bool_:
        raise ValueError(f"masks must be booleans (True is anomalous) but got {masks.dtype}")
    maps = np.asarray(maps, dtype=np.float32)
    # The extremes carry any NaN or infinity and take a pass without a temporary array.
    if maps.size and not (np.isfinite(maps.min()) and np.isfinite(maps.max())):
        index = int(np.flatnonzero(~np.isfinite(maps).all(axis=(1, 2)))[0])
        raise ValueError(f"maps must be finite but the map at index {index} is not")
    return maps, np.asarray(masks, dtype=np.bool_)
