"""Sees to the queue: starts the drivers of searches, starts them again when they have died, promotes what they found.

It runs in the control plane, but nothing depends on which: what has been started and promised is in the database, and
each step is one statement there that only one of several supervisors can make. A submission that is being started
belongs to the supervisor, then to the process that it has started; whose process is gone, is started again.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from types import EllipsisType
from typing import Protocol

import sqlalchemy

from autoad.database import Database, RouteConflictError, Submission, SubmissionTables, aware, is_gone, this_process
from autoad.errors import AutoADError, PromotionError, StateError
from autoad.models.registry import Registry
from autoad.schema import Champion, PromoteRequest, PromotionResult, PromotionVerdict
from autoad.search.public import without_paths
from autoad.search.recovery import recover_lost_searches
from autoad.serve.control import NotReadyError
from autoad.settings import Settings

__all__ = ["ControlPort", "Spawn", "Supervisor"]

_logger = logging.getLogger(__name__)
_LOOK_SECONDS = 1.0
_RENEWAL_SECONDS = 5.0
_PROMOTION_TRIES = 5
_PATIENCE = (0.0, 5.0, 30.0, 120.0, 300.0)
"""Seconds before a driver is started again, by how many have died in a row without a trial having ended."""
_CLAIM_SECONDS = 60.0
_LONGEST_REASON = 1000

Spawn = Callable[[Submission, str], str]
"""Starts the driver of a submission that the supervisor of that name has taken; the name of its process."""


class ControlPort(Protocol):
    """What promotes (:class:`autoad.serve.control.Control`)."""

    async def is_up(self) -> bool:
        """Whether there is a replica that could answer."""

    async def promote(
        self,
        project: str,
        actor: str,
        name: str,
        request: PromoteRequest,
        instead_of: int | EllipsisType | None = ...,
    ) -> PromotionResult:
        """Let a version answer, after its checks, and instead of that champion only."""


class Supervisor:
    """One server's part in what all servers of a database do together.

    Args:
        database: with the queue of all projects.
        settings: of the server.
        registry: with the models of all projects.
        control: promotes.
        spawn: starts drivers.
        most: searches that may run at once; with 0 nothing is started here.
        clock: the time.
    """

    def __init__(
        self,
        database: Database,
        settings: Settings,
        registry: Registry,
        control: ControlPort,
        spawn: Spawn,
        *,
        most: int,
        clock: Callable[[], datetime.datetime] = lambda: datetime.datetime.now(datetime.UTC),
    ) -> None:
        self._database = database
        self._settings = settings
        self._registry = registry
        self._control = control
        self._spawn = spawn
        self._most = most
        self._clock = clock
        self._tables = SubmissionTables(database)
        self._name = this_process()
        self._tries: Counter[str] = Counter()  # at promotions that found replicas not ready

    async def run(self) -> None:
        """Do it all, until cancelled; promotions take long, and no start waits for them."""
        await asyncio.gather(
            self._repeat("the queue of searches", lambda: asyncio.to_thread(self.look)),
            self._repeat("promotions that searches ask for", self.promote),
        )

    @staticmethod
    async def _repeat(what: str, work: Callable[[], Awaitable[None]]) -> None:
        failing = False
        while True:
            try:
                await work()
            except Exception as error:
                if not failing:
                    known = isinstance(error, sqlalchemy.exc.SQLAlchemyError | AutoADError)
                    _logger.warning("%s cannot be seen to (%s)", what, type(error).__name__, exc_info=not known)
                failing = True
            else:
                if failing:
                    _logger.warning("%s can be seen to again", what)
                failing = False
            await asyncio.sleep(_LOOK_SECONDS)

    def look(self) -> None:
        """Start what is to be started, once."""
        if not self._most:
            return
        for row in self._tables.running():
            if self._is_gone(row):
                self._go_on(row)
        while (begun := self._tables.begin_next(self._name, self._most)) is not None:
            self._start(begun)

    def _is_gone(self, row: Submission) -> bool:
        """Whether nobody carries a submission out that should run."""
        if row.owner is None:
            return True
        if row.owner == self._name:  # it was started, but that could not be written down; the driver may still come
            return self._age(row) > _CLAIM_SECONDS
        return is_gone(row.owner, row.heartbeat)

    def _age(self, row: Submission) -> float:
        return 0.0 if row.heartbeat is None else (self._clock() - aware(row.heartbeat)).total_seconds()

    def _go_on(self, row: Submission) -> None:
        if row.cancelled:
            self._tidy(row)
            self._tables.finish(row.id, row.owner, "cancelled")
            return
        ended = self._tables.count_ended(row.id)
        futile = 0 if ended > row.ended else row.futile
        if row.owner is None and row.error:  # an outage that it could name: nothing is known against the search
            futile = min(futile, len(_PATIENCE) - 1)
        if futile >= len(_PATIENCE):
            self._tidy(row)
            last = f"; the last said: {row.error}" if row.error else "; the server's log and theirs may say why"
            error = f"{futile} processes in a row have died before a trial of it ended{last}"
            self._tables.finish(row.id, row.owner, "failed", error=error)
            _logger.warning("the search %s has failed: %s", row.id, error)
        elif self._age(row) >= _PATIENCE[futile] and self._tables.restart(
            row, self._name, ended=ended, futile=futile + 1
        ):
            _logger.warning("the driver of the search %s is gone; another is started", row.id)
            self._start(row)

    def _tidy(self, row: Submission) -> None:
        """Close the trials that the driver of a search had no time to close."""
        settings = self._settings.model_copy(update={"project": row.project})
        recover_lost_searches(self._database.of(row.project), settings)

    def _start(self, row: Submission) -> None:
        try:
            driver = self._spawn(row, self._name)
        except OSError as error:
            _logger.warning("the driver of the search %s cannot be started: %s", row.id, error)
            self._tables.release(row.id, self._name, "its process cannot be started")
        else:
            self._tables.hand_over(row.id, self._name, driver)

    async def promote(self) -> None:
        """Carry out the promotions that searches have asked for, once."""
        for row in await asyncio.to_thread(self._tables.pending):
            if row.owner not in (None, self._name) and not is_gone(row.owner, row.heartbeat):
                continue
            if not await self._control.is_up():  # it would be refused because the server is only starting
                return
            if not await asyncio.to_thread(self._tables.hold, row, self._name):
                continue
            async with self._holding(row):
                verdict = await self._carry_out(row)
            if verdict is not None:
                done = verdict.model_dump(mode="json")
                await asyncio.to_thread(self._tables.settle, row.id, self._name, done)

    async def _carry_out(self, row: Submission) -> PromotionVerdict | None:
        """Promote a search's champion; None if it is to be tried again."""
        asked = PromotionVerdict.model_validate(row.promotion)
        try:
            name, version = await asyncio.to_thread(self._champion, row)
            serving = (await asyncio.to_thread(self._registry.model, name, row.project)).route.champion
            if serving == version:  # by whoever died before writing it down
                return asked.model_copy(update={"state": "promoted"})
            if row.request["promote_when"] == "better" and serving != asked.compared_with:
                reason = f"version {serving} has come to serve since it was compared; {asked.reason}"
                return asked.model_copy(update={"state": "kept", "reason": reason})
            reason = f"search {row.name}: {asked.reason}"[:_LONGEST_REASON]
            request = PromoteRequest(version=version, reason=reason)
            if row.request["promote_when"] == "better":  # than that one and no other
                await self._control.promote(row.project, row.actor, name, request, serving)
            else:
                await self._control.promote(row.project, row.actor, name, request)
        except (RouteConflictError, StateError):
            return None
        except NotReadyError as error:
            self._tries[row.id] += 1
            if self._tries[row.id] < _PROMOTION_TRIES:
                return None
            reason = error.message
        except PromotionError as error:
            reason = "; ".join([error.message, *error.details[:1]])
        except AutoADError as error:
            reason = str(error)
        else:
            return asked.model_copy(update={"state": "promoted"})
        return asked.model_copy(update={"state": "refused", "reason": without_paths(reason)})

    def _champion(self, row: Submission) -> tuple[str, int]:
        """Name and version of the model that a search has made."""
        search = self._database.of(row.project).find_search(row.id)
        champion = Champion.model_validate(search.summary["champion"])
        if champion.name is None or champion.version is None:
            raise PromotionError(f"the search {row.name!r} has made no version of a model")
        return champion.name, champion.version

    @contextlib.asynccontextmanager
    async def _holding(self, row: Submission) -> AsyncIterator[None]:
        """Say meanwhile that this process lives: to servers on other machines."""

        async def renew() -> None:
            while True:
                await asyncio.sleep(_RENEWAL_SECONDS)
                with contextlib.suppress(sqlalchemy.exc.SQLAlchemyError):
                    await asyncio.to_thread(self._tables.renew, row.id, self._name)

        task = asyncio.create_task(renew())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
