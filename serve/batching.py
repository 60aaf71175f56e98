"""Scoring what waits, a batch at a time.

Whenever the lane is free it takes what is waiting, up to ``max_batch`` pictures, of whatever models: nothing is ever
held back for a batch to fill, so a lone picture is scored at once and batches grow by themselves under load. Pictures
that share an engine go through it in one call, then each through its own model's head. An engine's features and a
head's answer do not depend on the batch, so a score is the same to the last bit however the batches fall.

Decoding and resizing happen in threads of their own before a picture joins the queue, and heads of one batch run in as
many threads; torch itself gets one thread each, because pictures are many and a head is small.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from autoad.data import decode_image
from autoad.errors import AutoADError, StateError, UnreadableImageError
from autoad.features import SharedEngine
from autoad.models import Model, Score

__all__ = ["Batcher", "QueueFullError", "Timing"]

_logger = logging.getLogger(__name__)


class QueueFullError(AutoADError):
    """So many pictures wait that another would wait too long."""


@dataclasses.dataclass
class Timing:
    """Where a picture's time went, in milliseconds."""

    decode: float = 0.0
    queue: float = 0.0
    forward: float = 0.0
    head: float = 0.0


@dataclasses.dataclass
class _Job:
    """A picture that waits. By the model's parts: its pixels, and what their engines have made of them so far."""

    model: Model
    future: asyncio.Future[tuple[Score, Timing]]
    size: tuple[int, int]
    pixels: tuple[NDArray[np.uint8], ...]
    ready: float
    timing: Timing
    features: dict[int, dict[int, NDArray[np.float32]]] = dataclasses.field(default_factory=dict)
    failed: bool = False

    @property
    def seen(self) -> bool:
        """Whether the engines of all parts have seen it."""
        return len(self.features) == len(self.pixels)


class _Share(NamedTuple):
    """Those parts of a job's model that one call of an engine serves: they take the same pixels."""

    job: _Job
    engine: SharedEngine | None
    places: list[int]


class Batcher:
    """One replica's processor time, dealt to pictures in the order in which they come.

    Args:
        threads: for decoding, and as many for heads.
        max_batch: most pictures of one batch.
        max_queue: most pictures under way.
        max_pixels: most that a picture may have.
        observe: told the size of each batch.
    """

    def __init__(
        self,
        *,
        threads: int,
        max_batch: int,
        max_queue: int,
        max_pixels: int,
        observe: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._max_batch = max_batch
        self._max_queue = max_queue
        self._max_pixels = max_pixels
        self._observe = observe
        self._loop = asyncio.get_running_loop()
        self._decoders = ThreadPoolExecutor(threads, "autoad-decode")
        self._heads = ThreadPoolExecutor(threads, "autoad-head") if threads > 1 else None
        self._waiting: deque[_Job] = deque()
        self._beside: deque[_Job] = deque()
        self._wake = threading.Condition()
        self._closing = False
        self._pending = 0
        torch.set_num_threads(1)
        self._lane = threading.Thread(target=self._run, name="autoad-lane", daemon=True)
        self._lane.start()

    @property
    def pending(self) -> int:
        """Pictures that wait or are being scored."""
        return self._pending

    @property
    def alive(self) -> bool:
        """Whether the lane still runs."""
        return self._lane.is_alive()

    async def score(
        self, model: Model, pictures: Sequence[bytes], *, background: bool = False
    ) -> list[tuple[Score, Timing]]:
        """Score pictures of one request; they join the queue together, so that they can share a batch.

        Args:
            model: by which.
            pictures: encoded.
            background: whether nobody waits for the answer: such pictures are taken only while no others wait.

        Raises:
            QueueFullError: too many wait already; none of these was taken.
            UnreadableImageError: the bytes of one are no picture, or it is too large; which is said.
            StateError: the batcher has been closed.
        """
        if background:
            return await self._score_all(model, pictures, self._beside)
        if self._pending + len(pictures) > max(self._max_queue, len(pictures)):
            raise QueueFullError(
                f"{self._pending} pictures are waiting and at most {self._max_queue} may; try again in a moment"
            )
        self._pending += len(pictures)
        try:
            return await self._score_all(model, pictures, self._waiting)
        finally:
            self._pending -= len(pictures)

    def close(self) -> None:
        """End the threads; what still waits fails."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._lane.join()
        self._decoders.shutdown()
        self._loop.call_soon_threadsafe(_fail, [*self._waiting, *self._beside], _closed())
        if self._heads is not None:
            self._heads.shutdown()

    async def _score_all(
        self, model: Model, pictures: Sequence[bytes], queue: deque[_Job]
    ) -> list[tuple[Score, Timing]]:
        tasks = [asyncio.ensure_future(self._prepare(model, data, number)) for number, data in enumerate(pictures, 1)]
        try:
            jobs = await asyncio.gather(*tasks)
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise
        with self._wake:
            if self._closing:
                raise _closed()
            queue.extend(jobs)
            self._wake.notify()
        return await asyncio.gather(*(job.future for job in jobs))

    async def _prepare(self, model: Model, data: bytes, number: int) -> _Job:
        if self._closing:
            raise _closed()
        try:
            size, pixels, milliseconds = await self._loop.run_in_executor(self._decoders, self._decode, model, data)
        except UnreadableImageError as error:
            raise type(error)(f"picture {number} {error}") from error
        future: asyncio.Future[tuple[Score, Timing]] = self._loop.create_future()
        return _Job(model, future, size, pixels, time.perf_counter(), Timing(decode=milliseconds))

    def _decode(self, model: Model, data: bytes) -> tuple[tuple[int, int], tuple[NDArray[np.uint8], ...], float]:
        if self._closing:
            raise _closed()
        started = time.perf_counter()
        image = decode_image(data, max_pixels=self._max_pixels)
        pixels = model.prepare(image)
        return (image.shape[0], image.shape[1]), pixels, 1000 * (time.perf_counter() - started)

    def _run(self) -> None:
        """The lane: batch after batch."""
        while True:
            with self._wake:
                while not self._waiting and not self._beside and not self._closing:
                    self._wake.wait()
                if self._closing:
                    return
                queue = self._waiting or self._beside
                jobs: list[_Job] = []
                while queue and len(jobs) < self._max_batch:
                    job = queue.popleft()
                    if not job.future.cancelled():  # whoever asked has gone
                        jobs.append(job)
            if jobs:
                self._observe(len(jobs))
                self._score(jobs)
            jobs.clear()

    def _score(self, jobs: Sequence[_Job]) -> None:
        started = time.perf_counter()
        for job in jobs:
            job.timing.queue = 1000 * (started - job.ready)
        groups: defaultdict[tuple[int, tuple[int, ...]], dict[int, _Share]] = defaultdict(dict)
        for job in jobs:
            for place, (part, pixels) in enumerate(zip(job.model.parts, job.pixels, strict=True)):
                group = groups[id(part.engine), pixels.shape]
                group.setdefault(id(job), _Share(job, part.engine, [])).places.append(place)
        for group in groups.values():
            shares = [share for share in group.values() if not share.job.failed]
            try:
                if shares:
                    self._score_group(shares[0].engine, shares)
            except Exception as error:  # one batch's misfortune must not end the lane
                _logger.exception("a batch of %d pictures could not be scored", len(shares))
                for share in shares:
                    share.job.failed = True
                self._loop.call_soon_threadsafe(_fail, [share.job for share in shares], error)
        for job in jobs:
            job.features.clear()

    def _score_group(self, engine: SharedEngine | None, shares: Sequence[_Share]) -> None:
        """Run what shares an engine through it; jobs whose parts have then all been through theirs are answered."""
        started = time.perf_counter()
        features: dict[int, NDArray[np.float32]] = {}
        if engine is not None:
            features = engine(np.stack([share.job.pixels[share.places[0]] for share in shares]))
        forward = 1000 * (time.perf_counter() - started) / len(shares)
        for index, share in enumerate(shares):
            own = {stage: maps[index] for stage, maps in features.items()}
            share.job.features.update(dict.fromkeys(share.places, own))
            share.job.timing.forward += forward
        jobs = [share.job for share in shares if share.job.seen]
        if self._heads is None or len(jobs) == 1:
            for job in jobs:
                self._answer(job)
        else:
            for done in [self._heads.submit(self._answer, job) for job in jobs]:
                done.result()

    def _answer(self, job: _Job) -> None:
        begun = time.perf_counter()
        try:
            parts = zip(job.model.parts, job.pixels, strict=True)
            answers = [part.measure(pixels, job.features[place]) for place, (part, pixels) in enumerate(parts)]
            answer = job.model.judge(job.model.combine(answers), job.size)
        except Exception as error:  # the others' models are not to blame
            _logger.exception("a picture could not be scored by %s", job.model.name)
            self._loop.call_soon_threadsafe(_fail, [job], error)
            return
        finally:
            job.features.clear()  # a request keeps its jobs until the last of them is answered
        job.timing.head = 1000 * (time.perf_counter() - begun)
        # Each as soon as it is there: who waits for the first need not wait for the last.
        self._loop.call_soon_threadsafe(_finish, job.future, (answer, job.timing))


def _closed() -> StateError:
    return StateError("this replica is being stopped; ask again")


def _finish(future: asyncio.Future[tuple[Score, Timing]], answer: tuple[Score, Timing]) -> None:
    if not future.done():
        future.set_result(answer)


def _fail(jobs: Sequence[_Job], error: Exception) -> None:
    for job in jobs:
        if not job.future.done():
            job.future.set_exception(error)
