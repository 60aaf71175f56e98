"""One replica's heart: routes, models and batches, without HTTP and without Ray.

A task looks at the database a few times a second whether a route has changed. What a new route needs is loaded before
the route is taken over, so that the first request to a new champion finds it ready, and a request under way ends with
the version that it began with. While the database is out of reach the last routes hold.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, TypeVar, cast

from autoad.errors import StateError
from autoad.features import EnginePool
from autoad.models import Calibration, Score
from autoad.schema import RouteEntry
from autoad.search.memory import free_memory
from autoad.serve.batching import Batcher, Timing
from autoad.serve.cache import ModelCache, ModelKey
from autoad.serve.metrics import Metrics
from autoad.serve.options import ServeOptions
from autoad.serve.routing import choose_version

__all__ = ["Answer", "RouteSource", "Scorer"]

_logger = logging.getLogger(__name__)
_BEAT_SECONDS = 2.0
_Routes = dict[tuple[str, str], RouteEntry]
_T = TypeVar("_T")


class RouteSource(Protocol):
    """What a replica asks of the registry (:class:`autoad.models.registry.Registry`)."""

    def open(self, name: str, version: int, project: str | None = None) -> Path:
        """The folder of an artifact."""

    def routes(self) -> _Routes:
        """All routes."""

    def mark(self) -> tuple[int, int]:
        """Differs after any change of any route."""

    def beat(self, replica: str, loaded: Sequence[str], failed: dict[str, str]) -> None:
        """Say what this replica holds."""

    def leave(self, replica: str) -> None:
        """Say that it ends."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """What one request gets.

    Attributes:
        version: which answered.
        scores: of the pictures, in order.
        timings: of each.
        calibration: of the model, for drawing maps.
    """

    version: int
    scores: list[Score]
    timings: list[Timing]
    calibration: Calibration


class Scorer:
    """Scores pictures by the versions that the routes name.

    Args:
        source: routes and artifacts.
        options: limits.
        replica: this process's name.
    """

    def __init__(self, source: RouteSource, options: ServeOptions, replica: str) -> None:
        self.replica = replica
        self._source = source
        self._options = options
        self._routes: _Routes = {}
        self._mark: tuple[int, int] | None = None
        self._needed: set[ModelKey] = set()
        self._out_of_reach = False
        self._speaking = threading.Lock()
        self._left = False
        self._adopting: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._shadows: deque[tuple[ModelKey, list[bytes], list[Score]]] = deque()
        self._shadow_wake = asyncio.Event()
        self._batcher: Batcher | None = None
        self._asking = ThreadPoolExecutor(1, "autoad-database")
        self._beaten: tuple[list[str], dict[str, str]] | None = None
        self._cache = ModelCache(
            source,
            options.models_memory or _default_memory(options),
            EnginePool(threads=options.threads, streams=options.threads),
            lambda event: self._metrics.count_model(event),
        )
        self._metrics = Metrics(replica, pending=lambda: self.pending, held=lambda: self._cache.size)

    @property
    def ready(self) -> bool:
        """Whether the routes have been read and their champions loaded."""
        return len(self._tasks) > 0

    @property
    def pending(self) -> int:
        """Pictures that wait or are being scored."""
        return 0 if self._batcher is None else self._batcher.pending

    @property
    def metrics(self) -> Metrics:
        """This replica's counters."""
        return self._metrics

    @property
    def routes(self) -> _Routes:
        """As this replica knows them."""
        return self._routes

    async def start(self) -> None:
        """Read the routes, load the champions, and go on watching.

        Raises:
            StateError: the database cannot be read.
        """
        self._batcher = Batcher(
            threads=self._options.threads,
            max_batch=self._options.max_batch,
            max_queue=self._options.max_queue,
            max_pixels=self._options.max_pixels,
            observe=self._metrics.observe_batch,
        )
        routes: _Routes = {}
        try:
            # Until nothing has changed while its champions were being loaded.
            while (mark := await self._apart(self._source.mark)) != self._mark:
                routes = await self._apart(self._source.routes)
                self._mark = mark
                self._needed = {key for route in routes.values() for key in _needed(route)}
                for key in [key for route in routes.values() for key in _answering(route)][: self._options.preload]:
                    await self._load(key)
        except Exception as error:
            await self.stop()
            raise StateError(f"the routes cannot be read ({type(error).__name__}); is the database up?") from error
        self._routes = routes
        for owner, route in list(routes.items())[: self._options.preload]:
            # What a rollback goes back to, and what somebody is promoting: they wait for every replica, this one too.
            self._adopting[owner] = asyncio.create_task(self._adopt(owner, route))
        self._tasks = [asyncio.create_task(self._watch()), asyncio.create_task(self._score_shadows(self._batcher))]

    async def stop(self) -> None:
        """End all that was started."""
        for task in [*self._tasks, *self._adopting.values()]:
            task.cancel()
        await asyncio.gather(*self._tasks, *self._adopting.values(), return_exceptions=True)
        self._tasks = []
        if self._batcher is not None:
            await asyncio.to_thread(self._batcher.close)
        with contextlib.suppress(Exception):  # without it, others find out a few seconds later
            await self._apart(self._leave)
        self._asking.shutdown()

    def check(self) -> None:
        """Raise if this replica can score no more and should be replaced.

        Raises:
            StateError: its thread has ended.
        """
        if self._batcher is not None and not self._batcher.alive:
            raise StateError("the scoring thread has ended")

    async def score(
        self, project: str, name: str, pictures: list[bytes], *, wanted: str | None, request_id: str
    ) -> Answer:
        """Score the pictures of one request, all by the same version.

        Args:
            project: whose model is meant.
            name: of the model.
            pictures: encoded.
            wanted: version or alias; None for the champion or the canary.
            request_id: decides between those.

        Raises:
            UnknownNameError: no such model or version.
            NoChampionError: nothing has been promoted.
            QueueFullError: too many pictures wait.
            UnreadableImageError: one is no picture.
            ArtifactError: the model cannot be loaded.
        """
        if self._batcher is None:  # once it has been stopped, the batcher says so
            raise StateError("this replica is still starting")
        started = time.perf_counter()
        version = choose_version(self._routes, project, name, wanted, request_id)
        async with self._cache.use(ModelKey(project, name, version)) as model:
            answers = await self._batcher.score(model, pictures)
            calibration = cast(Calibration, model.manifest.calibration)  # or judging would have failed
        scores = [score for score, _ in answers]
        self._metrics.observe_scored(project, name, version, time.perf_counter() - started, scores)
        route = self._routes.get((project, name))
        if wanted is None and route is not None and route.shadow not in (None, version):
            self._shadow(ModelKey(project, name, route.shadow), pictures, scores)
        return Answer(version, scores, [timing for _, timing in answers], calibration)

    async def _watch(self) -> None:
        """Look for changes, and say every now and then what this replica holds."""
        beaten = 0.0
        while True:
            try:
                mark = await self._apart(self._source.mark)
                if mark != self._mark:
                    self._take(await self._apart(self._source.routes))
                    self._mark = mark
                holds = self._holds()
                if holds != self._beaten or time.monotonic() - beaten > _BEAT_SECONDS:
                    await self._apart(self._beat, *holds)
                    self._beaten, beaten = holds, time.monotonic()
                if self._out_of_reach:
                    _logger.warning("the database can be reached again")
                self._out_of_reach = False
            except Exception as error:  # the database is out of reach: what is known holds
                if not self._out_of_reach:  # said once, not several times a second
                    _logger.warning("the database is out of reach (%s: %s)", type(error).__name__, error)
                self._out_of_reach = True
            await asyncio.sleep(self._options.poll_seconds)

    def _beat(self, loaded: list[str], failed: dict[str, str]) -> None:
        with self._speaking:
            if not self._left:
                self._source.beat(self.replica, loaded, failed)

    def _leave(self) -> None:
        with self._speaking:  # a beat that is under way would bring this replica back to life
            self._left = True
            self._source.leave(self.replica)

    def _holds(self) -> tuple[list[str], dict[str, str]]:
        """What others are told: versions held, and those that a route needs and that could not be loaded."""
        failed = {str(key): why for key, why in self._cache.failed.items() if key in self._needed}
        return sorted(map(str, self._cache.keys)), failed

    def _take(self, routes: _Routes) -> None:
        """Take over each route that has changed, once what it needs is loaded."""
        self._needed = {key for route in routes.values() for key in _needed(route)}
        self._cache.pinned = {key for key in self._needed if routes[key.project, key.name].staged == key.version}
        for owner, route in routes.items():
            if route == self._routes.get(owner):
                continue
            for key in self._cache.keys:  # versions that the route has nothing to do with may have been deleted
                if (key.project, key.name) == owner and key not in self._needed:
                    self._cache.forget(key)
            before = self._adopting.pop(owner, None)
            if before is not None:
                before.cancel()
            held = self._cache.keys
            for key in _needed(route):
                if key not in held:
                    self._cache.failed.pop(key, None)  # why it failed before must not be taken for why it fails now
            if all(key in held for key in _answering(route)):
                self._routes = {**self._routes, owner: route}
            self._adopting[owner] = asyncio.create_task(self._adopt(owner, route))

    async def _adopt(self, owner: tuple[str, str], route: RouteEntry) -> None:
        """Take a route over as soon as those are loaded that will answer; then load the others that it names."""
        for key in _answering(route):
            await self._load(key)
        # What could not be loaded is told to those who ask for it; the database has decided.
        self._routes = {**self._routes, owner: route}
        for key in _needed(route):
            await self._load(key)
        self._adopting.pop(owner, None)

    async def _apart(self, call: Callable[..., _T], *arguments: object) -> _T:
        """Ask the database in a thread of its own: loading models may occupy all others."""
        return await asyncio.get_running_loop().run_in_executor(self._asking, call, *arguments)

    async def _load(self, key: ModelKey) -> None:
        try:
            await self._cache.load(key)
        except Exception as error:
            _logger.warning("%s cannot be loaded: %s", key, error)

    def _shadow(self, key: ModelKey, pictures: list[bytes], scores: list[Score]) -> None:
        waiting = [data for _, others, _ in self._shadows for data in others] + pictures
        if len(waiting) > self._options.max_shadow or sum(map(len, waiting)) > self._options.max_request_bytes:
            self._metrics.count_shadow(key.project, key.name, key.version, "dropped", len(pictures))
            return
        self._shadows.append((key, pictures, scores))
        self._shadow_wake.set()

    async def _score_shadows(self, batcher: Batcher) -> None:
        """Score what has been answered already by the shadow, one request after the other."""
        while True:
            if not self._shadows:
                self._shadow_wake.clear()
                await self._shadow_wake.wait()
            key, pictures, scores = self._shadows.popleft()
            try:
                async with self._cache.use(key) as model:
                    answers = await batcher.score(model, pictures, background=True)
            except Exception as error:
                _logger.warning("the shadow %s could not score: %s", key, error)
                self._metrics.count_shadow(key.project, key.name, key.version, "failed", len(pictures))
                continue
            for (shadow, _), score in zip(answers, scores, strict=True):
                outcome = "agree" if shadow.is_anomalous == score.is_anomalous else "differ"
                self._metrics.count_shadow(key.project, key.name, key.version, outcome)


def _answering(route: RouteEntry) -> list[ModelKey]:
    """The versions that a route sends requests to."""
    return [ModelKey(route.project, route.name, v) for v in (route.champion, route.canary) if v is not None]


def _needed(route: RouteEntry) -> list[ModelKey]:
    """All versions that a route names, those that are wanted first, first."""
    versions = (route.champion, route.staged, route.canary, route.shadow, route.previous)
    return [ModelKey(route.project, route.name, v) for v in dict.fromkeys(versions) if v is not None]


def _default_memory(options: ServeOptions) -> int:
    return int(free_memory() / 2 / options.max_replicas)
