"""A whole search: dataset in, ranked and honest answer out."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy

from autoad.database import Database, this_process
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
from autoad.schema import DatasetSummary, SearchResult
from autoad.search.cluster import check_reachable
from autoad.search.course import carry_out
from autoad.search.jobs import SearchListener
from autoad.search.lease import Lease
from autoad.search.plan import Plan, SearchRequest, make_plan, usable_name
from autoad.search.record import check_unchanged, engine_name, read_request, request_record
from autoad.search.recovery import close_search, recover_lost_searches
from autoad.settings import Settings, get_settings

__all__ = ["resume_search", "run_search"]


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


def _summary(plan: Plan, search_id: str, name: str) -> SearchResult:
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
            roles=plan.roles.counts(),
        ),
        evidence=plan.evidence,
        engine=engine_name(plan),
        notes=list(plan.notes),
        champion=None,
        leaderboard=[],
    )


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
            result = carry_out(plan, summary, settings, database, lease, listener)
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
        if any(row.status == "complete" for row in result.leaderboard):
            why = [note for note in result.notes if note not in summary.notes]
            raise NoTrialSucceededError(f"no trial could become the champion; {'; '.join(why)}")
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
