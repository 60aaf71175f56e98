"""Tables."""

from __future__ import annotations

import datetime
from typing import Any

from sqlalchemy import JSON, DateTime, ForeignKey, Index, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

__all__ = ["Base", "Search", "Trial", "utc_now"]


def utc_now() -> datetime.datetime:
    """Now, with a time zone."""
    return datetime.datetime.now(datetime.UTC)


class Base(DeclarativeBase):
    """Base of the tables."""

    type_annotation_map = {dict[str, Any]: JSON, list[float]: JSON, datetime.datetime: DateTime(timezone=True)}  # noqa: RUF012


class Search(Base):
    """A search.

    ``request`` is what was asked for, ``summary`` the :class:`autoad.schema.SearchResult` without its leaderboard, as
    far as it is known. While a process carries the search out, it is the ``owner`` and renews ``heartbeat``.
    ``spent`` is the search's own time in seconds so far, ``fingerprint`` what its pictures look like to a backbone.
    """

    __tablename__ = "searches"
    __table_args__ = (UniqueConstraint("project", "name"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    project: Mapped[str]
    name: Mapped[str]
    status: Mapped[str]
    dataset_hash: Mapped[str]
    request: Mapped[dict[str, Any]]
    summary: Mapped[dict[str, Any]]
    owner: Mapped[str | None]
    heartbeat: Mapped[datetime.datetime | None]
    spent: Mapped[float] = mapped_column(default=0.0)
    fingerprint: Mapped[list[float] | None]
    created: Mapped[datetime.datetime] = mapped_column(default=utc_now)
    finished: Mapped[datetime.datetime | None]


class Trial(Base):
    """A trial of a search; ``row`` is its :class:`autoad.schema.TrialRow`."""

    __tablename__ = "trials"
    __table_args__ = (Index("ix_trials_project_search", "project", "search_id"),)

    search_id: Mapped[str] = mapped_column(ForeignKey("searches.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    project: Mapped[str]
    status: Mapped[str]
    row: Mapped[dict[str, Any]]
    created: Mapped[datetime.datetime] = mapped_column(default=utc_now)
    finished: Mapped[datetime.datetime | None]
