"""Ray Tune runs the workers, the :class:`~autoad.search.dispatch.Dispatcher` tells them what to try.

To Tune a trial is a worker: a :class:`WorkerActor` that lives as long as the search and goes from one configuration to
the next. Tune places workers on the machines that there are, starts another when one dies or a machine joins, and hands
their results to :class:`_Conductor`, which answers with the next job. (Tune's own way, a new trial for each
configuration with ``reuse_actors``, restarts an actor for every other one of a few seconds.)
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import ray
from ray import tune
from ray.exceptions import RayError
from ray.tune import TuneError
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from autoad.errors import AutoADError, StateError
from autoad.search.cluster import Workers, explain_death
from autoad.search.dispatch import Dispatcher
from autoad.search.place import Place
from autoad.search.selection_scores import SelectionScores
from autoad.search.trial import TrialReport, TrialTask
from autoad.search.worker import WorkerActor

__all__ = ["run_trials"]

_FRUITLESS_STARTS = 3
"""Workers in a row, for each place, that may die before their first job."""

_OVERRUN = 1.0
"""Seconds by which trials may overrun the budget."""


class _Conductor(FIFOScheduler):  # type: ignore[misc]
    """Answers each result of a worker with what it is to do next."""

    def __init__(self, dispatcher: Dispatcher, workers: Workers, kept: SelectionScores) -> None:
        super().__init__()
        self._dispatcher = dispatcher
        self._workers = workers
        self._kept = kept
        self._actors: dict[str, Any] = {}
        self._fruitless = 0
        self._unfit: dict[str, str] = {}
        self._memory: dict[str, int] = {}
        self._killed: set[str] = set()
        self.error: AutoADError | None = None
        self.interrupted = False

    @property
    def over(self) -> bool:
        """Whether the run is to end."""
        return self.error is not None or self.interrupted or self._dispatcher.finished

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """A worker has got somewhere, or has nothing to do."""
        try:
            return self._answer(trial, result)
        except AutoADError as error:
            self.error = error
            return str(TrialScheduler.STOP)

    def _answer(self, trial: Any, result: dict[str, Any]) -> str:
        worker = trial.trial_id
        if worker in self._killed:  # this was on its way
            return str(TrialScheduler.CONTINUE)
        self._actors[worker] = trial.temporary_state.ray_actor
        if "full" in result:
            raise StateError(f"{result['full']} (node {result['node']})")
        if "failure" in result:
            self._dispatcher.failed(worker, result["failure"], out_of_memory=result["out_of_memory"])
        elif "lost" in result:
            self._dispatcher.lost(worker, result["lost"])
        elif "loaded" in result:
            self._dispatcher.loaded(worker, result["loaded"])
            return str(TrialScheduler.CONTINUE)
        elif "report" in result:
            report: TrialReport = result["report"]
            if report.final:
                self._kept.keep(self._dispatcher.running()[worker].trial, report.scores)
            if self._dispatcher.report(worker, _row_update(report), report.objective, final=report.final):
                return str(TrialScheduler.CONTINUE)
        if self.over:
            return str(TrialScheduler.STOP)
        if result.get("unfit"):
            self._unfit[worker] = result["unfit"]
            if len(self._unfit) >= self._workers.count:
                self.error = StateError(f"no node is fit to run trials: {result['unfit']}")
            return str(TrialScheduler.CONTINUE)
        node = result["node"]
        if result.get("memory") is not None:  # what the first worker of a node found free, before any trial took some
            self._memory.setdefault(node, result["memory"])
        job = self._dispatcher.next_job(worker, node, self._memory.get(node))
        if job is not None:
            self._fruitless = 0
        if job is not None or "report" in result:  # a trial that fell behind must not be gone on with
            # A worker's calls are carried out in order, so this comes before the step that Tune asks for next.
            self._actors[worker].assign.remote(job)
        return str(TrialScheduler.CONTINUE)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """A worker has died."""
        worker = trial.trial_id
        self._actors.pop(worker, None)
        self._unfit.pop(worker, None)
        if worker not in self._dispatcher.running():
            self._fruitless += 1
            if self._fruitless > _FRUITLESS_STARTS * max(1, self._workers.count):
                reason = _what_happened(trial)
                self.error = StateError(f"no worker process comes up: {reason}")
            return
        try:
            self._dispatcher.lost(worker, _what_happened(trial), hung=worker in self._killed)
        except AutoADError as error:
            self.error = error

    def watch(self) -> bool:
        """Kill what hangs; whether the run is to end at once. Called several times a second."""
        try:
            self._workers.check()
        except StateError as error:
            self.error = error
            return True  # there is nobody left who could kill a worker; they go by themselves
        self._dispatcher.resize(self._workers.count)
        for worker in self._dispatcher.overdue():
            self._killed.add(worker)
            self._kill(worker)
        if self.error is None and not self.interrupted and not self._dispatcher.overran(_OVERRUN):
            # A worker that waits for a machine that has gone will never answer, and must not keep the search up.
            return self.over and not self._dispatcher.running()
        for worker in list(self._actors):
            self._kill(worker)
        return True

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune snapshots its scheduler, but the truth is in the database."""
        return {}

    def _kill(self, worker: str) -> None:
        actor = self._actors.pop(worker, None)
        if actor is not None:
            ray.kill(actor)


def _what_happened(trial: Any) -> str:
    """Why a worker died; Tune tells its scheduler only through a file."""
    try:
        said = Path(trial.error_file).read_text()
    except (OSError, TypeError):  # the disk is full, or Tune had no folder for it
        said = ""
    return explain_death(said)


def _row_update(report: TrialReport) -> dict[str, Any]:
    """What a report says of its trial's row."""
    return {
        "validation": report.validation.model_dump(),
        "by_kind": report.by_kind,
        "swept": report.swept,
        "variants": report.variants,
        "epochs_done": report.epochs_done,
        "budget_limited": report.budget_limited,
        "exact": report.exact,
        "latency_ms": report.latency_ms,
        "peak_memory_mb": report.peak_memory_mb,
        "model_mb": report.model_mb,
    }


class _Pool(Searcher):  # type: ignore[misc]
    """Asks Tune for as many workers as there are places."""

    def __init__(self, conductor: _Conductor, places: Callable[[], int]) -> None:
        super().__init__(metric="objective", mode="max")
        self._conductor = conductor
        self._places = places
        self._alive: set[str] = set()

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """One more worker; None while all places are taken, ``FINISHED`` when the run is to end."""
        if self._conductor.over:
            finished: dict[str, Any] = Searcher.FINISHED
            return finished
        if len(self._alive) >= self._places():
            return None
        self._alive.add(trial_id)
        return {}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """A worker has ended."""
        self._alive.discard(trial_id)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Nothing: the conductor hears of it."""

    def __getstate__(self) -> dict[str, Any]:
        """Nothing; see the conductor."""
        return {}

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Nothing to save; see :meth:`__getstate__`."""


class _Stop(tune.Stopper):  # type: ignore[misc]
    """Lets the conductor look after the workers between results."""

    def __init__(self, conductor: _Conductor) -> None:
        self._conductor = conductor

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._conductor.watch()

    def __getstate__(self) -> dict[str, Any]:
        """Nothing; see the conductor."""
        return {}


def run_trials(
    dispatcher: Dispatcher,
    task: TrialTask,
    workers: Workers,
    place: Place | None,
    folder: Path,
    kept: SelectionScores,
) -> bool:
    """Run trials until the budget is spent; Ray must be up.

    Args:
        dispatcher: decides.
        task: what all trials share.
        workers: how many there are, and what each may use.
        place: what workers of a cluster must know; those of this machine need nothing.
        folder: for Tune's own records, which nobody reads.
        kept: takes the scores of finished trials.

    Returns:
        Whether the run was interrupted (Ctrl-C, or a request to terminate).

    Raises:
        AutoADError: the database cannot be written, or no worker comes up.
    """
    conductor = _Conductor(dispatcher, workers, kept)

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        if conductor.interrupted:  # who says it twice does not want to wait
            raise KeyboardInterrupt
        conductor.interrupted = True

    trainable = tune.with_resources(
        tune.with_parameters(WorkerActor, task=task, place=place), {"cpu": 1, "gpu": workers.gpus_each}
    )
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            metric="objective",
            mode="max",
            search_alg=_Pool(conductor, lambda: workers.count),
            scheduler=conductor,
            num_samples=-1,
        ),
        run_config=tune.RunConfig(
            name="workers",
            storage_path=str(folder.absolute()),
            stop=_Stop(conductor),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=0),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    )
    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    try:
        tuner.fit()
    except (RayError, TuneError, ConnectionError) as error:
        if conductor.error is None:
            conductor.error = StateError(
                f"Ray has failed ({str(error).strip().partition(chr(10))[0] or type(error).__name__})"
            )
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        shutil.rmtree(folder, ignore_errors=True)
        if conductor.error is None:
            dispatcher.stop("the search ended first")
        else:  # the database may be what failed; resuming closes what is open
            with contextlib.suppress(AutoADError):
                dispatcher.stop("the search had to stop")
    if conductor.error is not None:
        raise conductor.error
    return conductor.interrupted
