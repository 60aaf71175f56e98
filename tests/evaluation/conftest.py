from __future__ import annotations

import functools

import numpy as np
import pytest
from scipy import ndimage


@functools.cache
def _draw_maps(number: int, size: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    noise = rng.gamma(1.0, size=(number, size, size))  # a heavy tail, as distances have
    masks = np.zeros(noise.shape, dtype=bool)
    for picture in range(number // 2):
        for _ in range(rng.integers(1, 4)):
            height, width = rng.integers(2, size // 4, 2)
            top, left = rng.integers(0, size - height), rng.integers(0, size - width)
            masks[picture, top : top + height, left : left + width] = True
    noise[masks] *= rng.uniform(1.0, 2.5, size=masks.sum())
    maps = np.stack([ndimage.gaussian_filter(one, size / 64) for one in noise])
    maps = (maps**4).astype(np.float32)
    maps.flags.writeable = masks.flags.writeable = False  # shared between tests
    return maps, masks


@pytest.fixture(scope="session")
def draw_maps():
    """Smooth heavy-tailed maps, half of the pictures with up to three defects: ``(number, size, seed)``."""
    return _draw_maps
