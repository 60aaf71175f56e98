from __future__ import annotations

import asyncio
import dataclasses
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from autoad.data import decode_image
from autoad.errors import ArtifactError, ImageTooLargeError, StateError, UnreadableImageError
from autoad.features import EnginePool
from autoad.models import Model, Score, write_manifest
from autoad.models.model import Part
from autoad.search.course import _task
from autoad.search.ensemble import standardize
from autoad.search.fitting import fit_model
from autoad.search.plan import SearchRequest, make_plan
from autoad.serve.batching import Batcher, QueueFullError
from autoad.settings import Settings
from tests.search.test_ensemble import MEMBERS, PROVENANCE

NAMES = [("gravel", 1), ("gravel", 2), ("belt", 1)]
Scores = dict[tuple[str, int], list[Score]]
Models = dict[tuple[str, int], Model]


@pytest.fixture(scope="module")
def alone(plant: Any) -> Scores:
    """What each model says of each picture by itself, with an engine of its own stages and one thread of torch.

    Some CPUs' matrix products are not the same to the last bit with one thread and with two; the lane has one.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return {one: list(Model.load(plant.folder(*one)).score_many(plant.pictures[:4])) for one in NAMES}
    finally:
        torch.set_num_threads(before)


@pytest.fixture(scope="module")
def models(plant: Any) -> Models:
    """The same models on a shared engine."""
    pool = EnginePool(threads=2, streams=2)
    return {one: Model.load(plant.folder(*one), engines=pool) for one in NAMES}


class CountingEngine:
    """Takes down which pictures come in one call; may be held, and may fail."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.calls: list[NDArray[np.uint8]] = []
        self.open_door = threading.Event()
        self.open_door.set()
        self.failure: Exception | None = None

    def __call__(self, pixels: NDArray[np.uint8]) -> Any:
        self.calls.append(pixels)
        assert self.open_door.wait(20)
        if self.failure is not None:
            raise self.failure
        return self._engine(pixels)

    @property
    def seen(self) -> int:
        return sum(map(len, self.calls))


@pytest.fixture
def counted(models: Models, monkeypatch: pytest.MonkeyPatch) -> CountingEngine:
    engine = CountingEngine(models["gravel", 1].parts[0].engine)
    for model in models.values():
        (part,) = model.parts
        assert part.engine is engine._engine
        monkeypatch.setattr(model, "parts", (Part(part.detector, cast(Any, engine)),))
    return engine


def run(
    main: Callable[[Batcher], Awaitable[None]],
    *,
    threads: int = 2,
    max_batch: int = 16,
    max_queue: int = 256,
    max_pixels: int = 10**7,
    observe: Callable[[int], None] = lambda _: None,
) -> None:
    """With a batcher that is closed in the end, whose lane has lived until then."""

    async def within() -> None:
        batcher = Batcher(
            threads=threads, max_batch=max_batch, max_queue=max_queue, max_pixels=max_pixels, observe=observe
        )
        try:
            await main(batcher)
            assert batcher.alive
        finally:
            await asyncio.to_thread(batcher.close)

    asyncio.run(within())


async def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


def assert_same(got: Score, expected: Score) -> None:
    for field in dataclasses.fields(Score):
        one, other = getattr(got, field.name), getattr(expected, field.name)
        if field.name == "anomaly_map":
            assert one.dtype == np.float32
            assert one.shape == other.shape
            assert one.tobytes() == other.tobytes()
        else:
            assert one == other, field.name


@pytest.mark.parametrize("concurrency", [1, 4, 16, 64])
@pytest.mark.parametrize("threads", [1, 2])
def test_scores_and_maps_are_those_of_a_model_alone_to_the_last_bit(
    plant: Any, models: Models, alone: Scores, concurrency: int, threads: int
) -> None:
    batches: list[int] = []

    async def main(batcher: Batcher) -> None:
        limit = asyncio.Semaphore(concurrency)

        async def one(index: int) -> None:
            name, picture = NAMES[index % 3], index % 4
            async with limit:
                [(score, timing)] = await batcher.score(models[name], [plant.pictures[picture]])
            assert_same(score, alone[name][picture])
            assert min(timing.decode, timing.forward, timing.head) > 0

        await asyncio.gather(*(one(index) for index in range(max(concurrency, 12))))
        assert batcher.pending == 0

    run(main, threads=threads, observe=batches.append)
    assert sum(batches) == max(concurrency, 12)
    assert max(batches) == 1 if concurrency == 1 else max(batches) > 1
    assert max(batches) <= 16


def test_one_call_of_the_engine_carries_pictures_of_several_models(
    plant: Any, models: Models, alone: Scores, counted: CountingEngine
) -> None:
    async def main(batcher: Batcher) -> None:
        counted.open_door.clear()
        first = asyncio.create_task(batcher.score(models["gravel", 1], plant.pictures[:1]))
        await until(lambda: counted.calls)
        others = [asyncio.create_task(batcher.score(models[name], plant.pictures[1:3])) for name in NAMES]
        await until(lambda: len(batcher._waiting) == 6)
        counted.open_door.set()
        await first
        for name, scores in zip(NAMES, await asyncio.gather(*others), strict=True):
            for (score, _), expected in zip(scores, alone[name][1:3], strict=True):
                assert_same(score, expected)

    run(main)
    assert [len(call) for call in counted.calls] == [1, 6]
    for picture in plant.pictures[1:3]:
        pixels = models["gravel", 1].prepare(decode_image(picture))[0]
        assert sum(np.array_equal(one, pixels) for one in counted.calls[1]) == 3  # once for each model


def test_a_batch_takes_no_more_than_it_may_and_keeps_the_order(
    plant: Any, models: Models, counted: CountingEngine
) -> None:
    ended: list[int] = []

    async def main(batcher: Batcher) -> None:
        counted.open_door.clear()

        async def one(index: int) -> None:
            await batcher.score(models["gravel", 1], [plant.pictures[index]])
            ended.append(index)

        tasks = [asyncio.create_task(one(0))]
        await until(lambda: counted.calls)
        for index in range(1, 8):
            tasks.append(asyncio.create_task(one(index)))
            await until(lambda index=index: len(batcher._waiting) == index)
        counted.open_door.set()
        await asyncio.gather(*tasks)

    run(main, threads=1, max_batch=3)
    assert [len(call) for call in counted.calls] == [1, 3, 3, 1]
    assert ended == list(range(8))


def test_a_full_queue_refuses_and_takes_nothing(plant: Any, models: Models, counted: CountingEngine) -> None:
    async def main(batcher: Batcher) -> None:
        model = models["gravel", 1]
        counted.open_door.clear()
        tasks = [asyncio.create_task(batcher.score(model, plant.pictures[:2])) for _ in range(2)]
        await until(lambda: batcher.pending == 4)
        with pytest.raises(QueueFullError, match="4 pictures are waiting and at most 5 may"):
            await batcher.score(model, plant.pictures[:2])
        assert batcher.pending == 4
        tasks.append(asyncio.create_task(batcher.score(model, plant.pictures[:1])))  # for one there is room
        await until(lambda: batcher.pending == 5)
        counted.open_door.set()
        assert [len(one) for one in await asyncio.gather(*tasks)] == [2, 2, 1]
        assert batcher.pending == 0
        # With nothing else to do a larger request is taken whole.
        assert len(await batcher.score(model, plant.pictures[:6])) == 6

    run(main, max_queue=5)
    assert counted.seen == 5 + 6


def test_who_gives_up_leaves_the_queue_and_the_count(plant: Any, models: Models, counted: CountingEngine) -> None:
    async def main(batcher: Batcher) -> None:
        model = models["gravel", 1]
        counted.open_door.clear()
        first = asyncio.create_task(batcher.score(model, plant.pictures[:1]))
        await until(lambda: counted.calls)
        gone = asyncio.create_task(batcher.score(model, plant.pictures[:3]))
        stays = asyncio.create_task(batcher.score(model, plant.pictures[3:4]))
        await until(lambda: len(batcher._waiting) == 4)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        assert batcher.pending == 2
        counted.open_door.set()
        await asyncio.gather(first, stays)
        assert batcher.pending == 0

    run(main)
    assert [len(call) for call in counted.calls] == [1, 1]


def test_a_bad_picture_fails_its_own_request_and_says_which_it_is(
    plant: Any, models: Models, alone: Scores, bomb: bytes
) -> None:
    async def main(batcher: Batcher) -> None:
        model = models["gravel", 1]
        good, text, large = await asyncio.gather(
            batcher.score(model, plant.pictures[:2]),
            batcher.score(model, [plant.pictures[0], b"no picture"]),
            batcher.score(model, [plant.pictures[0], plant.pictures[1], bomb]),
            return_exceptions=True,
        )
        assert isinstance(good, list)
        for (score, _), expected in zip(good, alone["gravel", 1], strict=False):
            assert_same(score, expected)
        assert isinstance(text, UnreadableImageError)
        assert not isinstance(text, ImageTooLargeError)
        assert str(text) == "picture 2 is no PNG, JPEG, BMP, TIFF or WebP picture"
        assert isinstance(large, ImageTooLargeError)
        assert "picture 3 holds 6000 x 6000 pixels but at most 10,000,000" in str(large)
        assert batcher.pending == 0

    run(main)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_model_that_fails_takes_no_other_with_it(
    plant: Any, models: Models, alone: Scores, counted: CountingEngine, threads: int
) -> None:
    model = models["gravel", 1]
    broken = model.with_manifest(model.manifest.model_copy(update={"calibration": None}))

    async def main(batcher: Batcher) -> None:
        counted.open_door.clear()
        first = asyncio.create_task(batcher.score(model, plant.pictures[:1]))
        await until(lambda: counted.calls)
        bad = asyncio.create_task(batcher.score(broken, plant.pictures[:1]))
        good = asyncio.create_task(batcher.score(model, plant.pictures[1:2]))
        await until(lambda: len(batcher._waiting) == 2)
        counted.open_door.set()
        with pytest.raises(ArtifactError, match="never calibrated"):
            await bad
        [(score, _)] = await good
        assert_same(score, alone["gravel", 1][1])
        await first

    run(main, threads=threads)
    assert [len(call) for call in counted.calls] == [1, 2]


def test_an_engine_that_fails_fails_its_batch_and_the_lane_lives(
    plant: Any, models: Models, alone: Scores, counted: CountingEngine
) -> None:
    async def main(batcher: Batcher) -> None:
        counted.failure = MemoryError("no room")
        for model in (models["gravel", 1], models["belt", 1]):
            with pytest.raises(MemoryError, match="no room"):
                await batcher.score(model, plant.pictures[:2])
        counted.failure = None
        [(score, _)] = await batcher.score(models["belt", 1], plant.pictures[:1])
        assert_same(score, alone["belt", 1][0])

    run(main)


def lane_threads() -> Sequence[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("autoad-")]


def test_closing_ends_the_threads_and_tells_those_who_wait(plant: Any, models: Models, counted: CountingEngine) -> None:
    async def main() -> None:
        batcher = Batcher(threads=2, max_batch=1, max_queue=99, max_pixels=10**7)
        model = models["gravel", 1]
        counted.open_door.clear()
        first = asyncio.create_task(batcher.score(model, plant.pictures[:1]))
        await until(lambda: counted.calls)
        waiting = [asyncio.create_task(batcher.score(model, [data])) for data in plant.pictures[:20]]
        await asyncio.sleep(0)
        assert {"autoad-lane"} < set(lane_threads())
        closing = asyncio.create_task(asyncio.to_thread(batcher.close))
        await until(lambda: batcher._closing)
        counted.open_door.set()
        assert len(await first) == 1  # what was being scored is scored
        outcomes = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 10)
        assert {type(one) for one in outcomes} == {StateError}
        await closing
        assert not batcher.alive
        assert lane_threads() == []
        with pytest.raises(StateError, match="being stopped"):
            await batcher.score(model, plant.pictures[:1])

    assert lane_threads() == []
    asyncio.run(main())


def test_the_pictures_of_one_request_share_a_batch(plant: Any, models: Models) -> None:
    sizes: list[int] = []

    async def main(batcher: Batcher) -> None:
        await batcher.score(models["gravel", 1], plant.pictures[:4] * 4)

    run(main, max_batch=16, observe=sizes.append)
    assert sizes == [16]


def test_what_nobody_waits_for_comes_after_all_others_and_fills_no_queue(
    plant: Any, models: Models, counted: CountingEngine
) -> None:
    order: list[str] = []

    async def main(batcher: Batcher) -> None:
        async def ask(name: str, *, background: bool) -> None:
            await batcher.score(models["gravel", 1], [plant.pictures[0]], background=background)
            order.append(name)

        counted.open_door.clear()
        first = asyncio.create_task(ask("first", background=False))
        await until(lambda: counted.seen == 1)
        shadows = [asyncio.create_task(ask("shadow", background=True)) for _ in range(3)]
        await until(lambda: len(batcher._beside) == 3)
        last = asyncio.create_task(ask("last", background=False))
        await until(lambda: len(batcher._waiting) == 1)
        assert batcher.pending == 2
        counted.open_door.set()
        await asyncio.gather(first, last, *shadows)

    run(main, max_batch=1)
    assert order == ["first", "last", "shadow", "shadow", "shadow"]


# Ensembles


@pytest.fixture(scope="module")
def ensemble(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """PaDiM at 96 pixels, DFKDE and PatchCore at 128."""
    plan = make_plan(SearchRequest(data=demo, algorithms=("padim", "dfkde", "patchcore"), trials=3, seconds=None))
    folder = tmp_path_factory.mktemp("ensemble")
    task = _task(plan, plan.roles.selection, Settings(data_dir=folder))
    standards, _ = standardize(MEMBERS, task, threads=1)
    model = fit_model(folder / "model", "mixed", MEMBERS, task, task.train, PROVENANCE, threads=1, standards=standards)
    model, _, _ = model.calibrate([picture.read() for picture in plan.roles.calibration], 0.1)
    write_manifest(folder / "model", model.manifest)
    return folder / "model"


@pytest.mark.parametrize("threads", [1, 2])
def test_an_ensemble_scores_as_it_does_alone_and_beside_other_models(
    plant: Any, models: Models, alone: Scores, ensemble: Path, threads: int
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    expected = list(Model.load(ensemble).score_many(plant.pictures[:4]))
    torch.set_num_threads(before)
    shared = EnginePool(threads=2, streams=2)
    mixed, gravel = Model.load(ensemble, engines=shared), Model.load(plant.folder("gravel", 1), engines=shared)
    assert mixed.parts[2].engine is gravel.parts[0].engine

    async def main(batcher: Batcher) -> None:
        async def one(index: int) -> None:
            model, scores = (mixed, expected) if index % 3 else (gravel, alone["gravel", 1])
            [(score, timing)] = await batcher.score(model, [plant.pictures[index % 4]])
            assert_same(score, scores[index % 4])
            assert min(timing.decode, timing.forward, timing.head) > 0

        await asyncio.gather(*(one(index) for index in range(24)))

    run(main, threads=threads)


def test_a_picture_goes_once_through_an_engine_that_several_members_share(plant: Any, ensemble: Path) -> None:
    model = Model.load(ensemble)
    engine = CountingEngine(model.parts[2].engine)
    first, _, last = model.parts
    twice = [first, Part(last.detector, cast(Any, engine)), Part(last.detector, cast(Any, engine))]
    model.parts = tuple(twice)

    async def main(batcher: Batcher) -> None:
        [(score, _)] = await batcher.score(model, plant.pictures[:1])
        assert_same(score, model.score(plant.pictures[0]))

    run(main, threads=1)
    assert [len(call) for call in engine.calls] == [1, 1], "once in the batcher, once in score"


class Watched:
    """Tells how many of the arrays that it gave are still held when it is asked for more."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._given: list[weakref.ref[Any]] = []
        self.held: list[int] = []

    def __call__(self, pixels: NDArray[np.uint8]) -> Any:
        self.held.append(self.count())
        features = {stage: np.array(maps) for stage, maps in self._engine(pixels).items()}
        self._given += [weakref.ref(maps) for maps in features.values()]
        return features

    def count(self) -> int:
        return sum(ref() is not None for ref in self._given)


def test_features_go_as_soon_as_a_picture_is_answered(plant: Any, ensemble: Path) -> None:
    """A request of many pictures keeps its jobs until the last is answered; what engines made of them is large."""
    model = Model.load(ensemble)
    engines = [Watched(part.engine) for part in model.parts]
    model.parts = tuple(Part(part.detector, cast(Any, one)) for part, one in zip(model.parts, engines, strict=True))

    async def main(batcher: Batcher) -> None:
        await batcher.score(model, [plant.pictures[0]] * 12)
        await until(lambda: not any(one.count() for one in engines))

    run(main, threads=1, max_batch=2)
    for one in engines:
        assert one.held == [0] * 6


@pytest.mark.parametrize("place", [0, 2])
def test_one_member_that_fails_fails_the_picture_and_no_other(
    plant: Any, models: Models, ensemble: Path, place: int
) -> None:
    model = Model.load(ensemble)
    parts = [Part(part.detector, cast(Any, CountingEngine(part.engine))) for part in model.parts]
    engine = cast(CountingEngine, parts[place].engine)
    engine.failure = RuntimeError("no memory")
    model.parts = tuple(parts)

    async def main(batcher: Batcher) -> None:
        broken = asyncio.create_task(batcher.score(model, plant.pictures[:1]))
        [(score, _)] = await batcher.score(models["gravel", 1], plant.pictures[:1])
        assert score.score > 0
        with pytest.raises(RuntimeError, match="no memory"):
            await broken

    run(main)
    seen = [cast(CountingEngine, part.engine).seen for part in parts]
    assert seen == [1 if number <= place else 0 for number in range(3)], "those after it are not asked any more"
