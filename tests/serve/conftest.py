from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import importlib.util
import shutil
import struct
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from fastapi import FastAPI

from autoad.data import assign_roles, read_dataset
from autoad.database import Database, Keys
from autoad.models.registry import Registry
from autoad.schema import PromoteRequest, PromotionResult, RouteEntry
from autoad.serve.auth import Authenticator
from autoad.serve.exposition import Exposition
from autoad.serve.http import create_app
from autoad.serve.options import ServeOptions
from autoad.serve.scorer import Scorer
from autoad.settings import Settings


def _load(name: str) -> Any:
    """A module beside this one; tests are no package."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclasses.dataclass(frozen=True)
class Plant:
    """Three models of the demonstration dataset: ``gravel`` 1 and 2 (PatchCore), ``belt`` 1 (DFM).

    Attributes:
        settings: of the data folder that they are registered in; to be copied, not changed.
        pictures: encoded test pictures, normal and defective in turn.
    """

    settings: Settings
    pictures: list[bytes]

    def folder(self, name: str, version: int) -> Path:
        return self.settings.models_dir / name / str(version)

    def copy(self, target: Path) -> Settings:
        """The same models in a data folder of their own, without the features."""
        shutil.copytree(self.settings.data_dir, target, ignore=shutil.ignore_patterns("features", "autoad.lock"))
        return Settings(data_dir=target)


@pytest.fixture(scope="session")
def plant(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Plant:
    """Made once; takes some seconds."""
    factory = _load("factory")
    settings = factory.make_state(tmp_path_factory.mktemp("plant"))
    dataset = read_dataset(demo)
    factory.add_model(settings, dataset, "gravel", "patchcore", image_size=128, coreset_sampling_ratio=0.01)
    factory.add_model(settings, dataset, "gravel", "patchcore", image_size=128, coreset_sampling_ratio=0.02)
    factory.add_model(settings, dataset, "belt", "dfm", image_size=128)
    test = assign_roles(dataset).test
    normal = [picture.read() for picture in test if picture.is_normal]
    defective = [picture.read() for picture in test if not picture.is_normal]
    pictures = [one for pair in zip(normal, defective, strict=False) for one in pair]
    assert len(pictures) >= 8
    return Plant(settings, pictures)


@pytest.fixture
def database(plant: Plant, tmp_path: Path) -> Iterator[Database]:
    """The plant's, copied."""
    made = Database(plant.copy(tmp_path / "data"))
    yield made
    made.close()


@pytest.fixture
def registry(database: Database, tmp_path: Path) -> Registry:
    """The plant's models, of which ``gravel`` 1 and ``belt`` 1 are champions."""
    made = Registry(database, Settings(data_dir=tmp_path / "data"))
    for name in ("gravel", "belt"):
        made.promote(name, 1, reason="first", actor="test")
    return made


class Plane:
    """A control plane that asks the registry alone: no replica is waited for, no parity picture is sent."""

    def __init__(self, registry: Registry, scorer: Scorer) -> None:
        self.registry = registry
        self.scorer = scorer
        self.failure: Exception | None = None

    async def call(self, method: str, *arguments: Any) -> Any:
        if self.failure is not None:
            raise self.failure
        return await asyncio.to_thread(getattr(self, method), *arguments)

    async def metrics(self, project: str | None) -> bytes:
        exposition = Exposition()
        exposition.take("r1", self.scorer.metrics.text())
        return exposition.text(project)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        yield

    def promote(self, project: str, actor: str, name: str, request: PromoteRequest) -> PromotionResult:
        version = request.version or self.registry.model(name, project).versions[0].version
        options: dict[str, Any] = {"reason": request.reason, "actor": actor, "project": project}
        if request.canary is not None:
            route = self.registry.set_canary(name, version, request.canary, **options)
        elif request.shadow:
            route = self.registry.set_shadow(name, version, **options)
        else:
            route = self.registry.promote(name, version, **options)
        return PromotionResult(
            route=route, version=version, replicas=["r1"], parity_pictures=0, parity_answers=0, seconds=0.0
        )

    def rollback(self, project: str, actor: str, name: str, reason: str) -> RouteEntry:
        return self.registry.rollback(name, reason=reason, actor=actor, project=project)

    def end_canary(self, project: str, actor: str, name: str, reason: str) -> RouteEntry:
        return self.registry.end_canary(name, reason=reason, actor=actor, project=project)

    def end_shadow(self, project: str, actor: str, name: str, reason: str) -> RouteEntry:
        return self.registry.end_shadow(name, reason=reason, actor=actor, project=project)

    def delete(self, project: str, actor: str, name: str, version: int, reason: str) -> None:
        self.registry.delete(name, version, reason=reason, actor=actor, project=project)


@pytest.fixture(scope="session")
def plane() -> type[Plane]:
    return Plane


@dataclasses.dataclass(frozen=True)
class Service:
    """An application that runs, and what it stands on."""

    app: FastAPI
    client: httpx2.AsyncClient
    scorer: Scorer
    plane: Plane
    registry: Registry
    keys: Keys
    secret: str


Serve = Callable[..., None]


@pytest.fixture
def serve(database: Database, registry: Registry, tmp_path: Path) -> Serve:
    """Runs a test's coroutine against an application in this process."""
    settings = Settings(data_dir=tmp_path / "data")

    def run(main: Callable[[Service], Awaitable[None]], *, raise_errors: bool = True, **options: Any) -> None:
        async def within() -> None:
            chosen = ServeOptions(**{"replicas": 1, "threads": 2, "poll_seconds": 0.02} | options)
            scorer = Scorer(registry, chosen, "r1")
            plane = Plane(registry, scorer)
            keys = Keys(database)
            authenticator = Authenticator(keys, database.project, loopback=True, internal="made-up", fresh_seconds=0.05)
            app = create_app(scorer, registry, plane, authenticator, chosen, database, settings)
            transport = httpx2.ASGITransport(app=app, raise_app_exceptions=raise_errors)
            async with (
                app.router.lifespan_context(app),
                httpx2.AsyncClient(transport=transport, base_url="http://replica") as client,
            ):
                await main(Service(app, client, scorer, plane, registry, keys, "made-up"))

        asyncio.run(within())

    return run


@pytest.fixture
def bomb() -> bytes:
    """A few bytes that say that they are a PNG of 6000 x 6000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 6000, 6000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """A batcher sets torch's threads for the whole process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
