"""A whole search: dataset in, ranked and honest answer out."""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
import shutil
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import optuna
import pyarrow.parquet

from autoad.algorithms import get_algorithm
from autoad.data import Picture, draw_defects
from autoad.database import Database
from autoad.errors import NoTrialSucceededError
from autoad.features import EngineChoice
from autoad.schema import Champion, DatasetSummary, SearchResult, TrialRow
from autoad.search.champion import RefitError, finish_champion
from autoad.search.leaderboard import rank_trials
from autoad.search.plan import DETERMINISTIC_EPOCHS, DETERMINISTIC_TRIALS, Plan, SearchRequest, make_plan
from autoad.search.space import load_spaces
from autoad.search.trial import TrialTask
from autoad.search.tuning import Budget, Listener, StudySearcher, Workers, local_ray, run_trials
from autoad.settings import Settings, get_settings

__all__ = ["SearchListener", "load_result", "run_search"]

_TRIALS_SHARE = 0.82
_TRIALS_PER_GPU = 4


class SearchListener(Listener, Protocol):
    """Hears how the search goes."""

    def say(self, text: str) -> None:
        """Something worth a line."""

    def opened(self, search: SearchResult, rows: Sequence[TrialRow]) -> None:
        """The search has its record in the database; ``rows`` are trials from before an interruption."""

    def begin(self, budget: Budget) -> None:
        """Trials begin."""

    def end(self) -> None:
        """Trials have ended."""

    def closed(self, result: SearchResult) -> None:
        """The search is over, in whatever way."""


def run_search(request: SearchRequest, listener: SearchListener) -> SearchResult:
    """Search, then refit, calibrate and test the winner.

    Raises:
        UsageError: the request, the dataset or the search space is wrong; nothing has been written then.
        NoTrialSucceededError: all trials failed.
    """
    settings = get_settings()
    started = time.monotonic()
    plan = make_plan(request)
    for note in plan.notes:
        listener.say(note)
    search_id = secrets.token_hex(6)
    name = request.name or f"{plan.dataset.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    database = Database(settings)
    summary = _summary(plan, search_id, name)
    try:
        database.add_search(
            search_id, name, plan.dataset.hash, _request_record(request), summary.model_dump(mode="json")
        )
        listener.opened(summary, ())
        try:
            result = _carry_out(plan, summary, settings, database, listener, started)
        except BaseException as error:
            status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            database.update_search(search_id, status=status)
            listener.closed(summary.model_copy(update={"status": status}))
            raise
        listener.closed(result)
        return result
    finally:
        database.close()


def load_result(name: str | None = None) -> SearchResult:
    """A search as it stands in the database: by name or id, or the newest.

    Raises:
        UsageError: there is no such search.
    """
    database = Database()
    try:
        search = database.find_search(name)
        result = SearchResult.model_validate(search.summary | {"status": search.status})
        return result.model_copy(update={"leaderboard": rank_trials(database.trials(search.id), result.objective)})
    finally:
        database.close()


def _request_record(request: SearchRequest) -> dict[str, Any]:
    return {key: str(value) if isinstance(value, Path) else value for key, value in dataclasses.asdict(request).items()}


def _summary(plan: Plan, search_id: str, name: str) -> SearchResult:
    roles = {
        role: {"good": sum(p.is_normal for p in pictures), "defective": sum(not p.is_normal for p in pictures)}
        for role, pictures in (
            ("train", plan.roles.train),
            ("selection", plan.roles.selection),
            ("calibration", plan.roles.calibration),
            ("test", plan.roles.test),
        )
    }
    return SearchResult(
        search_id=search_id,
        name=name,
        status="running",
        objective=plan.objective,
        seed=plan.request.seed,
        seconds=0.0,
        dataset=DatasetSummary(
            path=str(plan.request.data),
            layout=plan.dataset.layout,
            hash=plan.dataset.hash,
            counts=plan.dataset.counts(),
            roles=roles,
        ),
        evidence=plan.roles.evidence,
        engine=f"{plan.engine.name} {plan.engine.precision}",
        notes=list(plan.notes),
        champion=None,
        leaderboard=[],
    )


def _workers(request: SearchRequest, engine: EngineChoice) -> Workers:
    cores = os.cpu_count() or 1
    if engine.name == "cuda":
        import torch

        count = 1 if request.deterministic else min(cores, _TRIALS_PER_GPU * torch.cuda.device_count())
        return Workers(count, gpus_each=1 / _TRIALS_PER_GPU)
    return Workers(1 if request.deterministic else cores)


def _task(plan: Plan, selection: Sequence[Picture], settings: Settings) -> TrialTask:
    request = plan.request
    limit = request.max_epochs or (DETERMINISTIC_EPOCHS if request.deterministic else None)
    epochs = {
        name: min(space.epochs, limit) if limit else space.epochs
        for name, space in plan.spaces.items()
        if space.epochs is not None
    }
    return TrialTask(
        train=plan.roles.train,
        selection=tuple(selection),
        synthetic=plan.roles.evidence == "synthetic",
        features_dir=settings.features_dir,
        engine=plan.engine,
        precision=plan.precision,
        objective=plan.objective,
        epochs=epochs,
        seed=request.seed,
        timed=not request.deterministic,
    )


def _budget(request: SearchRequest, workers: Workers, spent: float) -> Budget:
    if request.deterministic:
        return Budget(request.trials or DETERMINISTIC_TRIALS, None, workers.count)
    seconds = None if request.seconds is None else max(1.0, request.seconds * _TRIALS_SHARE - spent)
    return Budget(request.trials, seconds, workers.count)


def _open_study(plan: Plan, name: str, settings: Settings) -> optuna.Study:
    """A study whose first trials are the default of each algorithm, those that do not train before the others."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # group, constant_liar
        sampler = optuna.samplers.TPESampler(
            seed=plan.request.seed, multivariate=True, group=True, constant_liar=not plan.request.deterministic
        )
    study = optuna.create_study(
        storage=f"sqlite:///{settings.data_dir.absolute() / 'optuna.db'}",
        study_name=name,
        direction="maximize",
        sampler=sampler,
    )
    for space in sorted(plan.spaces.values(), key=lambda space: get_algorithm(space.algorithm).iterative):
        study.enqueue_trial({"algorithm": space.algorithm} | space.encode(space.defaults()))
    return study


def _carry_out(
    plan: Plan, summary: SearchResult, settings: Settings, database: Database, listener: SearchListener, started: float
) -> SearchResult:
    request, search_id = plan.request, summary.search_id
    folder = settings.searches_dir / search_id
    folder.mkdir(parents=True)
    _store_dataset(plan, folder)
    selection: Sequence[Picture] = plan.roles.selection
    if plan.roles.evidence == "synthetic":
        listener.say("no labelled defect to select by: drawing synthetic ones (evidence: synthetic)")
        normals = [picture for picture in selection if picture.is_normal]
        selection = (*selection, *draw_defects(normals, folder / "synthetic", seed=request.seed))
    task = _task(plan, selection, settings)
    workers = _workers(request, plan.engine)
    study = _open_study(plan, search_id, settings)
    with local_ray(workers):
        budget = _budget(request, workers, time.monotonic() - started)
        searcher = StudySearcher(
            study,
            plan.spaces,
            budget,
            lambda row: database.write_trial(search_id, row),
            listener,
            by_rank=task.synthetic,
        )
        listener.begin(budget)
        try:
            interrupted = run_trials(searcher, task, workers, budget, list(plan.spaces), folder / "tune")
        finally:
            listener.end()
    shutil.rmtree(folder / "tune", ignore_errors=True)
    rows = rank_trials(database.trials(search_id), plan.objective)
    notes = list(summary.notes)
    champion = None
    if not interrupted:
        try:
            champion = _champion(plan, task, rows, summary, settings, listener, notes)
        except KeyboardInterrupt:
            interrupted = True
    status: Literal["interrupted", "failed", "complete"]
    status = "interrupted" if interrupted else "failed" if champion is None else "complete"
    seconds = round(time.monotonic() - started, 1)
    result = summary.model_copy(update={"status": status, "seconds": seconds, "notes": notes, "champion": champion})
    database.update_search(search_id, status=result.status, summary=result.model_dump(mode="json"))
    if status == "failed":
        reasons = sorted({f"{row.algorithm}: {row.reason}" for row in rows if row.reason})
        raise NoTrialSucceededError("no trial succeeded; " + ("; ".join(reasons[:8]) or "the time was too short"))
    return result.model_copy(update={"leaderboard": rows})


def _champion(
    plan: Plan,
    task: TrialTask,
    rows: Sequence[TrialRow],
    summary: SearchResult,
    settings: Settings,
    listener: SearchListener,
    notes: list[str],
) -> Champion | None:
    """The best trial's finished model; a trial that cannot be fitted on more pictures makes way for the next.

    Returns:
        None if no trial was completed, or none could be fitted again.
    """

    def note(text: str) -> None:
        notes.append(text)
        listener.say(text)

    for row in rows:
        if row.status != "complete":
            break
        try:
            return finish_champion(
                row,
                task,
                plan.roles,
                plan.dataset,
                name=summary.name,
                search=summary.search_id,
                evidence=plan.roles.evidence,
                rate=plan.rate,
                models_dir=settings.models_dir,
                default_config=load_spaces(["patchcore"])["patchcore"].defaults(),
                threads=os.cpu_count() or 1,
                say=listener.say,
                note=note,
            )
        except RefitError as error:
            note(str(error))
    return None


def _store_dataset(plan: Plan, folder: Path) -> None:
    """Keep what was searched and which role each picture had."""
    pyarrow.parquet.write_table(plan.dataset.to_arrow(), folder / "dataset.parquet")
    (folder / "roles.json").write_text(json.dumps(plan.roles.to_dict(), indent=1, sort_keys=True))
