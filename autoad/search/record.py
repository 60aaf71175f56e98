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
    record: dict[str, Any], rows: Sequence[TrialRow], spent: float, seconds: float | None, trials: int | None
) -> SearchRequest:
    """What was asked for, with another end if one is given.

    Args:
        record: of the search.
        rows: its trials.
        spent: seconds of its own time so far.
        seconds: from now on; None for what is left.
        trials: from now on; None for what is left.
    """
    known = {field.name for field in dataclasses.fields(SearchRequest)}
    values = {key: value for key, value in record.items() if key in known}
    values |= {"data": Path(record["data"]), "algorithms": tuple(record["algorithms"])}
    if record["space"] is not None:
        values["space"] = Path(record["space"])
    if seconds is not None:
        values["seconds"] = spent + seconds
    if trials is not None:
        values["trials"] = sum(row.status != "stopped" for row in rows) + trials
    return SearchRequest(**values)


def check_unchanged(plan: Plan, search: Search, summary: SearchResult) -> None:
    """Refuse to mix results of different pictures, spaces or engines in one search."""
    for what, before, now in (
        ("the pictures in " + str(plan.request.data), search.dataset_hash, plan.dataset.hash),
        ("the search space", search.request["spaces_sha256"], _spaces_sha256(plan)),
        ("the engine of this machine", summary.engine, engine_name(plan)),
    ):
        if before != now:
            raise UsageError(
                f"{what} must be what it was when the search {search.name!r} began ({before[:20]}) but is {now[:20]}; "
                "start a new search"
            )


def engine_name(plan: Plan) -> str:
    """What runs the backbone, and how exactly."""
    return f"{plan.engine.name} {plan.engine.precision}"
