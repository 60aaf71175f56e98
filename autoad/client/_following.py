"""Server-sent events of a search, over as many connections as it takes."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from typing import get_args

import httpx2

from autoad.client._attempts import Attempts
from autoad.client._records import read_record
from autoad.client._transport import Transport
from autoad.errors import AutoADError, RefusedError, ServerError, UnreachableError
from autoad.schema import EventKind, SearchEvent

__all__ = ["follow"]

_SILENCE = 35.0  # a server says something every ten seconds
_STEADY = 5.0
_KINDS: tuple[str, ...] = get_args(EventKind)


async def follow(transport: Transport, path: str) -> AsyncGenerator[SearchEvent, None]:
    """The events at ``path`` until the one that is the end.

    A connection that breaks is made anew, and goes on after the last event that arrived, for as long as the
    transport's patience lasts.

    Raises:
        UnreachableError: nobody answers, or the events break off again and again.
        ServerError: the server refuses or fails.
    """
    attempts = Attempts(transport.retries, transport.patience)
    last = ""
    while True:
        failure: AutoADError
        passes = True
        opened: float | None = None
        ended = False
        try:
            headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": last} if last else {})
            async with transport.stream(path, headers, _SILENCE) as reply:
                opened = time.monotonic()
                async for message in httpx2.EventSource(reply, max_event_size=None):
                    attempts.forget()
                    last = message.id or last
                    if message.event not in _KINDS:  # what a newer server tells
                        continue
                    event = read_record(SearchEvent, message.data, f"GET {path}")
                    yield event
                    if event.kind == "end":
                        return
            ended = True
            failure = UnreachableError(
                f"the server at {transport.server} ended the events of the search before the search ended"
            )
        except httpx2.RequestError as error:
            failure = transport.unreachable(error)
        except ServerError as error:
            if isinstance(error, RefusedError) or error.code == "unreadable_reply":
                raise
            failure, passes = error, error.status != 500
        if opened is not None and time.monotonic() - opened > _STEADY:  # there may have been nothing to tell
            attempts.forget()
            if ended:  # as every stream does after some time
                continue
        if not await attempts.again(patient=passes):
            raise failure
