"""Files, uploads and versions of datasets: what the catalog asks of the database.

Every statement names the project; there is none that could see a file by its sha256 alone. A version's number is given
by its row: two that would give the same number to different rows cannot both commit, and the second decides again.
"""

from __future__ import annotations

import datetime
import json
import random
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import sqlalchemy
from sqlalchemy import ColumnElement, Select, Text, cast, delete, func, insert, select, true, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session, undefer

from autoad.database._records import Base, DatasetVersion, StoredFile, Upload, utc_now
from autoad.database._session import Database
from autoad.errors import ConflictError, UnknownNameError

__all__ = ["DatasetTables", "FileRow"]

_ATTEMPTS = 20
_LONGEST_WAIT = 0.05
_AT_ONCE = 5000  # parameters of one statement; SQLite takes 32,766
_STALE = datetime.timedelta(days=7)


class FileRow(NamedTuple):
    """What is known of a file; see :class:`StoredFile`, of which a hundred thousand would take seconds to make."""

    sha256: str
    size: int
    height: int | None
    width: int | None
    marks: bool | None
    fault: str | None


class DatasetTables:
    """Files, uploads and dataset versions of all projects.

    Args:
        database: where they are.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    # Files

    def files(self, project: str, sha256s: Iterable[str]) -> dict[str, FileRow]:
        """Those of the files that a project has."""
        found: dict[str, FileRow] = {}
        columns = [getattr(StoredFile, field) for field in FileRow._fields]
        with self._database.sessions() as session:
            for some in _portions(sha256s):
                query = select(*columns).where(StoredFile.project == project, StoredFile.sha256.in_(some))
                found.update((row.sha256, FileRow(*row)) for row in session.execute(query))
        return found

    def sizes(self, project: str, sha256s: Iterable[str]) -> dict[str, int]:
        """Bytes of those of the files that a project has."""
        found: dict[str, int] = {}
        with self._database.sessions() as session:
            for some in _portions(sha256s):
                query = select(StoredFile.sha256, StoredFile.size)
                mine = query.where(StoredFile.project == project, StoredFile.sha256.in_(some))
                found.update((row.sha256, row.size) for row in session.execute(mine))
        return found

    def used(self, project: str) -> int:
        """Bytes of all files of a project."""
        query = select(func.sum(StoredFile.size)).where(StoredFile.project == project)
        with self._database.sessions() as session:
            return int(session.scalar(query) or 0)

    def add_files(self, rows: Collection[Mapping[str, Any]]) -> None:
        """Record files; those that are known stay as they are."""
        if not rows:
            return
        now = utc_now()
        # In one order, or two transactions that add the same files could wait for each other.
        values = sorted(({**row, "created": now} for row in rows), key=lambda row: (row["project"], row["sha256"]))
        with self._database.transaction() as session:
            _insert_new(session, StoredFile, values)

    # Uploads

    def begin_upload(self, project: str, upload_id: str, dataset: str, request: dict[str, Any]) -> None:
        """Record an upload, or that it is gone on with; forget those that nobody went on with for a week."""
        now = utc_now()
        mine = (Upload.project == project, Upload.id == upload_id)
        again = update(Upload).where(*mine, Upload.version.is_(None)).values(created=now, request=request)
        old = delete(Upload).where(
            Upload.project == project, Upload.version.is_(None), Upload.created < now - _STALE, Upload.id != upload_id
        )
        values = {"project": project, "id": upload_id, "dataset": dataset, "request": request, "created": now}
        with self._database.transaction() as session:
            session.execute(again)
            _insert_new(session, Upload, [values])
            session.execute(old)

    def upload(self, project: str, dataset: str, upload_id: str, *, request: bool = False) -> Upload | None:
        """An upload to a dataset, with its request if that is wanted; None if there is none."""
        query = select(Upload).where(Upload.project == project, Upload.id == upload_id, Upload.dataset == dataset)
        with self._database.sessions() as session:
            return session.scalars(query.options(undefer(Upload.request)) if request else query).first()

    def upload_ids(self, project: str, dataset: str, limit: int) -> Sequence[str]:
        """The newest uploads to a dataset."""
        query = select(Upload.id).where(Upload.project == project, Upload.dataset == dataset)
        with self._database.sessions() as session:
            return session.scalars(query.order_by(Upload.created.desc(), Upload.id).limit(limit)).all()

    # Versions

    def names(self, project: str) -> Sequence[str]:
        """All datasets of a project."""
        query = select(DatasetVersion.name).where(DatasetVersion.project == project).distinct()
        with self._database.sessions() as session:
            return session.scalars(query.order_by(DatasetVersion.name)).all()

    def version(
        self, project: str, name: str, version: int | None = None, *, pictures: bool = False
    ) -> DatasetVersion | None:
        """A version with its skipped files, and with its pictures if they are wanted; the newest for None."""
        query = select(DatasetVersion).where(DatasetVersion.project == project, DatasetVersion.name == name)
        if version is not None:
            query = query.where(DatasetVersion.version == version)
        query = query.order_by(DatasetVersion.version.desc()).limit(1).options(undefer(DatasetVersion.skipped))
        with self._database.sessions() as session:
            return session.scalars(query.options(undefer(DatasetVersion.pictures)) if pictures else query).first()

    def versions(self, project: str, name: str) -> Sequence[DatasetVersion]:
        """All versions of a dataset, newest first, without pictures and skipped files."""
        query = select(DatasetVersion).where(DatasetVersion.project == project, DatasetVersion.name == name)
        with self._database.sessions() as session:
            return session.scalars(query.order_by(DatasetVersion.version.desc())).all()

    def newest(self, project: str, after: str, limit: int) -> Sequence[DatasetVersion]:
        """The newest version of each dataset of a name after ``after``, by name; without pictures and skipped files."""
        with self._database.sessions() as session:
            return session.scalars(self._newest(project, after, limit, _is_postgres(session))).all()

    @staticmethod
    def _newest(project: str, after: str, limit: int, postgres: bool) -> Select[DatasetVersion]:
        # Compared by bytes: databases differ in how they order letters, and a cursor must mean the same everywhere.
        name = DatasetVersion.name.collate("C") if postgres else DatasetVersion.name
        newest = (
            select(DatasetVersion.name.label("name"), func.max(DatasetVersion.version).label("version"))
            .where(DatasetVersion.project == project, name > after)
            .group_by(DatasetVersion.name)
            .order_by(name)
            .limit(limit)
            .subquery()
        )
        same = (DatasetVersion.name == newest.c.name) & (DatasetVersion.version == newest.c.version)
        return select(DatasetVersion).join(newest, same).where(DatasetVersion.project == project).order_by(name)

    def pictures(self, project: str, name: str, version: int, start: int, count: int) -> list[dict[str, Any]]:
        """Some of a version's pictures, in the order in which they are kept, from ``start`` (0 is the first) on."""
        mine = (DatasetVersion.project == project, DatasetVersion.name == name, DatasetVersion.version == version)
        with self._database.sessions() as session:
            value: ColumnElement[Any]
            # The database takes the list apart, not this process, which has scores to give meanwhile.
            if _is_postgres(session):
                each = func.json_array_elements(DatasetVersion.pictures).table_valued("value", with_ordinality="number")
                each = each.render_derived()
                first, value = 1, cast(each.c.value, Text)
            else:
                each = func.json_each(DatasetVersion.pictures).table_valued("value", "key")
                first, value = 0, each.c.value
            number = each.c[1]
            some = (number >= first + start, number < first + start + count)
            query = select(value).select_from(DatasetVersion).join(each, true()).where(*mine, *some)
            return [json.loads(text) for text in session.scalars(query.order_by(number))]

    def add_version(
        self,
        project: str,
        name: str,
        make: Callable[[DatasetVersion | None], Mapping[str, Any]],
        *,
        upload_id: str | None = None,
        pictures: bool = False,
    ) -> tuple[DatasetVersion, bool]:
        """Make a dataset's next version, unless the newest holds the same or the upload has become one already.

        Args:
            project: whose dataset it is.
            name: of the dataset.
            make: given the newest version, the next one's other columns; called again if somebody else was quicker.
            upload_id: of the upload that it is made of.
            pictures: whether ``make`` looks at the newest version's pictures.

        Returns:
            The version, and whether it was made now.

        Raises:
            UnknownNameError: there is no such upload any more.
            ConflictError: somebody else was quicker all the time.
        """
        for _ in range(_ATTEMPTS):
            if upload_id is not None:
                upload = self.upload(project, name, upload_id)
                if upload is None:
                    raise UnknownNameError("upload", upload_id, ())
                committed = None if upload.version is None else self.version(project, name, upload.version)
                if committed is not None:
                    return committed, False
            newest = self.version(project, name, pictures=pictures)
            columns = make(newest)
            if newest is not None and newest.hash == columns["hash"]:
                if self._commit_version(project, name, newest.version, None, upload_id):
                    return newest, False
                continue
            number = 1 if newest is None else newest.version + 1
            made = self._commit_version(project, name, number, columns, upload_id)
            row = self.version(project, name, number) if made else None
            if row is not None:
                return row, True
            time.sleep(random.uniform(0, _LONGEST_WAIT))  # noqa: S311 - so that not all come again at once
        raise ConflictError(f"the dataset {name!r} gets new versions all the time; try again")

    def _commit_version(
        self, project: str, name: str, number: int, columns: Mapping[str, Any] | None, upload_id: str | None
    ) -> bool:
        """Add a version's row, if there are columns for one, and say so in its upload's; whether nobody was quicker."""
        open_upload = update(Upload).where(Upload.project == project, Upload.id == upload_id, Upload.version.is_(None))
        try:
            with self._database.transaction() as session:
                # An update first: whoever commits the same upload waits here, and then finds it committed.
                marked = open_upload.values(version=number).returning(Upload.id)
                if upload_id is not None and session.scalar(marked) is None:
                    return False
                if columns is not None:
                    keys = {"project": project, "name": name, "version": number, "created": utc_now()}
                    session.execute(insert(DatasetVersion).values(**keys, **columns))
            return True
        except sqlalchemy.exc.IntegrityError:
            return False


def _is_postgres(session: Session) -> bool:
    return session.get_bind().dialect.name == "postgresql"


def _insert_new(session: Session, table: type[Base], rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows; those whose keys are there stay as they are."""
    made = postgresql.insert if _is_postgres(session) else sqlite.insert
    session.execute(made(table).on_conflict_do_nothing(), list(rows))


def _portions(sha256s: Iterable[str]) -> Iterator[list[str]]:
    every = sorted(set(sha256s))
    for start in range(0, len(every), _AT_ONCE):
        yield every[start : start + _AT_ONCE]
