from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import gaussian_kde
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score

from autoad.algorithms import Inputs
from autoad.algorithms.dfkde import DFKDE, DFKDEConfig
from autoad.errors import TrialError, UsageError


def clouds(count: int, seed: int, shift: float = 0.0, channels: tuple[int, ...] = (12,)) -> Inputs:
    """Features of one, two, ... stages whose channels are correlated."""
    g = torch.Generator().manual_seed(seed)
    features = {}
    for i, width in enumerate(channels):
        mix = torch.randn(width, width, generator=torch.Generator().manual_seed(99 + i))
        maps = (torch.randn(count, 4 - i, 3, width, generator=g) @ mix + shift).half()
        features[4 - i] = maps.permute(0, 3, 1, 2)
    return Inputs((64, 48), features)


def fit(train: Inputs, **config: object) -> DFKDE:
    detector = DFKDE(DFKDEConfig(**config))
    assert len(list(detector.fit(train))) == 1
    return detector


@pytest.mark.parametrize("bandwidth", [0.25, 1.0, 4.0])
@pytest.mark.parametrize("channels", [(12,), (12, 7)])
def test_log_density_is_scipys_on_scikit_learns_components(bandwidth: float, channels: tuple[int, ...]) -> None:
    train, test = clouds(60, 0, channels=channels), clouds(9, 1, 0.3, channels)
    stages = tuple(sorted(train.features))
    detector = fit(train, stages=stages, n_pca_components=5, bandwidth=bandwidth)

    def pooled(inputs: Inputs) -> np.ndarray:
        return np.concatenate([inputs.features[s].double().mean((2, 3)).numpy() for s in stages], axis=1)

    pca = PCA(5, svd_solver="full").fit(pooled(train))
    longest = np.linalg.norm(pca.transform(pooled(train)), axis=1).max()
    kde = gaussian_kde(pca.transform(pooled(train)).T / longest, lambda k: k.scotts_factor() * bandwidth)
    expected = -kde.logpdf(pca.transform(pooled(test)).T / longest)
    np.testing.assert_allclose(detector.predict(test).scores.numpy(), expected, rtol=1e-5)


def test_norm_scaling_compares_directions() -> None:
    train, test = clouds(60, 0), clouds(9, 1)
    detector = fit(train, n_pca_components=4, feature_scaling_method="norm")

    def pooled(inputs: Inputs) -> np.ndarray:
        return inputs.features[4].double().mean((2, 3)).numpy()

    pca = PCA(4, svd_solver="full").fit(pooled(train))
    known, asked = (pca.transform(pooled(i)) for i in (train, test))
    kde = gaussian_kde((known / np.linalg.norm(known, axis=1, keepdims=True)).T)
    expected = -kde.logpdf((asked / np.linalg.norm(asked, axis=1, keepdims=True)).T)
    np.testing.assert_allclose(detector.predict(test).scores.numpy(), expected, rtol=1e-5)


def test_hopeless_pictures_still_differ() -> None:
    """A density in float32 is zero for all of these; its logarithm is not."""
    detector = fit(clouds(60, 0))
    scores = torch.cat([detector.predict(clouds(1, 1, shift)).scores for shift in (20.0, 40.0, 80.0, 160.0)])
    assert (scores.diff() > 100).all()


@pytest.mark.parametrize(("count", "wanted", "kept"), [(60, 5, 5), (60, 100, 12), (6, 100, 5)])
def test_components_are_as_many_as_the_data_span(count: int, wanted: int, kept: int) -> None:
    assert fit(clouds(count, 0), n_pca_components=wanted).tensors()["axes"].shape == (12, kept)


def test_duplicated_channels_and_pictures_do_no_harm() -> None:
    train = clouds(10, 0)
    maps = train.features[4]
    double = Inputs(train.image_size, {4: torch.cat([maps, maps], 1)[torch.arange(20) % 10]})
    detector = fit(double, n_pca_components=24)
    assert detector.tensors()["axes"].shape[1] <= 9
    assert detector.predict(double).scores.isfinite().all()


def test_defects_are_found_with_the_bundled_backbone(pictures, given) -> None:
    detector = DFKDE(DFKDEConfig(image_size=64, n_pca_components=8))
    list(detector.fit(given(pictures(30, 0), detector.needs)))
    good, bad = (given(pictures(15, 1 + b, defect=b), detector.needs) for b in (False, True))
    scores = torch.cat([detector.predict(good).scores, detector.predict(bad).scores])
    assert roc_auc_score([0] * 15 + [1] * 15, scores) > 0.9


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(TrialError, match="at least 2 training pictures but got 1"):
        fit(clouds(1, 0))
    for wrong in ({"bandwidth": 0}, {"stages": []}, {"feature_scaling_method": "max"}, {"n_pca_components": 0}):
        with pytest.raises(UsageError, match=rf"dfkde.{next(iter(wrong))} must be .* but got"):
            DFKDEConfig(**wrong)
