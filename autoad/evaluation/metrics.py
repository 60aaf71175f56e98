"""Metrics of image scores, and the records of metrics.

Ties are handled throughout: pictures of equal score pass a threshold together.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from autoad.evaluation._checks import as_labels, as_scores

__all__ = ["Cuts", "ImageMetrics", "PixelMetrics", "count_cuts", "image_metrics"]


@dataclasses.dataclass(frozen=True)
class ImageMetrics:
    """How well image scores tell anomalous pictures from normal ones; all None unless there are both.

    Attributes:
        image_auroc: area under the ROC curve; the chance that an anomalous picture scores above a normal one, ties
            counted half.
        image_aupr: area under the precision-recall curve, as average precision (no interpolation).
        image_f1_max: best F1 over all thresholds.
    """

    image_auroc: float | None = None
    image_aupr: float | None = None
    image_f1_max: float | None = None


@dataclasses.dataclass(frozen=True)
class PixelMetrics:
    """How well anomaly maps tell anomalous pixels from normal ones; None unless there are both.

    Attributes:
        pixel_auroc: area under the ROC curve of all pixels of all pictures.
        aupro: area under the per-region overlap curve up to a false-positive rate of 0.3, divided by 0.3.
    """

    pixel_auroc: float | None = None
    aupro: float | None = None


@dataclasses.dataclass(frozen=True)
class Cuts:
    """What lies at or above each distinct score, the highest first.

    Attributes:
        values: ``[K]`` distinct scores, descending.
        anomalous: ``[K]`` number of anomalous pictures that score at least that.
        normal: ``[K]`` number of normal ones.
    """

    values: npt.NDArray[np.float64]
    anomalous: npt.NDArray[np.int64]
    normal: npt.NDArray[np.int64]

    @property
    def f1(self) -> npt.NDArray[np.float64]:
        """``[K]`` F1 of calling anomalous what scores at least that."""
        # F1 = 2 TP / (2 TP + FP + FN), and TP + FN is the number of anomalous pictures.
        f1: npt.NDArray[np.float64] = 2 * self.anomalous / (self.anomalous + self.normal + self.anomalous[-1])
        return f1


def count_cuts(scores: npt.ArrayLike, labels: npt.ArrayLike) -> Cuts | None:
    """Count pictures above each distinct score; None unless there are normal and anomalous ones.

    Raises:
        ValueError: scores are not finite, or labels do not belong to them.
    """
    values = as_scores("scores", scores)
    anomalous = as_labels(labels, values)
    if anomalous.all() or not anomalous.any():
        return None
    order = np.argsort(-values, kind="stable")
    ranked = values[order]
    last = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(ranked) - 1)
    above = np.cumsum(anomalous[order])[last]
    return Cuts(ranked[last], above, last + 1 - above)


def image_metrics(scores: npt.ArrayLike, labels: npt.ArrayLike) -> ImageMetrics:
    """Image AUROC, AUPR and F1-max.

    Args:
        scores: ``[N]``, higher is more anomalous.
        labels: ``[N]`` bool, True is anomalous.

    Raises:
        ValueError: scores are not finite, or labels do not belong to them.
    """
    cuts = count_cuts(scores, labels)
    if cuts is None:
        return ImageMetrics()
    true_positive = cuts.anomalous / cuts.anomalous[-1]
    false_positive = cuts.normal / cuts.normal[-1]
    precision = cuts.anomalous / (cuts.anomalous + cuts.normal)
    return ImageMetrics(
        image_auroc=float(np.trapezoid(np.append(0, true_positive), np.append(0, false_positive))),
        image_aupr=float(np.sum(np.diff(true_positive, prepend=0) * precision)),
        image_f1_max=float(cuts.f1.max()),
    )
