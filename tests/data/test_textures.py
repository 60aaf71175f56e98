from __future__ import annotations

import numpy as np
import pytest

from autoad.data._textures import foreign_patch, heal, perlin_noise, procedural


def test_perlin_noise_is_smooth_and_vanishes_on_its_lattice() -> None:
    noise = perlin_noise((201, 201), 4, np.random.default_rng(0))
    fine = np.abs(np.diff(noise, axis=0)).max()
    assert fine < 0.1 * (noise.max() - noise.min())
    # Lattice points lie between pixels at multiples of 201 / 4; gradient noise is zero there.
    around = [noise[round(i * 201 / 4) - 1, round(j * 201 / 4) - 1] for i in (1, 2, 3) for j in (1, 2, 3)]
    assert np.abs(around).max() < 0.05 < np.abs(noise).max()


@pytest.mark.parametrize("shape", [(1, 1), (7, 300), (64, 48)])
def test_textures_fill_their_shape_with_grey_levels(shape: tuple[int, int]) -> None:
    foreign = np.random.default_rng(0).integers(0, 256, size=(20, 30, 3), dtype=np.uint8)
    for seed in range(12):
        rng = np.random.default_rng(seed)
        for texture in (procedural(shape, rng), foreign_patch(foreign, shape, rng)):
            assert texture.shape == (*shape, 3)
            assert texture.min() >= 0
            assert texture.max() <= 255


def disc(side: int, radius: float) -> np.ndarray:
    y, x = np.mgrid[:side, :side] - side // 2
    return np.hypot(y, x) < radius


def test_healing_goes_on_with_a_slope() -> None:
    slope = np.repeat(np.linspace(50, 200, 80, dtype=np.float32)[None, :, None], 80, axis=0).repeat(3, axis=2)
    hole = disc(80, 12)
    damaged = slope.copy()
    damaged[hole] = 0
    healed = heal(damaged, hole, np.random.default_rng(0))
    np.testing.assert_array_equal(healed[~hole], slope[~hole])
    # The plane is Laplace's solution; a slope of 1.9 levels a pixel over a hole of 24 pixels spans 45.
    assert np.abs(healed - slope)[hole].mean() < 5
    assert not damaged[hole].any(), "what was handed in must stay as it was"


def test_healing_keeps_to_two_colours_and_to_the_grain() -> None:
    board = np.full((60, 60, 3), 255, dtype=np.float32)
    board[:30] = 0
    board[29:30] = 120  # a soft edge, too rare to be a colour of its own
    healed = heal(board, disc(60, 10), np.random.default_rng(0))
    assert set(np.unique(healed[disc(60, 10)])) <= {0.0, 255.0}

    rough = np.random.default_rng(1).normal(120, 6, size=(60, 60, 1)).astype(np.float32).repeat(3, axis=2)
    filling = heal(rough, disc(60, 10), np.random.default_rng(0))[disc(60, 10)][:, 0]
    assert 2 < filling.std() < 12


def test_nothing_to_heal_and_nothing_to_heal_from() -> None:
    pixels = np.random.default_rng(0).uniform(0, 255, size=(9, 9, 3)).astype(np.float32)
    for hole in (np.zeros((9, 9), dtype=bool), np.ones((9, 9), dtype=bool)):
        np.testing.assert_array_equal(heal(pixels, hole, np.random.default_rng(0)), pixels)
