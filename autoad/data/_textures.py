"""Pixels that were not in the picture: noise, foreign textures, and what a hole is filled with."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

__all__ = ["foreign_patch", "heal", "perlin_noise", "procedural"]

_Pixels = NDArray[np.float32]


def perlin_noise(shape: tuple[int, int], cells: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Gradient noise (Perlin, 1985) with ``cells`` lattice cells along each side."""
    angles = rng.uniform(0, 2 * np.pi, size=(cells + 1, cells + 1))
    gradients = np.stack([np.sin(angles), np.cos(angles)]).astype(np.float32)
    y, x = ((np.arange(side, dtype=np.float32) + 0.5) * cells / side for side in shape)
    row, column = y.astype(np.intp)[:, None], x.astype(np.intp)[None, :]
    dy, dx = y[:, None] - row, x[None, :] - column

    def corner(down: int, right: int) -> NDArray[np.float32]:
        toward_y, toward_x = gradients[:, row + down, column + right]
        return np.asarray(toward_y * (dy - down) + toward_x * (dx - right))

    fade_y, fade_x = (d**3 * (d * (6 * d - 15) + 10) for d in (dy, dx))
    top = corner(0, 0) + fade_x * (corner(0, 1) - corner(0, 0))
    bottom = corner(1, 0) + fade_x * (corner(1, 1) - corner(1, 0))
    return np.asarray(top + fade_y * (bottom - top))


def foreign_patch(foreign: NDArray[np.uint8], shape: tuple[int, int], rng: np.random.Generator) -> _Pixels:
    """Another picture's pixels, flipped, shifted and with its channels shuffled, tiled to ``shape``."""
    texture = foreign[:: rng.choice((-1, 1)), :: rng.choice((-1, 1)), rng.permutation(3)]
    rows = (np.arange(shape[0]) + rng.integers(texture.shape[0])) % texture.shape[0]
    columns = (np.arange(shape[1]) + rng.integers(texture.shape[1])) % texture.shape[1]
    shifted = texture[rows][:, columns]
    # Most parts look alike: without a shift of level, one's picture under another's mask would hardly show.
    return np.asarray((shifted + np.float32(rng.uniform(-60, 60))).clip(0, 255))


def procedural(shape: tuple[int, int], rng: np.random.Generator) -> _Pixels:
    """Two colours mixed by stripes, by fine noise or by clouds, ``[*shape, 3]``."""
    height, width = shape
    dark, light = rng.uniform(0, 255, size=(2, 3)).astype(np.float32)
    kind = rng.integers(3)
    if kind == 0:
        angle, period = rng.uniform(0, np.pi), rng.uniform(4, 24)
        y, x = np.mgrid[:height, :width]
        mix = 0.5 + 0.5 * np.sin(2 * np.pi * (y * np.sin(angle) + x * np.cos(angle)) / period)
    elif kind == 1:
        mix = rng.uniform(size=(height, width))
    else:
        mix = 0.5 + sum(perlin_noise((height, width), 4 * 2**o, rng) / 2**o for o in range(4))
    return np.asarray(dark + mix[..., None].clip(0, 1).astype(np.float32) * (light - dark))


def heal(pixels: _Pixels, hole: NDArray[np.bool_], rng: np.random.Generator) -> _Pixels:
    """``[h, w, 3]`` pixels with what lies in the hole replaced by a smooth continuation of what lies around it.

    The continuation comes near the solution of Laplace's equation. Each pixel then takes the most similar colour of
    those that are common around, so that a picture of two colours keeps to them, with grain as fine as theirs. A hole
    without surroundings is left as it was.
    """
    healed = pixels.copy()
    if hole.all() or not hole.any():
        return healed
    margin = round(float(ndimage.distance_transform_edt(hole).max())) + 2
    box = tuple(
        slice(max(0, inner.start - margin), inner.stop + margin)
        for inner in ndimage.find_objects(hole.astype(np.int8))[0]
    )
    near, hole = pixels[box], hole[box]
    around = near[~hole]
    palette = around[rng.integers(len(around), size=64)]
    common = (np.linalg.norm(palette[:, None] - palette, axis=2) < 20).sum(axis=1) > 3
    palette = palette[common] if common.any() else palette
    filling = _relaxed(near, hole)[hole]
    nearest = ((palette**2).sum(axis=1) - 2 * filling @ palette.T).argmin(axis=1)
    grain = 1.4826 * np.median(np.abs(near - _blurred(near, 1.0))[~hole])
    healed[box][hole] = palette[nearest] + rng.normal(0, grain, size=(len(nearest), 1))
    return healed


def _relaxed(pixels: _Pixels, hole: NDArray[np.bool_]) -> _Pixels:
    """The hole filled from around: a guess by every second pixel, and so on down, that is smoothed at each scale."""
    filled = pixels.copy()
    coarse = hole[::2, ::2]
    if coarse.any() and not coarse.all():
        guess = _relaxed(pixels[::2, ::2], coarse).repeat(2, axis=0).repeat(2, axis=1)
        filled[hole] = guess[: hole.shape[0], : hole.shape[1]][hole]
    else:
        nearest = ndimage.distance_transform_edt(hole, return_distances=False, return_indices=True)
        filled = pixels[tuple(nearest)]
    for sigma in (2.0, 1.0):
        filled[hole] = _blurred(filled, sigma)[hole]
    return filled


def _blurred(pixels: _Pixels, sigma: float) -> _Pixels:
    return np.asarray(ndimage.gaussian_filter(pixels, (sigma, sigma, 0), truncate=2.0))
