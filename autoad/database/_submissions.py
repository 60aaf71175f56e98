"""Searches that a server carries out: what the queue asks of the database.

Every change is one statement that holds only in the state that it presumes, so that of several processes that want the
same one succeeds. Whoever carries a submission out, or is about to start who will, is its ``owner``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, case, func, select, text, tuple_, update
from sqlalchemy.orm import Session

from autoad.database._records import Search, Submission, Trial, objective_value, utc_now
from autoad.database._session import Database
from autoad.errors import QueueLimitError
from autoad.schema import Objective, TrialRow

__all__ = ["EndedTrial", "SubmissionTables"]

EndedTrial = tuple[int, str, float | None]
"""Number and status of a trial that has ended, and its objective if it is complete."""

_LOCK = 0x71756575  # any number that nobody else in the database is likely to lock


class SubmissionTables:
    """Submissions of all projects.

    Args:
        database: where they are.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    # What clients ask

    def add(self, row: Submission, most: int) -> None:
        """Queue a search, if that leaves no more than ``most`` of its project's waiting.

        Raises:
            QueueLimitError: it would.
            sqlalchemy.exc.IntegrityError: the project has one of that name, or with that key.
        """
        with self._database.transaction() as session:
            _lock_queue(session)
            session.add(row)
            session.flush()
            mine = (Submission.project == row.project, Submission.status == "queued")
            waiting = session.scalar(select(func.count()).select_from(Submission).where(*mine)) or 0
            if waiting > most:
                raise QueueLimitError(
                    f"{most} searches of this project wait already, the most that may; submit it again when one has "
                    "begun, or cancel one"
                )

    def of_key(self, project: str, key: str) -> Submission | None:
        """What was submitted with an idempotency key."""
        query = select(Submission).where(Submission.project == project, Submission.key == key)
        with self._database.sessions() as session:
            return session.scalars(query).first()

    def find(self, project: str, name: str) -> Submission | None:
        """A project's submission by id or name; None if there is none."""
        query = select(Submission).where(
            Submission.project == project, (Submission.id == name) | (Submission.name == name)
        )
        with self._database.sessions() as session:
            return session.scalars(query.order_by(case((Submission.id == name, 0), else_=1)).limit(1)).first()

    def newest(self, project: str, limit: int, after: Submission | None = None) -> Sequence[Submission]:
        """A project's submissions, newest first; those that follow ``after``."""
        order = tuple_(Submission.created, Submission.id)
        query = select(Submission).where(Submission.project == project)
        if after is not None:
            query = query.where(order < tuple_(after.created, after.id))
        query = query.order_by(Submission.created.desc(), Submission.id.desc()).limit(limit)
        with self._database.sessions() as session:
            return session.scalars(query).all()

    def queued(self, project: str) -> Sequence[str]:
        """Ids of a project's submissions that wait, in their order."""
        query = select(Submission.id).where(Submission.project == project, Submission.status == "queued")
        with self._database.sessions() as session:
            return session.scalars(query.order_by(Submission.created, Submission.id)).all()

    def cancel(self, search: str) -> None:
        """End a submission that waits; ask the driver of one that runs to stop. Of others nothing changes."""
        this = update(Submission).where(Submission.id == search)
        with self._database.transaction() as session:
            session.execute(
                this.where(Submission.status == "queued").values(status="cancelled", cancelled=True, finished=utc_now())
            )
            session.execute(this.where(Submission.status == "running").values(cancelled=True))

    def mark(self, search: str) -> tuple[Any, ...]:
        """Differs after whatever a client may hear of; one cheap query."""
        trials = select(func.count()).where(Trial.search_id == search, Trial.status != "running").scalar_subquery()
        state = select(Search.status).where(Search.id == search).scalar_subquery()
        other = select(func.count()).where(Submission.status == "queued").scalar_subquery()
        this = Submission
        query = select(this.status, this.restarts, this.promotion["state"].as_string(), trials, state, other)
        with self._database.sessions() as session:
            return tuple(session.execute(query.where(Submission.id == search)).one())

    def ended_trials(self, search: str, objective: Objective, after: int = -1) -> Sequence[EndedTrial]:
        """A search's trials of larger numbers than ``after`` that have ended, in the order in which they did."""
        value = case((Trial.status == "complete", objective_value(objective)))
        query = select(Trial.number, Trial.status, value).where(
            Trial.search_id == search, Trial.number > after, Trial.status != "running"
        )
        with self._database.sessions() as session:
            return [(row[0], row[1], row[2]) for row in session.execute(query.order_by(Trial.finished, Trial.number))]

    def trials(self, search: str, numbers: Collection[int]) -> Mapping[int, TrialRow]:
        """Rows of trials by their numbers."""
        query = select(Trial.number, Trial.row).where(Trial.search_id == search, Trial.number.in_(numbers))
        with self._database.sessions() as session:
            return {number: TrialRow.model_validate(row) for number, row in session.execute(query)}

    # What starts drivers asks

    def begin_next(self, owner: str, most: int) -> Submission | None:
        """Take the submission that waits longest, unless ``most`` run already; None if there is nothing to take."""
        running = select(func.count()).select_from(Submission).where(Submission.status == "running").scalar_subquery()
        first = (
            select(Submission.id)
            .where(Submission.status == "queued")
            .order_by(Submission.created, Submission.id)
            .limit(1)
            .scalar_subquery()
        )
        now = utc_now()
        taken = update(Submission).where(Submission.id == first, Submission.status == "queued", running < most)
        values = {"status": "running", "owner": owner, "heartbeat": now, "started": now}
        with self._database.transaction() as session:
            _lock_queue(session)
            return session.scalars(taken.values(values).returning(Submission)).one_or_none()

    def running(self) -> Sequence[Submission]:
        """Those that run, or should."""
        with self._database.sessions() as session:
            return session.scalars(select(Submission).where(Submission.status == "running")).all()

    def count_ended(self, search: str) -> int:
        """How many of a search's trials have ended by themselves; those of a dead process are closed as stopped."""
        query = select(func.count()).where(Trial.search_id == search, Trial.status.not_in(("running", "stopped")))
        with self._database.sessions() as session:
            return session.scalar(query) or 0

    def restart(self, row: Submission, owner: str, *, ended: int, futile: int) -> bool:
        """Take over a submission whose owner is gone, to start another driver; False if somebody else just did."""
        values = {"heartbeat": utc_now(), "restarts": row.restarts + 1, "ended": ended, "futile": futile}
        return self._change(row.id, _is_of(row.owner), "running", owner=owner, **values)

    def hand_over(self, search: str, owner: str, driver: str) -> bool:
        """Make a driver that has just been started the owner; it may have been quicker, and False is no harm."""
        return self._change(search, _is_of(owner), "running", owner=driver, heartbeat=utc_now())

    # What a driver asks

    def claim(self, search: str, starter: str, driver: str) -> Submission | None:
        """Be the driver of a submission that ``starter`` has taken for it; None if it is not, or no longer, for it."""
        mine = Submission.owner.in_([starter, driver])
        query = select(Submission).where(Submission.id == search, Submission.owner == driver)
        if not self._change(search, mine, "running", owner=driver, heartbeat=utc_now(), error=None):
            return None
        with self._database.sessions() as session:
            return session.scalars(query).one_or_none()

    def is_cancelled(self, search: str, driver: str) -> bool | None:
        """Whether the driver is to stop; None if the submission is its own no longer."""
        query = select(Submission.cancelled).where(
            Submission.id == search, Submission.owner == driver, Submission.status == "running"
        )
        with self._database.sessions() as session:
            return session.scalar(query)

    def renew(self, search: str, owner: str) -> bool:
        """Say that the owner is alive; False if it is another's now."""
        return self._change(search, _is_of(owner), None, heartbeat=utc_now())

    def release(self, search: str, owner: str, error: str | None) -> bool:
        """Give a submission up that is to be gone on with later; ``error`` is what has stopped it."""
        return self._change(search, _is_of(owner), "running", owner=None, heartbeat=utc_now(), error=error)

    def finish(
        self,
        search: str,
        owner: str | None,
        status: str,
        *,
        error: str | None = None,
        promotion: dict[str, Any] | None = None,
        report: str | None = None,
    ) -> bool:
        """Say how a submission has ended, and give it up; whatever that is, one that was cancelled ends as that.

        Returns:
            False if somebody else owns it now.
        """
        end = {"owner": None, "finished": utc_now(), "report": report}
        asked = {"status": "cancelled", "error": None} | end
        meant = {"status": status, "error": error, "promotion": promotion} | end
        return self._change(search, _is_of(owner) & ~Submission.cancelled, "running", **meant) or self._change(
            search, _is_of(owner) & Submission.cancelled, "running", **asked
        )

    # What promotes asks

    def pending(self) -> Sequence[Submission]:
        """Those whose champion is to be promoted, in the order in which they ended."""
        query = select(Submission).where(Submission.status == "complete", _is_pending())
        with self._database.sessions() as session:
            return session.scalars(query.order_by(Submission.finished, Submission.id)).all()

    def hold(self, row: Submission, owner: str) -> bool:
        """Be the one who promotes, in the place of whoever was before; False if somebody else was quicker."""
        return self._change(row.id, _is_of(row.owner) & _is_pending(), "complete", owner=owner, heartbeat=utc_now())

    def settle(self, search: str, owner: str, promotion: dict[str, Any]) -> bool:
        """Say what came of it; False if somebody else took it over."""
        return self._change(search, _is_of(owner), "complete", owner=None, promotion=promotion)

    def _change(self, search: str, condition: ColumnElement[bool], now: str | None, /, **values: Any) -> bool:
        """Change a submission if the condition holds, and its status is ``now``; whether that was so."""
        this = update(Submission).where(Submission.id == search, condition)
        if now is not None:
            this = this.where(Submission.status == now)
        with self._database.transaction() as session:
            return session.scalar(this.values(values).returning(Submission.id)) is not None


def _is_of(owner: str | None) -> ColumnElement[bool]:
    return Submission.owner.is_not_distinct_from(owner)


def _is_pending() -> ColumnElement[bool]:
    state: ColumnElement[str] = Submission.promotion["state"].as_string()
    return state == "pending"


def _lock_queue(session: Session) -> None:
    """Until the end of the transaction nobody else counts or takes what waits; SQLite has one writer at a time."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": _LOCK})
