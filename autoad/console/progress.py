"""How a search stands: what the live view shows, apart from how it is drawn."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable

from autoad.console.devices import Devices
from autoad.schema import Objective, TrialRow

__all__ = ["AlgorithmCount", "Progress", "Timed", "View"]


@dataclasses.dataclass(frozen=True)
class Timed:
    """A trial and when it began and ended, in seconds of the view's clock; None while it runs."""

    row: TrialRow
    began: float
    ended: float | None = None


@dataclasses.dataclass(frozen=True)
class AlgorithmCount:
    """What became of one algorithm's trials, and the time spent on them in seconds."""

    algorithm: str
    complete: int
    pruned: int
    failed: int
    best: float | None
    seconds: float


@dataclasses.dataclass(frozen=True)
class View:
    """A search at one moment.

    Attributes:
        name: of the search.
        objective: what ranks its trials.
        now: the moment, in seconds of the view's clock; all other times are of the same clock.
        since: when trials began.
        ended: trials that are over, in the order in which they ended.
        running: trials that are not, by number.
        ends_at: when the time is over; None for no limit.
        trial_limit: number of trials; None for no limit.
        devices: use of this machine; None where the search may run elsewhere.
    """

    name: str
    objective: Objective
    now: float
    since: float
    ended: tuple[Timed, ...]
    running: tuple[Timed, ...]
    ends_at: float | None = None
    trial_limit: int | None = None
    devices: Devices | None = None

    def value(self, row: TrialRow) -> float | None:
        """The objective of a trial."""
        return row.value(self.objective)

    @property
    def best(self) -> Timed | None:
        """The complete trial with the largest objective; the first of equals."""
        return max(
            (timed for timed in self.ended if self._ranks(timed.row)),
            key=lambda timed: self.value(timed.row) or 0.0,
            default=None,
        )

    @property
    def history(self) -> list[float]:
        """The best objective so far after each complete trial."""
        best, history = float("-inf"), []
        for timed in self.ended:
            if self._ranks(timed.row):
                best = max(best, self.value(timed.row) or 0.0)
                history.append(best)
        return history

    @property
    def trials_per_minute(self) -> float | None:
        """Ended trials by the time since trials began; None before either is there."""
        spent = self.now - self.since
        return 60 * len(self.ended) / spent if self.ended and spent > 0 else None

    @property
    def seconds_left(self) -> float | None:
        """Until the time is over or the last trial is expected to end, whichever is first; None if unknown."""
        ends = []
        if self.ends_at is not None:
            ends.append(self.ends_at - self.now)
        if self.trial_limit is not None and (rate := self.trials_per_minute):
            ends.append((self.trial_limit - len(self.ended)) * 60 / rate)
        return max(0.0, min(ends)) if ends else None

    def by_algorithm(self) -> list[AlgorithmCount]:
        """One entry for each algorithm that was tried, the best first, those without a result last."""
        rows: dict[str, list[TrialRow]] = {}
        for timed in (*self.ended, *self.running):
            rows.setdefault(timed.row.algorithm, []).append(timed.row)
        running = {timed.row.trial: self.now - timed.began for timed in self.running}
        counts = []
        for algorithm, its in rows.items():
            values = [self.value(row) or 0.0 for row in its if self._ranks(row)]
            status = [row.status for row in its]
            seconds = sum(row.seconds or running.get(row.trial, 0.0) for row in its)
            best = max(values, default=None)
            counts.append(
                AlgorithmCount(
                    algorithm, status.count("complete"), status.count("pruned"), status.count("failed"), best, seconds
                )
            )
        return sorted(counts, key=lambda count: (count.best is None, -(count.best or 0.0), count.algorithm))

    def by_node(self) -> dict[str, int]:
        """Running trials by machine, where trials ran on more than one."""
        names = {timed.row.node for timed in (*self.ended, *self.running)} - {None}
        if len(names) < 2:
            return {}
        return {str(name): sum(timed.row.node == name for timed in self.running) for name in sorted(map(str, names))}

    def _ranks(self, row: TrialRow) -> bool:
        return row.status == "complete" and self.value(row) is not None


class Progress:
    """Gathers rows into a :class:`View`; may be read by another thread than the one that feeds it.

    Args:
        objective: what ranks trials.
        clock: seconds since a fixed moment, without jumps.
    """

    def __init__(self, objective: Objective, clock: Callable[[], float]) -> None:
        self.name = ""
        self.objective: Objective = objective
        self.clock = clock
        self.since = 0.0
        self.ends_at: float | None = None
        self.trial_limit: int | None = None
        self._lock = threading.Lock()
        self._running: dict[int, Timed] = {}
        self._ended: dict[int, Timed] = {}

    def hear(self, row: TrialRow, *, began: float | None = None, ended: float | None = None) -> None:
        """Take in a trial as it stands now; times are those of the clock unless given."""
        with self._lock:
            now = self.clock()
            known = self._running.pop(row.trial, None)
            if began is None:
                began = known.began if known else now
            if row.status == "running":
                self._ended.pop(row.trial, None)  # begun again after an interruption
                self._running[row.trial] = Timed(row, began)
            else:
                self._ended.pop(row.trial, None)
                self._ended[row.trial] = Timed(row, began, now if ended is None else ended)

    def close(self) -> None:
        """No trial is to come, whatever time and number would allow."""
        self.ends_at = self.trial_limit = None

    def view(self, devices: Devices | None = None) -> View:
        """The search as it stands now."""
        with self._lock:
            ended, running = tuple(self._ended.values()), tuple(self._running[n] for n in sorted(self._running))
        return View(
            name=self.name,
            objective=self.objective,
            now=self.clock(),
            since=self.since,
            ended=ended,
            running=running,
            ends_at=self.ends_at,
            trial_limit=self.trial_limit,
            devices=devices,
        )
