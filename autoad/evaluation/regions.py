"""Where on the picture the defects are."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from autoad.schema import Region

__all__ = ["find_regions"]

_SMALLEST = 1e-4  # share of the map; seven pixels of a 256 x 256 one
_NEIGHBOURS = np.ones((3, 3), dtype=bool)


def find_regions(anomaly_map: npt.NDArray[np.float32], threshold: float, image_size: tuple[int, int]) -> list[Region]:
    """Boxes around the connected parts of a map above a threshold.

    Pixels that touch at a corner are connected. Specks of less than a ten-thousandth of the map are dropped, unless
    there is nothing else: then the one with the highest peak stays, so that what crosses the threshold is always shown.

    Args:
        anomaly_map: ``[h, w]``, higher is more anomalous.
        threshold: what lies strictly above it is anomalous.
        image_size: height and width of the original picture, in whose pixels the boxes are given.

    Returns:
        Regions by falling peak. ``score`` is the peak, ``area`` the pixels of the picture above the threshold.

    Raises:
        ValueError: the map has another number of dimensions, or is not finite.
    """
    if anomaly_map.ndim != 2:
        raise ValueError(f"anomaly_map must have the shape [h, w] but got {list(anomaly_map.shape)}")
    if not np.isfinite(anomaly_map).all():
        raise ValueError("anomaly_map must be finite but holds NaN or infinity")
    above = anomaly_map > threshold
    if not above.any():
        return []
    from scipy import ndimage  # a quarter of a second that the first normal pictures need not wait

    labelled, count = ndimage.label(above, _NEIGHBOURS)
    sizes = np.bincount(labelled.ravel())[1:]
    peaks = ndimage.maximum(anomaly_map, labelled, np.arange(1, count + 1))
    order = np.argsort(-peaks, kind="stable")
    large = order[sizes[order] >= _SMALLEST * anomaly_map.size]
    boxes = ndimage.find_objects(labelled)
    vertical, horizontal = image_size[0] / anomaly_map.shape[0], image_size[1] / anomaly_map.shape[1]
    regions = []
    for index in large if len(large) else order[:1]:
        rows, columns = boxes[index]
        top, left = math.floor(rows.start * vertical), math.floor(columns.start * horizontal)
        regions.append(
            Region(
                x=left,
                y=top,
                width=math.ceil(columns.stop * horizontal) - left,
                height=math.ceil(rows.stop * vertical) - top,
                area=max(1, round(int(sizes[index]) * vertical * horizontal)),
                score=float(peaks[index]),
            )
        )
    return regions
