"""What every algorithm of the registry promises."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from autoad.algorithms import ALGORITHMS, Detector, Inputs, Needs, Prediction, Progress, Runtime, get_algorithm
from autoad.errors import AutoADError, UnknownNameError, UsageError

Pictures = Callable[..., Tensor]
Given = Callable[[Tensor, Needs], Inputs]

SMALL: dict[str, dict[str, Any]] = {
    "dfkde": {},
    "dfm": {},
    "ganomaly": {"image_size": 32, "n_features": 8, "latent_vec_size": 16, "batch_size": 4, "epochs": 8},
    "cflow": {"stages": (2, 3), "coupling_blocks": 2, "condition_vector": 32, "epochs": 2},
    "padim": {"n_features": 40},
    "patchcore": {},
    "stfpm": {"epochs": 3},
    "reverse_distillation": {"epochs": 3, "batch_size": 8},
}
"""Changes to the defaults that keep this module fast."""

OTHER: dict[str, dict[str, tuple[Any, ...]]] = {
    "dfkde": {"bandwidth": (0.3, 2.5)},
    "dfm": {"score_type": ("nll",)},
    "ganomaly": {},
    "cflow": {},
    "padim": {"sigma": (0.0, 1.5)},
    "patchcore": {"num_neighbors": (1, 3, 20), "sigma": (0.0, 9.0), "coreset_sampling_ratio": (0.07, 0.03, 0.001)},
    "stfpm": {"combine": ("sum",), "sigma": (2.0, 8.0)},
    "reverse_distillation": {"combine": ("multiply",), "sigma": (0.0, 2.0)},
}
"""Values, other than the defaults, of everything that can change after the fit."""

SIZE = (64, 64)
ODD = (70, 101)


def create(name: str, backbone: str = "tf_efficientnet_lite0", **changes: Any) -> Detector:
    algorithm = get_algorithm(name)
    fields = {field.name for field in dataclasses.fields(algorithm.Config)}
    common = {"image_size": 64, "backbone": backbone}
    values = {key: value for key, value in common.items() if key in fields} | SMALL[name] | changes
    return algorithm(algorithm.Config(**values), seed=3)


def fit(detector: Detector, train: Inputs, epochs: int | None = None) -> Detector:
    for progress in detector.fit(train):
        if progress.epoch == epochs:
            break
    return detector


def side(detector: Detector, size: tuple[int, int]) -> tuple[int, int]:
    """Detectors of pixels alone are given their own size; the others any."""
    return size if detector.needs.backbone else detector.needs.image_size


@pytest.fixture(scope="module")
def fitted(pictures: Pictures, given: Given) -> Callable[[str], tuple[Detector, Inputs, Inputs]]:
    """By name: a detector fitted on 12 normal pictures; 6 other normal ones; 6 with a plain defect."""
    known: dict[str, tuple[Detector, Inputs, Inputs]] = {}

    def of(name: str) -> tuple[Detector, Inputs, Inputs]:
        if name not in known:
            detector = create(name)
            size = side(detector, SIZE)
            train, good, bad = (
                given(pictures(count, seed, defect=defect, size=size), detector.needs)
                for count, seed, defect in ((12, 0, False), (6, 1, False), (6, 2, True))
            )
            known[name] = fit(detector, train), good, bad
        return known[name]

    return of


def same(one: Prediction, other: Prediction) -> bool:
    maps = one.maps is other.maps is None or (
        one.maps is not None and other.maps is not None and torch.equal(one.maps, other.maps)
    )
    return maps and torch.equal(one.scores, other.scores)


def test_the_registry_knows_eight_and_names_the_nearest() -> None:
    assert tuple(SMALL) == ALGORITHMS
    for name in ALGORITHMS:
        assert get_algorithm(name).name == name
    with pytest.raises(UnknownNameError, match=r"unknown algorithm 'patchcor'\. Did you mean 'patchcore'"):
        get_algorithm("patchcor")


@pytest.mark.parametrize("name", ALGORITHMS)
class TestContract:
    def test_config_is_frozen_plain_and_checked(self, name: str) -> None:
        config = get_algorithm(name).Config()
        values = dataclasses.asdict(config)
        assert type(config)(**json.loads(json.dumps(values))) == config
        assert values["image_size"] >= 32
        assert ("epochs" in values) == get_algorithm(name).iterative
        with pytest.raises(dataclasses.FrozenInstanceError):
            config.image_size = 3
        with pytest.raises(AutoADError, match=r"must be .* but got"):
            dataclasses.replace(config, image_size=0)

    def test_needs_follow_the_config(self, name: str) -> None:
        needs = create(name).needs
        assert needs.image_size == (create(name).config.image_size,) * 2
        assert needs.images or (needs.backbone and needs.stages)

    def test_shapes_and_types(self, name: str, fitted: Any) -> None:
        detector, good, _ = fitted(name)
        prediction = detector.predict(good)
        assert prediction.scores.shape == (6,)
        assert prediction.scores.dtype == torch.float32
        assert prediction.scores.isfinite().all()
        if detector.kind == "segmentation":
            assert prediction.maps is not None
        if prediction.maps is not None:
            assert prediction.maps.shape == (6, *good.image_size)
            assert prediction.maps.dtype == torch.float32
            assert prediction.maps.isfinite().all()

    def test_defects_score_above_normal(self, name: str, fitted: Any) -> None:
        detector, good, bad = fitted(name)
        assert detector.predict(bad).scores.mean() > detector.predict(good).scores.mean()

    def test_score_alone_is_score_in_any_batch(self, name: str, fitted: Any) -> None:
        detector, good, bad = fitted(name)
        whole = [detector.predict(part) for part in (good, bad)]
        for i in (0, 3, 5):
            for inputs, prediction in zip((good, bad), whole, strict=True):
                alone = detector.predict(inputs[i : i + 1])
                torch.testing.assert_close(alone.scores[0], prediction.scores[i], rtol=1e-5, atol=1e-6)
                if prediction.maps is not None:
                    torch.testing.assert_close(alone.maps[0], prediction.maps[i], rtol=1e-4, atol=1e-5)
        shuffled = detector.predict(bad[torch.tensor([4, 0, 5, 5])])
        torch.testing.assert_close(shuffled.scores, whole[1].scores[[4, 0, 5, 5]], rtol=1e-5, atol=1e-6)

    def test_same_seed_same_result(self, name: str, pictures: Pictures, given: Given) -> None:
        one, other = create(name), create(name)
        train = given(pictures(8, 0, size=side(one, SIZE)), one.needs)
        torch.manual_seed(1)
        fit(one, train, epochs=1)
        torch.manual_seed(2)
        fit(other, train, epochs=1)
        assert same(one.predict(train), other.predict(train))

    def test_saved_and_loaded_scores_are_equal(self, name: str, fitted: Any) -> None:
        detector, _, bad = fitted(name)
        tensors = detector.tensors()
        assert all(t.is_contiguous() and t.device.type == "cpu" for t in tensors.values())
        copy = create(name)
        copy.load_tensors(load(save(tensors)))
        assert same(copy.predict(bad), detector.predict(bad))
        again = copy.tensors()
        assert again.keys() == tensors.keys()
        assert all(torch.equal(again[key], tensors[key]) for key in tensors)

    @pytest.mark.parametrize("precision", ["float32", "bfloat16"])
    def test_compiled_it_scores_as_before_in_float32(
        self, name: str, precision: Any, pictures: Pictures, given: Given, fitted: Any
    ) -> None:
        detector, _, bad = fitted(name)
        one, other = (get_algorithm(name)(detector.config, runtime=Runtime("cpu", precision)) for _ in range(2))
        for loaded in (one, other):
            loaded.load_tensors(load(save(detector.tensors())))
        compiles = detector.compiles
        assert compiles == (type(detector).compile is not Detector.compile)
        one.compile(threads=1, streams=1)
        other.compile(threads=2, streams=2)
        expected = detector.predict(bad) if compiles else one.predict(bad)
        answer = one.predict(bad)
        torch.testing.assert_close(answer.scores, expected.scores, rtol=2e-5, atol=1e-6)
        if expected.maps is not None:
            torch.testing.assert_close(answer.maps, expected.maps, rtol=1e-4, atol=1e-6)
        with ThreadPoolExecutor(4) as pool:  # as a server's threads do, picture by picture
            answers = list(pool.map(lambda i: other.predict(bad[i % 6 : i % 6 + 1]), range(24)))
        for i, alone in enumerate(answers):
            rounding = {"rtol": 0.0, "atol": 0.0} if compiles else {"rtol": 1e-4, "atol": 1e-5}
            torch.testing.assert_close(alone.scores[0], answer.scores[i % 6], **rounding)
            if answer.maps is not None:
                torch.testing.assert_close(alone.maps[0], answer.maps[i % 6], **rounding)
        if compiles:
            with pytest.raises(UsageError, match="must be fitted, or its tensors loaded"):
                one.tensors()
        train = given(pictures(4, 0, size=side(detector, SIZE)), detector.needs)
        fit(one, train, epochs=1)
        assert one.tensors().keys() == detector.tensors().keys()
        assert not torch.equal(one.predict(bad).scores, answer.scores)
        other.load_tensors(detector.tensors())
        assert other.tensors().keys() == detector.tensors().keys()

    def test_constant_pictures_give_finite_scores(
        self, name: str, pictures: Pictures, given: Given, fitted: Any
    ) -> None:
        detector = fitted(name)[0]
        size = side(detector, SIZE)
        plain = given(pictures(3, 0, size=size, level=0), detector.needs)
        assert detector.predict(plain).scores.isfinite().all()
        taught = fit(create(name), given(pictures(8, 0, size=size, level=90), detector.needs), epochs=1)
        assert taught.predict(plain).scores.isfinite().all()
        assert taught.predict(given(pictures(2, 0, size=size), detector.needs)).scores.isfinite().all()

    @pytest.mark.parametrize("backbone", ["resnet18", "convnext_atto"])
    def test_odd_size_and_other_backbones(self, name: str, backbone: str, pictures: Pictures, given: Given) -> None:
        changes = {} if backbone == "resnet18" else {"image_size": 64}
        detector = create(name, backbone, **changes)
        size = side(detector, ODD)
        fit(detector, given(pictures(4, 0, size=size), detector.needs), epochs=1)
        prediction = detector.predict(given(pictures(2, 1, size=size), detector.needs))
        assert prediction.scores.isfinite().all()
        if prediction.maps is not None:
            assert prediction.maps.shape == (2, *size)

    def test_progress_and_stopping_after_any_epoch(self, name: str, pictures: Pictures, given: Given) -> None:
        detector = create(name)
        train = given(pictures(4, 0, size=side(detector, SIZE)), detector.needs)
        steps = detector.fit(train)
        first = next(steps)
        assert isinstance(first, Progress)
        assert first.epoch == 1
        assert first.epochs == (detector.config.epochs if detector.iterative else 1)
        assert detector.predict(train).scores.isfinite().all()
        assert detector.tensors()
        steps.close()
        assert detector.predict(train).scores.isfinite().all()

    def test_read_only_float16_and_float32_features(self, name: str, pictures: Pictures, given: Given) -> None:
        detector = create(name)
        train = given(pictures(4, 0, size=side(detector, SIZE)), detector.needs)
        before = {stage: maps.clone() for stage, maps in train.features.items()}
        frozen = {}
        for stage, maps in train.features.items():
            array = maps.permute(0, 2, 3, 1).numpy().copy()
            array.setflags(write=False)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                frozen[stage] = torch.from_numpy(array).permute(0, 3, 1, 2)
        half = fit(detector, Inputs(train.image_size, frozen, train.images), epochs=1)
        single = {stage: maps.float() for stage, maps in before.items()}
        full = Inputs(train.image_size, single, train.images)
        torch.testing.assert_close(half.predict(full).scores, half.predict(train).scores, rtol=1e-5, atol=1e-6)
        fit(create(name), full, epochs=1)
        for stage, maps in before.items():
            assert np.array_equal(frozen[stage].numpy(), maps.numpy())
            assert torch.equal(single[stage], maps.float())

    def test_predicting_before_fitting_is_refused(self, name: str, pictures: Pictures, given: Given) -> None:
        detector = create(name)
        batch = given(pictures(1, 0, size=side(detector, SIZE)), detector.needs)
        with pytest.raises((AutoADError, RuntimeError), match="must be fitted"):
            detector.predict(batch)

    def test_reconfigured_it_predicts_what_a_fit_with_these_values_predicts(
        self, name: str, pictures: Pictures, given: Given, fitted: Any
    ) -> None:
        detector, good, bad = fitted(name)
        assert (
            {*detector.post_fit, *detector.reducible}
            == OTHER[name].keys()
            <= dataclasses.asdict(detector.config).keys()
        )
        train = given(pictures(12, 0, size=side(detector, SIZE)), detector.needs)
        before = detector.predict(bad)
        together = {key: values[-1] for key, values in OTHER[name].items()}
        for changes in ({key: value} for key, values in OTHER[name].items() for value in values):
            changed = detector.reconfigured(**changes)
            assert changed.config == dataclasses.replace(detector.config, **changes)
            fresh = fit(create(name, **changes), train)
            assert same(changed.predict(bad), fresh.predict(bad)), changes
            assert not same(changed.predict(bad), before), changes
            again = changed.tensors()
            assert all(torch.equal(again[key], tensor) for key, tensor in fresh.tensors().items())
        fresh = fit(create(name, **together), train)
        assert same(detector.reconfigured(**together).predict(good), fresh.predict(good))
        assert same(detector.predict(bad), before), "the detector itself stays as it was"

    def test_one_measurement_serves_all_configurations(self, name: str, fitted: Any) -> None:
        detector, good, _ = fitted(name)
        changes = [{}, *({key: value} for key, values in OTHER[name].items() for value in values)]
        detectors = [detector.reconfigured(**change) for change in changes]
        measured = detector.measure(good, [one.config for one in detectors])
        for one in detectors:
            whole, scores = (detector.finish(measured, one.config, maps=maps) for maps in (True, False))
            alone = one.predict(good)
            torch.testing.assert_close(whole.scores, alone.scores, rtol=1e-6, atol=1e-7)
            assert torch.equal(scores.scores, whole.scores)
            assert scores.maps is None
            assert (whole.maps is None) == (alone.maps is None)
            if whole.maps is not None:
                torch.testing.assert_close(whole.maps, alone.maps, rtol=1e-5, atol=1e-6)

    def test_what_the_fit_decides_cannot_change_after_it(self, name: str, fitted: Any) -> None:
        detector = fitted(name)[0]
        with pytest.raises(UsageError, match=rf"{name}.image_size must be one of the hyperparameters that can change"):
            detector.reconfigured(image_size=128)
        for key in detector.reducible:
            largest = getattr(detector.config, key)
            with pytest.raises(UsageError, match=rf"{name}.{key} must be at most {largest}"):
                detector.reconfigured(**{key: 2 * largest})
        for key, effect in detector.post_fit.items():
            change = {key: OTHER[name][key][0]}
            one, other = detector.predict(fitted(name)[2]), detector.reconfigured(**change).predict(fitted(name)[2])
            if effect == "maps":
                assert torch.equal(one.scores, other.scores)
            if effect == "scores" and one.maps is not None:
                assert torch.equal(one.maps, other.maps)
