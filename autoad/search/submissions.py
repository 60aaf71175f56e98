"""The queue of searches that a server carries out, as its clients see it."""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections.abc import Sequence
from typing import Any, Protocol

import sqlalchemy

from autoad.algorithms import get_algorithm
from autoad.database import Database, Search, Submission, SubmissionTables, aware, seconds_so_far
from autoad.errors import ConflictError, UnknownNameError, UsageError
from autoad.schema import (
    Champion,
    DatasetEntry,
    Objective,
    PromotionVerdict,
    SearchResult,
    SubmissionEntry,
    SubmissionPage,
    SubmitRequest,
)
from autoad.search.plan import DEFAULT_SECONDS, PIXEL_OBJECTIVES
from autoad.search.public import public_champion, public_result, without_paths
from autoad.search.results import read_result

__all__ = ["DatasetList", "Submissions"]

_ID_BYTES = 6
_LONGEST_STEM = 75  # what follows it has up to 22 characters, and a name 100


class DatasetList(Protocol):
    """The datasets of a server (:class:`autoad.data.catalog.Catalog`)."""

    def entry(self, name: str, version: int | None, project: str) -> DatasetEntry:
        """A version, the newest for None; :class:`UnknownNameError` if there is none."""


class Submissions:
    """What clients submit and are told.

    Args:
        database: with the queue, and the searches that have begun.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self.tables = SubmissionTables(database)

    def submit(
        self,
        project: str,
        actor: str,
        request: SubmitRequest,
        datasets: DatasetList,
        *,
        key: str | None = None,
        most: int,
    ) -> SubmissionEntry:
        """Queue a search.

        Args:
            project: whose it is.
            actor: who asks.
            request: what to search.
            datasets: of the server.
            key: by which a repeated request is known; the entry that the first one made is returned again then.
            most: searches of the project that may wait.

        Raises:
            UsageError: the request cannot be carried out.
            UnknownNameError: there is no such dataset or version.
            ConflictError: the name is taken, or the key came with another request.
            QueueLimitError: too many wait already.
        """
        digest = hashlib.sha256(json.dumps(request.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()
        if (known := self._of_key(project, key, digest)) is not None:
            return known
        filled = _fill_in(request, datasets, project)
        row = Submission(
            id=secrets.token_hex(_ID_BYTES),
            project=project,
            name=filled.name,
            request=filled.model_dump(mode="json"),
            status="queued",
            key=key,
            digest=digest,
            actor=actor,
        )
        if not request.name and self._is_taken(project, row.name):  # another began in the same second
            row.name = f"{row.name}-{row.id[:4]}"
            row.request = row.request | {"name": row.name}
        try:
            if not self._is_taken(project, row.name):
                self.tables.add(row, most)
                return self.entry(project, row.id)
        except sqlalchemy.exc.IntegrityError:
            pass  # by somebody who has come at the same time
        if (known := self._of_key(project, key, digest)) is not None:  # by the same request, sent twice at once
            return known
        raise ConflictError(f"there is a search named {row.name!r} already; choose another name")

    def row(self, project: str, name: str) -> Submission:
        """A submission by id or name.

        Raises:
            UnknownNameError: the project has none.
        """
        row = self.tables.find(project, name)
        if row is None:
            raise UnknownNameError("search", name, [other.name for other in self.tables.newest(project, 10)])
        return row

    def entry(self, project: str, name: str) -> SubmissionEntry:
        """A search by id or name.

        Raises:
            UnknownNameError: the project has none.
        """
        return self._entries(project, [self.row(project, name)])[0]

    def page(self, project: str, limit: int, after: str | None = None) -> SubmissionPage:
        """A project's searches, newest first.

        Args:
            project: whose.
            limit: how many at most.
            after: ``next`` of the page before.

        Raises:
            UsageError: there is no such page.
        """
        last = None if after is None else self.tables.find(project, after)
        if after is not None and last is None:
            raise UsageError(f"after must be what the page before gave as next but got {after!r}")
        rows = self.tables.newest(project, limit + 1, last)
        following = rows[limit - 1].id if len(rows) > limit else None
        return SubmissionPage(items=self._entries(project, rows[:limit]), next=following)

    def cancel(self, project: str, name: str) -> SubmissionEntry:
        """End a search that waits, have one that runs end; of one that has ended nothing changes.

        Raises:
            UnknownNameError: the project has none of that name or id.
        """
        row = self.row(project, name)
        self.tables.cancel(row.id)
        return self.entry(project, row.id)

    def result(self, project: str, name: str) -> SearchResult | None:
        """A search with its leaderboard, as clients may see it; None while it has not begun.

        Raises:
            UnknownNameError: the project has none of that name or id.
        """
        row = self.row(project, name)
        database = self._database.of(project)
        if not database.searches_of([row.id]):
            return None
        result = public_result(read_result(database, row.id), row.request["dataset"])
        # Between two drivers it is nobody's, but goes on.
        return result.model_copy(update={"status": "running"}) if row.status == "running" else result

    def notes(self, project: str, search: str) -> list[str]:
        """What is worth knowing of a search by its id; nothing while it has not begun."""
        found = [one for one in self._database.of(project).searches_of([search]) if one.id == search]
        return [without_paths(note) for one in found for note in one.summary["notes"]]

    def _of_key(self, project: str, key: str | None, digest: str) -> SubmissionEntry | None:
        row = None if key is None else self.tables.of_key(project, key)
        if row is None:
            return None
        if row.digest != digest:
            raise ConflictError(
                f"the Idempotency-Key {key!r} came with another request before; give each request a key of its own"
            )
        return self._entries(project, [row])[0]

    def _is_taken(self, project: str, name: str) -> bool:
        """Whether a search has that name, also one that no server carries out."""
        database = self._database.of(project)
        return self.tables.find(project, name) is not None or bool(database.searches_of([name]))

    def _entries(self, project: str, rows: Sequence[Submission]) -> list[SubmissionEntry]:
        database = self._database.of(project)
        ids = [row.id for row in rows]
        searches = {search.id: search for search in database.searches_of(ids)}
        trials = database.count_ended(ids)
        by_objective: dict[Objective, list[str]] = {}
        for row in rows:
            by_objective.setdefault(row.request["objective"], []).append(row.id)
        best: dict[str, float] = {}
        for objective, its in by_objective.items():
            best |= database.best_values(its, objective)
        waiting = {search: place for place, search in enumerate(self.tables.queued(project))}
        return [
            _entry(row, searches.get(row.id), waiting.get(row.id), trials.get(row.id, 0), best.get(row.id))
            for row in rows
        ]


def _entry(
    row: Submission, search: Search | None, position: int | None, trials: int, best: float | None
) -> SubmissionEntry:
    chosen = None if search is None else search.summary["champion"]
    return SubmissionEntry(
        id=row.id,
        name=row.name,
        dataset=row.request["dataset"],
        model=row.request["model"],
        status=row.status,  # type: ignore[arg-type]  # which pydantic checks
        objective=row.request["objective"],
        promote_when=row.request["promote_when"],
        position=position if row.status == "queued" else None,
        trials=trials,
        best=best,
        seconds=0.0 if search is None else round(seconds_so_far(search), 1),
        error=row.error,
        restarts=row.restarts,
        champion=None if chosen is None else public_champion(Champion.model_validate(chosen)),
        promotion=None if row.promotion is None else PromotionVerdict.model_validate(row.promotion),
        actor=row.actor,
        created=aware(row.created),
        started=None if row.started is None else aware(row.started),
        finished=None if row.finished is None else aware(row.finished),
    )


def _fill_in(request: SubmitRequest, datasets: DatasetList, project: str) -> SubmitRequest:
    """The request with all names, after whatever can be checked at once.

    Raises:
        UsageError: it cannot be carried out.
        UnknownNameError: there is no such dataset or version.
    """
    try:
        kinds = {get_algorithm(name).kind for name in request.algorithms}
    except UnknownNameError as error:
        raise UsageError(str(error)) from error  # the request is wrong; what it is sent to is there
    if request.objective in PIXEL_OBJECTIVES and kinds == {"classification"}:
        raise UsageError(f"the objective {request.objective} needs a map and {', '.join(request.algorithms)} give none")
    name, _, version = request.dataset.partition("/")
    dataset = datasets.entry(name, int(version) if version else None, project)
    if request.threshold == "f1-max" and not dataset.counts.get("defective"):
        raise UsageError(
            f"the threshold f1-max needs labelled defects and the dataset {dataset} has none; add some, or give the "
            "threshold conformal"
        )
    changes: dict[str, Any] = {
        "dataset": str(dataset),
        "name": request.name or f"{name[:_LONGEST_STEM]}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}",
        "model": request.model or name,
    }
    if request.seconds is None and request.trials is None and not request.deterministic:
        changes["seconds"] = DEFAULT_SECONDS
    return request.model_copy(update=changes)
