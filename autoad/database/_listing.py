"""The list of searches."""

from __future__ import annotations

from collections.abc import Sequence

from autoad.database._owner import is_gone
from autoad.database._records import Search, aware, utc_now
from autoad.database._session import Database
from autoad.schema import Objective, SearchEntry

__all__ = ["describe_search", "is_lost", "list_searches", "seconds_so_far"]


def list_searches(database: Database, limit: int | None = None) -> list[SearchEntry]:
    """The project's searches, newest first."""
    return _entries(database, database.searches(limit))


def describe_search(database: Database, name: str | None = None) -> SearchEntry:
    """The entry of one search, by name or id, or of the newest.

    Raises:
        UsageError: there is no such search.
    """
    return _entries(database, [database.find_search(name)])[0]


def is_lost(search: Search) -> bool:
    """Whether a search should be running but its process is gone, so that it can be resumed."""
    return search.status == "running" and (search.owner is None or is_gone(search.owner, search.heartbeat))


def seconds_so_far(search: Search) -> float:
    """The search's own time; interruptions do not count. Of a running search it is known to within some seconds."""
    if search.status != "running":
        return max(float(search.summary["seconds"]), search.spent)
    if search.heartbeat is None or is_lost(search):
        return search.spent
    return search.spent + (utc_now() - aware(search.heartbeat)).total_seconds()


def _entries(database: Database, searches: Sequence[Search]) -> list[SearchEntry]:
    trials = database.count_ended([search.id for search in searches])
    by_objective: dict[Objective, list[str]] = {}
    for search in searches:
        by_objective.setdefault(search.summary["objective"], []).append(search.id)
    best: dict[str, float] = {}
    for objective, ids in by_objective.items():
        best |= database.best_values(ids, objective)
    entries = []
    for search in searches:
        lost = is_lost(search)
        champion = search.summary["champion"]
        entries.append(
            SearchEntry.model_validate(
                {
                    "search_id": search.id,
                    "name": search.name,
                    "status": "lost" if lost else search.status,
                    "dataset": search.summary["dataset"]["path"],
                    "objective": search.summary["objective"],
                    "trials": trials.get(search.id, 0),
                    "best": best.get(search.id),
                    "champion": None if champion is None else champion["algorithm"],
                    "started": aware(search.created),
                    "seconds": round(seconds_so_far(search), 1),
                    "hint": f"autoad search --resume {search.id}" if lost or search.status == "interrupted" else None,
                }
            )
        )
    return entries
