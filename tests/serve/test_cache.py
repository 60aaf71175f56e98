from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from autoad.errors import ArtifactError, UnknownNameError
from autoad.features import EnginePool
from autoad.serve import cache as module
from autoad.serve.cache import ModelCache, ModelKey

SIZE = 100


@dataclasses.dataclass
class Loaded:
    """What stands for a model here."""

    folder: Path
    compiles: bool = False


class Store:
    """Artifacts of 100 bytes; may be slow, and may fail."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.loads: Counter[int] = Counter()
        self.failures: dict[int, Exception] = {}
        self.open_door = threading.Event()
        self.open_door.set()

    def open(self, name: str, version: int, project: str | None = None) -> Path:
        self.loads[version] += 1
        assert self.open_door.wait(10)
        if version in self.failures:
            raise self.failures[version]
        folder = self.root / str(project) / name / str(version)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.safetensors").write_bytes(bytes(SIZE))
        return folder


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    class FakeModel:
        @staticmethod
        def load(folder: Path, *, engines: EnginePool) -> Loaded:
            assert isinstance(engines, EnginePool)
            return Loaded(folder, compiles=folder.name == "7")

    monkeypatch.setattr(module, "Model", FakeModel)
    return Store(tmp_path)


def key(version: int) -> ModelKey:
    return ModelKey("default", "gravel", version)


def make(store: Store, models: float) -> tuple[ModelCache, Counter[str]]:
    events: Counter[str] = Counter()
    return ModelCache(store, int(models * SIZE), EnginePool(), lambda event: events.update([event])), events


async def ask(cache: ModelCache, version: int) -> Any:
    async with cache.use(key(version)) as model:
        return model


def test_the_least_recently_used_goes_by_bytes(store: Store) -> None:
    async def main() -> None:
        cache, events = make(store, 2.5)
        for version in (1, 2, 1, 3):
            assert (await ask(cache, version)).folder == store.root / "default" / "gravel" / str(version)
        assert cache.keys == [key(1), key(3)]  # 2 had not been used for longest
        assert cache.size == 2 * SIZE
        assert events == {"loaded": 3, "evicted": 1}
        await ask(cache, 2)
        assert store.loads == {1: 1, 2: 2, 3: 1}
        assert cache.keys == [key(3), key(2)]

    asyncio.run(main())


def test_a_model_in_use_is_never_given_up(store: Store) -> None:
    async def main() -> None:
        cache, events = make(store, 1)
        async with cache.use(key(1)), cache.use(key(2)):
            await ask(cache, 3)
            assert {key(1), key(2)} <= set(cache.keys)
        assert cache.size == SIZE
        assert events["evicted"] == 2

    asyncio.run(main())


def test_one_that_is_larger_than_the_limit_is_not_loaded_for_each_request(store: Store) -> None:
    async def main() -> None:
        cache, _ = make(store, 0.5)
        for _ in range(3):
            await ask(cache, 1)
        assert store.loads[1] == 1
        await ask(cache, 2)
        assert cache.keys == [key(2)]

    asyncio.run(main())


def test_those_who_ask_at_once_share_one_load(store: Store) -> None:
    async def main() -> None:
        cache, events = make(store, 4)
        store.open_door.clear()
        asked = [asyncio.create_task(ask(cache, 1)) for _ in range(8)]
        await asyncio.sleep(0.05)
        assert not any(task.done() for task in asked)
        store.open_door.set()
        models = await asyncio.gather(*asked)
        assert len({id(model) for model in models}) == 1
        assert store.loads == {1: 1}
        assert events == {"loaded": 1}

    asyncio.run(main())


def test_a_failed_load_is_told_to_all_who_wait_kept_as_a_reason_and_tried_again(store: Store) -> None:
    async def main() -> None:
        cache, events = make(store, 4)
        store.failures[1] = ArtifactError("damaged")
        outcomes = await asyncio.gather(*(ask(cache, 1) for _ in range(3)), return_exceptions=True)
        assert [str(one) for one in outcomes] == ["damaged"] * 3
        assert all(isinstance(one, ArtifactError) for one in outcomes)
        assert cache.failed == {key(1): "damaged"}
        assert store.loads[1] == 1
        del store.failures[1]
        await cache.load(key(1))
        assert cache.failed == {}
        assert cache.keys == [key(1)]
        assert events == {"failed": 1, "loaded": 1}

    asyncio.run(main())


def test_numbers_that_were_never_given_leave_nothing_behind(store: Store) -> None:
    """Any client may ask for any number, and what failed is written to the database."""

    async def main() -> None:
        cache, events = make(store, 4)
        for version in range(100, 150):
            store.failures[version] = UnknownNameError("version of 'gravel'", str(version), ["1"])
            with pytest.raises(UnknownNameError):
                await ask(cache, version)
        assert cache.failed == {}
        assert events["failed"] == 0

    asyncio.run(main())


def test_one_who_gives_up_does_not_take_the_model_from_the_others(store: Store) -> None:
    async def main() -> None:
        cache, _ = make(store, 4)
        store.open_door.clear()
        first, second = asyncio.create_task(ask(cache, 1)), asyncio.create_task(ask(cache, 1))
        await asyncio.sleep(0.05)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        store.open_door.set()
        assert (await second).folder.name == "1"
        assert store.loads[1] == 1
        async with cache.use(key(1)):
            pass
        await cache.load(key(2))
        assert cache.keys == [key(1), key(2)]  # nobody is counted as using what was given up

    asyncio.run(main())


def test_a_load_that_fails_after_all_have_gone_is_no_complaint(store: Store) -> None:
    complaints: list[dict[str, Any]] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        cache, events = make(store, 4)
        store.open_door.clear()
        store.failures[1] = ArtifactError("damaged")
        only = asyncio.create_task(ask(cache, 1))
        await asyncio.sleep(0.05)
        only.cancel()
        await asyncio.gather(only, return_exceptions=True)
        store.open_door.set()
        while not events["failed"]:
            await asyncio.sleep(0.01)

    asyncio.run(main())
    assert complaints == []


def test_compiled_networks_count_as_much_as_the_tensors(store: Store) -> None:
    async def main() -> None:
        cache, _ = make(store, 3)
        await cache.load(key(7))
        assert cache.size == 2 * SIZE
        await cache.load(key(1))
        assert cache.keys == [key(7), key(1)]
        await cache.load(key(2))
        assert cache.keys == [key(1), key(2)]

    asyncio.run(main())
