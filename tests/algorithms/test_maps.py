import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from autoad.algorithms._maps import gaussian_blur, upsample


@pytest.mark.parametrize(
    ("shape", "sigma", "mode"),
    [((3, 64, 48), 4.0, "mirror"), ((1, 51, 73), 1.3, "mirror"), ((2, 9, 40), 4.0, "nearest")],
)
def test_blur_is_scipys(shape: tuple[int, ...], sigma: float, mode: str) -> None:
    maps = np.random.default_rng(0).random(shape)
    expected = np.stack([gaussian_filter(one, sigma, mode=mode, truncate=4.0) for one in maps])
    np.testing.assert_allclose(gaussian_blur(torch.from_numpy(maps), sigma).numpy(), expected, atol=1e-12)


def test_no_sigma_no_blur() -> None:
    maps = torch.rand(2, 5, 7)
    assert gaussian_blur(maps, 0) is maps


def test_upsampling_keeps_constants_and_order() -> None:
    ramp = torch.linspace(0, 1, 8).expand(1, 4, 8)
    large = upsample(ramp, (33, 65))
    assert large.shape == (1, 33, 65)
    assert bool((large.diff(dim=2) >= -1e-6).all())
    assert torch.equal(upsample(torch.full((1, 3, 3), 2.0), (10, 10)), torch.full((1, 10, 10), 2.0))
