from __future__ import annotations

import copy
import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from sklearn.metrics import roc_auc_score
from torch import Tensor

from autoad.algorithms import _distillation
from autoad.algorithms._base import Inputs, Runtime
from autoad.algorithms.stfpm import STFPM, STFPMConfig
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
    return Inputs(tuple(images.shape[1:3]), dict(zip(STAGES, stored, strict=True)), images)


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


def fitted(train: Inputs, *, seed: int = 0, runtime: Runtime | None = None, **config: Any) -> STFPM:
    detector = STFPM(STFPMConfig(**{"image_size": 64, "epochs": 1} | config), seed=seed, runtime=runtime)
    for _ in detector.fit(train):
        pass
    return detector


def test_training_beats_the_untrained_student(normal: Inputs, mixed: Inputs) -> None:
    labels = np.repeat([0, 1], 12)
    gains = []
    for seed in range(3):
        untrained = fitted(normal, seed=seed, lr=1e-12)
        trained = fitted(normal, seed=seed, epochs=3)
        before, after = (roc_auc_score(labels, d.predict(mixed).scores) for d in (untrained, trained))
        gains.append(after - before)
    assert np.mean(gains) >= 0.05, gains


def test_loss_is_half_the_squared_distance_of_unit_features(normal: Inputs) -> None:
    batch = normal[:4]
    detector = STFPM(STFPMConfig(image_size=64, epochs=1), seed=3)
    (progress,) = detector.fit(batch)

    with torch.random.fork_rng():
        torch.manual_seed(3)
        student = create_backbone(LITE0, STAGES, pretrained=False).train()
    assert batch.images is not None
    with torch.no_grad():
        outputs = student((batch.images.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5)
    expected = 0.0
    for stage, output in zip(STAGES, outputs, strict=True):
        t, s = batch.features[stage].double().numpy(), output.double().numpy()
        t = t / np.sqrt((t**2).sum(1, keepdims=True))
        s = s / np.sqrt((s**2).sum(1, keepdims=True))
        expected += 0.5 * ((t - s) ** 2).sum(1).mean()
    assert progress.loss == pytest.approx(expected, rel=1e-4)


def test_every_parameter_learns(normal: Inputs) -> None:
    before, after = (fitted(normal[:8], lr=lr, weight_decay=0.0).tensors() for lr in (1e-20, 0.4))
    learnt = [name for name in before if name.endswith(("weight", "bias"))]
    assert len(learnt) > 50
    assert [name for name in learnt if torch.equal(before[name], after[name])] == []


def test_map_is_the_product_or_sum_of_the_stages_distances(normal: Inputs) -> None:
    detector = fitted(normal[:8], epochs=2)
    one = normal[8:9]
    distances = []
    with torch.inference_mode():
        for distance in detector._distances(detector._student.network, one):
            size = distance.shape[-1]
            rows = np.clip((np.arange(64) + 0.5) * size / 64 - 0.5, 0, size - 1)
            weights = np.clip(1 - np.abs(rows[:, None] - np.arange(size)), 0, None)
            distances.append(weights @ distance[0].double().numpy() @ weights.T)
    for combine, expected in (("product", np.prod(distances, 0)), ("sum", np.sum(distances, 0))):
        detector.config = dataclasses.replace(detector.config, combine=combine)
        prediction = detector.predict(one)
        assert prediction.maps is not None
        np.testing.assert_allclose(prediction.maps[0].numpy(), expected, rtol=1e-4)
        assert float(prediction.scores[0]) == pytest.approx(expected.max(), rel=1e-4)


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

    loaded = STFPM(detector.config, runtime=runtime)
    loaded.load_tensors(load(save(detector.tensors())))
    again = loaded.predict(train)
    assert torch.equal(again.maps, prediction.maps)  # type: ignore[arg-type]
    alone = [loaded.predict(train[i : i + 1]).scores for i in range(5)]
    assert torch.equal(torch.cat(alone), prediction.scores)


def test_saved_in_one_precision_loads_in_the_other(normal: Inputs) -> None:
    detector = fitted(normal[:8], runtime=Runtime("cpu", "bfloat16"))
    exact = STFPM(detector.config)
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
    detector = STFPM(STFPMConfig(image_size=64, epochs=3))
    fit = detector.fit(normal[:8])
    assert next(fit).epoch == 1
    stopped = detector.predict(normal[8:12]).scores
    torch.testing.assert_close(stopped, fitted(normal[:8]).predict(normal[8:12]).scores)
    assert [progress.epoch for progress in fit] == [2, 3]
    straight = fitted(normal[:8], epochs=3)
    assert torch.equal(detector.predict(normal[8:12]).scores, straight.predict(normal[8:12]).scores)


def test_statistics_are_measured_once_for_each_epoch_that_is_looked_at(
    normal: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure, epochs = _distillation._measure_statistics, []
    seen = 0

    def count(*given: Any) -> None:
        epochs.append(seen)
        measure(*given)

    monkeypatch.setattr(_distillation, "_measure_statistics", count)
    detector = STFPM(STFPMConfig(image_size=64, epochs=5))
    for progress in detector.fit(normal[:8]):
        seen = progress.epoch
        if seen == 2:
            kept = detector.tensors()
            scores = detector.predict(normal[8:12]).scores
            loaded = STFPM(STFPMConfig(image_size=64))
            loaded.load_tensors(kept)
            assert torch.equal(loaded.predict(normal[8:12]).scores, scores)
        elif seen == 3:
            detector.predict(normal[8:10])
            detector.predict(normal[8:10])
    assert epochs == [2, 3, 4]  # that of the fifth before it is told of


def test_a_stopped_fit_can_be_copied_reduced_and_fitted_again(normal: Inputs) -> None:
    expected = fitted(normal[:8]).predict(normal[8:12]).scores
    detector = STFPM(STFPMConfig(image_size=64, epochs=3))
    next(detector.fit(normal[:8]))
    other, twin = detector.reconfigured(sigma=0.0), copy.deepcopy(detector)
    next(detector.fit(normal[4:12]))
    for one in (other, twin):
        torch.testing.assert_close(one.predict(normal[8:12]).scores, expected)


def test_statistics_that_could_not_be_measured_are_measured_the_next_time(
    normal: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = fitted(normal[:8]).predict(normal[8:12]).scores
    detector = STFPM(STFPMConfig(image_size=64, epochs=3))
    next(detector.fit(normal[:8]))
    distances = STFPM._distances

    def fail(self: STFPM, student: torch.nn.Module, batch: Inputs) -> list[Tensor]:
        distances(self, student, batch)
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(STFPM, "_distances", fail)
        with pytest.raises(MemoryError):
            detector.tensors()
    assert detector._student is not None
    assert not detector._student._network.training
    torch.testing.assert_close(detector.predict(normal[8:12]).scores, expected)


def test_the_next_process_scores_without_timm_and_the_same(normal: Inputs, tmp_path: Path) -> None:
    detector = fitted(normal[:8])
    kept = {name: tensor.clone() for name, tensor in detector.tensors().items()}
    once = STFPM(STFPMConfig(image_size=64))
    once.load_tensors(kept)
    once.compile()  # keeps what was compiled
    asked = normal[8:12]
    given = {"features": asked.features, "images": asked.images, "tensors": kept}
    torch.save(given | {"scores": detector.predict(asked).scores}, tmp_path / "given.pt")
    program = (
        "import sys, torch\n"
        "from autoad.algorithms import Inputs\n"
        "from autoad.algorithms.stfpm import STFPM, STFPMConfig\n"
        "given = torch.load(sys.argv[1])\n"
        "detector = STFPM(STFPMConfig(image_size=64))\n"
        "detector.load_tensors(given['tensors'])\n"
        "detector.compile()\n"
        "scores = detector.predict(Inputs((64, 64), given['features'], given['images'])).scores\n"
        "torch.testing.assert_close(scores, given['scores'], rtol=1e-5, atol=0)\n"
        "assert 'timm' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", program, tmp_path / "given.pt"], check=True)


def test_statistics_mean_something_after_one_step(normal: Inputs) -> None:
    """Four pictures make one step: evaluation must then give about the loss of training."""
    detector = STFPM(STFPMConfig(image_size=64, epochs=1, lr=1e-12))
    (progress,) = detector.fit(normal[:4])
    with torch.inference_mode():
        distances = detector._distances(detector._student.network, normal[:4])
        evaluated = sum(float(distance.mean()) for distance in distances)
    assert evaluated == pytest.approx(progress.loss, rel=0.02)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_few_pictures(normal: Inputs, count: int) -> None:
    detector = fitted(normal[:count], batch_size=4)
    assert torch.isfinite(detector.predict(normal[:3]).scores).all()


def test_divergence_is_a_trial_error(normal: Inputs) -> None:
    broken = {stage: torch.full_like(maps[:4], torch.nan) for stage, maps in normal.features.items()}
    assert normal.images is not None
    with pytest.raises(TrialError, match="the loss is nan in epoch 1"):
        fitted(Inputs(normal.image_size, broken, normal.images[:4]))


def test_unfitted_says_so(normal: Inputs) -> None:
    with pytest.raises(UsageError, match="stfpm must be fitted"):
        STFPM().predict(normal[:1])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("image_size", 16), ("epochs", 0), ("batch_size", 1), ("lr", 0.0), ("lr", float("nan")), ("momentum", 1.0)),
        *(("weight_decay", -1.0), ("combine", "max"), ("sigma", -1.0)),
    ],
)
def test_bad_config_names_the_field(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"{name} must be .* but got {value!r}"):
        STFPMConfig(**{name: value})


def test_needs_pixels_and_three_stages() -> None:
    needs = STFPM(STFPMConfig(image_size=96, backbone="resnet18")).needs
    assert (needs.image_size, needs.backbone, needs.stages, needs.images) == ((96, 96), "resnet18", STAGES, True)
