"""A whole search: dataset in, ranked and honest answer out."""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import optuna
import pyarrow.parquet

from autoad.algorithms import ALGORITHMS, Precision, get_algorithm
from autoad.data import Dataset, Picture, Roles, assign_roles, draw_defects, read_dataset
from autoad.database import Database
from autoad.errors import CalibrationError, DatasetError, NoTrialSucceededError, UnknownNameError, UsageError
from autoad.evaluation import smallest_rate
from autoad.features import EngineChoice, choose_engine, head_precision, reachable_backbones
from autoad.schema import METRIC_NAMES, DatasetSummary, Objective, SearchResult
from autoad.search.champion import finish_champion
from autoad.search.leaderboard import best_trial, rank_trials
from autoad.search.space import Space, load_spaces
from autoad.search.trial import TrialTask
from autoad.search.tuning import Budget, Listener, StudySearcher, Workers, local_ray, run_trials
from autoad.settings import Settings, get_settings

__all__ = ["SearchListener", "SearchRequest", "load_result", "run_search"]

DEFAULT_SECONDS = 20 * 60.0
DEFAULT_RATE = 0.05
_DETERMINISTIC_EPOCHS = 5
_DETERMINISTIC_TRIALS = 16
_TRIALS_SHARE = 0.82
_TRIALS_PER_GPU = 4
_PIXEL_OBJECTIVES = ("pixel_auroc", "aupro")


@dataclasses.dataclass(frozen=True)
class SearchRequest:
    """What to search.

    Attributes:
        data: folder or manifest.
        algorithms: names; empty for all eight.
        objective: metric on the selection role that ranks trials.
        trials: how many; None for as many as the time allows.
        seconds: for the whole search; None for no limit (then ``trials`` must be given).
        seed: of the sampler and of every detector.
        name: of the search and its model; empty for the dataset's name and the date.
        space: file or folder of search spaces that override the packaged ones.
        deterministic: one worker and no decision by the clock, so that the same call gives the same leaderboard.
        max_epochs: lowers the search spaces' ceilings of epochs.
        false_positive_rate: for the threshold; None for 5 %, or the smallest that the pictures allow.
    """

    data: Path
    algorithms: tuple[str, ...] = ()
    objective: str = "image_auroc"
    trials: int | None = None
    seconds: float | None = DEFAULT_SECONDS
    seed: int = 0
    name: str = ""
    space: Path | None = None
    deterministic: bool = False
    max_epochs: int | None = None
    false_positive_rate: float | None = None
    engine: str = "auto"
    precision: str = "auto"


class SearchListener(Listener, Protocol):
    """Hears how the search goes."""

    def say(self, text: str) -> None:
        """Something worth a line."""

    def begin(self, budget: Budget) -> None:
        """Trials begin."""

    def end(self) -> None:
        """Trials have ended."""


@dataclasses.dataclass(frozen=True)
class _Plan:
    """A request, checked against the dataset and this machine."""

    request: SearchRequest
    objective: Objective
    dataset: Dataset
    roles: Roles
    spaces: dict[str, Space]
    engine: EngineChoice
    precision: Precision
    rate: float
    notes: tuple[str, ...]


def run_search(request: SearchRequest, listener: SearchListener) -> SearchResult:
    """Search, then refit, calibrate and test the winner.

    Raises:
        UsageError: the request, the dataset or the search space is wrong; nothing has been written then.
        NoTrialSucceededError: all trials failed.
    """
    settings = get_settings()
    started = time.monotonic()
    plan = _make_plan(request, listener)
    search_id = secrets.token_hex(6)
    name = request.name or f"{plan.dataset.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    database = Database(settings)
    summary = _summary(plan, search_id, name)
    try:
        database.add_search(
            search_id, name, plan.dataset.hash, _request_record(request), summary.model_dump(mode="json")
        )
        try:
            return _carry_out(plan, summary, settings, database, listener, started)
        except BaseException as error:
            status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            database.update_search(search_id, status=status)
            raise
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


def _make_plan(request: SearchRequest, listener: SearchListener) -> _Plan:
    """Check everything that can be checked before anything is written."""
    objective = next((name for name in METRIC_NAMES if name == request.objective), None)
    if objective is None:
        raise UnknownNameError("objective", request.objective, METRIC_NAMES)
    algorithms = tuple(request.algorithms) or ALGORITHMS
    for algorithm in algorithms:
        get_algorithm(algorithm)
    if request.trials is None and request.seconds is None:
        raise UsageError("a search needs an end: give --trials or --time")
    spaces = load_spaces(algorithms, request.space)
    if request.name and (request.name != Path(request.name).name or request.name.startswith(".")):
        raise UsageError(f"a name must be usable as a folder name but got {request.name!r}")
    dataset = read_dataset(request.data)
    roles = assign_roles(dataset)
    notes = [f"skipped {skipped.path}: {skipped.reason}" for skipped in dataset.skipped]
    rate = _false_positive_rate(request, roles, notes)
    if objective in _PIXEL_OBJECTIVES:
        mapless = [name for name in spaces if get_algorithm(name).kind == "classification"]
        spaces = {name: space for name, space in spaces.items() if name not in mapless}
        if mapless:
            notes.append(f"{', '.join(mapless)}: left out, for they have no map and the objective is {objective}")
        if roles.evidence == "labelled" and not any(picture.mask for picture in roles.selection):
            raise DatasetError(f"the objective {objective} needs masks of defects and the selection pictures have none")
    spaces = _reachable(spaces, notes)
    if not spaces:
        raise UsageError("nothing is left to search: " + "; ".join(notes))
    engine = choose_engine(request.engine, request.precision)
    for note in notes:
        listener.say(note)
    return _Plan(
        request=request,
        objective=objective,
        dataset=dataset,
        roles=roles,
        spaces=spaces,
        engine=engine,
        precision="float32" if request.precision == "float32" else head_precision(engine),
        rate=rate,
        notes=tuple(notes),
    )


def _false_positive_rate(request: SearchRequest, roles: Roles, notes: list[str]) -> float:
    smallest = smallest_rate(len(roles.calibration))
    if request.false_positive_rate is not None:
        if not 0 < request.false_positive_rate < 1:
            raise UsageError(f"--false-positive-rate must lie between 0 and 1 but got {request.false_positive_rate}")
        if request.false_positive_rate < smallest:
            raise CalibrationError(
                f"a false-positive rate of {request.false_positive_rate:g} cannot be guaranteed with "
                f"{len(roles.calibration)} calibration pictures (the smallest is {smallest:.4g}); "
                "add good pictures or ask for a larger rate"
            )
        return request.false_positive_rate
    if smallest > DEFAULT_RATE:
        notes.append(
            f"with {len(roles.calibration)} calibration pictures the threshold can guarantee a false-positive rate "
            f"of {smallest:.3f} at best; add good pictures for less"
        )
    return max(DEFAULT_RATE, smallest)


def _reachable(spaces: dict[str, Space], notes: list[str]) -> dict[str, Space]:
    """Drop backbones whose weights cannot be had, and algorithms that then have none."""
    wanted = {name for space in spaces.values() for name in space.backbones()}
    found = reachable_backbones(sorted(wanted))
    missing = {name for name, weights in found.items() if isinstance(weights, str)}
    if missing:
        notes.append(
            f"backbones without reachable weights are left out: {', '.join(sorted(missing))} "
            "(put NAME.safetensors into the folder that AUTOAD_WEIGHTS_DIR names)"
        )
    left = {}
    for name, space in spaces.items():
        backbones = space.backbones()
        if backbones and not backbones - missing:
            notes.append(f"{name}: left out, for none of its backbones has reachable weights")
        else:
            left[name] = space.without_backbones(missing)
    return left


def _request_record(request: SearchRequest) -> dict[str, Any]:
    return {key: str(value) if isinstance(value, Path) else value for key, value in dataclasses.asdict(request).items()}


def _summary(plan: _Plan, search_id: str, name: str) -> SearchResult:
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


def _task(plan: _Plan, selection: Sequence[Picture], settings: Settings) -> TrialTask:
    request = plan.request
    limit = request.max_epochs or (_DETERMINISTIC_EPOCHS if request.deterministic else None)
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
        return Budget(request.trials or _DETERMINISTIC_TRIALS, None, workers.count)
    seconds = None if request.seconds is None else max(1.0, request.seconds * _TRIALS_SHARE - spent)
    return Budget(request.trials, seconds, workers.count)


def _open_study(plan: _Plan, name: str, settings: Settings) -> optuna.Study:
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
    plan: _Plan, summary: SearchResult, settings: Settings, database: Database, listener: SearchListener, started: float
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
        searcher = StudySearcher(study, plan.spaces, budget, lambda row: database.write_trial(search_id, row), listener)
        listener.begin(budget)
        try:
            interrupted = run_trials(searcher, task, workers, budget, list(plan.spaces), folder / "tune")
        finally:
            listener.end()
    rows = database.trials(search_id)
    update: dict[str, Any] = {"seconds": round(time.monotonic() - started, 1)}
    best = best_trial(rows, plan.objective)
    if interrupted:
        update["status"] = "interrupted"
    elif best is None:
        reasons = sorted({f"{row.algorithm}: {row.reason}" for row in rows if row.reason})
        raise NoTrialSucceededError("no trial succeeded; " + ("; ".join(reasons[:8]) or "the time was too short"))
    else:
        update["champion"] = finish_champion(
            best,
            task,
            plan.roles,
            plan.dataset,
            name=summary.name,
            search=search_id,
            evidence=plan.roles.evidence,
            rate=plan.rate,
            models_dir=settings.models_dir,
            default_config=load_spaces(["patchcore"])["patchcore"].defaults(),
            threads=os.cpu_count() or 1,
            say=listener.say,
        )
        update |= {"status": "complete", "seconds": round(time.monotonic() - started, 1)}
    result = summary.model_copy(update=update)
    database.update_search(search_id, status=result.status, summary=result.model_dump(mode="json"))
    return result.model_copy(update={"leaderboard": rank_trials(rows, plan.objective)})


def _store_dataset(plan: _Plan, folder: Path) -> None:
    """Keep what was searched and which role each picture had."""
    pyarrow.parquet.write_table(plan.dataset.to_arrow(), folder / "dataset.parquet")
    (folder / "roles.json").write_text(json.dumps(plan.roles.role_of, indent=1, sort_keys=True))
