"""Which algorithm gets the next trial: time follows promise.

Left to itself a sampler counts trials, and in the time of one normalising flow it tries fifty density estimates. Here
algorithms are dealt *time*: each is due a share that falls exponentially with the distance of its best result to the
best of all, measured in standard errors of the objective, and the one that is furthest behind its due goes next.
What lies within chance of the best is tried as much as the best; nothing is ever given up entirely.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

__all__ = ["Standing", "choose_algorithm", "standard_error"]

_TEMPERATURE = 1.0
"""Standard errors by which a best result must lie below the best of all to be due an e-th of its share."""

_SMALLEST_SHARE = 0.03


@dataclasses.dataclass
class Standing:
    """How an algorithm has done.

    Attributes:
        best: its best objective; None if no trial of it has finished.
        spent: time on it, running trials included.
        failed: how many of them gave nothing.
    """

    best: float | None = None
    spent: float = 0.0
    failed: int = 0


def choose_algorithm(standings: Mapping[str, Standing], error: float) -> str:
    """The algorithm furthest behind the time that it is due.

    Args:
        standings: by algorithm, in the order in which ties are decided.
        error: standard error of the objective.
    """
    results = [standing.best for standing in standings.values() if standing.best is not None]
    top = max(results, default=0.0)

    def due(standing: Standing) -> float:
        if standing.best is None:  # nothing but failures, or nothing yet
            return 1.0 / (1 + standing.failed) ** 2
        return max(_SMALLEST_SHARE, math.exp((standing.best - top) / (_TEMPERATURE * error)))

    return min(standings, key=lambda name: standings[name].spent / due(standings[name]))


def standard_error(value: float, normal: int, anomalous: int) -> float:
    """Of an AUROC near ``value`` from so many pictures of each class (the binomial bound on the smaller class)."""
    count = max(1, min(normal, anomalous))
    value = (value * count + 0.5) / (count + 1)  # never 0 or 1
    return math.sqrt(value * (1 - value) / count)
