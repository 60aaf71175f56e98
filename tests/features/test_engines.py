from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from autoad.errors import UnknownNameError, UsageError
from autoad.features import (
    DEFAULT_BACKBONE,
    Engine,
    EngineChoice,
    available_engines,
    choose_engine,
    create_backbone,
    create_engine,
    feature_shapes,
    find_weights,
    head_precision,
)
from autoad.features import _openvino as openvino_module
from autoad.features import engines as module

SIZE = (75, 110)
STAGES = (3, 1, 4)
CHOICES = [
    (engine, precision)
    for engine in ("openvino", "torch")
    for precision in ("float32", "bfloat16")
    if precision == "float32" or module._has_bfloat16(engine)
]


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (6, *SIZE, 3), dtype=np.uint8)


def _eager(backbone: str, images: np.ndarray) -> dict[int, np.ndarray]:
    """Features by plain float32 torch, all pictures at once."""
    weights = find_weights(backbone)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 255.0
    pixels = (pixels - torch.tensor(weights.mean).view(3, 1, 1)) / torch.tensor(weights.std).view(3, 1, 1)
    with torch.inference_mode():
        maps = create_backbone(backbone, STAGES, pretrained=True)(pixels)
    return {stage: one.permute(0, 2, 3, 1).numpy() for stage, one in zip(STAGES, maps, strict=True)}


def _relative_error(got: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize(("engine", "precision"), CHOICES)
def test_features_of_a_picture_do_not_depend_on_the_batch(engine: str, precision: str, images: np.ndarray) -> None:
    threads = 2 if engine == "openvino" else 1  # torch's threads spin on a machine with too few cores
    run = create_engine(DEFAULT_BACKBONE, STAGES, SIZE, engine=engine, precision=precision, threads=threads)
    together = run(images)
    for index in range(len(images)):
        alone = run(images[index : index + 1])
        for stage in STAGES:
            assert np.array_equal(alone[stage][0], together[stage][index])
    turned = run(images[::-1])
    assert all(np.array_equal(turned[stage][::-1], together[stage]) for stage in STAGES)


@pytest.mark.parametrize("engine", ["openvino", "torch"])
@pytest.mark.parametrize("backbone", [DEFAULT_BACKBONE, "resnet10t", "convnext_atto", "mobilenetv3_small_050"])
def test_float32_agrees_with_eager_torch(
    engine: str, backbone: str, images: np.ndarray, weights_dir: Callable[..., Path]
) -> None:
    if backbone != DEFAULT_BACKBONE:
        weights_dir(backbone)
    run = create_engine(backbone, STAGES, SIZE, engine=engine, precision="float32", threads=1)
    got, expected = run(images[:2]), _eager(backbone, images[:2])
    assert tuple(got) == STAGES
    for stage in STAGES:
        assert got[stage].dtype == np.float32
        assert got[stage].flags.c_contiguous
        assert got[stage].shape[1:] == feature_shapes(backbone, SIZE)[stage]
        assert _relative_error(got[stage], expected[stage]) < 2e-5


@pytest.mark.parametrize(("engine", "precision"), [choice for choice in CHOICES if choice[1] == "bfloat16"])
def test_bfloat16_stays_near(engine: str, precision: str, images: np.ndarray) -> None:
    run = create_engine(DEFAULT_BACKBONE, STAGES, SIZE, engine=engine, precision=precision, threads=1)
    expected = _eager(DEFAULT_BACKBONE, images[:2])
    for stage, got in run(images[:2]).items():
        assert 1e-4 < _relative_error(got, expected[stage]) < 0.15


def test_streams_and_threads_change_nothing(images: np.ndarray) -> None:
    engines = [
        create_engine(DEFAULT_BACKBONE, (2,), SIZE, engine="openvino", threads=threads, streams=streams)
        for threads, streams in ((1, 1), (2, 2), (2, None))
    ]
    first, *others = (engine(images)[2] for engine in engines)
    assert all(np.allclose(first, other, rtol=1e-4, atol=1e-4) for other in others)


@pytest.mark.parametrize(("backbone", "precision"), [(DEFAULT_BACKBONE, p) for e, p in CHOICES if e == "openvino"])
def test_a_kept_engine_gives_the_same_to_the_last_bit(
    backbone: str, precision: str, images: np.ndarray, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def create(threads: int, streams: int | None) -> Engine:
        options: dict[str, Any] = {"engine": "openvino", "precision": precision}
        return create_engine(backbone, STAGES, SIZE, threads=threads, streams=streams, **options)

    ways = ((1, 1), (2, 1), (2, 2))
    fresh = []
    for number, way in enumerate(ways):
        monkeypatch.setenv("AUTOAD_DATA_DIR", str(tmp_path / str(number)))
        fresh.append(create(*way)(images))
    monkeypatch.setattr(openvino_module, "_convert", lambda *_: pytest.fail("converted again"))
    for number in range(len(ways)):
        monkeypatch.setenv("AUTOAD_DATA_DIR", str(tmp_path / str(number)))
        for way, expected in zip(ways, fresh, strict=True):
            got = create(*way)(images)
            assert all(np.array_equal(got[stage], expected[stage]) for stage in STAGES)


def test_what_is_kept_of_an_engine_may_be_anything(
    images: np.ndarray, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AUTOAD_DATA_DIR", str(tmp_path))
    expected = create_engine(DEFAULT_BACKBONE, (2,), SIZE, engine="openvino")(images)[2]
    for wrong in (b"", b"nonsense"):  # sound files of which OpenVINO can make nothing
        with monkeypatch.context() as patch:
            patch.setattr(openvino_module, "recall", lambda _, wrong=wrong: wrong)
            got = create_engine(DEFAULT_BACKBONE, (2,), SIZE, engine="openvino")(images)[2]
        assert np.array_equal(got, expected)


def test_an_engine_says_what_it_is() -> None:
    engine = create_engine(DEFAULT_BACKBONE, (1,), (64, 64), engine="torch", precision="float32")
    assert isinstance(engine, Engine)
    assert (engine.name, engine.precision, engine.backbone) == ("torch", "float32", DEFAULT_BACKBONE)
    assert (engine.stages, engine.image_size, engine.weights) == ((1,), (64, 64), find_weights(DEFAULT_BACKBONE))
    assert engine(np.empty((0, 64, 64, 3), np.uint8))[1].shape == (0, 16, 16, 24)


@pytest.mark.parametrize(
    "wrong", [np.zeros((1, 64, 60, 3), np.uint8), np.zeros((1, 64, 64, 3), np.float32), np.zeros((64, 64, 3), np.uint8)]
)
def test_other_pictures_are_refused(wrong: np.ndarray) -> None:
    engine = create_engine(DEFAULT_BACKBONE, (1,), (64, 64), engine="torch")
    with pytest.raises(UsageError, match=r"uint8 \[N, 64, 64, 3\] but got"):
        engine(wrong)


def test_creating_an_engine_uses_no_network(
    monkeypatch: pytest.MonkeyPatch, images: np.ndarray, tmp_path: Path
) -> None:
    monkeypatch.setenv("AUTOAD_DATA_DIR", str(tmp_path))  # nothing is kept from before

    def refuse(*arguments: object, **_: object) -> None:
        raise AssertionError(f"the network was used: {arguments}")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    engine = create_engine(DEFAULT_BACKBONE, (2,), SIZE, engine="openvino")
    assert np.isfinite(engine(images[:1])[2]).all()


def test_auto_takes_the_fastest_engine_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_engine() == EngineChoice("openvino", "float32")
    monkeypatch.setattr(module, "_openvino_version", lambda: "")
    assert choose_engine() == EngineChoice("torch", "float32")
    assert available_engines()["openvino"].endswith("pip install openvino")
    with pytest.raises(UsageError, match="pip install openvino"):
        choose_engine("openvino")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_engine().name == "cuda"


def test_bfloat16_needs_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_has_bfloat16", lambda _: True)
    assert choose_engine("torch", "bfloat16") == EngineChoice("torch", "bfloat16")
    assert head_precision(EngineChoice("torch", "float32")) == "bfloat16"
    monkeypatch.setattr(module, "_has_bfloat16", lambda _: False)
    assert head_precision(EngineChoice("torch", "float32")) == "float32"
    assert available_engines()["torch"].endswith(", float32")
    with pytest.raises(UsageError, match="no bfloat16 for torch"):
        choose_engine("torch", "bfloat16")


@pytest.mark.parametrize(("engine", "precision"), [("opnvino", "auto"), ("auto", "float16")])
def test_unknown_choices_are_refused(engine: str, precision: str) -> None:
    with pytest.raises(UnknownNameError, match="Choices: auto"):
        choose_engine(engine, precision)


def test_wrong_wishes_are_refused() -> None:
    for backbone, stages, message in (
        (DEFAULT_BACKBONE, (7,), "must be different ones"),
        ("resnet19", (1,), "unknown"),
    ):
        with pytest.raises(UsageError, match=message):
            create_engine(backbone, stages, SIZE)


def test_no_gpu_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="needs a GPU"):
        create_engine(DEFAULT_BACKBONE, (1,), (64, 64), engine="cuda")
