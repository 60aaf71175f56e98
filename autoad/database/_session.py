"""Opening the database and the few things that are asked of it."""

from __future__ import annotations

import copy
import datetime
import fcntl
import sqlite3
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import alembic.command
import alembic.util
import sqlalchemy
from alembic.config import Config
from sqlalchemy import case, event, func, select, update
from sqlalchemy.orm import Session, sessionmaker

from autoad.database._owner import is_gone
from autoad.database._records import Search, Trial, objective_value, utc_now
from autoad.errors import ConflictError, LeaseLostError, UsageError
from autoad.schema import Objective, TrialRow
from autoad.settings import Settings, get_settings

__all__ = ["OUTAGES", "Database"]

OUTAGES = (sqlalchemy.exc.OperationalError, sqlalchemy.exc.InterfaceError, sqlalchemy.exc.InternalError)
"""What a database that is out of reach, full or locked raises."""


_MIGRATION_LOCK = 0x6175746F  # any number that nobody else in the database is likely to lock


_BUSY_SECONDS = 30.0


def _configure_sqlite(connection: Any, patience: float) -> None:
    if isinstance(connection, sqlite3.Connection):
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.execute(f"PRAGMA busy_timeout={int(1000 * min(_BUSY_SECONDS, patience))}")
        cursor.close()


class Database:
    """The metadata of one project.

    Args:
        settings: where the database is and which project's rows are meant.

    Raises:
        UsageError: the data folder cannot be written, or the database cannot be opened.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        settings = settings or get_settings()
        self.project = settings.project
        self._data_dir = settings.data_dir
        try:
            settings.data_dir.mkdir(parents=True, exist_ok=True)
            self._engine = sqlalchemy.create_engine(settings.sqlalchemy_url)
            patience = settings.database_patience
            event.listen(self._engine, "connect", lambda connection, _record: _configure_sqlite(connection, patience))
            self._migrate()
        except (OSError, ImportError, sqlalchemy.exc.SQLAlchemyError, alembic.util.CommandError) as error:
            if settings.database_url:
                remedy = "set AUTOAD_DATABASE_URL to an SQLAlchemy address whose driver is installed"
                where = "that AUTOAD_DATABASE_URL names"
            else:
                remedy = "set AUTOAD_DATA_DIR to a folder that can be written"
                where = f"below {str(settings.data_dir)!r}"
            raise UsageError(
                f"cannot open the database {where} ({type(error).__name__}: {str(error).splitlines()[0]}); {remedy}"
            ) from error
        self._sessions = sessionmaker(self._engine, expire_on_commit=False)

    def _migrate(self) -> None:
        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
        with self._alone(), self._engine.begin() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(select(func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
            config.attributes["connection"] = connection
            alembic.command.upgrade(config, "head")

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Among this machine's processes: SQLite makes its tables outside any transaction."""
        with (self._data_dir / "autoad.lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def of(self, project: str) -> Database:
        """The same database, asked for another project's rows; it shares its connections."""
        view = copy.copy(self)
        view.project = project
        return view

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """A session whose changes are committed together at the end, or not at all."""
        with self._sessions.begin() as session:
            yield session

    def sessions(self) -> Session:
        """A session for reading; use it as a context."""
        return self._sessions()

    def add_search(
        self,
        search_id: str,
        name: str,
        dataset_hash: str,
        request: dict[str, Any],
        summary: dict[str, Any],
        *,
        owner: str | None = None,
    ) -> None:
        """Record that a search begins, carried out by ``owner``.

        Raises:
            UsageError: the project already has a search of that name.
        """
        try:
            with self.transaction() as session:
                session.add(
                    Search(
                        id=search_id,
                        project=self.project,
                        name=name,
                        status="running",
                        dataset_hash=dataset_hash,
                        request=request,
                        summary=summary,
                        owner=owner,
                        heartbeat=utc_now(),
                    )
                )
        except sqlalchemy.exc.IntegrityError as error:
            raise UsageError(
                f"there is a search named {name!r} already; choose another --name, and give --model "
                f"{request.get('model') or name} to make the next version of that model"
            ) from error

    def update_search(
        self,
        search_id: str,
        *,
        status: str | None = None,
        summary: dict[str, Any] | None = None,
        owner: str | None = None,
    ) -> None:
        """Change a search's status, its summary, or both, in one transaction.

        Raises:
            LeaseLostError: ``owner`` is given and the search has another one now.
        """
        with self.transaction() as session:
            if owner is not None:
                self._renew(session, search_id, owner, {})
            search = session.get_one(Search, search_id)
            if summary is not None:
                search.summary = summary
            if status is not None:
                search.status = status
                search.finished = None if status == "running" else utc_now()
                search.owner = search.owner if status == "running" else None

    def take_over(self, search_id: str, owner: str, request: dict[str, Any] | None = None) -> Search:
        """Become the owner of a search that nobody carries out any more; ``request`` is what is asked of it now.

        Raises:
            UsageError: it has been completed.
            ConflictError: somebody does.
        """
        with self.transaction() as session:
            search = session.get_one(Search, search_id)
            if search.status == "complete":
                raise UsageError(f"the search {search.name!r} is complete; there is nothing to resume")
            if search.owner is not None and not is_gone(search.owner, search.heartbeat):
                raise ConflictError(
                    f"the search {search.name!r} is being carried out by process {search.owner}; wait for its end, or "
                    "stop it first"
                )
            mine = {
                "owner": owner,
                "heartbeat": utc_now(),
                "status": "running",
                "finished": None,
            } | ({} if request is None else {"request": request})
            same = update(Search).where(Search.id == search_id, Search.owner.is_not_distinct_from(search.owner))
            if (
                session.scalar(same.values(mine).returning(Search.id)) is None
            ):  # two came at once, and the other was first
                raise ConflictError(f"the search {search.name!r} has just been taken over by another process")
            session.refresh(search)
            return search

    def renew(self, search_id: str, owner: str, spent: float) -> None:
        """Say that the owner is alive, and how long the search has taken, in seconds.

        Raises:
            LeaseLostError: the search has another owner now.
        """
        with self.transaction() as session:
            self._renew(session, search_id, owner, {"spent": spent})

    def lost_searches(self) -> Sequence[Search]:
        """Searches of the project that are marked as running though their owner is gone."""
        query = select(Search).where(Search.project == self.project, Search.status == "running")
        with self.sessions() as session:
            return [s for s in session.scalars(query) if s.owner is None or is_gone(s.owner, s.heartbeat)]

    def write_fingerprint(self, search_id: str, fingerprint: list[float]) -> None:
        """Record what the search's pictures look like."""
        with self.transaction() as session:
            session.get_one(Search, search_id).fingerprint = fingerprint

    def fingerprinted_searches(self) -> Sequence[Search]:
        """Complete searches of the project that have a fingerprint, oldest first."""
        query = select(Search).where(
            Search.project == self.project, Search.status == "complete", Search.fingerprint.is_not(None)
        )
        with self.sessions() as session:
            return session.scalars(query.order_by(Search.created)).all()

    @staticmethod
    def _renew(session: Session, search_id: str, owner: str, values: dict[str, Any]) -> None:
        """One statement that checks and locks: whoever takes the search over comes before it, or after the commit."""
        mine = update(Search).where(Search.id == search_id, Search.owner == owner)
        if session.scalar(mine.values(heartbeat=utc_now(), **values).returning(Search.id)) is None:
            raise LeaseLostError(f"another process has taken over the search {search_id}; this one writes nothing more")

    def find_search(self, name: str | None = None) -> Search:
        """The search of that name or id, or the newest one.

        Raises:
            UsageError: there is none.
        """
        query = select(Search).where(Search.project == self.project)
        with self.sessions() as session:
            if name is None:
                found = session.scalars(query.order_by(Search.created.desc()).limit(1)).first()
            else:
                named = query.where((Search.name == name) | (Search.id == name))
                found = session.scalars(named.order_by(case((Search.id == name, 0), else_=1))).first()
            if found is not None:
                return found
            known = session.scalars(query.order_by(Search.created.desc()).limit(10)).all()
        if not known:
            raise UsageError("there is no search yet; start one with: autoad search --data FOLDER")
        raise UsageError(f"there is no search {name!r}; the newest are: {', '.join(s.name for s in known)}")

    def write_trial(
        self, search_id: str, row: TrialRow, *, owner: str | None = None, spent: float | None = None
    ) -> None:
        """Insert or replace the row of a trial; ``spent`` is the search's own time so far, in seconds.

        Raises:
            LeaseLostError: ``owner`` is given and the search has another one now.
        """
        finished = None if row.status == "running" else utc_now()
        with self.transaction() as session:
            if owner is not None:
                self._renew(session, search_id, owner, {} if spent is None else {"spent": spent})
            trial = session.get(Trial, (search_id, row.trial))
            if trial is None:
                trial = Trial(search_id=search_id, number=row.trial, project=self.project)
                session.add(trial)
            trial.status, trial.row, trial.finished = row.status, row.model_dump(mode="json"), finished

    def searches(self, limit: int | None = None) -> Sequence[Search]:
        """The project's searches, newest first."""
        query = select(Search).where(Search.project == self.project).order_by(Search.created.desc(), Search.id)
        with self.sessions() as session:
            return session.scalars(query.limit(limit)).all()

    def searches_of(self, names: Collection[str]) -> Sequence[Search]:
        """The project's searches of these names or ids."""
        named = Search.id.in_(names) | Search.name.in_(names)
        with self.sessions() as session:
            return session.scalars(select(Search).where(Search.project == self.project, named)).all()

    def count_ended(self, search_ids: Collection[str]) -> dict[str, int]:
        """How many trials of each search have ended."""
        query = (
            select(Trial.search_id, func.count())
            .where(Trial.project == self.project, Trial.search_id.in_(search_ids), Trial.status != "running")
            .group_by(Trial.search_id)
        )
        with self.sessions() as session:
            return {row[0]: row[1] for row in session.execute(query)}

    def best_values(self, search_ids: Collection[str], objective: Objective) -> dict[str, float]:
        """The largest objective of each search's complete trials; searches without one are absent."""
        value = objective_value(objective)
        query = (
            select(Trial.search_id, func.max(value))
            .where(Trial.project == self.project, Trial.search_id.in_(search_ids), Trial.status == "complete")
            .group_by(Trial.search_id)
        )
        with self.sessions() as session:
            return {row[0]: row[1] for row in session.execute(query) if row[1] is not None}

    def changed_trials(
        self, search_id: str, after: int, running: Collection[int], since: datetime.datetime | None
    ) -> Sequence[Trial]:
        """The trials of a search that may differ from what the caller knows, by number.

        Args:
            search_id: the search.
            after: largest number that the caller knows; -1 for none.
            running: trials that were running when the caller last looked.
            since: latest ``finished`` that the caller knows.
        """
        new = (Trial.number > after) | Trial.number.in_(running)
        if since is not None:
            new |= Trial.finished > since
        query = select(Trial).where(Trial.project == self.project, Trial.search_id == search_id, new)
        with self.sessions() as session:
            return session.scalars(query.order_by(Trial.number)).all()

    def trials(self, search_id: str) -> Sequence[TrialRow]:
        """All trials of a search, by number."""
        query = select(Trial.row).where(Trial.project == self.project, Trial.search_id == search_id)
        with self.sessions() as session:
            return [TrialRow.model_validate(row) for row in session.scalars(query.order_by(Trial.number))]
