"""The list of searches."""

from __future__ import annotations

import datetime
from collections.abc import Sequence

from autoad.database._records import Search, utc_now
from autoad.database._session import Database
from autoad.schema import Objective, SearchEntry

__all__ = ["LOST_AFTER", "describe_search", "is_lost", "list_searches", "seconds_so_far"]

LOST_AFTER = 30.0
"""Seconds without a heartbeat after which the process of a running search is taken for dead."""


def list_searches(database: Database, limit: int | None = None) -> list[SearchEntry]:
    """The project's searches, newest first."""
    return _entries(database, database.searches(limit))


def describe_search(database: Database, name: str | None = None) -> SearchEntry:
    """The entry of one search, by name or id, or of the newest.

    Raises:
        UsageError: there is no such search.
    """
    return _entries(database, [database.find_search(name)])[0]


def is_lost(search: Search, now: datetime.datetime | None = None) -> bool:
    """Whether a search should be running but its process has shown no sign of life for :data:`LOST_AFTER` seconds."""
    silence = (now or utc_now()) - _aware(search.heartbeat or search.created)
    return search.status == "running" and silence.total_seconds() > LOST_AFTER


def seconds_so_far(search: Search, now: datetime.datetime | None = None) -> float:
    """The search's own time; interruptions do not count."""
    now = now or utc_now()
    if search.status != "running":
        done: float = search.summary["seconds"]
        return done or search.spent or (_aware(search.finished or now) - _aware(search.created)).total_seconds()
    if search.heartbeat is None:
        return (now - _aware(search.created)).total_seconds()
    silence = (now - _aware(search.heartbeat)).total_seconds()
    return search.spent + (silence if silence < LOST_AFTER else 0.0)


def _entries(database: Database, searches: Sequence[Search]) -> list[SearchEntry]:
    now = utc_now()
    trials = database.count_ended([search.id for search in searches])
    by_objective: dict[Objective, list[str]] = {}
    for search in searches:
        by_objective.setdefault(search.summary["objective"], []).append(search.id)
    best: dict[str, float] = {}
    for objective, ids in by_objective.items():
        best |= database.best_values(ids, objective)
    entries = []
    for search in searches:
        lost = is_lost(search, now)
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
                    "started": _aware(search.created),
                    "seconds": round(seconds_so_far(search, now), 1),
                    "hint": f"autoad search --resume {search.id}" if lost else None,
                }
            )
        )
    return entries


def _aware(moment: datetime.datetime) -> datetime.datetime:
    """SQLite forgets time zones; what is stored is UTC."""
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=datetime.UTC)
