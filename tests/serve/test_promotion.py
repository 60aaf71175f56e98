"""Promotion in one process: the real application over real HTTP, the real control plane, without Ray."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import json
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from numpy.typing import NDArray
from PIL import Image

from autoad.data import read_dataset
from autoad.database import Database, Keys
from autoad.errors import PromotionError, UsageError
from autoad.features.weights import Weights
from autoad.models.registry import Registry
from autoad.schema import PromoteRequest
from autoad.serve.auth import Authenticator, internal_key
from autoad.serve.control import Control
from autoad.serve.http import create_app
from autoad.serve.options import ServeOptions
from autoad.serve.scorer import Scorer
from autoad.settings import Settings
from tests.serve.factory import add_model, make_state

SECRET = "secret"
Change = Callable[[pytest.MonkeyPatch, Settings], None]


@pytest.fixture(scope="module")
def made(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = make_state(tmp_path_factory.mktemp("made"))
    dataset = read_dataset(demo)
    add_model(settings, dataset, "bottle", "patchcore", coreset_sampling_ratio=0.005)
    add_model(settings, dataset, "bottle", "dfm")
    return settings.data_dir


@pytest.fixture
def settings(made: Path, tmp_path: Path) -> Settings:
    """A copy for one test."""
    import shutil

    shutil.copytree(made, tmp_path / "state")
    return Settings(data_dir=tmp_path / "state")


class _NoControl:
    async def call(self, method: str, *arguments: Any) -> Any:
        raise NotImplementedError

    async def metrics(self, project: str | None) -> bytes:
        return b""

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        yield


@dataclasses.dataclass
class Plant:
    """Replicas behind one address each, and a control plane that talks to the first."""

    registry: Registry
    control: Control

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run(work)

    def promote(self, **request: Any) -> Any:
        return self.run(self.control.promote("default", "tester", "bottle", PromoteRequest(**request)))


@contextlib.contextmanager
def plant(settings: Settings) -> Iterator[Plant]:
    """One replica in a thread of its own."""
    database = Database(settings)
    registry = Registry(database, settings)
    options = ServeOptions(replicas=1, threads=1, poll_seconds=0.05, max_batch=8)
    scorer = Scorer(registry, options, "r1")
    doorkeeper = Authenticator(Keys(database), "default", loopback=True, internal=SECRET)
    app = create_app(scorer, registry, _NoControl(), doorkeeper, options, database, settings)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield Plant(
            registry,
            Control(
                registry,
                f"http://127.0.0.1:{port}",
                lambda project: internal_key(SECRET, project),
                poll_seconds=options.poll_seconds,
                batch=options.max_batch,
            ),
        )
    finally:
        server.should_exit = True
        thread.join()
        database.close()


def test_versions_take_turns(settings: Settings) -> None:
    with plant(settings) as it:
        result = it.promote(version=1, reason="first")
        assert (result.version, result.route.champion, result.route.staged) == (1, 1, None)
        assert result.replicas == ["r1"]
        assert result.parity_answers >= 2 * result.parity_pictures >= 32
        assert it.promote().version == 2  # the newest
        route = it.run(it.control.rollback("default", "tester", "bottle", "worse"))
        assert (route.champion, route.previous) == (1, 2)
        with pytest.raises(UsageError, match="champion already"):
            it.promote(version=1)
        assert it.promote(canary=0.25).route.canary_share == 0.25
        history = it.registry.model("bottle").history
        assert [line.action for line in history] == ["canary", "rollback", "promote", "promote"]
        assert [line.reason for line in history] == ["", "worse", "", "first"]
        assert {line.actor for line in history} == {"tester"}


def _weight(_: pytest.MonkeyPatch, settings: Settings) -> None:
    """One number of the memory bank, changed in the file, with every checksum made right again."""
    import safetensors.torch

    folder = settings.data_dir / "models/default/bottle/1"
    tensors = safetensors.torch.load((folder / "model.safetensors").read_bytes())
    tensors["bank"] *= 1.001
    data = safetensors.torch.save(tensors)
    (folder / "model.safetensors").write_bytes(data)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["tensors_sha256"] = hashlib.sha256(data).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    files = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}
    with contextlib.closing(sqlite3.connect(settings.data_dir / "autoad.db")) as database, database:
        database.execute("update model_versions set files = ? where version = 1", (json.dumps(files),))


def _resize(patch: pytest.MonkeyPatch, _: Settings) -> None:
    """Another interpolation."""

    def nearest(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
        return np.array(Image.fromarray(image).resize(size[::-1], Image.Resampling.NEAREST))

    patch.setattr("autoad.models.model.resize_image", nearest)


def _normalisation(patch: pytest.MonkeyPatch, _: Settings) -> None:
    """Another mean."""
    find = __import__("autoad.features.engines", fromlist=["find_weights"]).find_weights

    def shifted(backbone: str) -> Weights:
        weights: Weights = find(backbone)
        return dataclasses.replace(weights, mean=tuple(value + 0.01 for value in weights.mean))

    patch.setattr("autoad.features.engines.find_weights", shifted)


@pytest.mark.parametrize("change", [_weight, _resize, _normalisation])
def test_a_model_that_scores_otherwise_than_evaluated_is_refused(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, change: Change
) -> None:
    change(monkeypatch, settings)
    with plant(settings) as it:
        with pytest.raises(PromotionError, match="does not score here what was evaluated") as raised:
            it.promote(version=1)
        assert 1 <= len(raised.value.details) <= 20
        assert all("picture " in line and "replica r1" in line for line in raised.value.details)
        route = it.registry.model("bottle").route
        assert (route.champion, route.staged) == (None, None)
        assert it.registry.model("bottle").history == []


def test_the_same_pictures_pass_when_nothing_was_changed(settings: Settings) -> None:
    """So that the refusals above say something."""
    with plant(settings) as it:
        assert it.promote(version=1).route.champion == 1


def test_a_version_that_cannot_be_loaded_is_refused(settings: Settings) -> None:
    file = settings.data_dir / "models/default/bottle/2/model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with plant(settings) as it:
        with pytest.raises(PromotionError, match=r"replica r1 cannot load default/bottle/2: .*damaged"):
            it.promote(version=2)
        assert it.registry.model("bottle").route.staged is None


def test_without_a_replica_nothing_is_promoted(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autoad.serve.control._LOAD_SECONDS", 0.3)
    database = Database(settings)
    control = Control(Registry(database, settings), "http://127.0.0.1:9", str, poll_seconds=0.05, batch=8)
    with pytest.raises(PromotionError, match="no replica is up"):
        asyncio.run(control.promote("default", "tester", "bottle", PromoteRequest()))
    database.close()


def test_a_new_control_plane_forgets_what_the_last_one_left(settings: Settings) -> None:
    database = Database(settings)
    registry = Registry(database, settings)
    registry.stage("bottle", 1)
    asyncio.run(Control(registry, "", str, poll_seconds=0.05, batch=8).tidy())
    assert registry.model("bottle").route.staged is None
    database.close()
