from __future__ import annotations

import dataclasses
import time

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from scipy.spatial.distance import cdist
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn import functional

from autoad.algorithms import Inputs
from autoad.algorithms._bank import multiplies_int8
from autoad.algorithms._coreset import greedy_coreset
from autoad.algorithms.patchcore import PatchCore, PatchCoreConfig
from autoad.errors import TrialError, UsageError


def clouds(count: int, seed: int, shift: float = 0.0, channels: tuple[int, int] = (6, 10)) -> Inputs:
    g = torch.Generator().manual_seed(seed)
    shapes = {2: (8, 12, channels[0]), 3: (4, 6, channels[1])}
    maps = {stage: torch.randn(count, *shape, generator=g) + 2 + shift for stage, shape in shapes.items()}
    return Inputs((64, 96), {stage: m.half().permute(0, 3, 1, 2) for stage, m in maps.items()})


def fit(train: Inputs, seed: int = 0, **config: object) -> PatchCore:
    detector = PatchCore(PatchCoreConfig(**config), seed=seed)
    assert len(list(detector.fit(train))) == 1
    return detector


def patches(inputs: Inputs, window: int = 3) -> np.ndarray:
    """Averages over zero-padded neighbourhoods, the second stage enlarged: ``[N, h * w, C]`` float64."""
    pooled = []
    for maps in inputs.features.values():
        padded = np.pad(maps.double().numpy(), ((0, 0), (0, 0), *((window // 2,) * 2,) * 2))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (window, window), axis=(2, 3))
        pooled.append(torch.from_numpy(windows.mean((4, 5))))
    pooled[1] = functional.interpolate(pooled[1], size=pooled[0].shape[-2:], mode="bilinear")
    return torch.cat(pooled, 1).permute(0, 2, 3, 1).flatten(1, 2).numpy()


def exact_greedy(points: np.ndarray, size: int, first: int) -> list[int]:
    chosen = [first]
    nearest = cdist(points, points[[first]])[:, 0]
    while len(chosen) < size:
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, cdist(points, points[chosen[-1:]])[:, 0])
    return chosen


def radius(points: np.ndarray, chosen: Tensor) -> float:
    return float(cdist(points, points[chosen.numpy()]).min(1).max())


def squared(points: Tensor) -> Tensor:
    return points.square().sum(1)


@pytest.fixture(scope="module")
def lite0(pictures, given) -> np.ndarray:
    """Real patch features: 5,120 of 152 channels, with few close to equal."""
    needs = PatchCore().needs
    return patches(given(pictures(20, 0, size=(128, 128)), needs)).reshape(-1, 152)


class TestCoreset:
    def test_it_is_the_exact_greedy_sequence(self, lite0: np.ndarray) -> None:
        points = torch.from_numpy(lite0 - lite0.mean(0)).float()
        chosen = greedy_coreset(points, squared(points), 400, first=7).tolist()
        assert chosen[0] == 7
        nearest = cdist(lite0, lite0[[7]])[:, 0]
        for pick in chosen[1:]:
            assert nearest[pick] >= (1 - 1e-5) * nearest.max()
            nearest = np.minimum(nearest, cdist(lite0, lite0[[pick]])[:, 0])

    def test_a_projection_costs_little_covering_radius(self) -> None:
        """Real features crowd near few axes, unlike white noise: here with a decaying spectrum."""
        g = torch.Generator().manual_seed(0)
        points = torch.randn(3000, 384, generator=g) * torch.arange(1, 385) ** -0.75
        points -= points.mean(0)
        axes = torch.linalg.eigh(points.T @ points).eigenvectors[:, -128:]
        chosen = greedy_coreset(points @ axes, squared(points), 300, first=0)
        full = points.double().numpy()
        assert radius(full, chosen) <= 1.03 * radius(full, torch.tensor(exact_greedy(full, 300, 0)))

    def test_the_first_picks_are_the_smaller_coreset(self, lite0: np.ndarray) -> None:
        points = torch.from_numpy(lite0 - lite0.mean(0)).float()
        large, small = (greedy_coreset(points, squared(points), size, first=3) for size in (500, 60))
        assert torch.equal(large[:60], small)

    def test_equal_points_are_taken_once(self) -> None:
        points = torch.tensor([[0.0, 1.0], [2.0, 0.0], [0.0, -3.0]])[torch.arange(300) % 3]
        chosen = greedy_coreset(points, squared(points), 50, first=4)
        assert sorted((chosen % 3).tolist()) == [0, 1, 2]
        everything = greedy_coreset(points[:3], squared(points[:3]), 50, first=0)
        assert sorted(everything.tolist()) == [0, 1, 2]

    def test_it_compares_a_small_share_of_all_pairs(self) -> None:
        """Comparing all 60,000 points with all 3,000 picks takes minutes one by one."""
        g = torch.Generator().manual_seed(0)
        points = torch.randn(60_000, 64, generator=g) * torch.linspace(1, 0.05, 64)
        started = time.process_time()
        chosen = greedy_coreset(points, squared(points), 3000, first=0)
        assert len(chosen.unique()) == 3000
        assert time.process_time() - started < 20


@pytest.mark.parametrize("window", [1, 3, 5])
def test_bank_holds_locally_averaged_patches(window: int) -> None:
    train = clouds(3, 0)
    tensors = fit(train, patch_size=window, coreset_sampling_ratio=1.0).tensors()
    bank = (tensors["bank"] + tensors["origin"]).numpy()
    expected = patches(train, window).reshape(-1, 16)
    assert bank.shape == expected.shape
    distances = cdist(expected, bank)
    assert distances.min(1).max() < 1e-4
    assert distances.min(0).max() < 1e-4


@pytest.mark.parametrize("channels", [(6, 10), (200, 150)])
@pytest.mark.parametrize("neighbors", [1, 3, 9])
def test_scores_and_map_follow_the_paper(neighbors: int, channels: tuple[int, int]) -> None:
    train, test = clouds(6, 0, channels=channels), clouds(3, 1, 0.1, channels)
    detector = fit(train, num_neighbors=neighbors, sigma=0.0)
    tensors = detector.tensors()
    bank = (tensors["bank"].double() + tensors["origin"].double()).numpy()
    assert bank.shape == (57, sum(channels))
    prediction = detector.predict(test)
    for i, asked in enumerate(patches(test)):
        distances = cdist(asked, bank)
        nearest = distances.min(1)
        expected = functional.interpolate(torch.from_numpy(nearest).view(1, 1, 8, 12), size=(64, 96), mode="bilinear")
        np.testing.assert_allclose(prediction.maps[i].numpy(), expected[0, 0].numpy(), rtol=1e-4)
        top = nearest.argmax()
        entry = bank[distances[top].argmin()]
        around = cdist(entry[None], bank)[0].argsort()[:neighbors]
        weight = 1 - np.exp(nearest[top]) / np.exp(distances[top, around]).sum() if neighbors > 1 else 1.0
        assert prediction.scores[i].item() == pytest.approx(weight * nearest[top], rel=1e-4)


def test_smaller_ratio_is_a_prefix_of_the_bank() -> None:
    train = clouds(6, 0)
    large, small = (fit(train, coreset_sampling_ratio=ratio).tensors()["bank"] for ratio in (0.25, 0.05))
    assert torch.equal(large[: len(small)], small)


@pytest.mark.parametrize(
    ("pictures", "ratio", "size"), [(6, 0.25, 144), (7, 0.0149, 10), (3, 0.5 / 288, 1), (5, 1.0, 480)]
)
def test_the_bank_holds_the_whole_part_of_its_share(pictures: int, ratio: float, size: int) -> None:
    """96 patches a picture: 7 x 96 x 0.0149 is 10.01, and there is always one entry."""
    train = clouds(pictures, 0)
    assert len(fit(train, coreset_sampling_ratio=ratio).tensors()["bank"]) == size
    large = fit(train, coreset_sampling_ratio=1.0)
    assert len(large.reconfigured(coreset_sampling_ratio=ratio).tensors()["bank"]) == size


def test_a_loaded_bank_keeps_its_ratio() -> None:
    train = clouds(3, 0)
    loaded = PatchCore(PatchCoreConfig())
    loaded.load_tensors(fit(train).tensors())
    assert loaded.reconfigured(num_neighbors=1).predict(train).scores.isfinite().all()
    with pytest.raises(UsageError, match="coreset_sampling_ratio must stay as it is in a detector that was loaded"):
        loaded.reconfigured(coreset_sampling_ratio=0.05)


def test_several_banks_cost_one_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bank entries that are compared with patches, counted: all prefixes take no more than the largest alone."""
    monkeypatch.setattr("autoad.algorithms.patchcore.multiplies_int8", lambda: False)
    train = clouds(24, 0)
    detector = fit(train, coreset_sampling_ratio=1.0)
    configs = [dataclasses.replace(detector.config, coreset_sampling_ratio=ratio) for ratio in (1.0, 0.6, 0.3, 0.1)]
    compared = []
    for asked in (configs[:1], configs):
        with torch.profiler.profile(record_shapes=True) as profile:
            detector.measure(train[:1], asked)
        shapes = [event.input_shapes for event in profile.events() if event.name == "aten::mm"]
        compared.append(sum(first[0] for first, second in shapes if second[1] == 96))
    assert compared == [24 * 96, 24 * 96]


@pytest.mark.skipif(not multiplies_int8(), reason="the CPU has no instructions for int8, so nothing uses it")
def test_searching_in_int8_first_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autoad.algorithms.patchcore.multiplies_int8", lambda: True)
    monkeypatch.setattr("autoad.algorithms._bank._WORTHWHILE", 1)
    train, test = clouds(12, 0, channels=(60, 100)), clouds(3, 1, 0.1, (60, 100))
    rounded = fit(train, coreset_sampling_ratio=0.5)
    loaded = PatchCore(rounded.config)
    loaded.load_tensors(rounded.tensors())
    shapes = {stage: (*maps.shape[2:], maps.shape[1]) for stage, maps in train.features.items()}
    more = rounded.footprint(12, 3, shapes).predict
    monkeypatch.setattr("autoad.algorithms.patchcore.multiplies_int8", lambda: False)
    plain = fit(train, coreset_sampling_ratio=0.5)
    less = plain.footprint(12, 3, shapes).predict
    assert less < more < 1.5 * less
    for detector in (rounded, loaded):
        assert torch.equal(detector.predict(test).scores, plain.predict(test).scores)
        assert torch.equal(detector.predict(test).maps, plain.predict(test).maps)
    smaller = [detector.reconfigured(coreset_sampling_ratio=0.1).predict(test) for detector in (plain, rounded)]
    assert torch.equal(smaller[0].maps, smaller[1].maps)


def test_sigma_and_neighbors_are_read_at_prediction() -> None:
    train, test = clouds(6, 0), clouds(2, 1)
    detector, other = fit(train, sigma=0.0, num_neighbors=1), fit(train, sigma=2.0, num_neighbors=5)
    expected = [gaussian_filter(m, 2.0, mode="mirror") for m in detector.predict(test).maps.numpy()]
    np.testing.assert_allclose(other.predict(test).maps.numpy(), expected, rtol=1e-4)
    other.config = dataclasses.replace(other.config, sigma=0.0, num_neighbors=1)
    assert torch.equal(other.predict(test).maps, detector.predict(test).maps)
    assert torch.equal(other.predict(test).scores, detector.predict(test).scores)


def test_a_training_picture_is_at_distance_zero() -> None:
    train = clouds(3, 0)
    detector = fit(train, coreset_sampling_ratio=1.0)
    assert detector.predict(train).maps.max() < 1e-5
    assert detector.predict(train).scores.max() < 1e-5


def test_constant_pictures_leave_one_entry_a_place_that_differs() -> None:
    train = clouds(3, 0)
    plain = Inputs(train.image_size, {s: torch.ones_like(m) for s, m in train.features.items()})
    detector = fit(plain, coreset_sampling_ratio=1.0, patch_size=1)
    assert len(detector.tensors()["bank"]) == 1
    assert torch.equal(detector.predict(plain).scores, torch.zeros(3))


def test_defects_are_found_and_located_with_the_bundled_backbone(pictures, given) -> None:
    detector = PatchCore(PatchCoreConfig(image_size=64))
    list(detector.fit(given(pictures(30, 0), detector.needs)))
    good, bad = (given(pictures(15, 1 + b, defect=b), detector.needs) for b in (False, True))
    scores = torch.cat([detector.predict(good).scores, detector.predict(bad).scores])
    assert roc_auc_score([0] * 15 + [1] * 15, scores) > 0.95
    marked = pictures(1, 5)
    marked[:, 40:56, 8:24] = 10
    top = int(detector.predict(given(marked, detector.needs)).maps.argmax())
    assert 36 <= top // 64 < 60
    assert 4 <= top % 64 < 28


def test_what_cannot_be_is_refused() -> None:
    huge = {s: torch.zeros(1).expand(2000, 512, 512 >> s, 512 >> s) for s in (2, 3)}
    with pytest.raises(TrialError, match=r"memory bank .* must be at most 4 GiB but got .* GiB: lower image_size"):
        fit(Inputs((2048, 2048), huge))
    wrongs = ({"patch_size": 2}, {"stages": []}, {"coreset_sampling_ratio": 0}, {"num_neighbors": 0}, {"sigma": -1})
    for wrong in wrongs:
        with pytest.raises(UsageError, match=rf"patchcore.{next(iter(wrong))} must be .* but got"):
            PatchCoreConfig(**wrong)
