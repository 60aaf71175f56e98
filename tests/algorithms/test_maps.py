import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, map_coordinates

from autoad.algorithms._maps import enlarge, gaussian_blur, upsample


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


@pytest.mark.parametrize("sigma", [0.0, 1.3, 4.0])
@pytest.mark.parametrize("size", [(33, 65), (64, 48), (12, 20)])
def test_enlarging_is_upsampling_and_then_blurring(sigma: float, size: tuple[int, int]) -> None:
    """(12, 20) is smaller than the kernel of sigma 4."""
    maps = np.random.default_rng(2).random((3, 6, 10))
    mode = "mirror" if min(size) > int(4 * sigma + 0.5) else "nearest"
    large = upsample(torch.from_numpy(maps), size).numpy()
    expected = np.stack([gaussian_filter(one, sigma, mode=mode, truncate=4.0) if sigma else one for one in large])
    np.testing.assert_allclose(enlarge(torch.from_numpy(maps), size, sigma).numpy(), expected, atol=1e-12)


def test_upsampling_interpolates_between_pixel_centres() -> None:
    maps = np.random.default_rng(1).random((2, 5, 7))
    rows, columns = ((np.arange(new) + 0.5) * old / new - 0.5 for new, old in ((33, 5), (65, 7)))
    grid = np.meshgrid(rows, columns, indexing="ij")
    expected = np.stack([map_coordinates(one, grid, order=1, mode="nearest") for one in maps])
    np.testing.assert_allclose(upsample(torch.from_numpy(maps), (33, 65)).numpy(), expected, atol=1e-12)
