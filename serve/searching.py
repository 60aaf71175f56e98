"""What a driver does: the search, its report, and whether its champion is better than the version that serves."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from autoad.console import ConsoleListener
from autoad.data import assign_roles, read_dataset
from autoad.data.catalog import Catalog
from autoad.database import Database, Search, Submission
from autoad.errors import AutoADError, ConflictError, StateError
from autoad.models.registry import Registry
from autoad.report import write_report
from autoad.schema import PromotionVerdict, SearchResult, SubmitRequest
from autoad.search import SearchRequest, resume_search, run_search
from autoad.search.challenge import challenge
from autoad.search.public import without_paths
from autoad.search.results import read_result
from autoad.search.trackers import FanOut, TensorBoardTracker
from autoad.serve.ending import Ending
from autoad.serve.reports import report_store
from autoad.settings import Settings

__all__ = ["carry_out"]

_WAIT_SECONDS, _RETRY_SECONDS = 60.0, 1.0
_logger = logging.getLogger(__name__)


def carry_out(
    row: Submission, database: Database, settings: Settings, *, address: str, cancelled: Callable[[], bool]
) -> Ending:
    """Search, or go on with the search; then what comes after one.

    Args:
        row: what was submitted, in the database's and the settings' project.
        database: with it.
        settings: of this process.
        address: of the Ray cluster to search on; empty for a Ray of its own.
        cancelled: whether an interruption is meant to end the search.

    Raises:
        AutoADError: as of :func:`autoad.search.run_search`.
        KeyboardInterrupt: it was interrupted outside its trials.
    """
    request = SubmitRequest.model_validate(row.request)
    name, _, version = request.dataset.partition("/")
    data = Catalog(database, settings).open(name, int(version), row.project)
    result = _search(row.id, request, data, database, address)
    if result.status == "interrupted":
        return Ending("later", report=_report(result, request.dataset, settings) if cancelled() else None)
    verdict = _verdict(result, request, data, database, settings)
    promotion = None if verdict is None else verdict.model_dump(mode="json")
    return Ending("complete", promotion=promotion, report=_report(result, request.dataset, settings))


def _search(search_id: str, request: SubmitRequest, data: Path, database: Database, address: str) -> SearchResult:
    begun = _begun(database, search_id)
    if begun is not None and begun.status == "complete":  # whoever completed it had no time to say so
        return read_result(database, search_id)
    listener = FanOut(ConsoleListener(), TensorBoardTracker())
    if begun is None:
        return run_search(
            SearchRequest(
                data=data,
                algorithms=tuple(request.algorithms),
                objective=request.objective,
                trials=request.trials,
                seconds=request.seconds,
                seed=request.seed,
                name=request.name,
                model=request.model,
                deterministic=request.deterministic,
                warm_start=request.warm_start,
                max_epochs=request.max_epochs,
                threshold=request.threshold,
                false_positive_rate=request.false_positive_rate,
                patience=request.patience,
                max_latency_ms=request.max_latency_ms,
                max_memory_mb=request.max_memory_mb,
                keep_suspicious=request.keep_suspicious,
                address=address,
            ),
            listener,
            search_id=search_id,
        )
    first = time.monotonic()
    while True:
        try:
            return resume_search(search_id, listener, data=data, address=address)
        except ConflictError as error:
            # Another process may be putting it in order, or its last driver's heartbeat on another machine be fresh.
            if time.monotonic() - first > _WAIT_SECONDS:
                raise StateError(str(error)) from error
            time.sleep(_RETRY_SECONDS)


def _begun(database: Database, search_id: str) -> Search | None:
    return next((search for search in database.searches_of([search_id]) if search.id == search_id), None)


def _verdict(
    result: SearchResult, request: SubmitRequest, data: Path, database: Database, settings: Settings
) -> PromotionVerdict | None:
    """What is to become of the champion; that it cannot be compared does not make the search worth less."""
    champion = result.champion
    if request.promote_when == "never" or champion is None or champion.name is None or champion.version is None:
        return None
    if request.promote_when == "always":
        return PromotionVerdict(state="pending", reason="whatever comes of the search was to be promoted")
    try:
        return challenge(
            Registry(database, settings),
            settings,
            champion.name,
            champion.version,
            search=result.search_id,
            test=assign_roles(read_dataset(data)).test,
            seed=request.seed,
        )
    except AutoADError as error:
        reason = without_paths(str(error))
    except Exception:
        _logger.exception("the champion could not be compared with the version that serves")
        reason = "the driver's log says why"
    return PromotionVerdict(state="kept", reason=f"it could not be compared with the version that serves: {reason}")


def _report(result: SearchResult, dataset: str, settings: Settings) -> str | None:
    """The sha256 of the search's report; a search without one is a search all the same."""
    try:
        file = write_report(result, dataset=dataset)
        return report_store(settings, settings.project).write(file.read_bytes())
    except Exception:
        _logger.exception("the report could not be written")
        return None
