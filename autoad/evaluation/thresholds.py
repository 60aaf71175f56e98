"""From a raw score to a verdict: thresholds with a guarantee, and scores on a scale that people can read.

A picture is anomalous when its raw score is *greater* than the threshold.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import numpy.typing as npt

from autoad.errors import CalibrationError
from autoad.evaluation._checks import as_scores

__all__ = [
    "Threshold",
    "conformal_rank",
    "conformal_threshold",
    "measured_threshold",
    "normalize_scores",
    "score_scale",
    "smallest_rate",
]

_CONFIDENCE = 0.9
_ROUNDING = 1e-9


@dataclasses.dataclass(frozen=True)
class Threshold:
    """A threshold, and how often normal pictures exceed it.

    Attributes:
        value: a picture is anomalous when its raw score is greater.
        rate: largest chance, on average over calibration sets, that a new normal picture is called anomalous; of a
            threshold that is not conformal, the share of calibration pictures that are.
        rate_upper: 90 % upper bound on the false-positive rate that this very threshold has.
        n: number of calibration pictures behind it.
    """

    value: float
    rate: float
    rate_upper: float
    n: int


def smallest_rate(n: int) -> float:
    """The smallest false-positive rate that ``n`` calibration pictures can guarantee, ``1 / (n + 1)``."""
    return 1 / (n + 1)


def conformal_rank(n: int, rate: float) -> int:
    """Which of ``n`` calibration scores, counted from the largest, is the threshold; 0 where none guarantees ``rate``.

    The ``k``-th largest guarantees ``k / (n + 1)``.
    """
    return min(n, math.floor(rate * (n + 1) + _ROUNDING))


def conformal_threshold(calibration_scores: npt.ArrayLike, rate: float) -> Threshold:
    """The smallest threshold that a new normal picture exceeds with a probability of at most ``rate``.

    Split-conformal prediction (Vovk, Gammerman, Shafer: Algorithmic Learning in a Random World, 2005): among ``n + 1``
    exchangeable scores each is as likely as any other to be the new one, so at most ``k / (n + 1)`` is the chance that
    it exceeds the ``k``-th largest of the other ``n``. This holds for any distribution, on average over calibration
    sets: one set of ten pictures may be luckier than another.

    How lucky, ``rate_upper`` bounds. Given the calibration set, the share of normal pictures above its ``k``-th largest
    score is that above the ``k``-th largest of ``n`` uniform numbers, so it has a Beta(k, n + 1 - k) distribution over
    calibration sets (Vovk: Conditional validity of inductive conformal predictors, 2012), whose .9 quantile is the
    bound. Ties only lower the share, for what ties with the threshold is not above it.

    Args:
        calibration_scores: ``[n]`` raw scores of normal pictures that the model was neither fitted nor chosen on.
        rate: false-positive rate to guarantee, between 0 and 1.

    Raises:
        CalibrationError: so small a rate needs more pictures, or it is no rate.
        ValueError: scores are not finite.
    """
    scores = np.sort(as_scores("calibration_scores", calibration_scores))
    n = len(scores)
    if not 0 < rate < 1:
        raise CalibrationError(f"the false-positive rate must lie between 0 and 1 but got {rate}")
    rank = conformal_rank(n, rate)
    if rank < 1:
        needed = math.ceil(1 / rate - _ROUNDING) - 1
        raise CalibrationError(
            f"a false-positive rate of {rate:g} needs at least {needed} calibration pictures but got {n}, which can "
            f"guarantee {smallest_rate(n):.3g}; add normal pictures or ask for a larger rate"
        )
    return Threshold(float(scores[n - rank]), rate, _rate_upper(rank, n), n)


def measured_threshold(value: float, calibration_scores: npt.ArrayLike) -> Threshold:
    """A threshold that was found otherwise, with the share of calibration scores above it.

    ``rate_upper`` is that share's one-sided 90 % bound by Clopper and Pearson (The use of confidence or fiducial limits
    illustrated in the case of the binomial, 1934). It takes the threshold as given: one that was found with the same
    scores is covered a little less often (in the worst of the tests' simulations 84 times in 100).

    Args:
        value: the threshold.
        calibration_scores: ``[n]`` raw scores of normal pictures, at least one.

    Raises:
        ValueError: there are none, or they are not finite.
    """
    scores = as_scores("calibration_scores", calibration_scores)
    n, above = len(scores), int((scores > value).sum())
    if not n:
        raise ValueError("calibration_scores must hold at least one score but got none")
    return Threshold(value, above / n, _rate_upper(above + 1, n), n)


def _rate_upper(rank: int, n: int) -> float:
    """90 % bound on the share of normal pictures above the ``rank``-th largest of ``n`` scores; 1 beyond the last."""
    from scipy.special import betaincinv  # a quarter of a second that no process that only scores should wait

    return 1.0 if rank > n else float(betaincinv(rank, n + 1 - rank, _CONFIDENCE))


def score_scale(calibration_scores: npt.ArrayLike) -> float:
    """The spread of normal scores: their interquartile range, or a millionth of their size where they all agree.

    Raises:
        ValueError: there are none, or they are not finite.
    """
    scores = as_scores("calibration_scores", calibration_scores)
    if not len(scores):
        raise ValueError("calibration_scores must hold at least one score but got none")
    low, high = np.quantile(scores, [0.25, 0.75])
    return float(max(high - low, 1e-6 * np.abs(scores).max())) or 1.0


def normalize_scores(raw: npt.ArrayLike, threshold: float, scale: float) -> npt.NDArray[np.float64]:
    """Raw scores on a scale from 0 to 1, with 0.5 exactly at the threshold.

    With ``z = (raw - threshold) / scale`` it is ``(1 + z / (1 + |z|)) / 2``: 0.75 one spread above the threshold, 0.9
    four above. It approaches its ends slowly, so that it hardly saturates: scores that differ by a thousandth of a
    spread stay apart up to a million spreads above the threshold (beyond, two may get one value), and everywhere below.

    Args:
        raw: scores of any shape.
        threshold: the raw score that becomes 0.5.
        scale: from :func:`score_scale`.

    Raises:
        ValueError: the scale is not positive.
    """
    if not scale > 0:
        raise ValueError(f"scale must be positive but got {scale}")
    with np.errstate(over="ignore"):  # an infinite z is the end of the scale
        z = (np.asarray(raw, dtype=np.float64) - threshold) / scale
        tail = 0.5 / (1 + np.abs(z))
    return np.asarray(np.where(z < 0, tail, 1 - tail))
