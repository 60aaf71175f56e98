"""Metrics of anomaly maps: pixel AUROC and AUPRO.

The per-region overlap (PRO) at a threshold is the mean, over the connected components of the masks, of the share of
the component that the thresholded map covers. AUPRO is the area under PRO against the false-positive rate over all
normal pixels of all pictures, up to a rate of 0.3, divided by 0.3 (Bergmann, Batzner, Fauser, Sattlegger, Steger: The
MVTec Anomaly Detection Dataset, IJCV 2021). Regions are 8-connected: pixels that touch at a corner belong together.

Both areas are sums over anomalous pixels. Lowering the threshold past the score of one such pixel, of weight
``1 / (size of its region x number of regions)``, lifts the curve by that weight from there on; so its share of the area
is its weight times the width that is left. Only the normal pixels have to be sorted, once, and no threshold is tried.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import numpy.typing as npt

from autoad.evaluation._checks import as_maps
from autoad.evaluation.metrics import PixelMetrics

__all__ = ["AUPRO_LIMIT", "AnomalousPixels", "NormalHistogram", "find_anomalous_pixels", "pixel_metrics"]

AUPRO_LIMIT = 0.3
_NEIGHBOURS = np.zeros((3, 3, 3), dtype=bool)
_NEIGHBOURS[1] = True  # 8-connected within a picture, never across pictures
_BINS = 4096
_LATTICE = 2**20


@dataclasses.dataclass(frozen=True)
class AnomalousPixels:
    """The anomalous pixels of a set of maps.

    Attributes:
        scores: ``[P]`` float32.
        picture: ``[P]`` index of the picture they lie in.
        overlap: ``[P]`` share of its region that each is, ``1 / size``.
        regions: number of regions in all pictures.
    """

    scores: npt.NDArray[np.float32]
    picture: npt.NDArray[np.int64]
    overlap: npt.NDArray[np.float64]
    regions: int


def find_anomalous_pixels(maps: npt.NDArray[np.float32], masks: npt.NDArray[np.bool_]) -> AnomalousPixels:
    """Take the anomalous pixels out of ``[N, H, W]`` maps and find the regions that they form."""
    from scipy import ndimage  # a quarter of a second that no process without masks should wait

    defective = np.flatnonzero(masks.any(axis=(1, 2)))
    inside = masks[defective]
    labelled, count = ndimage.label(inside, _NEIGHBOURS)
    region = labelled[inside]
    return AnomalousPixels(
        scores=maps[defective][inside],
        picture=np.repeat(defective, inside.sum(axis=(1, 2))),
        overlap=1 / np.bincount(region, minlength=1)[region],
        regions=int(count),
    )


@dataclasses.dataclass(frozen=True)
class NormalHistogram:
    """Bins of scores that hold about equally many normal pixels, however heavy the tail.

    Attributes:
        edges: ``[K]`` ascending upper edges of the first ``K`` bins, themselves included; one more bin lies above all.
        rates: ``[K + 2]`` descending false-positive rates; bin ``k`` spans those from ``rates[k + 1]`` to ``rates[k]``.
    """

    edges: npt.NDArray[np.float32]
    rates: npt.NDArray[np.float64]

    @classmethod
    def of(cls, maps: npt.NDArray[np.float32], masks: npt.NDArray[np.bool_], bins: int = _BINS) -> NormalHistogram:
        """Histogram of the normal pixels of ``[N, H, W]`` maps, on a lattice of about a million pixels."""
        step = max(1, math.isqrt(maps.size // _LATTICE))
        thinned = []
        # The lattice starts at another pixel in each picture: borders and corners, often odd, get their due.
        for start in range(step**2):
            top, left = divmod(start, step)
            chosen = np.s_[start :: step**2, top::step, left::step]
            thinned.append(maps[chosen][~masks[chosen]])
        normal = np.sort(np.concatenate(thinned))
        if not len(normal):
            normal = np.sort(maps[~masks])
        quantiles = normal[np.linspace(0, len(normal) - 1, bins).round().astype(np.int64)]
        # A value that many pixels share gets a bin to itself, which ends just below it and at it.
        edges = np.unique(np.concatenate([quantiles, np.nextafter(quantiles, np.float32(-np.inf))]))
        above = 1 - np.searchsorted(normal, edges, side="right") / len(normal)
        return cls(edges, np.concatenate([[1.0], above, [0.0]]))

    def __len__(self) -> int:
        return len(self.edges) + 1

    def find(self, scores: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
        """The bin of each score."""
        return np.searchsorted(self.edges, scores)


def pixel_metrics(maps: npt.NDArray[np.float32], masks: npt.NDArray[np.bool_], *, exact: bool) -> PixelMetrics:
    """Pixel AUROC and AUPRO of anomaly maps.

    Args:
        maps: ``[N, H, W]`` float32, higher is more anomalous.
        masks: ``[N, H, W]`` bool, True where anomalous; all False for normal pictures.
        exact: False estimates the false-positive rate by a histogram of normal pixels on a lattice of reduced size
            (about a million of them); its error is at most .002.

    Raises:
        ValueError: shapes differ, a map is not finite, or a mask is not boolean.
    """
    maps, masks = as_maps(maps, masks)
    if masks.all() or not masks.any():
        return PixelMetrics()
    pixels = find_anomalous_pixels(maps, masks)
    if exact:
        normal = np.sort(maps[~masks])
        order = np.argsort(pixels.scores)  # neighbours in the search stay neighbours in memory
        scores, overlap = pixels.scores[order], pixels.overlap[order]
        amount = np.ones(len(order))
        above = 1 - np.searchsorted(normal, scores, side="right") / len(normal)
        at_least = 1 - np.searchsorted(normal, scores, side="left") / len(normal)
    else:
        histogram = NormalHistogram.of(maps, masks)
        bins = histogram.find(pixels.scores)
        overlap = np.bincount(bins, pixels.overlap, minlength=len(histogram)).astype(np.float64)
        amount = np.bincount(bins, minlength=len(histogram)).astype(np.float64)
        above, at_least = histogram.rates[1:], histogram.rates[:-1]
    return PixelMetrics(
        pixel_auroc=float(amount @ _width_left(above, at_least, 1.0)) / len(pixels.scores),
        aupro=float(overlap @ _width_left(above, at_least, AUPRO_LIMIT)) / (pixels.regions * AUPRO_LIMIT),
    )


def _width_left(
    above: npt.NDArray[np.float64], at_least: npt.NDArray[np.float64], limit: float
) -> npt.NDArray[np.float64]:
    """Area up to ``limit`` under curves that rise from 0 to 1 while the false-positive rate goes between two values.

    ``above`` and ``at_least`` are the shares of normal pixels that score more than, and no less than, an anomalous
    one: they differ where it ties with normal pixels, and there the curve is a straight line.
    """
    rise = at_least - above
    cut = np.clip(limit - above, 0, rise)
    triangle = np.divide(cut**2, 2 * rise, out=np.zeros_like(rise), where=rise > 0)
    return triangle + np.clip(limit - at_least, 0, None)
