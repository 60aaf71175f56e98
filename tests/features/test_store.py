from __future__ import annotations

import dataclasses
import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from autoad.data import Picture
from autoad.data.decoding import load_image
from autoad.errors import UnreadableImageError, UsageError, WeightsError
from autoad.features import DEFAULT_BACKBONE, EngineChoice, FeatureStore, as_tensors, create_engine
from autoad.features import store as module
from autoad.features.room import Room

SIZE = (64, 96)
CHOICE = EngineChoice("openvino", "float32")
WritePictures = Callable[..., list[Picture]]


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, tuple[int, ...]]]:
    """Number of pictures and stages of each chunk that an engine was given."""
    calls: list[tuple[int, tuple[int, ...]]] = []

    def counting(*arguments: Any, **options: Any) -> Callable[[np.ndarray], dict[int, np.ndarray]]:
        engine = create_engine(*arguments, **options)

        def run(images: np.ndarray) -> dict[int, np.ndarray]:
            calls.append((len(images), engine.stages))
            return engine(images)

        return run

    monkeypatch.setattr(module, "create_engine", counting)
    return calls


def ask(store: FeatureStore, pictures: list[Picture], *stages: int, **changes: Any) -> dict[int, np.ndarray]:
    options: dict[str, Any] = {"backbone": DEFAULT_BACKBONE, "image_size": SIZE, "engine": CHOICE} | changes
    return store.features(pictures, stages=stages, **options)


def direct(pictures: list[Picture], *stages: int) -> dict[int, np.ndarray]:
    images = np.stack([load_image(picture.read(), SIZE) for picture in pictures])
    return create_engine(DEFAULT_BACKBONE, stages, SIZE, engine="openvino", precision="float32", threads=1)(images)


def test_features_are_what_the_engine_gives_in_half_precision(
    tmp_path: Path, pictures: WritePictures, computed: list[tuple[int, tuple[int, ...]]]
) -> None:
    some = pictures(19)
    got = ask(FeatureStore(tmp_path / "store"), some, 2, 1)
    assert tuple(got) == (2, 1)
    for stage, exact in direct(some, 2, 1).items():
        assert got[stage].dtype == np.float16
        assert not got[stage].flags.writeable
        assert np.array_equal(got[stage], exact.astype(np.float16))
    assert computed == [(16, (1, 2, 3, 4)), (3, (1, 2, 3, 4))]


def test_nothing_is_computed_twice(
    tmp_path: Path, pictures: WritePictures, computed: list[tuple[int, tuple[int, ...]]]
) -> None:
    store, some = FeatureStore(tmp_path), pictures(4)
    first = ask(store, some, 2, 3)
    relabelled = [dataclasses.replace(p, label="scratch", split="test", path=p.path.with_name("x")) for p in some]
    for stages in ((2, 3), (1, 4), (4,)):
        ask(FeatureStore(tmp_path), relabelled, *stages)
    assert len(computed) == 1
    more = pictures(2, seed=1)
    mixed = ask(store, [more[1], some[2], more[0], some[2]], 2)[2]
    assert computed[1:] == [(2, (1, 2, 3, 4))]
    assert np.array_equal(mixed[1], first[2][2])
    assert np.array_equal(mixed[3], first[2][2])
    expected = direct([more[1], more[0]], 2)[2].astype(np.float16)
    assert np.array_equal(mixed[[0, 2]], expected)


def test_stage_0_only_when_asked_for(
    tmp_path: Path, pictures: WritePictures, computed: list[tuple[int, tuple[int, ...]]]
) -> None:
    store, some = FeatureStore(tmp_path), pictures(2)
    ask(store, some, 1)
    assert ask(store, some, 0, 1)[0].shape == (2, 32, 48, 16)
    assert computed == [(2, (1, 2, 3, 4)), (2, (0,))]


def test_large_maps_only_when_asked_for(
    tmp_path: Path,
    pictures: WritePictures,
    computed: list[tuple[int, tuple[int, ...]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_BYTES_KEPT_UNASKED", 2 * 8 * 12 * 40)
    store, some = FeatureStore(tmp_path), pictures(2)
    ask(store, some, 3)
    ask(store, some, 1, 2)
    assert computed == [(2, (2, 3, 4)), (2, (1,))]


def test_other_sizes_precisions_and_weights_are_other_entries(
    tmp_path: Path,
    pictures: WritePictures,
    computed: list[tuple[int, tuple[int, ...]]],
    weights_dir: Callable[..., Path],
) -> None:
    store, some = FeatureStore(tmp_path / "store"), pictures(1)
    real = ask(store, some, 3)[3]
    assert ask(store, some, 3, image_size=(96, 64))[3].shape == (1, 6, 4, 112)
    ask(store, some, 3, engine=EngineChoice("torch", "float32"))
    weights_dir(DEFAULT_BACKBONE)
    random = ask(store, some, 3)[3]
    assert len(computed) == 4
    assert np.abs(random.astype(np.float32) - real).mean() > 0.1
    assert len([path for path in (tmp_path / "store").glob("*/*") if path.is_dir()]) == 4


def test_the_same_pictures_again_are_mapped(tmp_path: Path, pictures: WritePictures) -> None:
    store, some = FeatureStore(tmp_path), pictures(5)
    first, second = ask(store, some, 2)[2], ask(store, some, 2)[2]
    assert np.shares_memory(first, second)
    assert np.shares_memory(first, ask(store, some[1:3], 2)[2])
    tensor = as_tensors({2: second})[2]
    assert tensor.data_ptr() == second.ctypes.data
    assert tensor.shape == (5, 40, 8, 12)
    assert tensor.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(tensor, torch.from_numpy(second.copy()).permute(0, 3, 1, 2))


def test_tensors_keep_their_memory_alive() -> None:
    array = np.arange(2 * 3 * 4 * 5, dtype=np.uint8).reshape(2, 3, 4, 5)
    frozen = array.copy()
    frozen.flags.writeable = False
    tensors = as_tensors({0: frozen, 1: array.astype(np.float32), 2: frozen[:0]})
    del frozen
    assert [np.empty(120, np.uint8).fill(255) for _ in range(50)]
    assert np.array_equal(tensors[0].permute(0, 2, 3, 1).numpy(), array)
    assert tensors[1].dtype == torch.float32
    assert tensors[2].shape == (0, 5, 3, 4)


def test_images_are_decoded_once(
    tmp_path: Path, pictures: WritePictures, monkeypatch: pytest.MonkeyPatch, computed: list[object]
) -> None:
    decoded = []
    monkeypatch.setattr(module, "load_image", lambda data, size: decoded.append(size) or load_image(data, size))
    store, some = FeatureStore(tmp_path), pictures(40, size=(80, 80))
    images = store.images(some, SIZE)
    assert (images.shape, images.dtype, images.flags.writeable) == ((40, *SIZE, 3), np.uint8, False)
    assert np.array_equal(images, np.stack([load_image(picture.read(), SIZE) for picture in some]))
    store.images(some[::-1], SIZE)
    ask(store, some, 2)
    assert len(decoded) == 40
    assert len(computed) == 3
    store.images(some[:2], (32, 32))
    assert len(decoded) == 42


def test_the_setting_limits_what_is_kept(
    tmp_path: Path, pictures: WritePictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = pictures(4)
    kept = {}
    for limit in ("1GB", "200KB"):
        monkeypatch.setenv("AUTOAD_FEATURES_LIMIT", limit)
        root = tmp_path / limit
        first = FeatureStore(root).images(some, (200, 200))
        FeatureStore(root).images(some, (100, 100))
        kept[limit] = len(list(root.glob("images/*/*/pixels.npy")))
        assert np.array_equal(FeatureStore(root).images(some, (200, 200)), first)
    assert kept == {"1GB": 2, "200KB": 1}


def test_pixels_that_go_while_features_are_computed_are_decoded_again(
    tmp_path: Path, pictures: WritePictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = pictures(40)
    store = FeatureStore(tmp_path / "store")
    store.images(some, SIZE)
    decoded = []
    monkeypatch.setattr(module, "load_image", lambda data, size: decoded.append(size) or load_image(data, size))

    def evicting(*arguments: Any, **options: Any) -> Callable[[np.ndarray], dict[int, np.ndarray]]:
        engine = create_engine(*arguments, **options)

        def run(images: np.ndarray) -> dict[int, np.ndarray]:
            Room(tmp_path / "store").evict(1)
            return engine(images)

        return run

    monkeypatch.setattr(module, "create_engine", evicting)
    got = ask(store, some, 3)[3]
    assert np.array_equal(got, direct(some, 3)[3].astype(np.float16))
    assert len(decoded) in (40 - 16, 40 - 2 * 16)  # the next chunk may have been taken before the first was computed


def test_what_a_killed_process_left_goes_when_the_store_is_opened(tmp_path: Path, pictures: WritePictures) -> None:
    some = pictures(1)
    FeatureStore(tmp_path / "store").images(some, SIZE)
    (table,) = (tmp_path / "store" / "images").iterdir()
    (table / ".unfinished-0").mkdir()
    (table / ".unfinished-0" / "pixels.npy").write_bytes(b"half")
    FeatureStore(tmp_path / "store").images(some, SIZE)
    assert not (table / ".unfinished-0").exists()


def test_no_pictures(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path)
    assert store.images([], SIZE).shape == (0, *SIZE, 3)
    assert ask(store, [], 2)[2].shape == (0, 8, 12, 40)
    assert list(tmp_path.iterdir()) == []


class Constant:
    """An engine that gives one value."""

    def __init__(self, value: float) -> None:
        self.value = value

    def __call__(self, images: np.ndarray) -> dict[int, np.ndarray]:
        return {stage: np.full((len(images), 2, 2, 3), self.value, np.float32) for stage in (1, 2, 3, 4)}


@pytest.mark.parametrize(("value", "kept"), [(1e9, 65504), (-1e9, -65504), (np.inf, 65504), (1.5, 1.5)])
def test_values_beyond_half_precision_stay_finite(
    value: float, kept: float, tmp_path: Path, pictures: WritePictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "create_engine", lambda *_, **__: Constant(value))
    assert np.all(ask(FeatureStore(tmp_path), pictures(1), 2)[2] == np.float16(kept))


def test_what_is_no_number_is_refused(tmp_path: Path, pictures: WritePictures, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "create_engine", lambda *_, **__: Constant(np.nan))
    with pytest.raises(WeightsError, match="features that are not numbers"):
        ask(FeatureStore(tmp_path), pictures(1), 2)


def test_a_picture_that_cannot_be_used_is_named(tmp_path: Path, pictures: WritePictures) -> None:
    store, (good, damaged, changed, gone) = FeatureStore(tmp_path / "store"), pictures(4)
    data = damaged.path.read_bytes()[:500]
    damaged.path.write_bytes(data)
    damaged = dataclasses.replace(damaged, sha256=hashlib.sha256(data).hexdigest())
    changed.path.write_bytes(good.path.read_bytes())
    gone.path.unlink()
    for picture, message in (
        (damaged, "damaged or truncated"),
        (changed, "has changed since the dataset was read"),
        (gone, "No such file"),
    ):
        with pytest.raises(UnreadableImageError, match=message) as caught:
            store.images([good, picture], SIZE)
        assert str(picture.path) in str(caught.value)
    assert not list((tmp_path / "store").glob("*/*/*/*"))


def test_wrong_wishes_are_refused(tmp_path: Path, pictures: WritePictures) -> None:
    store, some = FeatureStore(tmp_path), pictures(1)
    with pytest.raises(UsageError, match="stages must be"):
        ask(store, some, 7)
    with pytest.raises(UsageError, match="Did you mean 'resnet18'"):
        ask(store, some, 1, backbone="resnet19")
    with pytest.raises(WeightsError, match="AUTOAD_WEIGHTS_DIR"):
        ask(store, some, 1, backbone="resnet10t")


PROCESS = """
import hashlib, sys, time
from pathlib import Path
from autoad.data import Picture
from autoad.features import DEFAULT_BACKBONE, EngineChoice, FeatureStore, store

root, me = Path(sys.argv[1]), sys.argv[2]
create = store.create_engine

def slow(*arguments, **options):
    (root / f"computed-{me}").write_text("")
    time.sleep(0.5)
    return create(*arguments, **options)

store.create_engine = slow
paths = sorted((root / "pictures").iterdir())
pictures = [Picture(path, hashlib.sha256(path.read_bytes()).hexdigest()) for path in paths]
(root / f"ready-{me}").write_text("")
while len(list(root.glob("ready-*"))) < 2:
    time.sleep(0.01)
features = FeatureStore(root / "store").features(
    pictures, backbone=DEFAULT_BACKBONE, stages=(3,), image_size=(64, 96), engine=EngineChoice("openvino", "float32")
)
print(features[3].shape, hashlib.sha256(features[3].tobytes()).hexdigest())
"""


def test_two_processes_compute_once(tmp_path: Path, pictures: WritePictures) -> None:
    pictures(3)
    command = [sys.executable, "-c", PROCESS, str(tmp_path)]
    processes = [
        subprocess.Popen([*command, me], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for me in "ab"
    ]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0]
    assert outputs[0][0].startswith("(3, 4, 6, 112)")
    assert len(list(tmp_path.glob("computed-*"))) == 1
    assert len(list((tmp_path / "store").glob("*/*/*/stage3.npy"))) == 1
