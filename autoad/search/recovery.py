"""What processes that were killed have left behind, put in order."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from autoad.database import Database, Search, this_process
from autoad.errors import UsageError
from autoad.schema import TrialRow
from autoad.search.jobs import Suggestion
from autoad.search.space import Space
from autoad.settings import Settings

__all__ = ["SCRATCH", "close_search", "outstanding", "recover_lost_searches"]

SCRATCH = "tune"
"""Folder, in a search's own, of what is of no use once its process has ended."""

_ENDED = {"complete", "pruned", "failed"}


def recover_lost_searches(database: Database, settings: Settings) -> list[Search]:
    """Mark searches whose process is gone as interrupted, and remove their unfinished files.

    Returns:
        Those searches; each can be resumed.
    """
    mine = this_process()
    recovered = []
    for search in database.lost_searches():
        with contextlib.suppress(UsageError):  # another process has found it, too, or resumes it already
            database.take_over(search.id, mine)
            close_search(database, settings, search.id, "its process was killed")
            database.update_search(search.id, status="interrupted", owner=mine)
            recovered.append(search)
    return recovered


def close_search(database: Database, settings: Settings, search_id: str, reason: str) -> None:
    """Close the running trials of a search that nobody carries out; remove files that were being written."""
    for row in database.trials(search_id):
        if row.status == "running":
            database.write_trial(search_id, row.model_copy(update={"status": "stopped", "reason": reason}))
    leftovers = [settings.searches_dir / search_id / SCRATCH, *settings.models_dir.glob(f".{search_id}-*")]
    for scratch in leftovers:
        shutil.rmtree(scratch, ignore_errors=True)


def outstanding(first: Sequence[Suggestion], rows: Sequence[TrialRow], spaces: Mapping[str, Space]) -> list[Suggestion]:
    """What a resumed search has to try before it asks the sampler.

    Args:
        first: with what the search began, or would have.
        rows: what has become of its trials.
        spaces: search space by algorithm.

    Returns:
        The trials that were cut off, in their order, and those of ``first`` that never began. What has ended, in
        whatever way, is not repeated.
    """

    def identity(algorithm: str, config: Mapping[str, Any]) -> tuple[str, str]:
        return algorithm, repr(sorted(spaces[algorithm].encode(config).items()))

    seen = {identity(row.algorithm, row.proposed) for row in rows if row.status in _ENDED}
    cut_off = [Suggestion(row.origin, row.algorithm, row.proposed) for row in rows if row.status not in _ENDED]
    left = []
    for suggestion in [*cut_off, *first]:
        key = identity(suggestion.algorithm, suggestion.config)
        if key not in seen:
            seen.add(key)
            left.append(suggestion)
    return left
