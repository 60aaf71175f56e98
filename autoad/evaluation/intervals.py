"""Bootstrap intervals: how much a metric would vary with other pictures of the same kind.

Pictures are drawn with replacement, normal and anomalous ones separately (Efron, Tibshirani: An Introduction to the
Bootstrap, 1993; percentile intervals). A repeat is a row of counts, how often each picture was drawn, so that all
repeats together are a few matrix products. Where a metric is perfect the interval has no width: the bootstrap cannot
imagine pictures that were not there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from autoad.evaluation._checks import as_labels, as_maps, as_scores
from autoad.evaluation.pixels import AUPRO_LIMIT, NormalHistogram, find_anomalous_pixels

__all__ = ["PixelIntervals", "bootstrap_interval", "bootstrap_pixel_interval", "paired_difference"]

Interval = tuple[float, float]
_BINS = 1024
_CHUNK = 2**21  # numbers held at a time


@dataclasses.dataclass(frozen=True)
class PixelIntervals:
    """Low and high ends of the intervals of pixel AUROC and AUPRO; None where the metric cannot be computed."""

    pixel_auroc: Interval | None = None
    aupro: Interval | None = None


def bootstrap_interval(
    scores: npt.ArrayLike, labels: npt.ArrayLike, *, repeats: int = 2000, level: float = 0.95, seed: int = 0
) -> Interval | None:
    """Interval of image AUROC by stratified bootstrap.

    Args:
        scores: ``[N]``, higher is more anomalous.
        labels: ``[N]`` bool, True is anomalous.
        repeats: how many times to draw.
        level: share of the repeats that the interval holds.
        seed: of the draws.

    Returns:
        Low and high end; None unless there are normal and anomalous pictures.

    Raises:
        ValueError: scores are not finite, or labels do not belong to them.
    """
    values = as_scores("scores", scores)
    anomalous = as_labels(labels, values)
    _check(repeats, level)
    if anomalous.all() or not anomalous.any():
        return None
    draws = _draw(anomalous, repeats, seed, len(values))
    return _percentiles(np.concatenate([_aurocs(values, anomalous, counts) for counts in draws]), level)


def paired_difference(
    scores_a: npt.ArrayLike,
    scores_b: npt.ArrayLike,
    labels: npt.ArrayLike,
    *,
    repeats: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float, float] | None:
    """Image AUROC of ``a`` minus that of ``b`` on the same pictures, with its stratified bootstrap interval.

    Both are computed on the same draws, so that what makes a draw easy or hard for both cancels out.

    Args:
        scores_a: ``[N]``, higher is more anomalous.
        scores_b: ``[N]`` scores of the same pictures by another model.
        labels: ``[N]`` bool, True is anomalous.
        repeats: how many times to draw.
        level: share of the repeats that the interval holds.
        seed: of the draws.

    Returns:
        Difference, low end, high end; None unless there are normal and anomalous pictures.

    Raises:
        ValueError: scores are not finite, or labels do not belong to them.
    """
    first, second = as_scores("scores_a", scores_a), as_scores("scores_b", scores_b)
    anomalous = as_labels(labels, first)
    if second.shape != first.shape:
        raise ValueError(f"scores_b must have the shape {list(first.shape)} of scores_a but got {list(second.shape)}")
    _check(repeats, level)
    if anomalous.all() or not anomalous.any():
        return None
    once = np.ones((1, len(first)))
    difference = float((_aurocs(first, anomalous, once) - _aurocs(second, anomalous, once))[0])
    draws = _draw(anomalous, repeats, seed, len(first))
    differences = [_aurocs(first, anomalous, counts) - _aurocs(second, anomalous, counts) for counts in draws]
    return difference, *_percentiles(np.concatenate(differences), level)


def bootstrap_pixel_interval(
    maps: npt.NDArray[np.float32],
    masks: npt.NDArray[np.bool_],
    *,
    repeats: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> PixelIntervals:
    """Intervals of pixel AUROC and AUPRO by stratified bootstrap over pictures.

    Pixels of one picture are no independent draws, so whole pictures are drawn, those with a mask and those without
    separately. Each picture is reduced once to counts in common bins of score.

    Args:
        maps: ``[N, H, W]`` float32, higher is more anomalous.
        masks: ``[N, H, W]`` bool, True where anomalous.
        repeats: how many times to draw.
        level: share of the repeats that the interval holds.
        seed: of the draws.

    Raises:
        ValueError: shapes differ, a map is not finite, or a mask is not boolean.
    """
    maps, masks = as_maps(maps, masks)
    _check(repeats, level)
    if masks.all() or not masks.any():
        return PixelIntervals()
    defective = np.asarray(masks.any(axis=(1, 2)))
    pixels = find_anomalous_pixels(maps, masks)
    histogram = NormalHistogram.of(maps, masks, _BINS)
    normal = np.stack([_count(histogram, one[~mask]) for one, mask in zip(maps, masks, strict=True)])
    shape = (len(maps), len(histogram))
    cells = pixels.picture * shape[1] + histogram.find(pixels.scores)
    size = shape[0] * shape[1]
    anomalous = np.bincount(cells, minlength=size).reshape(shape).astype(np.float64)
    overlap = np.bincount(cells, pixels.overlap, minlength=size).reshape(shape)
    aurocs, aupros = [], []
    for counts in _draw(defective, repeats, seed, len(histogram)):
        false_positive = _curve(counts @ normal)
        aurocs.append(_area(false_positive, _curve(counts @ anomalous), 1.0))
        aupros.append(_area(false_positive, _curve(counts @ overlap), AUPRO_LIMIT) / AUPRO_LIMIT)
    return PixelIntervals(_percentiles(np.concatenate(aurocs), level), _percentiles(np.concatenate(aupros), level))


def _check(repeats: int, level: float) -> None:
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1 but got {repeats}")
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1 but got {level}")


def _draw(strata: npt.NDArray[np.bool_], repeats: int, seed: int, width: int) -> Iterator[npt.NDArray[np.float64]]:
    """``[r, N]`` how often each picture was drawn, in chunks of repeats that ``width`` numbers each keep small."""
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(strata), np.flatnonzero(~strata)]
    step = max(1, _CHUNK // max(width, len(strata)))
    for start in range(0, repeats, step):
        rows = min(step, repeats - start)
        counts = np.zeros((rows, len(strata)))
        for group in members:
            if len(group):
                drawn = rng.integers(len(group), size=(rows, len(group))) + np.arange(rows)[:, None] * len(group)
                counts[:, group] = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape)
        yield counts


def _aurocs(
    scores: npt.NDArray[np.float64], anomalous: npt.NDArray[np.bool_], counts: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """AUROC of each of ``[r, N]`` draws: the chance that an anomalous one scores above a normal one, ties half."""
    order = np.argsort(scores, kind="stable")
    ranked, counts = scores[order], counts[:, order]
    first = np.flatnonzero(np.append(True, ranked[1:] != ranked[:-1]))
    positive = np.add.reduceat(counts * anomalous[order], first, axis=1)
    negative = np.add.reduceat(counts * ~anomalous[order], first, axis=1)
    below = np.cumsum(negative, axis=1) - negative / 2
    areas: npt.NDArray[np.float64] = (positive * below).sum(axis=1) / (positive.sum(axis=1) * negative.sum(axis=1))
    return areas


def _count(histogram: NormalHistogram, scores: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    return np.bincount(histogram.find(np.sort(scores)), minlength=len(histogram)).astype(np.float64)


def _curve(amounts: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """``[r, K]`` amounts by ascending bin -> ``[r, K + 1]`` share at or above each, the highest first, from 0 to 1."""
    totals = np.cumsum(amounts[:, ::-1], axis=1)
    return np.pad(totals / totals[:, -1:], ((0, 0), (1, 0)))


def _area(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64], limit: float) -> npt.NDArray[np.float64]:
    """Area under each of ``[r, K]`` curves from ``x = 0`` to ``limit``, by trapezoids, the last one cut."""
    width, rise = np.diff(x, axis=1), np.diff(y, axis=1)
    cut = np.clip(limit - x[:, :-1], 0, width)
    slope = np.divide(rise, width, out=np.zeros_like(rise), where=width > 0)
    areas: npt.NDArray[np.float64] = (cut * (y[:, :-1] + slope * cut / 2)).sum(axis=1)
    return areas


def _percentiles(values: npt.NDArray[np.float64], level: float) -> Interval:
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
