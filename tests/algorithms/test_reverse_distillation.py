from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from sklearn.metrics import roc_auc_score
from torch import Tensor

from autoad.algorithms._base import Inputs, Runtime
from autoad.algorithms.reverse_distillation import (
    ReverseDistillation,
    ReverseDistillationConfig,
    _Architecture,
    _Network,
)
from autoad.errors import TrialError, UsageError
from autoad.features.backbones import create_backbone

STAGES = (1, 2, 3)
LITE0 = "tf_efficientnet_lite0"


def pictures(count: int, seed: int, size: tuple[int, int] = (64, 64), defect: bool = False) -> Tensor:
    """Waves of random phase with noise; a defect is a patch of another brightness. ``[N, H, W, 3]`` uint8."""
    draw = np.random.default_rng(seed)
    y, x = (axis[..., None] for axis in np.mgrid[: size[0], : size[1]])
    made = []
    for _ in range(count):
        phase = draw.uniform(0, 2 * np.pi, 2)
        picture = 128 + 40 * np.sin(x / 5 + phase[0]) * [1, 0.8, 0.5] + 25 * np.sin(y / 7 + phase[1]) * [0.3, 1, 0.6]
        picture += draw.normal(0, 6, picture.shape)
        if defect:
            top, left = draw.integers(8, min(size) - 20, 2)
            picture[top : top + 10, left : left + 10] += draw.choice([-50, 50])
        made.append(picture.clip(0, 255).astype(np.uint8))
    return torch.from_numpy(np.stack(made))


def inputs_of(teacher: torch.nn.Module, images: Tensor) -> Inputs:
    with torch.inference_mode():
        maps = teacher((images.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5)
    stored = [m.permute(0, 2, 3, 1).contiguous().half().permute(0, 3, 1, 2) for m in maps]
    return Inputs(tuple(images.shape[1:3]), dict(zip(STAGES, stored, strict=True)))


@pytest.fixture(scope="module")
def lite0() -> torch.nn.Module:
    """The bundled backbone with its real weights."""
    return create_backbone(LITE0, STAGES, pretrained=True).eval()


@pytest.fixture(scope="module")
def normal(lite0: torch.nn.Module) -> Inputs:
    return inputs_of(lite0, pictures(20, seed=1))


@pytest.fixture(scope="module")
def mixed(lite0: torch.nn.Module) -> Inputs:
    """Twelve good pictures, then twelve with a defect."""
    return inputs_of(lite0, torch.cat([pictures(12, seed=2), pictures(12, seed=3, defect=True)]))


def fitted(train: Inputs, *, seed: int = 0, runtime: Runtime | None = None, **config: Any) -> ReverseDistillation:
    detector = ReverseDistillation(
        ReverseDistillationConfig(**{"image_size": 64, "epochs": 1} | config), seed=seed, runtime=runtime
    )
    for _ in detector.fit(train):
        pass
    return detector


def test_training_beats_the_untrained_student(normal: Inputs, mixed: Inputs) -> None:
    labels = np.repeat([0, 1], 12)
    gains = []
    for seed in range(3):
        untrained = fitted(normal, seed=seed, lr=1e-12)
        trained = fitted(normal, seed=seed, epochs=6, batch_size=4)
        before, after = (roc_auc_score(labels, d.predict(mixed).scores) for d in (untrained, trained))
        gains.append(after - before)
    assert np.mean(gains) >= 0.05, gains


def test_loss_is_one_minus_the_cosine_of_flattened_stages(normal: Inputs) -> None:
    batch = normal[:4]
    detector = ReverseDistillation(ReverseDistillationConfig(image_size=64, epochs=1, lr=1e-12), seed=3)
    (progress,) = detector.fit(batch)

    student = detector._student
    assert student is not None
    with torch.no_grad():
        outputs = student.network.train()(*(batch.features[stage].float() for stage in STAGES))
    expected = 0.0
    for stage, output in zip(STAGES, outputs, strict=True):
        t = batch.features[stage].double().numpy().reshape(4, -1)
        s = output.double().numpy().reshape(4, -1)
        expected += np.mean([1 - t[i] @ s[i] / np.sqrt((t[i] @ t[i]) * (s[i] @ s[i])) for i in range(4)])
    assert progress.loss == pytest.approx(expected, rel=1e-4)


def test_every_parameter_learns(normal: Inputs) -> None:
    before, after = (fitted(normal[:8], lr=lr).tensors() for lr in (1e-20, 0.005))
    learnt = [name for name in before if name.endswith(("weight", "bias"))]
    assert len(learnt) > 50
    assert [name for name in learnt if torch.equal(before[name], after[name])] == []


def test_map_adds_or_multiplies_one_minus_the_cosine_of_each_position(normal: Inputs) -> None:
    detector = fitted(normal[:8], epochs=2, sigma=0.0)
    one = normal[8:9]
    with torch.inference_mode():
        pairs = list(zip(*detector._pairs(detector._student.network, one), strict=True))
    dissimilar = []
    for teacher, student in pairs:
        t, s = teacher[0].double().numpy(), student[0].double().numpy()
        cosine = (t * s).sum(0) / np.sqrt((t**2).sum(0) * (s**2).sum(0))
        size = cosine.shape[-1]
        rows = np.clip((np.arange(64) + 0.5) * size / 64 - 0.5, 0, size - 1)
        weights = np.clip(1 - np.abs(rows[:, None] - np.arange(size)), 0, None)
        dissimilar.append(weights @ (1 - cosine) @ weights.T)
    for combine, expected in (("multiply", np.prod(dissimilar, 0)), ("add", np.sum(dissimilar, 0))):
        detector.config = dataclasses.replace(detector.config, combine=combine)
        prediction = detector.predict(one)
        assert prediction.maps is not None
        np.testing.assert_allclose(prediction.maps[0].numpy(), expected, rtol=1e-3, atol=1e-6)
        assert float(prediction.scores[0]) == pytest.approx(expected.max(), rel=1e-4)
    detector.config = dataclasses.replace(detector.config, sigma=4.0)
    blurred = detector.predict(one)
    assert blurred.maps is not None
    assert float(blurred.scores[0]) < 0.99 * expected.max()
    assert float(blurred.maps.mean()) == pytest.approx(expected.mean(), rel=0.02)


@pytest.mark.parametrize(
    ("backbone", "blocks", "bottleneck", "signed"),
    [
        ("resnet18", (2, 2, 2, 2), None, False),
        ("resnet34.tv_in1k", (3, 4, 6, 3), None, False),
        ("resnet50", (3, 4, 6, 3), 0.25, False),
        ("wide_resnet50_2.tv_in1k", (3, 4, 6, 3), 0.5, False),
        ("resnetv2_50", (2, 2, 2, 2), None, True),
        (LITE0, (2, 2, 2, 2), None, True),
    ],
)
def test_resnets_get_their_own_blocks(backbone: str, blocks: Any, bottleneck: float | None, signed: bool) -> None:
    assert _Architecture.of(backbone) == _Architecture(blocks, bottleneck, signed)


def test_bottleneck_student_restores_shape_and_sign() -> None:
    student = _Network([32, 64, 128], _Architecture((3, 4, 6, 3), 0.25, signed=False))
    maps = [torch.randn(2, 32, 16, 16), torch.randn(2, 64, 8, 8), torch.randn(2, 128, 4, 4)]
    restored = student(*maps)
    assert [r.shape for r in restored] == [m.shape for m in maps]
    assert all(float(r.detach().min()) == 0 for r in restored)
    assert [len(s) for s in (student.decode3, student.decode2, student.decode1, student.embed)] == [3, 4, 6, 3]
    assert student.decode1[-1].residual[0].weight.shape == (8, 32, 1, 1)
    signed = _Network([32, 64, 128], _Architecture((2, 2, 2, 2), None, signed=True))
    assert all(float(r.detach().min()) < 0 for r in signed(*maps))


@pytest.mark.parametrize("backbone", [LITE0, "resnet18", "convnext_atto"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_any_backbone_at_an_odd_size_survives_saving(backbone: str, precision: Any) -> None:
    torch.manual_seed(0)
    teacher = create_backbone(backbone, STAGES, pretrained=False).eval()
    train = inputs_of(teacher, pictures(5, seed=4, size=(75, 101)))
    runtime = Runtime("cpu", precision)
    detector = fitted(train, backbone=backbone, batch_size=2, runtime=runtime)
    prediction = detector.predict(train)
    assert prediction.maps is not None
    assert prediction.maps.shape == (5, 75, 101)
    assert torch.isfinite(prediction.maps).all()
    assert torch.equal(prediction.scores, prediction.maps.flatten(1).amax(1))

    loaded = ReverseDistillation(detector.config, runtime=runtime)
    loaded.load_tensors(load(save(detector.tensors())))
    again = loaded.predict(train)
    assert torch.equal(again.maps, prediction.maps)  # type: ignore[arg-type]
    alone = [loaded.predict(train[i : i + 1]).scores for i in range(5)]
    assert torch.equal(torch.cat(alone), prediction.scores)


def test_saved_in_one_precision_loads_in_the_other(normal: Inputs) -> None:
    detector = fitted(normal[:8], runtime=Runtime("cpu", "bfloat16"))
    exact = ReverseDistillation(detector.config)
    exact.load_tensors(detector.tensors())
    close = detector.predict(normal[8:12]).scores
    torch.testing.assert_close(exact.predict(normal[8:12]).scores, close, rtol=0.1, atol=0)


def test_same_seed_same_detector_and_the_global_generator_is_left_alone(normal: Inputs) -> None:
    torch.manual_seed(11)
    state = torch.get_rng_state()
    first = fitted(normal[:6], seed=1, batch_size=2)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    second, other = (fitted(normal[:6], seed=seed, batch_size=2) for seed in (1, 2))
    scores = [d.predict(normal[6:9]).scores for d in (first, second, other)]
    assert torch.equal(scores[0], scores[1])
    assert not torch.equal(scores[0], scores[2])


def test_a_stopped_fit_predicts_and_training_can_go_on_after_predicting(normal: Inputs) -> None:
    detector = ReverseDistillation(ReverseDistillationConfig(image_size=64, epochs=3))
    fit = detector.fit(normal[:8])
    assert next(fit).epoch == 1
    stopped = detector.predict(normal[8:12]).scores
    torch.testing.assert_close(stopped, fitted(normal[:8]).predict(normal[8:12]).scores)
    assert [progress.epoch for progress in fit] == [2, 3]
    straight = fitted(normal[:8], epochs=3)
    assert torch.equal(detector.predict(normal[8:12]).scores, straight.predict(normal[8:12]).scores)


def test_statistics_mean_something_after_one_step(normal: Inputs) -> None:
    """Four pictures make one step: evaluation must then give about the loss of training."""
    detector = ReverseDistillation(ReverseDistillationConfig(image_size=64, epochs=1, lr=1e-12))
    (progress,) = detector.fit(normal[:4])
    with torch.inference_mode():
        pairs = zip(*detector._pairs(detector._student.network, normal[:4]), strict=True)
        evaluated = sum(1 - float(torch.cosine_similarity(t.flatten(1), s.flatten(1)).mean()) for t, s in pairs)
    assert evaluated == pytest.approx(progress.loss, rel=0.05)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_few_pictures(normal: Inputs, count: int) -> None:
    detector = fitted(normal[:count], batch_size=4)
    assert torch.isfinite(detector.predict(normal[:3]).scores).all()


def test_divergence_is_a_trial_error(normal: Inputs) -> None:
    broken = {stage: torch.full_like(maps[:4], torch.nan) for stage, maps in normal.features.items()}
    with pytest.raises(TrialError, match="the loss is nan in epoch 1"):
        fitted(Inputs(normal.image_size, broken))


def test_unfitted_says_so(normal: Inputs) -> None:
    with pytest.raises(UsageError, match="reverse_distillation must be fitted"):
        ReverseDistillation().predict(normal[:1])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("image_size", 16), ("epochs", 0), ("batch_size", 1), ("lr", 0.0), ("lr", float("nan")), ("beta1", 1.0)),
        *(("beta2", -0.1), ("combine", "product"), ("sigma", -1.0)),
    ],
)
def test_bad_config_names_the_field(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"{name} must be .* but got {value!r}"):
        ReverseDistillationConfig(**{name: value})


def test_needs_three_stages_and_no_pixels() -> None:
    needs = ReverseDistillation(ReverseDistillationConfig(image_size=96, backbone="resnet18")).needs
    assert (needs.image_size, needs.backbone, needs.stages, needs.images) == ((96, 96), "resnet18", STAGES, False)
