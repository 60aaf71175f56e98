"""What clients of a server are shown of a search: no path of the machine that carried it out."""

from __future__ import annotations

import re
from typing import Any

from autoad.schema import Champion, SearchResult, TrialRow

__all__ = ["public_champion", "public_result", "public_row", "without_paths"]

_PATH = re.compile(r"(?<![\w.:/-])/(?:[\w.@+-]+/)+([\w.@+-]*)")


def without_paths(text: str) -> str:
    """A message with the last part alone of each absolute path in it."""
    return _PATH.sub(lambda found: found[1] or "the folder", text)


def public_row(row: TrialRow) -> TrialRow:
    """A trial, with its reason as clients may see it."""
    return row if row.reason is None else row.model_copy(update={"reason": without_paths(row.reason)})


def public_champion(champion: Champion) -> Champion:
    """A champion whose model is named by its address."""
    return champion.model_copy(update={"model": without_paths(champion.address)})


def public_result(result: SearchResult, dataset: str) -> SearchResult:
    """A search's result.

    Args:
        result: as it stands in the database.
        dataset: ``NAME/VERSION``, instead of where its files lie.
    """
    changes: dict[str, Any] = {
        "dataset": result.dataset.model_copy(update={"path": dataset}),
        "notes": [without_paths(note) for note in result.notes],
        "champion": None if result.champion is None else public_champion(result.champion),
        "leaderboard": [public_row(row) for row in result.leaderboard],
    }
    return result.model_copy(update=changes)
