"""Ray Tune runs the trials, Optuna proposes them.

Tune sees three small things: a class :class:`TrialActor` that it keeps alive from trial to trial, a
:class:`StudySearcher` that asks the Optuna study and tells it the results, and :class:`AlgorithmLadders`, one
successive-halving ladder for each algorithm.
"""

from __future__ import annotations

import dataclasses
import logging
import platform
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import optuna
from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from autoad.algorithms import get_algorithm
from autoad.schema import TrialRow
from autoad.search.cluster import Death, Place, Workers, explain_death
from autoad.search.space import Space, suggest_config
from autoad.search.trial import TrialReport, TrialTask, TrialWorker

__all__ = ["Budget", "Listener", "StudySearcher", "run_trials"]

_LADDER_START, _LADDER_FACTOR, _LADDER_END = 3, 3, 10_000
_TRIAL_SHARE = 0.06
_NO_NEW_TRIALS = 0.02


class Listener(Protocol):
    """Hears how the search goes."""

    def started(self, row: TrialRow) -> None:
        """A trial begins."""

    def reported(self, row: TrialRow) -> None:
        """A trial that trains was evaluated on its way; the row says where it stands."""

    def finished(self, row: TrialRow) -> None:
        """A trial has ended, in whatever way."""


@dataclasses.dataclass
class Budget:
    """How much may be spent on trials.

    Attributes:
        trials: number of trials; None for no limit.
        seconds: wall-clock time from ``started``; None for no limit.
        workers: trials that run side by side.
    """

    trials: int | None
    seconds: float | None
    workers: int
    started: float = dataclasses.field(default_factory=time.monotonic)

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    def is_spent(self, asked: int) -> bool:
        """Whether no further trial should begin after ``asked`` ones."""
        if self.trials is not None and asked >= self.trials:
            return True
        return self.is_over

    @property
    def is_over(self) -> bool:
        """Whether no time is left to begin a trial."""
        return self.seconds is not None and self.elapsed > self.seconds * (1 - _NO_NEW_TRIALS)

    def share(self) -> float | None:
        """Seconds for which the next trial of an algorithm that trains may fit; None for no limit."""
        if self.seconds is None:
            return None
        return max(0.0, min(_TRIAL_SHARE * self.seconds * self.workers, self.seconds - self.elapsed))


class TrialActor(tune.Trainable):  # type: ignore[misc]
    """A worker process that runs one trial after another: imports and masks are loaded once."""

    def setup(self, config: dict[str, Any], task: TrialTask, place: Place | None) -> None:
        """Start the first trial."""
        import torch

        torch.set_num_threads(1)
        self._task, self._place = task, place
        self._node = platform.node()
        self._worker: TrialWorker | None = None
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Start another trial in this process."""
        self.config = new_config
        self._reports = self._run(new_config)
        return True

    def _run(self, config: dict[str, Any]) -> Iterator[TrialReport]:
        if self._worker is None:
            features_dir = self._task.features_dir
            if self._place is not None:
                self._node, features_dir = self._place.settle()
            self._worker = TrialWorker(dataclasses.replace(self._task, features_dir=features_dir))
        yield from self._worker.run(
            config["algorithm"], config["config"], seconds=config["seconds"], exact_above=config["exact_above"]
        )

    def step(self) -> dict[str, Any]:
        """Go on to the next evaluation; a failure is a result with its reason, never an exception."""
        try:
            report = next(self._reports)
        except Exception as error:
            reason = f"{type(error).__name__}: {str(error).strip() or 'no message'}"
            where = {"node": self._node}
            return {"objective": float("nan"), "failure": reason, "final": True, "done": True, "report": where}
        return {
            "objective": report.objective,
            "epochs_done": report.epochs_done or 0,
            "final": report.final,
            "done": report.final,
            "report": {
                "validation": report.validation.model_dump(),
                "by_kind": report.by_kind,
                "epochs_done": report.epochs_done,
                "budget_limited": report.budget_limited,
                "exact": report.exact,
                "latency_ms": report.latency_ms,
                "node": self._node,
            },
        }


class StudySearcher(Searcher):  # type: ignore[misc]
    """Hands the study's proposals to Tune and Tune's results to the study.

    A trial's row is committed through ``commit`` before the study is told, so that the study never knows of a result
    that the database has lost.

    Args:
        study: the Optuna study; its queue of proposals is used up first.
        spaces: search space by algorithm.
        budget: when to stop proposing.
        commit: stores a row.
        listener: is told of trials that begin and end.
        by_rank: whether the leaderboard is ordered by ranks over synthetic kinds rather than by the objective.
    """

    def __init__(
        self,
        study: optuna.Study,
        spaces: dict[str, Space],
        budget: Budget,
        commit: Callable[[TrialRow], None],
        listener: Listener,
        *,
        by_rank: bool = False,
    ) -> None:
        super().__init__(metric="objective", mode="max")
        self._by_rank = by_rank
        self._study = study
        self._spaces = spaces
        self._budget = budget
        self._commit = commit
        self._listener = listener
        self._live: dict[str, tuple[optuna.Trial, TrialRow, float]] = {}
        self._last: dict[str, dict[str, Any]] = {}
        self._deaths: dict[str, Death] = {}
        self._again: list[tuple[optuna.Trial, TrialRow, str]] = []
        self._objectives: list[float] = []
        self._asked = 0

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """The next trial; None while all workers are busy, ``FINISHED`` when the budget is spent."""
        if len(self._live) >= self._budget.workers:
            return None
        if self._again:
            trial, row, _ = self._again.pop(0)
            row = row.model_copy(update={"attempts": row.attempts + 1})
        else:
            if self._budget.is_spent(self._asked):
                # Tune takes FINISHED as the last word; a trial that is running may yet have to be run again.
                finished: dict[str, Any] | None = None if self._live and not self._budget.is_over else Searcher.FINISHED
                return finished
            trial = self._study.ask()
            self._asked += 1
            algorithm, config = suggest_config(trial, self._spaces)
            row = TrialRow(trial=trial.number, algorithm=algorithm, config=config, status="running")
        algorithm, config = row.algorithm, row.config
        self._commit(row)
        self._live[trial_id] = (trial, row, time.monotonic())
        self._listener.started(row)
        best = sorted(self._objectives, reverse=True)
        return {
            "algorithm": algorithm,
            "config": config,
            "seconds": self._budget.share(),
            # A trial below the fifth best of those that have finished cannot end among the first five; where ranks
            # over synthetic kinds decide, it can.
            "exact_above": best[4] if len(best) >= 5 and not self._by_rank else float("-inf"),
        }

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Remember an intermediate evaluation."""
        self._last[trial_id] = result
        if trial_id in self._live and result.get("epochs_done"):
            self._live[trial_id][0].report(result["objective"], int(result["epochs_done"]))

    def on_death(self, trial_id: str, death: Death) -> None:
        """Hear why a trial's process ended, before :meth:`on_trial_complete` is told that it did."""
        self._deaths[trial_id] = death

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """A trial is over: finished, pruned by its ladder, failed, or its process died."""
        result = result or self._last.get(trial_id)
        if result is not None and result.get("failure"):
            self._close(trial_id, "failed", result, reason=result["failure"])
        elif error:
            death = self._deaths.pop(trial_id, None) or explain_death("")
            trial, row, _ = self._live[trial_id]
            if death.node_lost and row.attempts == 1:
                del self._live[trial_id]
                self._last.pop(trial_id, None)
                self._again.append((trial, row, death.reason))
            else:
                self._close(trial_id, "failed", None, reason=death.reason)
        elif result is None or "objective" not in result:
            self._close(trial_id, "stopped", None, reason="the search ended first")
        else:
            self._close(trial_id, "complete" if result.get("final") else "pruned", result)

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune snapshots its searcher, but the truth is in the study and in the database."""
        return {}

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Nothing to save; see :meth:`__getstate__`."""

    def sweep(self) -> None:
        """Close the trials that were running when the search ended."""
        for trial_id in list(self._live):
            self._close(trial_id, "stopped", self._last.get(trial_id), reason="the search ended first")
        for number, (trial, row, reason) in enumerate(self._again):
            self._live[f"again {number}"] = (trial, row, time.monotonic())
            self._close(f"again {number}", "failed", None, reason=f"{reason}, and no time was left to run it again")
        self._again.clear()

    def _close(self, trial_id: str, status: Any, result: dict[str, Any] | None, reason: str | None = None) -> None:
        if trial_id not in self._live:
            return
        trial, row, started = self._live.pop(trial_id)
        self._last.pop(trial_id, None)
        update: dict[str, Any] = {"status": status, "reason": reason, "seconds": round(time.monotonic() - started, 3)}
        if result is not None:
            update |= _unflatten(result, "report")
        row = TrialRow.model_validate(row.model_dump() | update)
        self._commit(row)
        if status == "complete" and result is not None:
            self._objectives.append(float(result["objective"]))
            self._study.tell(trial, float(result["objective"]))
        elif status == "pruned":
            self._study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            trial.set_user_attr("reason", reason)
            self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
        self._listener.finished(row)


def _unflatten(result: dict[str, Any], prefix: str) -> dict[str, Any]:
    """The part of Tune's flattened result below ``prefix/`` as nested dictionaries."""
    if prefix in result:
        nested: dict[str, Any] = result[prefix]
        return nested
    tree: dict[str, Any] = {}
    for key, value in result.items():
        if key.startswith(f"{prefix}/"):
            *parents, leaf = key.split("/")[1:]
            node = tree
            for parent in parents:
                node = node.setdefault(parent, {})
            node[leaf] = value
    return tree


class AlgorithmLadders(FIFOScheduler):  # type: ignore[misc]
    """Asynchronous successive halving (Li et al., 2020) with a ladder of its own for each algorithm.

    A flow after three epochs is compared with other flows after three epochs, never with a finished memory bank;
    algorithms that do not iterate run undisturbed.

    Args:
        algorithms: names.
        on_death: is told why a trial's process ended: of all that Tune calls, only its scheduler hears of that in time.
    """

    def __init__(self, algorithms: list[str], on_death: Callable[[str, Death], None]) -> None:
        super().__init__()
        self._on_death = on_death
        self._ladders = {
            name: AsyncHyperBandScheduler(
                time_attr="epochs_done",
                metric="objective",
                mode="max",
                grace_period=_LADDER_START,
                reduction_factor=_LADDER_FACTOR,
                max_t=_LADDER_END,
            )
            for name in algorithms
            if get_algorithm(name).iterative
        }

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        """The ladders know what to maximise."""
        return True

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        """None: Tune starts what is pending by itself.

        Named here, a trial that waits for its own worker to start takes over the first one that is free, and its own is
        killed. Where trials are shorter than a start, a second worker would then never come up.
        """

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Enter a trial into its ladder."""
        if ladder := self._ladders.get(trial.config["algorithm"]):
            ladder.on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Stop a trial that is not among the best third of its ladder at this rung."""
        ladder = self._ladders.get(trial.config["algorithm"])
        if ladder is None or result.get("final"):
            return str(TrialScheduler.CONTINUE)
        return str(ladder.on_trial_result(tune_controller, trial, result))

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Pass on why the trial's process ended."""
        try:
            said = Path(trial.error_file).read_text()
        except (OSError, TypeError):  # the disk is full, or Tune had no folder for it
            said = ""
        self._on_death(trial.trial_id, explain_death(said))

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Let what a finished trial reached count at its rung."""
        ladder = self._ladders.get(trial.config["algorithm"])
        if ladder is not None and not result.get("failure"):
            ladder.on_trial_complete(tune_controller, trial, result)


class _Stop(tune.Stopper):  # type: ignore[misc]
    """Ends the run on Ctrl-C and when trials overrun the budget; Tune asks it all the time."""

    def __init__(self, budget: Budget, workers: Workers) -> None:
        self._budget = budget
        self._workers = workers
        self.interrupted = False

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        self._budget.workers = self._workers.count  # nodes come and go
        overrun = self._budget.seconds is not None and self._budget.elapsed > self._budget.seconds
        return self.interrupted or overrun


def run_trials(
    searcher: StudySearcher,
    task: TrialTask,
    workers: Workers,
    budget: Budget,
    algorithms: list[str],
    folder: Path,
    *,
    place: Place | None = None,
) -> bool:
    """Run trials until the budget is spent; Ray must be up.

    ``place`` is for the workers of a cluster; those of this machine need none.

    Returns:
        Whether the run was interrupted (Ctrl-C).
    """
    stop = _Stop(budget, workers)

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        stop.interrupted = True

    trainable = tune.with_resources(
        tune.with_parameters(TrialActor, task=task, place=place), {"cpu": 1, "gpu": workers.gpus_each}
    )
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            metric="objective",
            mode="max",
            search_alg=searcher,
            scheduler=AlgorithmLadders(algorithms, searcher.on_death),
            num_samples=-1,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="trials",
            storage_path=str(folder.absolute()),
            stop=stop,
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=0),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    )
    before = signal.signal(signal.SIGINT, interrupt)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    try:
        tuner.fit()
    finally:
        signal.signal(signal.SIGINT, before)
        searcher.sweep()
    return stop.interrupted
