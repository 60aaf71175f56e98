"""What a search keeps of its request, so that it can be gone on with: the same question or none."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from autoad.database import Search
from autoad.errors import UsageError
from autoad.schema import SearchResult, TrialRow
from autoad.search.budget import TRIALS_SHARE
from autoad.search.plan import Plan, SearchRequest

__all__ = ["check_unchanged", "engine_name", "read_request", "request_record"]


def request_record(plan: Plan) -> dict[str, Any]:
    """What to ask again when the search is resumed."""
    record = dataclasses.asdict(plan.request) | {"data": str(plan.request.data.absolute())}
    if plan.request.space is not None:
        record["space"] = str(plan.request.space.absolute())
    return record | {"spaces_sha256": _spaces_sha256(plan)}


def _spaces_sha256(plan: Plan) -> str:
    described = {name: dataclasses.asdict(space) for name, space in sorted(plan.spaces.items())}
    return hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode()).hexdigest()


def read_request(
    search: Search,
    rows: Sequence[TrialRow],
    *,
    seconds: float | None = None,
    trials: int | None = None,
    **changes: Any,
) -> SearchRequest:
    """What was asked for, with another end if one is given.

    Args:
        search: from the database.
        rows: its trials.
        seconds: from now on; with ``trials`` it replaces the search's own limits.
        trials: from now on.
        changes: of other fields; those that are None change nothing.

    Raises:
        UsageError: an earlier version has made the search.
    """
    record = search.request
    if "spaces_sha256" not in record:
        raise UsageError(f"the search {search.name!r} was made by an earlier version of autoad; start a new search")
    known = {field.name for field in dataclasses.fields(SearchRequest)}
    values = {key: value for key, value in record.items() if key in known}
    values |= {"data": Path(record["data"]), "algorithms": tuple(record["algorithms"])}
    values.setdefault("keep_suspicious", True)  # an earlier version, which has begun it, set none aside
    if record["space"] is not None:
        values["space"] = Path(record["space"])
    if seconds is not None or trials is not None:
        # The share that is for trials is that of the new time, not of what is spent.
        values["seconds"] = None if seconds is None else search.spent / TRIALS_SHARE + seconds
        values["trials"] = None if trials is None else sum(_counts(row) for row in rows) + trials
    return SearchRequest(**values | {name: value for name, value in changes.items() if value is not None})


def _counts(row: TrialRow) -> bool:
    return row.started_after is not None and row.status in {"complete", "pruned", "failed"}


def check_unchanged(plan: Plan, search: Search, summary: SearchResult) -> None:
    """Refuse to mix results of different pictures, spaces, engines or evidence in one search."""
    for what, before, now in (
        ("the pictures in " + str(plan.request.data), search.dataset_hash, plan.dataset.hash),
        ("the search space", search.request["spaces_sha256"], _spaces_sha256(plan)),
        ("the engine of this machine", summary.engine, engine_name(plan)),
        ("the evidence that ranks trials", summary.evidence, plan.evidence),
    ):
        if before != now:
            raise UsageError(
                f"{what} must be what it was when the search {search.name!r} began ({before[:20]}) but is {now[:20]}; "
                "start a new search"
            )


def engine_name(plan: Plan) -> str:
    """What runs the backbone, and how exactly."""
    return f"{plan.engine.name} {plan.engine.precision}"
