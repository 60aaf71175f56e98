"""A whole search in a second or two: the product's own dispatcher, two simulated workers, a simulated clock."""

from __future__ import annotations

import dataclasses
import heapq
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from _surrogate import Evaluation, Surrogate

from autoad.algorithms import get_algorithm
from autoad.schema import TrialRow
from autoad.search.budget import Budget
from autoad.search.dispatch import Dispatcher
from autoad.search.jobs import Strategy, Suggestion
from autoad.search.space import Space, suggest_config
from autoad.search.study import Proposer, _quiet

__all__ = ["Outcome", "simulate"]

_BETWEEN_TRIALS = 1.0
"""Seconds for measuring the latency (not recorded), writing the row, proposing and starting the next."""

_RESTART = 8.0
_CACHED = 0.05
_OVERRUN = 1.0
_STARTUP = 5


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of a simulated search.

    Attributes:
        curve: seconds, and best objective of a complete trial from then on.
        rows: of all trials that began.
        refused: proposals that the cost rule turned away.
        idle: share of the workers' time in which they had nothing to do.
    """

    curve: list[tuple[float, float]]
    rows: list[TrialRow]
    refused: int
    idle: float

    def best_at(self, seconds: float) -> float:
        """Best objective so far; NaN before there is one."""
        return next((value for moment, value in reversed(self.curve) if moment <= seconds), float("nan"))

    def by_algorithm(self) -> Counter[str]:
        """Trials that gave a result."""
        return Counter(row.algorithm for row in self.rows if row.status in {"complete", "pruned"})


class _RandomProposer(Proposer):
    """Proposes without having learnt anything."""

    def ask(
        self, algorithm: str | None, config: Mapping[str, Any], *, at_random: bool = False
    ) -> tuple[optuna.Trial, str, dict[str, Any]]:
        return super().ask(algorithm, config, at_random=True)


class _Within(optuna.samplers.TPESampler):
    """Samples the parameters of one algorithm only, as a group of them; the others' would be thrown away."""

    def __init__(self, space: Mapping[str, optuna.distributions.BaseDistribution], **options: Any) -> None:
        super().__init__(multivariate=True, **options)
        self._only = dict(space)

    def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, optuna.distributions.BaseDistribution]:
        return dict(self._only)


class _QuickProposer(Proposer):
    """As the product's, where the algorithm is given, in an eighth of the time."""

    def ask(
        self, algorithm: str | None, config: Mapping[str, Any], *, at_random: bool = False
    ) -> tuple[optuna.Trial, str, dict[str, Any]]:
        if algorithm is None or len(config) > 0 or at_random:
            return super().ask(algorithm, config, at_random=at_random)
        with _quiet():
            fixed = {"algorithm": algorithm}
            self._study.sampler = optuna.samplers.PartialFixedSampler(fixed, self._own_sampler(algorithm))
            trial = self._study.ask()
            return trial, *suggest_config(trial, self._spaces)

    def _options(self) -> dict[str, Any]:
        seed = int(np.random.SeedSequence([self._seed, self._ended, self._asked]).generate_state(1)[0])
        self._asked += 1
        return {"seed": seed, "constant_liar": self._liar}

    def _own_sampler(self, algorithm: str) -> optuna.samplers.BaseSampler:
        return _Within(self._distributions(algorithm), **self._options())

    def _trials(self, algorithm: str) -> list[optuna.trial.FrozenTrial]:
        return [t for t in self._study.get_trials(deepcopy=False) if t.params.get("algorithm") == algorithm]

    def _distributions(self, algorithm: str) -> dict[str, optuna.distributions.BaseDistribution]:
        states = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
        for trial in self._trials(algorithm):
            if trial.state in states:
                found = {name: d for name, d in trial.distributions.items() if name != "algorithm" and not d.single()}
                return dict(sorted(found.items()))
        return {}


class _ApartProposer(_QuickProposer):
    """Compares an algorithm's trials with each other only, whatever the other algorithms have reached."""

    def _own_sampler(self, algorithm: str) -> optuna.samplers.BaseSampler:
        own = optuna.create_study(
            direction="maximize",
            sampler=_Within(self._distributions(algorithm), n_startup_trials=_STARTUP, **self._options()),
        )
        for trial in self._trials(algorithm):
            own.add_trial(
                optuna.trial.create_trial(
                    state=trial.state,
                    value=trial.value,
                    params={name: value for name, value in trial.params.items() if name != "algorithm"},
                    distributions={name: d for name, d in trial.distributions.items() if name != "algorithm"},
                    intermediate_values=trial.intermediate_values,
                )
            )
        proposal = own.ask()
        self._spaces[algorithm].suggest(proposal)
        return optuna.samplers.PartialFixedSampler(proposal.params, optuna.samplers.RandomSampler(0))


PROPOSERS: dict[str, type[Proposer]] = {
    "product": Proposer, "quick": _QuickProposer, "apart": _ApartProposer, "random": _RandomProposer
}  # fmt: skip


class _Nobody:
    """Listens to nothing."""

    def started(self, row: TrialRow) -> None: ...
    def reported(self, row: TrialRow) -> None: ...
    def finished(self, row: TrialRow) -> None: ...


def simulate(
    surrogate: Surrogate,
    spaces: Mapping[str, Space],
    strategy: Strategy,
    *,
    seconds: float,
    seed: int,
    pictures: tuple[int, int],
    warm: Sequence[Suggestion] = (),
    proposer: str = "product",
    workers: int = 2,
) -> Outcome:
    """Run a search.

    Args:
        surrogate: answers for the trials.
        spaces: search space by algorithm.
        strategy: what helps the search along.
        seconds: for the trials.
        seed: of the sampler, and of how much trials deviate from their expected time.
        pictures: normal and anomalous selection pictures.
        warm: trials after the defaults.
        proposer: how configurations are proposed: a key of ``PROPOSERS``.
        workers: trials side by side.
    """
    return _Search(surrogate, spaces, strategy, seconds, seed, pictures, warm, proposer, workers).run()


class _Search:
    def __init__(
        self,
        surrogate: Surrogate,
        spaces: Mapping[str, Space],
        strategy: Strategy,
        seconds: float,
        seed: int,
        pictures: tuple[int, int],
        warm: Sequence[Suggestion],
        proposer: str,
        workers: int,
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._surrogate, self._seconds = surrogate, seconds
        self._now, self._order = 0.0, itertools.count()
        self._events: list[tuple[float, int, str, list[Evaluation] | None]] = []
        self._current: dict[str, int] = {}
        self._filled: dict[tuple[Any, Any], float] = {}
        self._random = np.random.default_rng(seed)
        self._rows: dict[int, TrialRow] = {}
        self._curve: list[tuple[float, float]] = []
        self._study = optuna.create_study(direction="maximize")
        chosen = PROPOSERS[proposer](self._study, spaces, seed=seed, liar=True)
        self._epochs = {name: space.epochs for name, space in spaces.items() if space.epochs is not None}
        ordered = sorted(spaces.values(), key=lambda space: get_algorithm(space.algorithm).iterative)
        defaults = [Suggestion("default", space.algorithm, space.defaults()) for space in ordered]
        self._budget = Budget(None, seconds, workers, clock=lambda: self._now)
        self._dispatcher = Dispatcher(
            chosen,
            dict(spaces),
            self._budget,
            self._commit,
            _Nobody(),
            epochs=self._epochs,
            pictures=pictures,
            queue=[*defaults, *warm],
            strategy=strategy,
        )
        self._idle = {f"worker {number}": 0.0 for number in range(workers)}
        self._idle_seconds = 0.0

    def run(self) -> Outcome:
        while True:
            for worker in sorted(self._idle):
                self._begin(worker)
            if not self._events or self._events[0][0] > self._seconds + _OVERRUN:
                break
            self._now, number, worker, left = heapq.heappop(self._events)
            if worker in self._current and self._current[worker] == number:
                self._step(worker, left)
            elif worker not in self._current and left is None:
                self._idle[worker] = self._now  # it has been started again
            for hanging in self._dispatcher.overdue():
                self._dispatcher.lost(hanging, "killed", hung=True)
                del self._current[hanging]
                self._push(_RESTART, hanging, None, current=False)
        end = self._seconds + _OVERRUN
        self._idle_seconds += sum(end - since for since in self._idle.values())
        self._now = end
        self._dispatcher.stop("the time was up")
        refused = sum(
            str(trial.user_attrs.get("reason", "")).startswith("would take")
            for trial in self._study.get_trials(deepcopy=False)
        )
        idle = self._idle_seconds / (end * self._budget.workers)
        return Outcome(self._curve, list(self._rows.values()), refused, idle)

    def _push(self, after: float, worker: str, left: list[Evaluation] | None, *, current: bool = True) -> None:
        number = next(self._order)
        if current:
            self._current[worker] = number
        heapq.heappush(self._events, (self._now + after, number, worker, left))

    def _begin(self, worker: str) -> None:
        job = self._dispatcher.next_job(worker)
        if job is None:
            return
        self._idle_seconds += self._now - self._idle.pop(worker)
        key = job.config.get("backbone"), job.config["image_size"]
        if key not in self._filled:  # the other worker waits for the one that fills
            self._filled[key] = self._now + self._surrogate.feature_seconds(job.config)
        load = max(self._filled[key] - self._now, _CACHED)
        evaluations = self._surrogate.trial(
            job.algorithm,
            job.config,
            self._epochs.get(job.algorithm),
            job.seconds,
            float(self._random.standard_normal()),
        )
        # Evaluations are counted from the beginning of the fit; "seconds" of the first event is the loading itself.
        self._push(load, worker, [Evaluation(load, None, 0.0, final=False), *evaluations])

    def _step(self, worker: str, left: list[Evaluation] | None) -> None:
        assert left is not None
        reached, *rest = left
        if reached.epochs is None and not reached.final:
            self._dispatcher.loaded(worker, reached.seconds)
            before = 0.0
            goes_on = True
        else:
            before = reached.seconds
            update = {"validation": {"image_auroc": reached.objective}, "epochs_done": reached.epochs}
            goes_on = self._dispatcher.report(worker, update, reached.objective, final=reached.final)
        if goes_on:
            self._push(rest[0].seconds - before, worker, rest)
            self._push_check(worker)
        else:
            del self._current[worker]
            self._push(_BETWEEN_TRIALS, worker, None, current=False)

    def _push_check(self, worker: str) -> None:
        """Wake up when the trial may have outlasted its timeout."""
        heapq.heappush(self._events, (self._now + self._budget.trial_timeout() + 0.01, next(self._order), worker, []))

    def _commit(self, row: TrialRow) -> None:
        self._rows[row.trial] = row
        value = row.validation.image_auroc
        if row.status == "complete" and value is not None and value > (self._curve[-1][1] if self._curve else -1.0):
            self._curve.append((self._now, value))
