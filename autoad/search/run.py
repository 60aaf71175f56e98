"""A whole search: dataset in, ranked and honest answer out."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

import pyarrow.parquet
import sqlalchemy

from autoad.algorithms import get_algorithm
from autoad.data import Picture, draw_defects
from autoad.database import Database, is_lost, this_process
from autoad.errors import (
    AutoADError,
    ConflictError,
    FileStoreError,
    LeaseLostError,
    NoTrialSucceededError,
    StateError,
    StorageFullError,
    UsageError,
    is_full,
)
from autoad.models.registry import Registry
from autoad.schema import Champion, DatasetSummary, SearchResult, TrialRow
from autoad.search.budget import TRIALS_SHARE, Budget
from autoad.search.champion import RefitError, finish_champion
from autoad.search.cluster import LocalWorkers, Workers, check_reachable, join_ray, local_ray
from autoad.search.dispatch import Dispatcher
from autoad.search.jobs import Listener, Suggestion
from autoad.search.leaderboard import rank_trials
from autoad.search.lease import Lease
from autoad.search.memory import predict_memory
from autoad.search.place import offer_files
from autoad.search.plan import DETERMINISTIC_EPOCHS, DETERMINISTIC_TRIALS, Plan, SearchRequest, make_plan, usable_name
from autoad.search.record import check_unchanged, engine_name, read_request, request_record
from autoad.search.recovery import SCRATCH, close_search, outstanding, recover_lost_searches
from autoad.search.space import load_spaces
from autoad.search.study import Proposer, study_storage
from autoad.search.trial import TrialTask
from autoad.search.tuning import run_trials
from autoad.search.warm_start import warm_start
from autoad.settings import Settings, get_settings

_WORTH_A_WORD = 0.1
"""Share of the time that is left when a search that ends early says why."""

__all__ = ["SearchListener", "load_result", "read_result", "resume_search", "run_search"]


class SearchListener(Listener, Protocol):
    """Hears how the search goes."""

    def say(self, text: str) -> None:
        """Something worth a line."""

    def opened(self, search: SearchResult, rows: Sequence[TrialRow]) -> None:
        """This process carries the search out; ``rows`` are trials from before an interruption."""

    def begin(self, budget: Budget) -> None:
        """Trials begin."""

    def end(self) -> None:
        """Trials have ended."""

    def closed(self, result: SearchResult) -> None:
        """The search is over, in whatever way."""


def run_search(request: SearchRequest, listener: SearchListener, *, search_id: str = "") -> SearchResult:
    """Search, then refit, calibrate and test the winner.

    Args:
        request: what to search.
        listener: hears how it goes.
        search_id: that the search gets; a new one if empty.

    Raises:
        UsageError: the request, the dataset or the search space is wrong; nothing has been written then.
        NoTrialSucceededError: all trials failed.
        StateError: the search had to stop, and can be resumed.
    """
    settings = get_settings()
    started = time.monotonic()
    plan = make_plan(request)
    if request.address:
        check_reachable(request.address)
    for note in plan.notes:
        listener.say(note)
    search_id = search_id or secrets.token_hex(6)
    name = request.name or f"{usable_name(plan.dataset.name)}-{time.strftime('%Y%m%d-%H%M%S')}"
    summary = _summary(plan, search_id, name)
    with _opened(settings, listener) as database:
        registry = Registry(database, settings)
        registry.check_store()
        if not request.model and registry.has(name):
            raise UsageError(
                f"there is a model named {name!r} already; choose another --name, and give --model {name} to make the "
                "next version of that model"
            )
        database.add_search(
            search_id,
            name,
            plan.dataset.hash,
            request_record(plan),
            summary.model_dump(mode="json"),
            owner=this_process(),
        )
        return _carry_out(plan, summary, settings, database, listener, spent=time.monotonic() - started)


def resume_search(
    name: str,
    listener: SearchListener,
    *,
    seconds: float | None = None,
    trials: int | None = None,
    patience: int | None = None,
    trial_timeout: float | None = None,
    address: str | None = None,
    data: Path | None = None,
) -> SearchResult:
    """Go on with a search that was interrupted, failed or whose process was killed.

    No trial that has ended is repeated; those that were cut off are tried first.

    Args:
        name: or id, of the search.
        listener: hears how it goes.
        seconds: time from now on; with ``trials`` it takes the place of the search's own limits, what is left of which
            counts where neither is given.
        trials: number of trials from now on.
        patience: instead of the search's own.
        trial_timeout: likewise.
        address: of the Ray cluster, likewise; it may have moved.
        data: likewise; the same pictures may lie elsewhere now.

    Raises:
        UsageError: there is no such search, it is complete, or its pictures, search space or this machine's engine are
            not what they were.
        ConflictError: another process carries it out.
        NoTrialSucceededError: all trials failed.
        StateError: the search had to stop, and can be resumed.
    """
    settings = get_settings()
    started = time.monotonic()
    with _opened(settings, listener) as database:
        search = database.find_search(name)
        if search.status == "complete":
            raise UsageError(f"the search {search.name!r} is complete; there is nothing to resume")
        if search.status == "running":
            raise ConflictError(
                f"the search {search.name!r} is being carried out by process {search.owner}; watch it with: "
                f"autoad searches {search.name} --follow"
            )
        rows = database.trials(search.id)
        request = read_request(
            search,
            rows,
            seconds=seconds,
            trials=trials,
            patience=patience,
            trial_timeout=trial_timeout,
            address=address,
            data=data,
        )
        if request.address:
            check_reachable(request.address)
        plan = make_plan(request, resuming=search.name)
        summary = SearchResult.model_validate(search.summary | {"status": "running"})
        check_unchanged(plan, search, summary)
        Registry(database, settings).check_store()
        search = database.take_over(search.id, this_process(), request_record(plan))
        close_search(database, settings, search.id, "the search was interrupted")
        shutil.rmtree(settings.searches_dir / search.id / "synthetic", ignore_errors=True)
        listener.say(f"resuming {search.name} after {search.spent:.0f} s and {len(rows)} trials")
        return _carry_out(plan, summary, settings, database, listener, spent=search.spent + time.monotonic() - started)


@contextmanager
def _opened(settings: Settings, listener: SearchListener) -> Iterator[Database]:
    """The database, with lost searches put in order."""
    database = Database(settings)
    try:
        for lost in recover_lost_searches(database, settings):
            listener.say(f"the search {lost.name} was cut off; go on with: autoad search --resume {lost.id}")
        yield database
    finally:
        database.close()


def load_result(name: str | None = None, settings: Settings | None = None) -> SearchResult:
    """A search as it stands in the database: by name or id, or the newest.

    One whose process is gone counts as interrupted, which it will be called when the next process tidies up.

    Raises:
        UsageError: there is no such search.
    """
    database = Database(settings)
    try:
        return read_result(database, name)
    finally:
        database.close()


def read_result(database: Database, name: str | None = None) -> SearchResult:
    """The same from a database that is open."""
    search = database.find_search(name)
    status = "interrupted" if is_lost(search) else search.status
    result = SearchResult.model_validate(search.summary | {"status": status})
    return result.model_copy(update={"leaderboard": rank_trials(database.trials(search.id), result.objective)})


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
        engine=engine_name(plan),
        notes=list(plan.notes),
        champion=None,
        leaderboard=[],
    )


@contextmanager
def _ray(plan: Plan) -> Iterator[Workers]:
    """The cluster that was asked for, or a Ray of our own."""
    cuda, alone = plan.engine.name == "cuda", plan.request.deterministic
    if plan.request.address:
        backbones = {name for space in plan.spaces.values() for name in space.backbones()}
        with join_ray(plan.request.address, backbones=sorted(backbones), cuda=cuda, alone=alone) as joined:
            yield joined
    else:
        local = LocalWorkers.here(cuda=cuda, alone=alone)
        with local_ray(local):
            yield local


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


def _budget(request: SearchRequest, spent: float) -> Budget:
    seconds = None if request.seconds is None else request.seconds * TRIALS_SHARE
    trials = request.trials
    if request.deterministic:
        seconds, trials = None, request.trials or DETERMINISTIC_TRIALS
    return Budget(trials, seconds, 1, request.patience, request.trial_timeout, before=spent)


def _memory(task: TrialTask, algorithm: str, config: Mapping[str, Any]) -> int:
    """Bytes that a trial is expected to take; one that cannot be will say so itself."""
    try:
        return predict_memory(
            algorithm, config, train=len(task.train), selection=len(task.selection), runtime=task.runtime
        )
    except UsageError:
        return 0


def _first_trials(plan: Plan) -> list[Suggestion]:
    """The default of each algorithm, those that do not train before the others."""
    spaces = sorted(plan.spaces.values(), key=lambda space: get_algorithm(space.algorithm).iterative)
    return [Suggestion("default", space.algorithm, space.defaults()) for space in spaces]


def _carry_out(
    plan: Plan,
    summary: SearchResult,
    settings: Settings,
    database: Database,
    listener: SearchListener,
    *,
    spent: float,
) -> SearchResult:
    """Trials, then the champion, as the owner of the search."""
    search_id = summary.search_id
    with Lease(database, search_id, spent, settings.database_patience) as lease:
        listener.opened(summary, database.trials(search_id))
        try:
            result = _search(plan, summary, settings, database, lease, listener)
        except LeaseLostError:
            raise
        except BaseException as error:
            cause = _what_can_be_mended(error)
            status = "interrupted" if cause or isinstance(error, KeyboardInterrupt) else "failed"
            with contextlib.suppress(sqlalchemy.exc.SQLAlchemyError, AutoADError):  # then the next search finds it lost
                close_search(database, settings, search_id, "the search had to stop")
                lease.close(status)
            listener.closed(summary.model_copy(update={"status": status}))
            if cause:
                raise StateError(
                    f"{cause}; when that is mended go on with: autoad search --resume {search_id}"
                ) from error
            raise
    listener.closed(result)
    if result.status == "failed":
        reasons = sorted({f"{row.algorithm}: {row.reason}" for row in result.leaderboard if row.reason})
        raise NoTrialSucceededError("no trial succeeded; " + ("; ".join(reasons[:8]) or "the time was too short"))
    return result


def _what_can_be_mended(error: BaseException) -> str | None:
    """What has stopped a search that can go on when somebody has seen to it; None for other errors."""
    if isinstance(error, StateError | StorageFullError | FileStoreError):
        return str(error)
    if isinstance(error, OSError) and is_full(error):
        return f"{error.filename or 'the data folder'} must have room for another file but its disk is full"
    if isinstance(error, sqlalchemy.exc.OperationalError):
        return f"the metadata database cannot be reached ({str(error.orig).strip()})"
    return None


def _search(
    plan: Plan,
    summary: SearchResult,
    settings: Settings,
    database: Database,
    lease: Lease,
    listener: SearchListener,
) -> SearchResult:
    search_id = summary.search_id
    folder = settings.searches_dir / search_id
    folder.mkdir(parents=True, exist_ok=True)
    _store_dataset(plan, folder)
    warm = warm_start(plan, search_id, database, settings, threads=os.cpu_count() or 1)
    for note in warm.notes:
        listener.say(note)
    notes = list(dict.fromkeys([*summary.notes, *warm.notes]))
    first = [*_first_trials(plan), *warm.suggestions]
    interrupted = _run_trials(plan, first, search_id, folder, settings, database, lease, listener)
    lease.check()
    rows = rank_trials(database.trials(search_id), plan.objective)
    champion = None
    if not interrupted:
        try:
            champion = _champion(plan, rows, summary, Registry(database, settings), settings, listener, notes)
        except KeyboardInterrupt:
            interrupted = True
    status: Literal["interrupted", "failed", "complete"]
    status = "interrupted" if interrupted else "failed" if champion is None else "complete"
    seconds = round(lease.spent, 1)
    result = summary.model_copy(update={"status": status, "seconds": seconds, "notes": notes, "champion": champion})
    lease.close(result.status, result.model_dump(mode="json"))
    return result.model_copy(update={"leaderboard": rows})


def _run_trials(
    plan: Plan,
    first: Sequence[Suggestion],
    search_id: str,
    folder: Path,
    settings: Settings,
    database: Database,
    lease: Lease,
    listener: SearchListener,
) -> bool:
    """Run the trials that the budget allows, ``first`` before the sampler is asked; whether that was interrupted."""
    request = plan.request
    selection: Sequence[Picture] = plan.roles.selection
    if plan.roles.evidence == "synthetic":
        listener.say("no labelled defect to select by: drawing synthetic ones (evidence: synthetic)")
        normals = [picture for picture in selection if picture.is_normal]
        selection = (*selection, *draw_defects(normals, folder / "synthetic", seed=request.seed))
    task = _task(plan, selection, settings)
    rows = database.trials(search_id)
    budget = _budget(request, lease.spent)
    proposer = Proposer.open(
        study_storage(settings), search_id, plan.spaces, seed=request.seed, liar=not request.deterministic
    )
    proposer.reconcile(rows, plan.objective)
    normal = sum(picture.is_normal for picture in selection)
    dispatcher = Dispatcher(
        proposer,
        plan.spaces,
        budget,
        lease.write_trial,
        listener,
        objective=plan.objective,
        epochs=task.epochs,
        pictures=(normal, len(selection) - normal),
        queue=outstanding(first, rows, plan.spaces),
        known=rows,
        by_rank=task.synthetic,
        timed=not request.deterministic,
        # A GPU's memory is another, and what is free at the moment must not decide where results are to repeat.
        memory=None if plan.engine.name == "cuda" or request.deterministic else functools.partial(_memory, task),
    )
    if dispatcher.finished:
        return False
    with _ray(plan) as workers:
        budget.workers = workers.count
        place = offer_files((*task.train, *task.selection), settings) if request.address else None
        listener.begin(budget)
        try:
            interrupted = run_trials(dispatcher, task, workers, place, folder / SCRATCH)
        finally:
            listener.end()
    if dispatcher.refusal is not None and (budget.seconds is None or budget.left > _WORTH_A_WORD * budget.seconds):
        listener.say(f"no further trial began: {dispatcher.refusal}")
    return interrupted


def _champion(
    plan: Plan,
    rows: Sequence[TrialRow],
    summary: SearchResult,
    registry: Registry,
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
                _task(plan, plan.roles.selection, settings),
                plan.roles,
                plan.dataset,
                name=plan.request.model or usable_name(summary.name),
                search=summary.search_id,
                evidence=plan.roles.evidence,
                threshold=plan.threshold,
                rate=plan.rate,
                registry=registry,
                scratch_dir=settings.models_dir,
                scores_file=settings.searches_dir / summary.search_id / "scores.parquet",
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
