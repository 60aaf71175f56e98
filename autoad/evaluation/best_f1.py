"""The threshold of the best F1 between anomalous and normal scores, of pictures or of pixels."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from autoad.errors import CalibrationError
from autoad.evaluation._checks import as_scores

__all__ = ["BestF1"]


class BestF1:
    """Finds the threshold above which scores are called anomalous with the greatest F1.

    F1 (van Rijsbergen: Information Retrieval, 1979) is the harmonic mean of precision and recall. Only a threshold just
    below an anomalous score can be best, for a lower one, down to the next anomalous score, adds false positives alone.
    So counts at these cuts are all that is kept, and normal scores may come in parts: memory is that of the anomalous
    ones.

    Args:
        anomalous: ``[N]`` scores of what should be found.

    Raises:
        CalibrationError: there are none.
        ValueError: scores are not finite.
    """

    def __init__(self, anomalous: npt.ArrayLike) -> None:
        scores = as_scores("anomalous", anomalous)
        if not len(scores):
            raise CalibrationError(
                "the threshold of the best F1 needs at least one labelled defect but got none; label some, or ask for "
                "a conformal threshold"
            )
        self._cuts, counts = np.unique(scores, return_counts=True)
        self._found = counts[::-1].cumsum()[::-1]
        self._mistaken = np.zeros(len(self._cuts), dtype=np.int64)
        self._below = np.append(-np.inf, self._cuts[:-1])

    def add(self, normal: npt.ArrayLike) -> None:
        """Count ``[N]`` more scores of what should not be found.

        Raises:
            ValueError: scores are not finite.
        """
        scores = np.sort(as_scores("normal", normal))
        below = np.searchsorted(scores, self._cuts)
        self._mistaken += len(scores) - below
        some = below > 0
        self._below[some] = np.maximum(self._below[some], scores[below[some] - 1])

    @property
    def threshold(self) -> float:
        """Midway between the two scores that it parts, so that a small change of either turns neither over.

        Of several that are best it is the highest, with the fewest false alarms. Where all scores are best called
        anomalous it lies just below the lowest.
        """
        f1 = 2 * self._found / (self._found + self._mistaken + self._found[0])
        best = len(f1) - 1 - int(np.argmax(f1[::-1]))
        return _between(float(self._below[best]), float(self._cuts[best]))


def _between(lower: float, upper: float) -> float:
    """A number ``t`` with ``lower <= t < upper`` for scores in float32, and so in float32 too, as maps are compared."""
    if math.isinf(lower):
        return float(np.nextafter(np.float32(upper), np.float32(-np.inf)))
    middle = float(np.float32(lower / 2 + upper / 2))
    return middle if lower <= middle < upper else lower
