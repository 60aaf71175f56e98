from __future__ import annotations

import gc
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from autoad.errors import UsageError
from autoad.features import DEFAULT_BACKBONE, Engine, EnginePool, SharedEngine, create_engine
from autoad.features import pool as module

SIZE = (64, 96)
OPTIONS = {"engine": "torch", "precision": "float32"}


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, *SIZE, 3), dtype=np.uint8)


def test_the_same_deepest_stage_is_the_same_engine() -> None:
    pool = EnginePool(threads=1)
    deep = pool.open(DEFAULT_BACKBONE, (2, 3), SIZE, **OPTIONS)
    assert pool.open(DEFAULT_BACKBONE, (3,), SIZE, **OPTIONS) is deep
    assert pool.open(DEFAULT_BACKBONE, (3, 1), SIZE, **OPTIONS) is deep
    assert len(pool) == 1


@pytest.mark.parametrize(
    ("stages", "size"), [((2,), SIZE), ((2, 4), SIZE), ((2, 3), (96, 64))], ids=["shallower", "deeper", "other size"]
)
def test_what_must_be_computed_otherwise_is_another_engine(stages: Sequence[int], size: tuple[int, int]) -> None:
    pool = EnginePool(threads=1)
    one = pool.open(DEFAULT_BACKBONE, (2, 3), SIZE, **OPTIONS)
    other = pool.open(DEFAULT_BACKBONE, stages, size, **OPTIONS)
    assert other is not one
    assert other.engine.image_size == size
    assert other.stages == tuple(sorted(stages))  # nothing is computed, or copied, that nobody needs


@pytest.mark.parametrize(
    ("engine", "stages"),
    [("openvino", (3,)), ("openvino", (1, 3)), ("torch", (3,)), ("torch", (2, 3)), ("torch", (4,))],
)
def test_features_are_those_of_an_engine_of_the_models_own_stages(
    images: np.ndarray, engine: str, stages: tuple[int, ...]
) -> None:
    pool = EnginePool(threads=1)
    shared = pool.open(DEFAULT_BACKBONE, stages, SIZE, engine=engine, precision="float32")
    # torch's kernels round otherwise with another number of threads; OpenVINO's do not.
    threads = 1 if engine == "torch" else None
    own = create_engine(DEFAULT_BACKBONE, stages, SIZE, engine=engine, precision="float32", threads=threads)
    assert pool.open(DEFAULT_BACKBONE, (0, max(stages)), SIZE, engine=engine, precision="float32") is shared
    assert set(own.stages) < set(shared.stages)
    together, expected = shared(images), own(images)
    for stage in stages:
        assert together[stage].tobytes() == expected[stage].tobytes()


def test_an_engine_that_nobody_holds_is_gone() -> None:
    pool = EnginePool(threads=1)
    first = pool.open(DEFAULT_BACKBONE, (2,), SIZE, **OPTIONS)
    second = pool.open(DEFAULT_BACKBONE, (2,), SIZE, **OPTIONS)
    del first
    gc.collect()
    assert len(pool) == 1
    del second
    gc.collect()
    assert len(pool) == 0


def test_who_comes_while_it_is_made_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    come = threading.Event()

    def slow(*arguments: Any, **options: Any) -> Engine:
        come.wait(5)
        made.append(create_engine(*arguments, **options))
        return made[-1]

    monkeypatch.setattr(module, "create_engine", slow)
    pool = EnginePool(threads=1)
    got: list[SharedEngine] = []
    threads = [
        threading.Thread(target=lambda: got.append(pool.open(DEFAULT_BACKBONE, (2,), SIZE, **OPTIONS)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    come.set()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert all(one.engine is made[0] for one in got)
    assert len(got) == 4


def test_a_stage_that_the_backbone_does_not_have_is_refused() -> None:
    with pytest.raises(UsageError, match="stages must be"):
        EnginePool().open(DEFAULT_BACKBONE, (9,), SIZE, **OPTIONS)
