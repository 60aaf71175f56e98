"""How much a search may spend on trials."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

__all__ = ["TRIALS_SHARE", "Budget"]

TRIALS_SHARE = 0.82
"""Of a search's time, what is for trials; the rest is for the champion."""

_TRIAL_SHARE = 0.06
_TIMEOUT_TO_FIT = 0.8
_NO_NEW_TRIALS = 0.02
_TIMEOUT_SHARE = 0.25
_SHORTEST_TIMEOUT, _TIMEOUT_WITHOUT_LIMIT = 60.0, 3600.0


@dataclasses.dataclass
class Budget:
    """How much may be spent on trials.

    Attributes:
        trials: number of trials; None for no limit.
        seconds: of the search's own time; None for no limit.
        workers: trials that run side by side, at the start.
        patience: finished trials in a row that may fail to improve the best; None for no limit.
        timeout: seconds after which a trial counts as hanging; None for a quarter of ``seconds``, at least a minute.
        before: seconds that earlier processes spent on the same search.
        clock: seconds, from any origin.
    """

    trials: int | None
    seconds: float | None
    workers: int
    patience: int | None = None
    timeout: float | None = None
    before: float = 0.0
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self.started = self.clock()

    @property
    def elapsed(self) -> float:
        """Seconds of the search's own time."""
        return self.before + self.clock() - self.started

    @property
    def left(self) -> float:
        """Seconds until the time is up; infinite without a limit."""
        return float("inf") if self.seconds is None else self.seconds - self.elapsed

    def is_spent(self, asked: int, since_best: int = 0) -> bool:
        """Whether no further trial should begin.

        Args:
            asked: trials that have begun so far.
            since_best: trials that have finished since the best one did.
        """
        if self.trials is not None and asked >= self.trials:
            return True
        if self.patience is not None and since_best >= self.patience:
            return True
        return self.seconds is not None and self.elapsed > self.seconds * (1 - _NO_NEW_TRIALS)

    def share(self) -> float | None:
        """Seconds for which the next trial of an algorithm that trains may fit; None for no limit.

        However many workers there are, it has come to its end well before it would count as hanging.
        """
        if self.seconds is None:
            return None
        longest = _TIMEOUT_TO_FIT * min(self.trial_timeout(), _TIMEOUT_SHARE * self.seconds)
        return max(0.0, min(_TRIAL_SHARE * self.seconds * self.workers, longest, self.left))

    def trial_timeout(self) -> float:
        """Seconds after which a trial counts as hanging."""
        if self.timeout is not None:
            return self.timeout
        return _TIMEOUT_WITHOUT_LIMIT if self.seconds is None else max(_SHORTEST_TIMEOUT, _TIMEOUT_SHARE * self.seconds)
