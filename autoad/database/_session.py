"""Opening the database and the few things that are asked of it."""

from __future__ import annotations

import datetime
import sqlite3
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import alembic.command
import alembic.util
import sqlalchemy
from alembic.config import Config
from sqlalchemy import event, func, select
from sqlalchemy.orm import Session, sessionmaker

from autoad.database._records import Search, Trial, utc_now
from autoad.errors import UsageError
from autoad.schema import Objective, TrialRow
from autoad.settings import Settings, get_settings

__all__ = ["Database"]


def _configure_sqlite(connection: Any, _record: Any) -> None:
    if isinstance(connection, sqlite3.Connection):
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.execute("PRAGMA busy_timeout=30000")
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
        try:
            settings.data_dir.mkdir(parents=True, exist_ok=True)
            self._engine = sqlalchemy.create_engine(settings.sqlalchemy_url)
            event.listen(self._engine, "connect", _configure_sqlite)
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
        with self._engine.begin() as connection:
            config.attributes["connection"] = connection
            alembic.command.upgrade(config, "head")

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    @contextmanager
    def _transaction(self) -> Iterator[Session]:
        with self._sessions.begin() as session:
            yield session

    def add_search(
        self, search_id: str, name: str, dataset_hash: str, request: dict[str, Any], summary: dict[str, Any]
    ) -> None:
        """Record that a search begins.

        Raises:
            UsageError: the project already has a search of that name.
        """
        try:
            with self._transaction() as session:
                session.add(
                    Search(
                        id=search_id,
                        project=self.project,
                        name=name,
                        status="running",
                        dataset_hash=dataset_hash,
                        request=request,
                        summary=summary,
                    )
                )
        except sqlalchemy.exc.IntegrityError as error:
            raise UsageError(f"there is a search named {name!r} already; choose another --name") from error

    def update_search(
        self, search_id: str, *, status: str | None = None, summary: dict[str, Any] | None = None
    ) -> None:
        """Change a search's status, its summary, or both, in one transaction."""
        with self._transaction() as session:
            search = session.get_one(Search, search_id)
            if summary is not None:
                search.summary = summary
            if status is not None:
                search.status = status
                search.finished = None if status == "running" else utc_now()

    def find_search(self, name: str | None = None) -> Search:
        """The search of that name or id, or the newest one.

        Raises:
            UsageError: there is none.
        """
        query = select(Search).where(Search.project == self.project)
        with self._sessions() as session:
            if name is None:
                found = session.scalars(query.order_by(Search.created.desc()).limit(1)).first()
            else:
                found = session.scalars(query.where((Search.name == name) | (Search.id == name))).first()
            if found is not None:
                return found
            known = session.scalars(query.order_by(Search.created.desc()).limit(10)).all()
        if not known:
            raise UsageError("there is no search yet; start one with: autoad search --data FOLDER")
        raise UsageError(f"there is no search {name!r}; the newest are: {', '.join(s.name for s in known)}")

    def write_trial(self, search_id: str, row: TrialRow) -> None:
        """Insert or replace the row of a trial."""
        finished = None if row.status == "running" else utc_now()
        with self._transaction() as session:
            trial = session.get(Trial, (search_id, row.trial))
            if trial is None:
                trial = Trial(search_id=search_id, number=row.trial, project=self.project)
                session.add(trial)
            trial.status, trial.row, trial.finished = row.status, row.model_dump(mode="json"), finished

    def searches(self, limit: int | None = None) -> Sequence[Search]:
        """The project's searches, newest first."""
        query = select(Search).where(Search.project == self.project).order_by(Search.created.desc(), Search.id)
        with self._sessions() as session:
            return session.scalars(query.limit(limit)).all()

    def count_ended(self, search_ids: Collection[str]) -> dict[str, int]:
        """How many trials of each search have ended."""
        query = (
            select(Trial.search_id, func.count())
            .where(Trial.project == self.project, Trial.search_id.in_(search_ids), Trial.status != "running")
            .group_by(Trial.search_id)
        )
        with self._sessions() as session:
            return {row[0]: row[1] for row in session.execute(query)}

    def best_values(self, search_ids: Collection[str], objective: Objective) -> dict[str, float]:
        """The largest objective of each search's complete trials; searches without one are absent."""
        value = Trial.row["validation", objective].as_float()
        query = (
            select(Trial.search_id, func.max(value))
            .where(Trial.project == self.project, Trial.search_id.in_(search_ids), Trial.status == "complete")
            .group_by(Trial.search_id)
        )
        with self._sessions() as session:
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
        with self._sessions() as session:
            return session.scalars(query.order_by(Trial.number)).all()

    def trials(self, search_id: str) -> Sequence[TrialRow]:
        """All trials of a search, by number."""
        query = select(Trial.row).where(Trial.project == self.project, Trial.search_id == search_id)
        with self._sessions() as session:
            return [TrialRow.model_validate(row) for row in session.scalars(query.order_by(Trial.number))]
