"""Many things at once, given out in order."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from typing import Any, TypeVar, cast

from autoad.errors import UsageError

__all__ = ["from_thread", "in_order"]

T = TypeVar("T")
R = TypeVar("R")

_END = object()


async def in_order(
    items: AsyncGenerator[T, None], work: Callable[[T], Awaitable[R]], concurrency: int
) -> AsyncGenerator[R, None]:
    """What ``work`` makes of each item, in the order of the items.

    At most ``concurrency`` items are worked on, and at most twice as many are taken and not given out yet, so that
    memory depends neither on how many there are nor on how slow one of them is.

    Args:
        items: closed at the end.
        work: what it raises for an item is raised at that item's turn, and ends everything.
        concurrency: at least 1.
    """
    room = asyncio.Semaphore(2 * concurrency)
    hands = asyncio.Semaphore(concurrency)
    turns: asyncio.Queue[asyncio.Task[R] | None] = asyncio.Queue()
    begun: set[asyncio.Task[R]] = set()

    async def do(item: T) -> R:
        async with hands:
            return await work(item)

    async def take() -> None:
        try:
            await room.acquire()
            async for item in items:
                task = asyncio.create_task(do(item))
                begun.add(task)
                turns.put_nowait(task)
                await room.acquire()
        finally:
            turns.put_nowait(None)

    taker = asyncio.create_task(take())
    try:
        while (task := await turns.get()) is not None:
            result = await task
            begun.discard(task)
            room.release()
            yield result
        await taker  # raises what the items raised
    finally:
        for one in (taker, *begun):
            one.cancel()
        await asyncio.gather(taker, *begun, return_exceptions=True)
        await items.aclose()


async def from_thread(source: Iterable[T]) -> AsyncGenerator[T, None]:
    """The items of an iterable that may block, such as a camera's pictures; a thread of its own reads them.

    The thread never holds up the end of the process.
    """
    loop = asyncio.get_running_loop()
    wanted: queue.SimpleQueue[asyncio.Future[Any] | None] = queue.SimpleQueue()

    def settle(future: asyncio.Future[Any], item: object, error: BaseException | None) -> None:
        if future.done():  # nobody waits any more
            return
        if error is None:
            future.set_result(item)
        else:
            future.set_exception(error)

    def read() -> None:
        iterator = None
        while (future := wanted.get()) is not None:
            item: object = _END
            failure: BaseException | None = None
            try:
                iterator = iter(source) if iterator is None else iterator
                item = next(iterator, _END)
            except Exception as error:
                failure = error
            except BaseException as error:  # which would end the loop, and the client with it
                failure = UsageError(f"the pictures ended with {error!r}")
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(settle, future, item, failure)

    threading.Thread(target=read, name="autoad pictures", daemon=True).start()
    try:
        while True:
            future = loop.create_future()
            wanted.put(future)
            item = await future
            if item is _END:
                return
            yield cast(T, item)
    finally:
        wanted.put(None)
