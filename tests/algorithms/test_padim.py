from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from sklearn.metrics import roc_auc_score
from torch.nn import functional

from autoad.algorithms import Inputs
from autoad.algorithms.padim import PaDiM, PaDiMConfig
from autoad.errors import TrialError, UsageError

SHAPES = {1: (9, 13, 6), 2: (5, 7, 8), 3: (3, 4, 10)}


def clouds(count: int, seed: int, scale: float = 1.0, shift: float = 0.0) -> Inputs:
    g = torch.Generator().manual_seed(seed)
    features = {}
    for stage, shape in SHAPES.items():
        place = torch.randn(*shape, generator=torch.Generator().manual_seed(stage))
        maps = (place + 0.5 * torch.randn(count, *shape, generator=g) + shift) * scale
        features[stage] = maps.half().permute(0, 3, 1, 2)
    return Inputs((36, 52), features)


def fit(train: Inputs, seed: int = 0, **config: object) -> PaDiM:
    detector = PaDiM(PaDiMConfig(**{"outlier_deviations": 0.0} | config), seed=seed)
    assert len(list(detector.fit(train))) == 1
    return detector


def drawn(detector: PaDiM) -> list[int]:
    """Channels chosen, counted through all stages."""
    chosen, first = [], 0
    for stage, shape in SHAPES.items():
        chosen += [first + int(channel) for channel in detector.tensors().get(f"channels_{stage}", [])]
        first += shape[2]
    return chosen


def joined(inputs: Inputs, channels: np.ndarray) -> np.ndarray:
    """All stages at the first one's size, by torch's nearest neighbour: ``[N, h, w, F]`` float64."""
    maps = [functional.interpolate(inputs.features[s].double(), size=SHAPES[1][:2]) for s in SHAPES]
    return torch.cat(maps, 1).numpy()[:, channels].transpose(0, 2, 3, 1)


@pytest.mark.parametrize(
    ("count", "width", "scale"), [(40, 1, 1.0), (40, 7, 1.0), (6, 15, 1.0), (40, 100, 1.0), (40, 9, 300.0)]
)
def test_map_is_the_mahalanobis_distance(count: int, width: int, scale: float) -> None:
    train, test = clouds(count, 0, scale), clouds(3, 1, scale, shift=0.2)
    detector = fit(train, n_features=width, sigma=0.0)
    channels = np.array(drawn(detector))
    assert len(set(channels)) == len(channels) == min(width, 24)
    known, asked = joined(train, channels), joined(test, channels)
    expected = np.empty((3, *SHAPES[1][:2]))
    for i, j in np.ndindex(*SHAPES[1][:2]):
        covariance = np.cov(known[:, i, j].T) + 0.01 * np.eye(len(channels))
        centred = asked[:, i, j] - known[:, i, j].mean(0)
        expected[:, i, j] = np.sqrt(np.einsum("nf,fg,ng->n", centred, np.linalg.inv(covariance), centred))
    expected = functional.interpolate(torch.from_numpy(expected)[:, None], size=(36, 52), mode="bilinear")[:, 0].numpy()
    prediction = detector.predict(test)
    np.testing.assert_allclose(prediction.maps.numpy(), expected, rtol=1e-3)
    np.testing.assert_allclose(prediction.scores.numpy(), expected.max((1, 2)), rtol=1e-3)


def test_sigma_is_read_at_prediction_and_blurs_the_map() -> None:
    train, test = clouds(20, 0), clouds(2, 1)
    sharp, detector = fit(train, sigma=0.0), fit(train, sigma=1.5)
    expected = [gaussian_filter(m, 1.5, mode="mirror") for m in sharp.predict(test).maps.numpy()]
    np.testing.assert_allclose(detector.predict(test).maps.numpy(), expected, rtol=1e-4)
    detector.config = dataclasses.replace(detector.config, sigma=0.0)
    assert torch.equal(detector.predict(test).maps, sharp.predict(test).maps)


def test_seed_chooses_the_channels() -> None:
    chosen = [drawn(fit(clouds(8, 0), seed=seed, n_features=9)) for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]


def test_a_stage_keeps_one_block_for_each_of_its_cells() -> None:
    tensors = fit(clouds(8, 0), n_features=24).tensors()
    # Of 9 x 13 places those in one cell of stage 2 all lie in one cell of stage 3, but for a few at borders.
    groups = {(row * 5 // 9, row * 3 // 9, column * 7 // 13, column * 4 // 13) for row, column in np.ndindex(9, 13)}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items() if name.startswith("whitener")}
    assert shapes == {"whitener_3": (12, 10, 10), "whitener_2": (len(groups), 8, 18), "whitener_1": (117, 6, 24)}
    assert 12 < len(groups) < 60


def test_a_picture_alone_is_measured_as_in_a_batch() -> None:
    """At the size of real features, where products of different shapes take different ways."""
    g = torch.Generator().manual_seed(0)
    features = {s: torch.randn(6, 64 >> s, 64 >> s, 40, generator=g).permute(0, 3, 1, 2) for s in (1, 2)}
    batch = Inputs((64, 64), features)
    detector = fit(batch, stages=(1, 2), n_features=50)
    alone = [detector.predict(batch[i : i + 1]) for i in range(6)]
    together = detector.predict(batch)
    assert torch.equal(together.scores, torch.cat([one.scores for one in alone]))
    assert torch.equal(together.maps, torch.cat([one.maps for one in alone]))


def test_tensors_of_another_shape_of_model_are_refused() -> None:
    detector = PaDiM(PaDiMConfig())
    with pytest.raises(KeyError, match="channels_1"):
        detector.load_tensors({"channels": torch.arange(3), "mean": torch.zeros(4, 3), "whitener": torch.zeros(4, 6)})


def test_defects_are_found_and_located_with_the_bundled_backbone(pictures, given) -> None:
    detector = PaDiM(PaDiMConfig(image_size=64))
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
    with pytest.raises(TrialError, match="at least 2 training pictures but got 1"):
        fit(clouds(1, 0))
    features = {s: torch.zeros(1).expand(200, 300, 224 >> s, 224 >> s) for s in (1, 2, 3)}
    with pytest.raises(TrialError, match=r"padim's covariances must be at most 4 GiB but got 5\.\d+ GiB: lower n_feat"):
        fit(Inputs((448, 448), features), n_features=550)
    for wrong in (
        {"regularization": 0.0},
        {"stages": [2, 1]},
        {"n_features": 0},
        {"outlier_deviations": -1.0},
        {"sigma": -1.0},
    ):
        with pytest.raises(UsageError, match=rf"padim.{next(iter(wrong))} must be .* but got"):
            PaDiMConfig(**wrong)


def test_a_picture_that_is_odd_at_a_place_is_left_out_there_alone() -> None:
    """Two pictures, each in one cell of the deepest stage, and in the channels of the first."""
    train = clouds(60, 0)
    train.features[1][0, :, 1, 1] += 30
    train.features[1][1, :, 8, 12] += 30
    robust, plain = (fit(train, n_features=24, sigma=0.0, outlier_deviations=limit) for limit in (6.0, 0.0))
    test = clouds(2, 1)
    test.features[1][:, :, 1, 1] += 30
    found, usual = (detector.measure(test, (detector.config,))[0] for detector in (robust, plain))
    rows, columns = np.arange(9) * 3 // 9, np.arange(13) * 4 // 13
    cells = [np.ix_(rows == 0, columns == 0), np.ix_(rows == 2, columns == 3)]
    elsewhere = np.ones(SHAPES[1][:2], dtype=bool)
    for odd, cell in enumerate(cells):
        without = fit(train[[n for n in range(60) if n != odd]], n_features=24, sigma=0.0)
        expected = without.measure(test, (without.config,))[0]
        inside = np.zeros_like(elsewhere)
        inside[cell] = True
        np.testing.assert_allclose(found[:, inside], expected[:, inside], rtol=1e-4)
        elsewhere &= ~inside
    assert elsewhere.sum() == 117 - 12 - 9
    np.testing.assert_array_equal(found[:, elsewhere], usual[:, elsewhere])
    assert (found[:, 1, 1] > 5 * usual[:, 1, 1]).all()


def test_of_few_pictures_none_is_left_out_and_of_equal_ones_neither() -> None:
    few = clouds(19, 0)
    few.features[1][0] += 100
    alike = Inputs((36, 52), {stage: maps[:1].expand(30, -1, -1, -1) for stage, maps in clouds(1, 0).features.items()})
    test = clouds(2, 1)
    for train in (few, alike):
        one, other = (fit(train, n_features=24, outlier_deviations=limit).predict(test) for limit in (6.0, 0.0))
        assert torch.equal(one.maps, other.maps)


def test_where_most_pictures_are_far_somewhere_all_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each place's outliers are few, but all places of a cell may have had others."""
    train, test = clouds(30, 0), clouds(2, 1)
    plain = fit(train, n_features=24).predict(test)

    def others(squares: torch.Tensor, deviations: float) -> torch.Tensor:
        places, pictures = squares.shape
        return torch.arange(pictures) % 3 == torch.arange(places)[:, None] % 3

    monkeypatch.setattr("autoad.algorithms.padim._outliers", others)
    assert torch.equal(fit(train, n_features=24, outlier_deviations=6.0).predict(test).maps, plain.maps)


def test_of_pictures_of_one_kind_hardly_any_is_left_out() -> None:
    train = clouds(60, 0)
    detector = PaDiM(PaDiMConfig(n_features=24), seed=0)
    counted: list[float] = []
    original = PaDiM._fit_cells

    def count(self, *arguments):
        found = original(self, *arguments)
        counted.append(float(found.float().mean()))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PaDiM, "_fit_cells", count)
        list(detector.fit(train))
    assert counted[0] < 0.01
