"""Searches as the database knows them."""

from __future__ import annotations

from autoad.database import Database, is_lost
from autoad.schema import SearchResult
from autoad.search.leaderboard import rank_trials
from autoad.settings import Settings

__all__ = ["load_result", "read_result"]


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
