"""API keys: made, listed, revoked.

A key reads ``autoad_ID_SECRET``. Of the secret only the sha256 is stored: it is 256 random bits, so nobody can guess it
from its hash however fast the hash is, and a slow one (bcrypt, Argon2) would only cost time on every request.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import sqlalchemy
from sqlalchemy import select

from autoad.database._records import ApiKey, aware, utc_now
from autoad.database._session import Database
from autoad.errors import UnknownNameError, UsageError
from autoad.schema import KeyEntry, Scope

__all__ = ["PREFIX", "SCOPES", "KeyTable", "Keys", "StoredKey", "hash_secret"]

PREFIX = "autoad"
SCOPES: tuple[Scope, ...] = get_args(Scope)
_SECRET_BYTES = 32
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class StoredKey:
    """What a server needs of one key; ``hash`` is :func:`hash_secret` of its secret."""

    id: str
    project: str
    name: str
    scopes: frozenset[Scope]
    hash: str


@dataclass(frozen=True)
class KeyTable:
    """The keys that have not been revoked, by id, and whether there is any key at all, revoked or not."""

    usable: Mapping[str, StoredKey]
    ever_made: bool


def hash_secret(secret: str) -> str:
    """The sha256 of a secret, 64 hexadecimal digits."""
    return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()


class Keys:
    """The API keys in a database.

    Args:
        database: where they are; its project is meant where none is given.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, name: str, scopes: Iterable[str], project: str | None = None) -> tuple[KeyEntry, str]:
        """Make a key.

        Args:
            name: who will use it; stands in a model's history. A revoked key's name is not given again, so that the
                history stays true.
            scopes: at least one of ``score``, ``submit``, ``admin`` (which includes the others).
            project: the only project whose models it reaches.

        Returns:
            The entry, and the whole key, which cannot be had again.

        Raises:
            UsageError: the name, the project or the scopes cannot be, or the name is taken.
        """
        project = self._database.project if project is None else project
        if not _NAME.fullmatch(name):
            raise UsageError(
                f"a key's name must be letters, digits, '.', '_' or '-', at most 64, the first a letter or digit, but "
                f"got {name!r}"
            )
        if not project:
            raise UsageError("a key's project must be a name but got ''; leave it out for the project of the settings")
        wanted = set(scopes)
        if unknown := sorted(wanted - set(SCOPES)):
            raise UnknownNameError("scope", unknown[0], SCOPES)
        if not wanted:
            raise UsageError(f"a key needs at least one scope: {', '.join(SCOPES)}")
        secret = secrets.token_urlsafe(_SECRET_BYTES)
        row = ApiKey(
            id=secrets.token_hex(8),
            project=project,
            name=name,
            scopes=[scope for scope in SCOPES if scope in wanted],
            hash=hash_secret(secret),
            created=utc_now(),
        )
        try:
            with self._database.transaction() as session:
                session.add(row)
        except sqlalchemy.exc.IntegrityError as error:
            raise UsageError(
                f"the project {project!r} has, or had, a key named {name!r} already; choose another name"
            ) from error
        return _entry(row), f"{PREFIX}_{row.id}_{secret}"

    def list(self, project: str | None = None) -> Sequence[KeyEntry]:
        """A project's keys, oldest first, revoked ones too."""
        project = self._database.project if project is None else project
        query = select(ApiKey).where(ApiKey.project == project).order_by(ApiKey.created, ApiKey.id)
        with self._database.sessions() as session:
            return [_entry(row) for row in session.scalars(query)]

    def revoke(self, name: str, project: str | None = None) -> KeyEntry:
        """Refuse a key from now on; of one that has been revoked already nothing changes.

        Raises:
            UsageError: the project has no key of that name.
        """
        project = self._database.project if project is None else project
        query = select(ApiKey).where(ApiKey.project == project, ApiKey.name == name)
        with self._database.transaction() as session:
            row = session.scalars(query).one_or_none()
            if row is not None:
                row.revoked = row.revoked or utc_now()
                return _entry(row)
        known = [entry.name for entry in self.list(project)]
        if not known:
            raise UsageError(f"the project {project!r} has no key yet; make one with: autoad keys create NAME")
        raise UnknownNameError("key", name, known)

    def read(self) -> KeyTable:
        """All that a server needs to know of the keys of all projects, in one query."""
        query = select(ApiKey.id, ApiKey.project, ApiKey.name, ApiKey.scopes, ApiKey.hash, ApiKey.revoked)
        with self._database.sessions() as session:
            rows = session.execute(query).all()
        usable = {
            row.id: StoredKey(row.id, row.project, row.name, frozenset(row.scopes), row.hash)
            for row in rows
            if row.revoked is None
        }
        return KeyTable(usable, bool(rows))


def _entry(row: ApiKey) -> KeyEntry:
    return KeyEntry.model_validate(
        {
            "id": row.id,
            "project": row.project,
            "name": row.name,
            "scopes": row.scopes,
            "created": aware(row.created),
            "revoked": None if row.revoked is None else aware(row.revoked),
        }
    )
