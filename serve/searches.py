"""Searches over HTTP: submit, list, follow, cancel, leaderboard, report."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any

import sqlalchemy
from fastapi import APIRouter, Header, Path, Query, Response
from fastapi.responses import HTMLResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

from autoad.files import FileStore
from autoad.schema import Scope as KeyScope
from autoad.schema import SearchEvent, SearchResult, SubmissionEntry, SubmissionPage, SubmitRequest
from autoad.search.submissions import DatasetList, Submissions
from autoad.serve.auth import Identity
from autoad.serve.faults import MissingError, RateError, describe_errors
from autoad.serve.following import POSITION, Follower
from autoad.serve.options import ServeOptions

__all__ = ["searches_router"]

_logger = logging.getLogger(__name__)
_POLL_SECONDS = 0.5
_HEARTBEAT_SECONDS = 10.0
_BUSY_SECONDS = 5
_Id = Annotated[
    str, Path(alias="id", description="Id or name of a search.", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
]
_EVENTS = {"description": "Server-sent events.", "content": {"text/event-stream": {"schema": {"type": "string"}}}}
_REPORT = {"description": "The report.", "content": {"text/html": {"schema": {"type": "string"}}}}


def searches_router(
    submissions: Submissions,
    datasets: DatasetList,
    reports: Callable[[str], FileStore],
    may: Callable[[KeyScope], Any],
    options: ServeOptions,
) -> APIRouter:
    """The routes.

    Args:
        submissions: the queue.
        datasets: that can be searched.
        reports: where a project's reports are kept.
        may: the dependency that gives the identity of who asks, if its key has a scope.
        options: limits.
    """
    router = APIRouter(prefix="/v1/searches", tags=["searches"])
    streams = _Streams(options.max_streams)
    may_score, may_submit = may("score"), may("submit")

    @router.post("", status_code=202, responses=describe_errors(400, 404, 409, 413, 429), summary="Submit a search")
    async def submit(
        body: SubmitRequest,
        response: Response,
        identity: Identity = may_submit,
        idempotency_key: Annotated[
            str | None,
            Header(
                description="A request that is sent again with the same key is carried out once.",
                min_length=1,
                max_length=200,
                pattern=r"^[\x21-\x7e]+$",
            ),
        ] = None,
    ) -> SubmissionEntry:
        """Queue a search of a dataset; it is carried out in the background, whatever becomes of the server."""
        if body.promote_when != "never":
            identity.require("admin")
        entry = await asyncio.to_thread(
            submissions.submit,
            identity.project,
            identity.name,
            body,
            datasets,
            key=idempotency_key,
            most=options.max_queued,
        )
        response.headers["Location"] = f"{router.prefix}/{entry.id}"
        return entry

    @router.get("", responses=describe_errors(400), summary="List searches")
    async def searches(
        identity: Identity = may_score,
        limit: Annotated[int, Query(ge=1, le=1000, description="How many at most.")] = 100,
        after: Annotated[
            str | None, Query(description="What the page before gave as next.", pattern=r"^[0-9a-f]{1,100}$")
        ] = None,
    ) -> SubmissionPage:
        """The searches of the key's project, newest first."""
        return await asyncio.to_thread(submissions.page, identity.project, limit, after)

    @router.get("/{id}", responses=describe_errors(400, 404), summary="Show a search")
    async def search(name: _Id, identity: Identity = may_score) -> SubmissionEntry:
        """A search as it stands."""
        return await asyncio.to_thread(submissions.entry, identity.project, name)

    @router.post("/{id}/cancel", responses=describe_errors(400, 404, 413), summary="Cancel a search")
    async def cancel(name: _Id, identity: Identity = may_submit) -> SubmissionEntry:
        """End a search that waits, or have one that runs end soon; what its trials have found is kept."""
        return await asyncio.to_thread(submissions.cancel, identity.project, name)

    @router.get("/{id}/leaderboard", responses=describe_errors(400, 404), summary="Show a search's leaderboard")
    async def leaderboard(name: _Id, identity: Identity = may_score) -> SearchResult:
        """All trials, best first, and the champion; from the moment the search has begun."""
        result = await asyncio.to_thread(submissions.result, identity.project, name)
        if result is None:
            raise MissingError(f"the search {name!r} has no leaderboard yet: it has not begun")
        return result

    @router.get(
        "/{id}/report",
        response_class=HTMLResponse,
        responses=describe_errors(400, 404) | {200: _REPORT},
        summary="Show a search's report",
    )
    async def report(name: _Id, identity: Identity = may_score) -> HTMLResponse:
        """One HTML page that needs no network; there is none before the search has ended."""

        def read() -> bytes | None:
            sha256 = submissions.row(identity.project, name).report
            return None if sha256 is None else reports(identity.project).read(sha256)

        page = await asyncio.to_thread(read)
        if page is None:
            raise MissingError(f"the search {name!r} has no report, or not yet")
        return HTMLResponse(page, headers={"X-Content-Type-Options": "nosniff"})

    @router.get(
        "/{id}/events",
        response_class=StreamingResponse,
        responses=describe_errors(400, 404, 429) | {200: _EVENTS},
        summary="Follow a search",
    )
    async def events(
        name: _Id,
        identity: Identity = may_score,
        last_event_id: Annotated[
            str | None, Header(description="Where to go on after a pause.", pattern=POSITION, max_length=4000)
        ] = None,
    ) -> StreamingResponse:
        """What happens to a search, and what has happened so far; ends after the event ``end``."""
        follower = await asyncio.to_thread(Follower, submissions, identity.project, name, last_event_id or "")
        return streams.open(follower)

    return router


class _Streams:
    """So many clients follow searches at once."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._open = 0

    def open(self, follower: Follower) -> StreamingResponse:
        """A reply that lasts as long as the client listens.

        Raises:
            RateError: there are too many already.
        """
        if self._open >= self._most:
            raise RateError(
                f"{self._open} clients follow searches at this replica, the most that may; ask again in a moment, or "
                "poll the search",
                _BUSY_SECONDS,
            )
        self._open += 1
        return _Stream(follower, self._close)

    def _close(self) -> None:
        self._open -= 1


class _Stream(StreamingResponse):
    def __init__(self, follower: Follower, closed: Callable[[], None]) -> None:
        super().__init__(_tell(follower), media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        self._closed = closed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._closed()


async def _tell(follower: Follower) -> AsyncIterator[str]:
    """Events as they are sent, and comments while there are none, so that whoever is between keeps the line open."""
    spoken, failing = time.monotonic(), False
    while True:
        try:
            events = await asyncio.to_thread(follower.poll)
            failing = False
        except sqlalchemy.exc.SQLAlchemyError as error:
            if not failing:
                _logger.warning("a search cannot be followed: the database cannot be asked (%s)", type(error).__name__)
            failing, events = True, []
        for event in events:
            yield _frame(event)
            if event.kind == "end":
                return
        if events:
            spoken = time.monotonic()
        elif time.monotonic() - spoken >= _HEARTBEAT_SECONDS:
            spoken = time.monotonic()
            yield ": still there\n\n"
        await asyncio.sleep(_POLL_SECONDS)


def _frame(event: SearchEvent) -> str:
    return f"id: {event.id}\nevent: {event.kind}\ndata: {event.model_dump_json()}\n\n"
