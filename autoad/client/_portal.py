"""An event loop in a thread of its own, for callers that have none."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterator
from typing import Any, TypeVar, cast

from autoad.errors import UsageError

__all__ = ["Portal"]

T = TypeVar("T")

_END = object()
_CLOSE_SECONDS = 10.0


class Portal:
    """Runs coroutines for any thread; the loop's thread begins with the first of them.

    Args:
        closing: awaited in the loop before it ends, if it ever ran.
    """

    def __init__(self, closing: Callable[[], Awaitable[None]]) -> None:
        self._closing = closing
        self._failure: Exception | None = None
        self._lock = threading.RLock()  # the garbage collector may close while it is held
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._closed = False
        self._process = os.getpid()

    def call(self, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """What a coroutine returns. Ctrl-C, or whatever else comes here meanwhile, cancels it.

        Raises:
            UsageError: the portal is closed, or this is its own thread, or another process than the one that made it.
        """
        loop = self._running()
        outcome: concurrent.futures.Future[T] = concurrent.futures.Future()
        tasks: list[asyncio.Task[T]] = []

        def begin() -> None:
            task = loop.create_task(make())
            tasks.append(task)
            task.add_done_callback(lambda _: _settle(outcome, task))

        def cancel() -> None:
            for task in tasks:
                task.cancel()

        try:
            loop.call_soon_threadsafe(begin)
        except RuntimeError:
            raise _closed() from None
        try:
            return outcome.result()
        except concurrent.futures.CancelledError:
            raise _closed() from None
        except BaseException:
            if not outcome.done():
                with contextlib.suppress(RuntimeError):  # the loop has ended by itself
                    loop.call_soon_threadsafe(cancel)
                # What the task still has to put in order is waited for; a second Ctrl-C ends that.
                concurrent.futures.wait([outcome], timeout=_CLOSE_SECONDS)
            raise

    def iterate(self, source: AsyncGenerator[T, None], owner: object) -> Iterator[T]:
        """The items of an asynchronous generator; it is closed with the iterator, or at its end.

        The iterator keeps ``owner``, with which this portal would be closed.
        """
        try:
            while (item := self.call(lambda: _next(source))) is not _END:
                yield cast(T, item)
        finally:
            self._drop(source)

    def close(self) -> None:
        """End the loop and its thread; whatever is under way is cancelled. May be called again, and from anywhere."""
        with self._lock:
            self._closed = True
            thread, loop, stop = self._thread, self._loop, self._stop
        if thread is None or loop is None or stop is None or self._process != os.getpid():
            return
        with contextlib.suppress(RuntimeError):  # it has ended
            loop.call_soon_threadsafe(stop.set)
        if thread is not threading.current_thread():
            thread.join(_CLOSE_SECONDS)

    def _drop(self, source: AsyncGenerator[T, None]) -> None:
        """Close a generator; the garbage collector may ask for it in any thread."""
        if self._closed:  # the loop closed it
            return
        if threading.current_thread() is self._thread and self._loop is not None:
            self._loop.create_task(_close(source))
            return
        with contextlib.suppress(UsageError):
            self.call(lambda: _close(source))

    def _running(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._closed:
                raise _closed()
            if self._process != os.getpid():
                raise UsageError("this client was made in another process; make one in each process")
            if self._thread is None:
                ready = threading.Event()
                # No thread that the interpreter waits for: who forgets to close may still end.
                thread = threading.Thread(target=self._main, args=[ready], name="autoad client", daemon=True)
                self._thread = thread
                thread.start()
                ready.wait()
                if self._loop is None:
                    self._thread = None
                    raise UsageError(f"this client's event loop cannot be made ({self._failure}); close other clients")
            if self._thread is threading.current_thread():
                raise UsageError("a callback must not use the client that calls it: the client waits for it")
            if self._loop is None:
                raise _closed()
            return self._loop

    def _main(self, ready: threading.Event) -> None:
        try:
            with asyncio.Runner() as runner:
                runner.run(self._serve(ready))
        except Exception as error:  # no file descriptor is left, say
            self._failure = error
            if ready.is_set():
                raise
        finally:
            ready.set()

    async def _serve(self, ready: threading.Event) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        ready.set()
        try:
            await self._stop.wait()
        finally:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            await self._closing()


async def _next(source: AsyncGenerator[T, None]) -> T | object:
    return await anext(source, _END)


async def _close(source: AsyncGenerator[T, None]) -> None:
    await source.aclose()


def _settle(outcome: concurrent.futures.Future[T], task: asyncio.Task[T]) -> None:
    if task.cancelled():
        outcome.cancel()
        outcome.set_running_or_notify_cancel()
    elif (error := task.exception()) is not None:
        outcome.set_exception(error)
    else:
        outcome.set_result(task.result())


def _closed() -> UsageError:
    return UsageError("this client was closed; make another")
