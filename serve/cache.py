"""The models that a replica holds: loaded when first asked for, the least recently used given up for others."""

from __future__ import annotations

import asyncio
import dataclasses
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

from autoad.errors import UnknownNameError
from autoad.features import EnginePool
from autoad.models import Model

__all__ = ["ModelCache", "ModelKey", "Opener"]


@dataclasses.dataclass(frozen=True)
class ModelKey:
    """A version of a model of a project."""

    project: str
    name: str
    version: int

    def __str__(self) -> str:
        return f"{self.project}/{self.name}/{self.version}"


class Opener(Protocol):
    """Where artifacts come from: :class:`autoad.models.registry.Registry`."""

    def open(self, name: str, version: int, project: str | None = None) -> Path:
        """The folder of an artifact."""


@dataclasses.dataclass
class _Held:
    model: Model
    size: int
    users: int = 0


class ModelCache:
    """Models by key, up to a number of bytes; used from one event loop.

    A model's bytes are those of its tensors, and as many again where networks are compiled. Engines are shared and not
    counted: one of EfficientNet-Lite0 takes some tens of megabytes however many models use it. A model in use is never
    given up, and neither is the one used last, so the limit may be passed while many different ones are in use at the
    same moment, or by one that is larger.

    What is in ``pinned`` stays, too: somebody waits until every replica holds it.

    ``failed`` says why a version that exists could not be loaded; a number that was never given, which any client may
    ask for, leaves no trace.

    Args:
        opener: gives an artifact's folder.
        limit: bytes.
        engines: shared by all models.
        observe: told ``loaded``, ``failed`` or ``evicted`` as it happens.
    """

    def __init__(
        self, opener: Opener, limit: int, engines: EnginePool, observe: Callable[[str], None] = lambda _: None
    ) -> None:
        self._opener = opener
        self._limit = limit
        self._engines = engines
        self._observe = observe
        self._held: OrderedDict[ModelKey, _Held] = OrderedDict()
        self._loading: dict[ModelKey, asyncio.Task[_Held]] = {}
        self.failed: dict[ModelKey, str] = {}
        self.pinned: set[ModelKey] = set()

    @property
    def keys(self) -> list[ModelKey]:
        """What is held, least recently used first."""
        return list(self._held)

    @property
    def size(self) -> int:
        """Bytes of all models held."""
        return sum(held.size for held in list(self._held.values()))  # copied: metrics are written in a thread

    @asynccontextmanager
    async def use(self, key: ModelKey) -> AsyncIterator[Model]:
        """A model, which stays while the context lasts.

        Raises:
            AutoADError: it cannot be loaded; the next call tries again.
        """
        held = await self._get(key)
        held.users += 1
        try:
            yield held.model
        finally:
            held.users -= 1
            self._shrink(keep=key)

    async def load(self, key: ModelKey) -> None:
        """Have a model loaded.

        Raises:
            AutoADError: it cannot be.
        """
        await self._get(key)

    def forget(self, key: ModelKey) -> None:
        """Give a model up, unless it is in use: it may have been deleted."""
        held = self._held.get(key)
        if held is not None and not held.users:
            del self._held[key]

    async def _get(self, key: ModelKey) -> _Held:
        held = self._held.get(key)
        if held is not None:
            self._held.move_to_end(key)
            return held
        task = self._loading.get(key)
        if task is None:
            task = self._loading[key] = asyncio.create_task(self._load(key))
            task.add_done_callback(lambda task: self._loaded(key, task))
        # Whoever gives up waiting must not take the model from those who wait with it.
        return await asyncio.shield(task)

    def _loaded(self, key: ModelKey, task: asyncio.Task[_Held]) -> None:
        del self._loading[key]
        if not task.cancelled():
            task.exception()  # asyncio complains of an error that nobody looked at, as when all who waited have gone

    async def _load(self, key: ModelKey) -> _Held:
        try:
            model, size = await asyncio.to_thread(self._read, key)
        except UnknownNameError:
            self.failed.pop(key, None)
            raise
        except Exception as error:
            self.failed[key] = str(error)
            self._observe("failed")
            raise
        self.failed.pop(key, None)
        self._observe("loaded")
        held = self._held[key] = _Held(model, size)
        self._shrink(keep=key)
        return held

    def _read(self, key: ModelKey) -> tuple[Model, int]:
        folder = self._opener.open(key.name, key.version, key.project)
        model, size = Model.load(folder, engines=self._engines), (folder / "model.safetensors").stat().st_size
        return model, 2 * size if model.compiles else size

    def _shrink(self, keep: ModelKey | None = None) -> None:
        total = self.size
        for key, held in list(self._held.items()):
            if total <= self._limit:
                break
            if held.users or key == keep or key in self.pinned:
                continue
            del self._held[key]
            total -= held.size
            self._observe("evicted")
