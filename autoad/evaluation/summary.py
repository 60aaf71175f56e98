"""Metrics of whole sets of pictures, as the leaderboard and the report show them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from autoad.data import GOOD
from autoad.evaluation.metrics import image_metrics
from autoad.evaluation.pixels import pixel_metrics
from autoad.schema import Metrics

__all__ = ["by_defect", "compute_metrics", "known_pixels"]

_Masks = Sequence[npt.NDArray[np.bool_] | None]


def known_pixels(
    maps: npt.NDArray[np.float32] | None, masks: _Masks | None
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]] | None:
    """Maps and masks ``[K, H, W]`` of the pictures whose defects are known to the pixel.

    Args:
        maps: ``[N, H, W]`` float32; None for algorithms without a map.
        masks: ``[H, W]`` bool for each picture, None for a defective one whose mask is missing; None for all.

    Returns:
        None where there is no map, or no mask shows a defect.
    """
    if maps is None or masks is None or not any(mask is not None and mask.any() for mask in masks):
        return None
    rows = [row for row, mask in enumerate(masks) if mask is not None]
    return maps[rows], np.stack([mask for mask in masks if mask is not None])


def compute_metrics(
    scores: npt.ArrayLike,
    labels: npt.ArrayLike,
    maps: npt.NDArray[np.float32] | None = None,
    masks: _Masks | None = None,
    *,
    exact: bool = True,
) -> Metrics:
    """Image metrics, and pixel metrics over the pictures whose masks are known.

    Args:
        scores: ``[N]``, higher is more anomalous.
        labels: ``[N]`` bool, True is anomalous.
        maps: ``[N, H, W]`` float32; None for algorithms without a map.
        masks: ``[H, W]`` bool for each picture, None for a defective one whose mask is missing; None for all.
        exact: whether pixel metrics are exact rather than from a histogram.

    Raises:
        ValueError: something is not finite or does not belong together.
    """
    image = image_metrics(scores, labels)
    known = known_pixels(maps, masks)
    pixel = None if known is None else pixel_metrics(*known, exact=exact)
    return Metrics(
        image_auroc=image.image_auroc,
        image_aupr=image.image_aupr,
        image_f1_max=image.image_f1_max,
        pixel_auroc=None if pixel is None else pixel.pixel_auroc,
        aupro=None if pixel is None else pixel.aupro,
    )


def by_defect(
    scores: npt.ArrayLike,
    labels_by_name: Sequence[str],
    maps: npt.NDArray[np.float32] | None = None,
    masks: _Masks | None = None,
    *,
    exact: bool = True,
) -> dict[str, Metrics]:
    """Metrics for each type of defect: its pictures against all normal ones.

    Args:
        scores: ``[N]``, higher is more anomalous.
        labels_by_name: ``[N]`` names of the defects, ``"good"`` for normal pictures.
        maps: ``[N, H, W]`` float32; None for algorithms without a map.
        masks: ``[H, W]`` bool for each picture, None for a defective one whose mask is missing; None for all.
        exact: whether pixel metrics are exact rather than from a histogram.

    Returns:
        Metrics by the defect's name, in alphabetical order.

    Raises:
        ValueError: something is not finite or does not belong together.
    """
    values, names = np.asarray(scores), np.asarray(labels_by_name, dtype=np.str_)
    if values.shape != names.shape:
        raise ValueError(
            f"labels_by_name must have the shape {list(values.shape)} of the scores but got {list(names.shape)}"
        )
    result = {}
    for defect in sorted(set(names.tolist()) - {GOOD}):
        rows = np.flatnonzero((names == defect) | (names == GOOD))
        result[defect] = compute_metrics(
            values[rows],
            names[rows] == defect,
            None if maps is None else maps[rows],
            None if masks is None else [masks[int(row)] for row in rows],
            exact=exact,
        )
    return result
