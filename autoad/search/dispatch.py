"""Which worker tries what: every decision of a search, and no process, file or clock of its own.

Workers come, take jobs, report, and may be lost; the :class:`Dispatcher` proposes trials, stops those that fall behind,
keeps within time and memory, and commits a row before the study hears of it. :mod:`autoad.search.tuning` drives it with
Ray Tune, ``benchmarks/search_strategies.py`` with a simulated clock.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optuna

from autoad.algorithms import get_algorithm
from autoad.schema import Metrics, Objective, Origin, TrialRow
from autoad.search.budget import Budget
from autoad.search.cost import CostModel
from autoad.search.jobs import Job, Listener, Strategy, Suggestion
from autoad.search.ladders import AlgorithmLadders
from autoad.search.shares import Standing, choose_algorithm, standard_error
from autoad.search.space import Space
from autoad.search.study import Proposer
from autoad.search.trial import RUNGS

__all__ = ["Dispatcher"]

_EXACT_ROWS = 5
_PROPOSALS = 4
_REPETITIONS = 16
"""Proposals in a row that may repeat what was tried before; a quarter of them the sampler's, the rest random."""

_WAITING = 4
_ATTEMPTS = 2
_LOADING = 4
"""Timeouts that a trial may wait for its features, which a whole node computes only once."""

_LONGEST_SHARE = 0.25
_REPEATED = "was tried before"


@dataclasses.dataclass
class _Running:
    """A trial that a worker is busy with, or that waits for one.

    Attributes:
        memory: bytes that it is expected to take.
        limit: bytes that it may take; None for no limit.
        deadline: when it counts as hanging.
        patience: seconds from its last sign of life until then.
        alone: whether it may run only where nothing else does.
        had_all: whether nothing else ever ran beside it.
        reported: epochs of which Optuna was told.
    """

    trial: optuna.Trial
    row: TrialRow
    began: float
    memory: int
    limit: int | None = None
    deadline: float = math.inf
    patience: float = math.inf
    alone: bool = False
    attempts: int = 1
    had_all: bool = False
    reported: set[int] = dataclasses.field(default_factory=set)


class Dispatcher:
    """See the module.

    Args:
        proposer: the study.
        spaces: search space by algorithm.
        budget: when to stop proposing; its clock is the only one.
        commit: stores a row.
        listener: is told of trials that begin and end.
        objective: metric that is maximised.
        epochs: ceiling of epochs by algorithm that trains.
        pictures: normal and anomalous selection pictures, for the objective's standard error.
        queue: trials to begin with.
        known: rows of an interrupted search.
        timed: whether the clock may decide anything but the end.
        memory: bytes that a trial is expected to take, by algorithm and configuration.
        strategy: what helps the search along.
    """

    def __init__(
        self,
        proposer: Proposer,
        spaces: dict[str, Space],
        budget: Budget,
        commit: Callable[[TrialRow], None],
        listener: Listener,
        *,
        objective: Objective = "image_auroc",
        epochs: Mapping[str, int] | None = None,
        pictures: tuple[int, int] = (1, 1),
        queue: Sequence[Suggestion] = (),
        known: Sequence[TrialRow] = (),
        timed: bool = True,
        memory: Callable[[str, Mapping[str, Any]], int] | None = None,
        strategy: Strategy | None = None,
    ) -> None:
        self._proposer = proposer
        self._spaces = spaces
        self._budget = budget
        self._commit = commit
        self._listener = listener
        self._objective = objective
        self._epochs = dict(epochs or {})
        self._pictures = pictures
        self._queue = deque(queue)
        self._timed = timed
        self._memory = memory
        self._strategy = strategy or Strategy()
        self._costs = CostModel(spaces)
        self._ladders = AlgorithmLadders(spaces)
        self._standings = {name: Standing() for name in spaces}
        self._running: dict[str, _Running] = {}
        self._again: deque[_Running] = deque()
        self._objectives: list[float] = []
        self._counted = 0
        self._since_best = 0
        self._refusals: list[str] = []
        self._nothing_fits = False
        self._nodes: dict[str | None, int] = {}
        self._tried: set[str] = set()
        for row in known:
            if row.status in {"complete", "pruned", "failed"}:
                self._tried.add(_identity(row))
                if row.started_after is None:  # refused before it began: the process that did so has not counted it
                    continue
                self._counted += 1
                self._learn(row, row.value(objective))

    @property
    def finished(self) -> bool:
        """Whether nothing is running and nothing more will begin."""
        return not self._running and not self._again and self._spent

    @property
    def _spent(self) -> bool:
        if self.refusal is not None:
            return True
        begun = self._counted + len(self._running) + len(self._again)
        return self._budget.is_spent(begun, self._since_best if not self._queue else 0)

    @property
    def refusal(self) -> str | None:
        """Why nothing more will begin though there is time: all that was proposed last was refused."""
        if self._queue or not self._nothing_fits or self._running or self._again:
            return None
        return "; ".join(dict.fromkeys(self._refusals)) or "nothing was proposed that had not been tried before"

    def running(self) -> dict[str, TrialRow]:
        """The trials under way, by worker."""
        return {worker: running.row for worker, running in self._running.items()}

    def next_job(self, worker: str, node: str | None = None, memory: int | None = None) -> Job | None:
        """Something to do for an idle worker; None if there is nothing for now.

        Args:
            worker: its name.
            node: machine that it runs on.
            memory: bytes that all trials on that machine may take together; None if unknown.
        """
        if memory is not None:
            self._nodes[node] = memory
        neighbours = [running for running in self._running.values() if running.row.node == node]
        if any(running.alone for running in neighbours):
            return None
        room = None if memory is None else memory - sum(other.limit or other.memory for other in neighbours)
        running = self._take(room, alone=not neighbours)
        if running is None:
            return None
        now = self._budget.elapsed
        expected = self._expected(running.row.algorithm, running.row.proposed)
        running.began, running.patience = now, _LOADING * self._budget.trial_timeout()
        running.deadline = now + running.patience
        running.limit = None if room is None else self._limit(running, room)
        running.had_all = not neighbours
        for neighbour in neighbours:
            neighbour.had_all = False
        running.row = running.row.model_copy(
            update={
                "node": node,
                "attempts": running.attempts,
                "objective": None,  # what an earlier attempt had reached is void
                "validation": Metrics(),
                "epochs_done": None,
                "curve": {},
                "started_after": round(now, 3),
                "predicted_seconds": None if expected is None else round(expected, 3),
            }
        )
        self._commit(running.row)
        self._running[worker] = running
        self._listener.started(running.row)
        best = sorted(self._objectives, reverse=True)
        return Job(
            trial=running.row.trial,
            algorithm=running.row.algorithm,
            config=running.row.proposed,
            sweep=self._spaces[running.row.algorithm].sweep(running.row.proposed),
            seconds=self._budget.share() if self._timed else None,
            # A trial below the fifth best of those that have finished cannot end among the first five.
            exact_above=best[_EXACT_ROWS - 1] if len(best) >= _EXACT_ROWS else -math.inf,
            memory_limit=running.limit,
        )

    def _take(self, room: int | None, *, alone: bool) -> _Running | None:
        """The next trial for a worker whose machine has so many bytes left; None if there is none for now.

        Args:
            room: bytes; None if unknown.
            alone: whether nothing else runs on that machine.
        """
        for running in self._again:
            if running.alone and not alone:
                return None  # let the machine run empty
            if room is None or running.memory <= room:
                self._again.remove(running)
                return running
        while not self._spent and not self._nothing_fits and len(self._again) < _WAITING:
            proposed = self._propose()
            if proposed is None:
                # A trial that ends may teach the cost model better; without one this is the end.
                self._nothing_fits = True
            elif room is None or proposed.memory <= room:
                return proposed
            else:
                self._again.append(proposed)  # for a larger machine, or when a neighbour has finished
                if not alone:
                    return None
        if not self._running and self._again:  # a machine large enough was there, and has gone
            self._running["-"] = self._again.popleft()
            self._close("-", "failed", None, reason="no machine has the memory for it any more")
        return None

    def _limit(self, running: _Running, room: int) -> int:
        """Bytes that a trial may take: a fair part of its machine, or what is expected; all of it when alone again."""
        if running.alone:
            return room
        fair = max(self._nodes.values()) * len(self._nodes) // max(1, self._budget.workers)
        return min(room, max(running.memory, fair))

    def loaded(self, worker: str, feature_seconds: float) -> None:
        """The worker's trial has its features and begins to fit."""
        running = self._running[worker]
        running.row = running.row.model_copy(update={"feature_seconds": round(feature_seconds, 3)})
        running.patience = self._budget.trial_timeout()
        running.deadline = self._budget.elapsed + running.patience

    def report(self, worker: str, update: Mapping[str, Any], objective: float, *, final: bool) -> bool:
        """An evaluation of the worker's trial.

        Args:
            worker: its name.
            update: fields of :class:`TrialRow` that are known now, and as ``swept`` the values that were chosen.
            objective: what the sampler maximises.
            final: whether the trial has ended by itself.

        Returns:
            Whether the trial is to train on.
        """
        running = self._running[worker]
        known = dict(update) | {"objective": objective}
        config = running.row.proposed | known.pop("swept", {})
        running.row = TrialRow.model_validate(running.row.model_dump() | known | {"config": config})
        row = running.row
        if row.epochs_done:
            row = running.row = row.model_copy(update={"curve": row.curve | {row.epochs_done: objective}})
        if final:
            self._close(worker, "complete", objective)
            return False
        if self._strategy.ladders and not self._ladders.goes_on(
            row.trial, row.algorithm, objective, row.epochs_done or 0
        ):
            self._close(worker, "pruned", objective)
            return False
        self._commit(row)
        self._tell_curve(running)
        self._listener.reported(row)
        return True

    @staticmethod
    def _tell_curve(running: _Running) -> None:
        for epochs, value in running.row.curve.items():
            if epochs not in running.reported:  # by an earlier attempt, which Optuna remembers
                running.reported.add(epochs)
                running.trial.report(value, epochs)

    def failed(self, worker: str, reason: str, *, out_of_memory: bool = False) -> None:
        """The worker's trial cannot be carried out; one that ran out of shared memory gets another chance, alone."""
        running = self._running[worker]
        if out_of_memory and running.attempts < _ATTEMPTS and not running.had_all:
            self._try_again(worker, alone=True)
        else:
            self._close(worker, "failed", None, reason=reason)

    def lost(self, worker: str, reason: str, *, hung: bool = False) -> None:
        """The worker's process is gone; what it was doing gets another chance, unless it hung."""
        running = self._running.get(worker)
        if running is None:
            return
        if hung:
            reason = f"took longer than {running.patience:.0f} s (--trial-timeout)"
            self._close(worker, "failed", None, reason=reason)
        elif running.attempts < _ATTEMPTS:
            self._try_again(worker, alone=False)
        else:
            self._close(worker, "failed", None, reason=f"{reason} ({running.attempts} times)")

    def overdue(self) -> list[str]:
        """Workers whose trial has outlasted the timeout, and must be killed."""
        now = self._budget.elapsed
        return [worker for worker, running in self._running.items() if now > running.deadline]

    def resize(self, workers: int) -> None:
        """So many trials can run side by side now: machines come and go."""
        self._budget.workers = workers

    def overran(self, grace: float) -> bool:
        """Whether the time was up more than ``grace`` seconds ago."""
        return self._budget.left < -grace

    def stop(self, reason: str) -> None:
        """Close all trials that have not ended."""
        for worker in list(self._running):
            self._close(worker, "stopped", None, reason=reason)
        for running in self._again:
            self._running["-"] = running
            self._close("-", "stopped", None, reason=reason)
        self._again.clear()

    def _propose(self) -> _Running | None:
        """A trial that fits the time that is left and some machine's memory; None if a few tries give none."""
        tried: set[str] = set()
        self._refusals = []
        repeated = 0
        while len(self._refusals) < _PROPOSALS and repeated < _REPETITIONS:
            origin: Origin = "sampler"
            if self._queue:
                suggestion = self._queue.popleft()
                origin = suggestion.origin
                trial, algorithm, full = self._proposer.ask(suggestion.algorithm, suggestion.config)
            else:
                at_random = repeated >= _REPETITIONS // 4
                trial, algorithm, full = self._proposer.ask(self._choose(tried), {}, at_random=at_random)
            needed = 0 if self._memory is None else self._memory(algorithm, full)
            row = TrialRow(
                trial=trial.number,
                algorithm=algorithm,
                config=full,
                proposed=full,
                status="running",
                origin=origin,
            )
            refusal = self._refusal(row, needed)
            if refusal is None:
                self._tried.add(_identity(row))
                return _Running(trial, row, self._budget.elapsed, needed)
            row = row.model_copy(update={"status": "failed", "reason": refusal})
            if refusal == _REPEATED:
                repeated += 1
            elif origin == "sampler":
                tried.add(algorithm)
                self._refusals.append(f"{algorithm} {refusal}")
            else:
                self._commit(row)
                self._listener.finished(row)
            self._proposer.tell(trial, row, None)
        return None

    def _refusal(self, row: TrialRow, needed: int) -> str | None:
        """Why a trial should not even begin."""
        if row.origin == "sampler" and _identity(row) in self._tried:
            return _REPEATED
        largest = max(self._nodes.values(), default=needed)
        if needed > largest:
            return f"would need {needed / 2**30:.1f} GiB of memory and the machine has {largest / 2**30:.1f} GiB for it"
        if not self._strategy.costs or not self._timed or self._budget.seconds is None:
            return None
        expected = self._expected(row.algorithm, row.proposed)
        longest = self._budget.left
        if row.origin == "sampler":
            longest = min(longest, _LONGEST_SHARE * self._budget.seconds)
        if expected is not None and expected > longest:
            return f"would take {expected:.0f} s"
        return None

    def _expected(self, algorithm: str, config: Mapping[str, Any]) -> float | None:
        """Seconds that a trial will take."""
        seconds = self._costs.predict(algorithm, config)
        if seconds is None:
            return None
        if get_algorithm(algorithm).iterative:
            seconds = min(seconds * self._epochs.get(algorithm, 1), self._budget.share() or math.inf)
        return seconds + self._costs.predict_features(config)

    def _choose(self, tried: set[str]) -> str | None:
        """The algorithm of the next trial, preferably none of ``tried``; None to leave it to the sampler."""
        if not self._strategy.shares:
            return None
        standings = {name: dataclasses.replace(standing) for name, standing in self._standings.items()}
        waiting = set(tried)
        for running in [*self._running.values(), *self._again]:
            standing = standings[running.row.algorithm]
            if standing.best is None:  # let its first result decide how much more it is worth
                waiting.add(running.row.algorithm)
            so_far = self._budget.elapsed - running.began
            expected = self._expected(running.row.algorithm, running.row.proposed) or 0.0
            standing.spent += max(so_far, expected) if self._timed else 1.0
        open_ones = {name: standing for name, standing in standings.items() if name not in waiting}
        best = max(self._objectives, default=0.5)
        return choose_algorithm(open_ones or standings, standard_error(best, *self._pictures))

    def _try_again(self, worker: str, *, alone: bool) -> None:
        running = self._running.pop(worker)
        running.attempts += 1
        running.alone = alone
        self._again.append(running)

    def _close(self, worker: str, status: str, objective: float | None, reason: str | None = None) -> None:
        running = self._running.pop(worker)
        self._nothing_fits = False
        now = self._budget.elapsed
        row = running.row.model_copy(
            update={
                "status": status,
                "reason": reason,
                "seconds": round(now - running.began, 3),
                "ended_after": round(now, 3),
            }
        )
        self._commit(row)
        if status == "pruned":
            self._tell_curve(running)
        self._proposer.tell(running.trial, row, objective)
        if status != "stopped":
            self._counted += 1
            self._learn(row, objective)
        self._listener.finished(row)

    def _learn(self, row: TrialRow, objective: float | None) -> None:
        """Take a finished trial into account."""
        standing = self._standings[row.algorithm]
        seconds = row.seconds or 0.0
        standing.spent += seconds if self._timed else 1.0
        self._since_best += 1
        if objective is None or row.status == "failed":
            standing.failed += 1
            return
        if row.status == "complete":
            if objective > max(self._objectives, default=-math.inf):
                self._since_best = 0
            self._objectives.append(objective)
            standing.best = max(objective, -math.inf if standing.best is None else standing.best)
        for epochs, value in row.curve.items():
            if epochs in RUNGS:
                self._ladders.goes_on(row.trial, row.algorithm, value, epochs)
        features = row.feature_seconds or 0.0
        self._costs.observe(row.algorithm, row.proposed, (seconds - features) / (row.epochs_done or 1), features)


def _identity(row: TrialRow) -> str:
    """What a trial tries, whether its row comes from the sampler or from the database (which has lists for tuples)."""
    return f"{row.algorithm} {json.dumps(row.proposed, sort_keys=True)}"
