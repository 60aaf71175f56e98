"""Tables."""

from __future__ import annotations

import datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, ColumnElement, DateTime, ForeignKey, Index, UniqueConstraint, func
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from autoad.schema import Objective

__all__ = [
    "ApiKey",
    "Base",
    "DatasetVersion",
    "ModelVersion",
    "Replica",
    "Route",
    "RouteChange",
    "Search",
    "StoredFile",
    "Submission",
    "Trial",
    "Upload",
    "aware",
    "objective_value",
    "utc_now",
]


def utc_now() -> datetime.datetime:
    """Now, with a time zone."""
    return datetime.datetime.now(datetime.UTC)


def aware(moment: datetime.datetime) -> datetime.datetime:
    """A stored moment with its time zone: SQLite forgets it, and what is stored is UTC."""
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=datetime.UTC)


class Base(DeclarativeBase):
    """Base of the tables."""

    type_annotation_map = {  # noqa: RUF012
        dict[str, Any]: JSON,
        dict[str, int]: JSON,
        dict[str, str]: JSON,
        list[dict[str, Any]]: JSON,
        list[float]: JSON,
        list[str]: JSON,
        datetime.datetime: DateTime(timezone=True),
    }


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


def objective_value(objective: Objective) -> ColumnElement[float]:
    """What a search maximised, as :meth:`autoad.schema.TrialRow.value` has it."""
    return func.coalesce(Trial.row["objective"].as_float(), Trial.row["validation", objective].as_float())


class ModelVersion(Base):
    """A registered model; a row never changes.

    ``files`` is the sha256 of each file of the artifact by its name, ``size`` their bytes together, ``manifest`` the
    :class:`autoad.models.Manifest`.
    """

    __tablename__ = "model_versions"
    __table_args__ = (Index("ix_model_versions_project_search", "project", "search_id"),)

    project: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    algorithm: Mapped[str]
    files: Mapped[dict[str, str]]
    size: Mapped[int] = mapped_column(BigInteger)
    manifest: Mapped[dict[str, Any]]
    search_id: Mapped[str | None]
    trial: Mapped[int | None]
    dataset_hash: Mapped[str]
    code_version: Mapped[str]
    created: Mapped[datetime.datetime] = mapped_column(default=utc_now)


class Route(Base):
    """Which versions of a model answer.

    ``champion`` and ``previous`` are the aliases; ``canary`` gets ``canary_share`` (0 to 1) of the requests; ``shadow``
    scores beside the answer; ``staged`` is to be loaded by every replica because somebody wants to promote it.
    ``newest`` is the largest number ever given, so that a deleted version's number is never given again. Every change
    of the row adds one to ``generation``; a row is never deleted.
    """

    __tablename__ = "routes"

    project: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    generation: Mapped[int] = mapped_column(default=0)
    newest: Mapped[int] = mapped_column(default=0)
    champion: Mapped[int | None]
    previous: Mapped[int | None]
    canary: Mapped[int | None]
    canary_share: Mapped[float] = mapped_column(default=0.0)
    shadow: Mapped[int | None]
    staged: Mapped[int | None]


class RouteChange(Base):
    """When, why and by whom a route was changed: its history."""

    __tablename__ = "route_changes"
    __table_args__ = (Index("ix_route_changes_project_name", "project", "name"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    project: Mapped[str]
    name: Mapped[str]
    generation: Mapped[int]
    action: Mapped[str]
    before: Mapped[int | None]
    after: Mapped[int | None]
    reason: Mapped[str]
    actor: Mapped[str]
    at: Mapped[datetime.datetime] = mapped_column(default=utc_now)


class ApiKey(Base):
    """A key by which a client is known; ``hash`` is the sha256 of its secret part."""

    __tablename__ = "api_keys"
    __table_args__ = (UniqueConstraint("project", "name"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    project: Mapped[str]
    name: Mapped[str]
    scopes: Mapped[list[str]]
    hash: Mapped[str]
    created: Mapped[datetime.datetime] = mapped_column(default=utc_now)
    revoked: Mapped[datetime.datetime | None]


class Replica(Base):
    """A process that scores: versions it has loaded (``PROJECT/NAME/VERSION``), and why it could not load others."""

    __tablename__ = "replicas"

    id: Mapped[str] = mapped_column(primary_key=True)
    started: Mapped[datetime.datetime] = mapped_column(default=utc_now)
    heartbeat: Mapped[datetime.datetime] = mapped_column(default=utc_now)
    loaded: Mapped[list[str]]
    failed: Mapped[dict[str, str]]


class StoredFile(Base):
    """A file that a project has sent, kept once: a picture, a mask, or what turned out to be neither.

    ``height`` and ``width`` are in pixels; where it cannot be decoded they are None and ``fault`` says why. ``marks``
    is whether it marks anything where it is taken for a mask; None for what cannot be one.
    """

    __tablename__ = "files"

    project: Mapped[str] = mapped_column(primary_key=True)
    sha256: Mapped[str] = mapped_column(primary_key=True)
    size: Mapped[int] = mapped_column(BigInteger)
    height: Mapped[int | None]
    width: Mapped[int | None]
    marks: Mapped[bool | None]
    fault: Mapped[str | None]
    created: Mapped[datetime.datetime] = mapped_column(default=utc_now)


class Upload(Base):
    """Files that are to become a dataset's next version; ``request`` is the :class:`autoad.schema.UploadRequest`.

    ``id`` is made of the dataset's name and the files, so that the same upload is found again. ``version`` is set by
    the commit.
    """

    __tablename__ = "uploads"

    project: Mapped[str] = mapped_column(primary_key=True)
    id: Mapped[str] = mapped_column(primary_key=True)
    dataset: Mapped[str]
    request: Mapped[dict[str, Any]] = mapped_column(deferred=True)
    version: Mapped[int | None]
    created: Mapped[datetime.datetime] = mapped_column(default=utc_now)


class DatasetVersion(Base):
    """A version of a dataset; a row never changes.

    ``pictures`` are :class:`autoad.schema.DatasetPicture`, ``skipped`` :class:`autoad.schema.SkippedFile`.
    """

    __tablename__ = "dataset_versions"

    project: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    hash: Mapped[str]
    layout: Mapped[str]
    counts: Mapped[dict[str, int]]
    size: Mapped[int] = mapped_column(BigInteger)
    pictures: Mapped[list[dict[str, Any]]] = mapped_column(deferred=True)
    skipped: Mapped[list[dict[str, Any]]] = mapped_column(deferred=True)
    note: Mapped[str]
    actor: Mapped[str]
    created: Mapped[datetime.datetime] = mapped_column(default=utc_now)


class Submission(Base):
    """A search that a server carries out; ``id`` is also that of its row in ``searches``, once its driver has begun.

    ``request`` is the :class:`autoad.schema.SubmitRequest` with all names filled in. ``key`` is the idempotency key and
    ``digest`` the sha256 of what came with it. The driver is the ``owner`` and renews ``heartbeat``; ``cancelled`` asks
    it to stop. ``promotion`` is the :class:`autoad.schema.PromotionVerdict`, ``report`` the sha256 of the report.
    ``restarts`` counts how often the driver was started again, ``futile`` how often in a row without a trial having
    ended in between: ``ended`` is how many had at the last restart.
    """

    __tablename__ = "submissions"
    __table_args__ = (
        UniqueConstraint("project", "name"),
        UniqueConstraint("project", "key"),
        Index("ix_submissions_status", "status"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    project: Mapped[str]
    name: Mapped[str]
    request: Mapped[dict[str, Any]]
    status: Mapped[str]
    key: Mapped[str | None]
    digest: Mapped[str]
    actor: Mapped[str]
    cancelled: Mapped[bool] = mapped_column(default=False)
    restarts: Mapped[int] = mapped_column(default=0)
    futile: Mapped[int] = mapped_column(default=0)
    ended: Mapped[int] = mapped_column(default=0)
    owner: Mapped[str | None]
    heartbeat: Mapped[datetime.datetime | None]
    error: Mapped[str | None]
    promotion: Mapped[dict[str, Any] | None]
    report: Mapped[str | None]
    created: Mapped[datetime.datetime] = mapped_column(default=utc_now)
    started: Mapped[datetime.datetime | None]
    finished: Mapped[datetime.datetime | None]
