from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score

from autoad.algorithms import Inputs
from autoad.algorithms.dfm import DFM, DFMConfig
from autoad.errors import TrialError, UsageError


def clouds(count: int, seed: int, size: tuple[int, int] = (8, 12), channels: int = 6) -> Inputs:
    """Features of low rank with some noise."""
    basis = torch.randn(5, size[0] * size[1] * channels, generator=torch.Generator().manual_seed(99))
    g = torch.Generator().manual_seed(seed)
    maps = torch.randn(count, 5, generator=g) @ basis + 0.2 * torch.randn(count, basis.shape[1], generator=g) + 3
    return Inputs((64, 96), {3: maps.view(count, *size, channels).half().permute(0, 3, 1, 2)})


def fit(train: Inputs, **config: object) -> DFM:
    detector = DFM(DFMConfig(**config))
    assert len(list(detector.fit(train))) == 1
    return detector


def pooled(inputs: Inputs, window: int) -> np.ndarray:
    """Averages over windows by NumPy, the cells that the border cuts included."""
    maps = inputs.features[3].double().permute(0, 2, 3, 1).numpy()
    rows, columns = (range(0, length, window) for length in maps.shape[1:3])
    cells = [[maps[:, i : i + window, j : j + window].mean((1, 2)) for j in columns] for i in rows]
    return np.array(cells).transpose(2, 0, 1, 3)


# More features than pictures, fewer, no pooling, and windows that do not fit.
CASES = [(20, 4, (8, 12)), (60, 4, (8, 12)), (20, 1, (8, 12)), (20, 4, (9, 13)), (20, 8, (3, 5))]


@pytest.mark.parametrize(("count", "window", "size"), CASES)
@pytest.mark.parametrize("level", [0.6, 0.97])
def test_reconstruction_error_is_scikit_learns(count: int, window: int, size: tuple[int, int], level: float) -> None:
    train, test = clouds(count, 0, size), clouds(7, 1, size)
    detector = fit(train, pooling_kernel_size=window, pca_level=level)
    known, asked = (pooled(inputs, min(window, *size)) for inputs in (train, test))
    pca = PCA(level, svd_solver="full").fit(known.reshape(count, -1))
    flat = asked.reshape(7, -1)
    residual = (flat - pca.inverse_transform(pca.transform(flat))).reshape(asked.shape)
    prediction = detector.predict(test)
    assert detector.tensors()["components"].shape[1] == pca.n_components_
    np.testing.assert_allclose(prediction.scores.numpy(), (residual**2).sum((1, 2, 3)), rtol=2e-4)
    errors = torch.from_numpy((residual**2).sum(3))[:, None]
    expected = torch.nn.functional.interpolate(errors, size=(64, 96), mode="bilinear")[:, 0]
    np.testing.assert_allclose(prediction.maps.numpy(), expected.numpy(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("count", [20, 60])
def test_likelihood_is_scipys_within_scikit_learns_components(count: int) -> None:
    train, test = clouds(count, 0), clouds(7, 1)
    detector = fit(train, score_type="nll", pca_level=0.9)
    pca = PCA(0.9, svd_solver="full").fit(pooled(train, 4).reshape(count, -1))
    known, asked = (pca.transform(pooled(i, 4).reshape(len(i), -1)) for i in (train, test))
    gaussian = multivariate_normal(np.zeros(known.shape[1]), np.atleast_2d(np.cov(known.T)))
    prediction = detector.predict(test)
    assert prediction.maps is None
    np.testing.assert_allclose(prediction.scores.numpy(), -gaussian.logpdf(asked), rtol=1e-4)


def test_score_type_is_read_at_prediction() -> None:
    train, test = clouds(20, 0), clouds(7, 1)
    tensors = fit(train).tensors()
    other = DFM(DFMConfig(score_type="nll"))
    other.load_tensors(tensors)
    assert torch.equal(other.predict(test).scores, fit(train, score_type="nll").predict(test).scores)


def test_many_features_of_few_pictures_are_quick() -> None:
    """Pictures are compared with pictures: 100,000 features squared would never end."""
    train = clouds(24, 0, (40, 50), 50)
    started = time.process_time()
    assert fit(train, pooling_kernel_size=1).tensors()["components"].shape[0] == 100_000
    assert time.process_time() - started < 10


def test_the_map_points_at_the_defect(pictures, given) -> None:
    detector = DFM(DFMConfig(image_size=64, pooling_kernel_size=1))
    list(detector.fit(given(pictures(30, 0), detector.needs)))
    plain = pictures(1, 5)
    marked = plain.clone()
    marked[:, 32:64, :32] = 10
    score, other = (detector.predict(given(p, detector.needs)) for p in (marked, plain))
    assert score.scores > other.scores
    rise = (score.maps - other.maps)[0]
    assert rise[40:, :24].mean() > 3 * rise[:24, 40:].mean()


@pytest.mark.parametrize("score_type", ["fre", "nll"])
def test_defects_are_found_with_the_bundled_backbone(score_type: str, pictures, given) -> None:
    detector = DFM(DFMConfig(image_size=64, score_type=score_type, pca_level=0.9))
    list(detector.fit(given(pictures(30, 0), detector.needs)))
    good, bad = (given(pictures(15, 1 + b, defect=b), detector.needs) for b in (False, True))
    scores = torch.cat([detector.predict(good).scores, detector.predict(bad).scores])
    assert roc_auc_score([0] * 15 + [1] * 15, scores) > 0.9


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(TrialError, match="at least 2 training pictures but got 1"):
        fit(clouds(1, 0))
    huge = Inputs((4096, 4096), {3: torch.zeros(1).expand(3000, 64, 512, 512)})
    with pytest.raises(TrialError, match=r"at most 4 GiB but got .* raise pooling_kernel_size"):
        fit(huge, pooling_kernel_size=1)
    for wrong in ({"pca_level": 1.0}, {"stage": 7}, {"score_type": "mse"}, {"pooling_kernel_size": 0}):
        with pytest.raises(UsageError, match=rf"dfm.{next(iter(wrong))} must be .* but got"):
            DFMConfig(**wrong)
