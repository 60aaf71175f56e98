"""Model versions and routes: what the registry asks of the database.

Every change of a route is one transaction: the row with its generation raised, and a line of history. It holds only if
nobody changed the row since it was read (``UPDATE ... WHERE generation = ...``), on SQLite and PostgreSQL alike.
"""

from __future__ import annotations

import datetime
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import sqlalchemy
from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from autoad.database._records import ModelVersion, Replica, Route, RouteChange, aware, utc_now
from autoad.database._session import Database
from autoad.errors import UsageError
from autoad.schema import ReplicaEntry, RouteAction, RouteChangeEntry, RouteEntry

__all__ = ["ModelTables", "RouteConflictError"]

_FIELDS = ("champion", "previous", "canary", "canary_share", "shadow", "staged")
_ATTEMPTS = 20
_LONGEST_WAIT = 0.05


class RouteConflictError(UsageError):
    """Somebody else changes the route in the same moment, or promotes another version; it can be tried again."""


class ModelTables:
    """Model versions, routes and replicas of all projects.

    Args:
        database: where they are.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def versions(self, project: str, name: str | None = None) -> Sequence[ModelVersion]:
        """A project's versions, newest first within each model."""
        query = select(ModelVersion).where(ModelVersion.project == project)
        if name is not None:
            query = query.where(ModelVersion.name == name)
        with self._database.sessions() as session:
            return session.scalars(query.order_by(ModelVersion.name, ModelVersion.version.desc())).all()

    def version(self, project: str, name: str, version: int) -> ModelVersion | None:
        """One version; None if there is none."""
        with self._database.sessions() as session:
            return session.get(ModelVersion, (project, name, version))

    def of_trial(self, project: str, name: str, search: str, trial: int) -> Sequence[ModelVersion]:
        """The versions that a search made of a trial, or of several of which it is the first; newest first."""
        query = select(ModelVersion).where(
            ModelVersion.project == project,
            ModelVersion.name == name,
            ModelVersion.search_id == search,
            ModelVersion.trial == trial,
        )
        with self._database.sessions() as session:
            return session.scalars(query.order_by(ModelVersion.version.desc())).all()

    @contextmanager
    def new_version(self, project: str, name: str) -> Iterator[tuple[Session, int]]:
        """A transaction in which the next number of a model is nobody else's; the caller adds the row.

        Whatever the caller does within (moving files) is followed by the commit, or by nothing.
        """
        self._make_route(project, name)
        with self._database.transaction() as session:
            # An update first: SQLite and PostgreSQL then keep others out until the commit.
            mine = update(Route).where(Route.project == project, Route.name == name)
            number = session.scalar(mine.values(newest=Route.newest + 1).returning(Route.newest))
            if number is None:
                raise UsageError(f"the model {name!r} has vanished from the database")
            yield session, number

    def route(self, project: str, name: str) -> RouteEntry:
        """A model's route; one without a champion if nothing was ever promoted."""
        with self._database.sessions() as session:
            row = session.get(Route, (project, name))
        return RouteEntry(project=project, name=name, generation=0) if row is None else _entry(row)

    def routes(self) -> dict[tuple[str, str], RouteEntry]:
        """All routes of all projects."""
        with self._database.sessions() as session:
            return {(row.project, row.name): _entry(row) for row in session.scalars(select(Route))}

    def mark(self) -> tuple[int, int]:
        """Differs after every change of any route: rows are never deleted and generations only rise."""
        with self._database.sessions() as session:
            count, total = session.execute(select(func.count(), func.sum(Route.generation)).select_from(Route)).one()
        return int(count), int(total or 0)

    def change(
        self,
        project: str,
        name: str,
        decide: Callable[[RouteEntry], tuple[Mapping[str, Any], tuple[RouteAction, int | None, int | None] | None]],
        *,
        reason: str = "",
        actor: str = "",
        also: Callable[[Session], object] | None = None,
    ) -> RouteEntry:
        """Change a route in one transaction.

        Args:
            project: whose model it is.
            name: of the model.
            decide: given the route as it is, the fields to change and the line of history (what was done, the version
                before and after); it raises if the change cannot be. Called again if somebody else was quicker.
            reason: for the history.
            actor: for the history.
            also: what else belongs to the transaction.
        """
        self._make_route(project, name)
        for _ in range(_ATTEMPTS):
            before = self.route(project, name)
            fields, line = decide(before)
            history: dict[str, Any] = {}
            if line is not None:
                history = {"action": line[0], "before": line[1], "after": line[2], "reason": reason, "actor": actor}
            if self._commit(before, fields, history, also):
                return before.model_copy(update={**fields, "generation": before.generation + 1})
            time.sleep(random.uniform(0, _LONGEST_WAIT))  # noqa: S311 - so that not all come again at once
        raise RouteConflictError(f"the route of {name!r} changes all the time; try again")

    def _commit(
        self,
        before: RouteEntry,
        fields: Mapping[str, Any],
        history: Mapping[str, Any],
        also: Callable[[Session], object] | None,
    ) -> bool:
        """Change a route in one transaction if it is still as it was; whether it was."""
        generation = before.generation + 1
        same = update(Route).where(
            Route.project == before.project, Route.name == before.name, Route.generation == before.generation
        )
        with self._database.transaction() as session:
            if session.scalar(same.values(generation=generation, **fields).returning(Route.generation)) is None:
                return False
            if also is not None:
                also(session)
            if history:
                names = {"project": before.project, "name": before.name, "generation": generation}
                session.add(RouteChange(**names, **history, at=utc_now()))
        return True

    def history(self, project: str, name: str) -> list[RouteChangeEntry]:
        """A model's history, newest first."""
        query = select(RouteChange).where(RouteChange.project == project, RouteChange.name == name)
        with self._database.sessions() as session:
            return [
                RouteChangeEntry.model_validate(
                    {
                        "generation": row.generation,
                        "action": row.action,
                        "before": row.before,
                        "after": row.after,
                        "reason": row.reason,
                        "actor": row.actor,
                        "at": aware(row.at),
                    }
                )
                for row in session.scalars(query.order_by(RouteChange.id.desc()))
            ]

    def beat(self, replica: str, loaded: Sequence[str], failed: Mapping[str, str]) -> None:
        """Say that a replica lives and what it has loaded; forget those that have said nothing for an hour."""
        now = utc_now()
        with self._database.transaction() as session:
            row = session.get(Replica, replica)
            if row is None:
                session.execute(delete(Replica).where(Replica.heartbeat < now - datetime.timedelta(hours=1)))
                session.add(Replica(id=replica, started=now, heartbeat=now, loaded=list(loaded), failed=dict(failed)))
            else:
                row.heartbeat, row.loaded, row.failed = now, list(loaded), dict(failed)

    def leave(self, replica: str) -> None:
        """Say that a replica ends."""
        with self._database.transaction() as session:
            session.execute(delete(Replica).where(Replica.id == replica))

    def replicas(self, seconds: float) -> list[ReplicaEntry]:
        """Replicas that have given a sign of life within so many seconds."""
        query = select(Replica).where(Replica.heartbeat >= utc_now() - datetime.timedelta(seconds=seconds))
        with self._database.sessions() as session:
            return [
                ReplicaEntry(id=row.id, loaded=row.loaded, failed=row.failed)
                for row in session.scalars(query.order_by(Replica.id))
            ]

    def _make_route(self, project: str, name: str) -> None:
        with self._database.sessions() as session:
            if session.get(Route, (project, name)) is not None:
                return
        try:
            with self._database.transaction() as session:
                session.add(Route(project=project, name=name, generation=0, newest=0, canary_share=0.0))
        except sqlalchemy.exc.IntegrityError:
            pass  # another process has just made it


def _entry(row: Route) -> RouteEntry:
    values = {field: getattr(row, field) for field in _FIELDS}
    return RouteEntry(project=row.project, name=row.name, generation=row.generation, **values)
