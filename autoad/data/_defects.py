"""How each kind of synthetic defect is drawn: arrays in, arrays out.

Sizes are shares of the part's scale (the side of the square with its area) and, like contrasts, log-uniform from subtle
to plain. Published ranges are upper bounds: real defects are often smaller than what a network is best trained with.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from autoad.data._foreground import Part
from autoad.data._textures import foreign_patch, heal, perlin_noise, procedural

__all__ = ["KINDS", "Canvas", "draw_defect"]

_VISIBLE = 8  # grey levels by which a pixel must change to belong to the mask
_LEAST = 1e-4  # of the part's area must change visibly
_ON_PART = 0.8  # of a mask must lie on the part
_ATTEMPTS = 20

_Pixels = NDArray[np.float32]
_Mask = NDArray[np.bool_]
_Weight = NDArray[np.float32]
_Window = tuple[slice, slice]
_Patch = tuple[_Window, _Pixels]
_Point = tuple[int, int]
_Offsets = tuple[NDArray[np.float32], NDArray[np.float32]]


@dataclasses.dataclass(frozen=True)
class Canvas:
    """What a defect is drawn on.

    Attributes:
        image: ``[H, W, 3]``.
        part: where in it the part is.
        foreign: ``[h, w, 3]``, another picture, which lends its texture.
    """

    image: NDArray[np.uint8]
    part: Part
    foreign: NDArray[np.uint8]


def draw_defect(
    image: NDArray[np.uint8], part: Part, foreign: NDArray[np.uint8], kind: str, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], _Mask]:
    """A defective copy ``[H, W, 3]`` and the mask ``[H, W]`` of what changed, drawn anew until that is visible.

    A picture without colour stays one. At least four fifths of the mask lie on the part.
    """
    canvas = Canvas(image, part, foreign)
    grey = bool((image == image[..., :1]).all())
    least = max(1.0, _LEAST * part.scale**2)
    defective, mask = image.copy(), np.zeros(image.shape[:2], dtype=np.bool_)
    for _ in range(_ATTEMPTS):
        window, pixels = KINDS[kind](canvas, rng)
        before = image[window]
        if grey:
            pixels = np.broadcast_to(pixels.mean(axis=2, keepdims=True), pixels.shape)
        changed = np.rint(pixels).clip(0, 255).astype(np.uint8)
        visible = np.abs(changed.astype(np.int16) - before).max(axis=2) >= _VISIBLE
        if visible.sum() < least:
            continue
        # Pixels that match by chance inside a defect belong to it; those that fade out around it do not.
        touched = (changed != before).any(axis=2)
        covered = (ndimage.binary_closing(visible, np.ones((3, 3)), iterations=2) & touched) | visible
        if (covered & part.mask[window]).sum() >= _ON_PART * covered.sum():
            mask[window] = covered
            defective[window] = np.where(covered[..., None], changed, before)
            return defective, mask
    # A picture so uniform, or so small, that nothing shows: half the range away is visible on any ground.
    mask[_around(_place(part, rng), part.scale / 16, mask.shape)] = True
    mask &= part.mask
    defective[mask] += np.uint8(128)
    return defective, mask


def _cutpaste(canvas: Canvas, rng: np.random.Generator) -> _Patch:
    """CutPaste (Li et al., 2021): a rectangle of the part, its colours jittered, pasted elsewhere on it.

    The paper's areas go from 2 % to 15 % and its aspect ratios to 3.3; here areas begin at .3 %.
    """
    side = canvas.part.scale * np.sqrt(_log_uniform(rng, 0.003, 0.15))
    aspect = np.sqrt(_log_uniform(rng, 0.3, 3.3))
    return _pasted(canvas, side * aspect, side / aspect, 0.0, rng)


def _scar(canvas: Canvas, rng: np.random.Generator) -> _Patch:
    """CutPaste-scar (Li et al., 2021): a long thin rectangle of the part, pasted elsewhere at an angle.

    The paper's are 2 to 16 pixels wide and 10 to 25 long in pictures of 256.
    """
    width = _log_uniform(rng, 2 / 256, 16 / 256)
    length = max(width, _log_uniform(rng, 10 / 256, 25 / 256))
    return _pasted(canvas, canvas.part.scale * width, canvas.part.scale * length, rng.uniform(0, np.pi), rng)


def _pasted(canvas: Canvas, height: float, width: float, angle: float, rng: np.random.Generator) -> _Patch:
    shape = canvas.part.mask.shape
    source, target = _place(canvas.part, rng), _place(canvas.part, rng)
    window = _around(target, np.hypot(height, width) / 2, shape)
    down, right = _turned(_offsets(window, target), -angle)
    inside = (np.abs(down) <= height / 2) & (np.abs(right) <= width / 2) & canvas.part.mask[window]
    rows, columns = (
        np.rint(at + offset).astype(np.intp).clip(0, side - 1)
        for at, offset, side in zip(source, (down, right), shape, strict=True)
    )
    jitter = _log_uniform(rng, 0.03, 0.3)
    patch = canvas.image[rows, columns] * rng.uniform(1 - jitter, 1 + jitter, size=3).astype(np.float32)
    return _blended(canvas, window, inside.astype(np.float32), patch)


def _perlin(canvas: Canvas, rng: np.random.Generator) -> _Patch:
    """A foreign texture blended in under a thresholded Perlin noise mask, as in DRAEM (Zavrtanik et al., 2021)."""
    window, part = _cropped((slice(None), slice(None)), canvas.part.mask)
    noise = perlin_noise(part.shape, int(rng.integers(2, 9)), rng)
    area = _log_uniform(rng, 0.005, 0.15)
    regions, _ = ndimage.label((noise >= np.quantile(noise[part], 1 - area)) & part)
    sizes = np.bincount(regions.ravel())[1:]
    large = 1 + np.flatnonzero(sizes >= 0.2 * sizes.max())
    mask = np.isin(regions, rng.choice(large, size=min(len(large), int(rng.integers(1, 4))), replace=False))
    window, mask = _cropped(window, mask)
    texture = foreign_patch(canvas.foreign, mask.shape, rng) if rng.random() < 0.5 else procedural(mask.shape, rng)
    opacity = np.float32(_log_uniform(rng, 0.15, 1.0))
    return _blended(canvas, window, opacity * mask, texture)


def _scratch(canvas: Canvas, rng: np.random.Generator) -> _Patch:
    """A thin curved line (a quadratic Bezier curve), lighter or darker than its ground, with soft edges."""
    shape = canvas.part.mask.shape
    start = np.array(_place(canvas.part, rng))
    angle = rng.uniform(0, 2 * np.pi)
    length = _size(canvas, rng, 0.08, 0.5)
    along = np.array([np.sin(angle), np.cos(angle)])
    bend = rng.uniform(-0.25, 0.25) * length * along[::-1] * (1, -1)
    t = np.linspace(0, 1, 4 * int(length) + 2)[:, None]
    middle, end = start + along * length / 2 + bend, start + along * length
    points = np.rint((1 - t) ** 2 * start + 2 * t * (1 - t) * middle + t**2 * end).astype(np.intp)
    points = points[((points >= 0) & (points < shape)).all(axis=1)]
    points = points[canvas.part.mask[tuple(points.T)]]
    radius = canvas.part.scale * _log_uniform(rng, 0.0015, 0.008)
    first, last = points.min(axis=0) - int(radius + 2), points.max(axis=0) + int(radius + 3)
    window = (slice(max(0, first[0]), last[0]), slice(max(0, first[1]), last[1]))
    off = np.ones(canvas.image[window].shape[:2], dtype=np.bool_)
    off[tuple((points - (window[0].start, window[1].start)).T)] = False
    weight = (radius + 1 - ndimage.distance_transform_edt(off)).clip(0, 1) * canvas.part.mask[window]
    ground = float(canvas.image[window][~off].mean())
    ink = rng.uniform(200, 255) if ground < 128 else rng.uniform(0, 55)
    opacity = _log_uniform(rng, 0.12, 0.95)
    return _blended(canvas, window, (opacity * weight).astype(np.float32), np.float32(ink))


def _blob(canvas: Canvas, rng: np.random.Generator) -> _Patch:
    """A stain: one to three spots with soft edges, of another colour or full of noise."""
    radius = _size(canvas, rng, 0.015, 0.1)
    centre = _place(canvas.part, rng)
    window = _around(centre, 4 * radius, canvas.part.mask.shape)
    offsets = _offsets(window, centre)
    weight = np.zeros(canvas.image[window].shape[:2], dtype=np.float32)
    softness = rng.uniform(0.1, 1.0)
    for number in range(int(rng.integers(1, 4))):
        down, right = (offset - (rng.normal(0, radius) if number else 0) for offset in offsets)
        size = radius * (rng.uniform(0.3, 0.8) if number else 1)
        weight = np.maximum(weight, _spot((down, right), size, softness * size, rng))
    weight = weight * canvas.part.mask[window]
    ground = canvas.image[window]
    if rng.random() < 0.3:
        return _blended(canvas, window, weight, ground + rng.normal(0, _log_uniform(rng, 8, 80), ground.shape))
    opacity = np.float32(_log_uniform(rng, 0.1, 0.95))
    return _blended(canvas, window, opacity * weight, rng.uniform(0, 255, size=3).astype(np.float32))


def _deformation(canvas: Canvas, rng: np.random.Generator) -> _Patch:
    """A smooth local warp: a bulge, a pinch or a shift that fades out towards its rim.

    It moves by at most .6 radii times a bump ``(1 - r^2)^2`` whose slope is at most 1.54, so nothing folds over.
    """
    radius = _size(canvas, rng, 0.05, 0.3)
    strength = _log_uniform(rng, 0.1, 0.6)
    centre = _place(canvas.part, rng)
    window = _around(centre, radius, canvas.part.mask.shape)
    down, right = _offsets(window, centre)
    bump = (1 - (down**2 + right**2) / radius**2).clip(0, None) ** 2
    if rng.random() < 0.5:
        angle = rng.uniform(0, 2 * np.pi)
        shift = strength * radius * bump
        moved = (down - shift * np.sin(angle), right - shift * np.cos(angle))
    else:
        factor = 1 + rng.choice((-1, 1)) * strength * bump
        moved = (down * factor, right * factor)
    return _blended(canvas, window, np.ones_like(bump), _sampled(canvas.image, centre, moved))


def _missing(canvas: Canvas, rng: np.random.Generator) -> _Patch:
    """A piece of the part is not there: the background shows, or what is around closes over it."""
    radius = _size(canvas, rng, 0.02, 0.15)
    centre = _place(canvas.part, rng)
    window = _around(centre, 3 * radius, canvas.part.mask.shape)
    piece = (_spot(_offsets(window, centre), radius, 1, rng) > 0.5) & canvas.part.mask[window]
    return _blended(canvas, window, piece.astype(np.float32), _removed(canvas, window, piece, rng))


def _displaced(canvas: Canvas, rng: np.random.Generator) -> _Patch:
    """A compact piece of the part lies a little beside its place, turned or not, which is filled as a missing one's.

    Not one kind with a missing piece: here all of the part's texture is still there, and only the arrangement is wrong.
    """
    radius = _size(canvas, rng, 0.03, 0.12)
    distance = _size(canvas, rng, 0.02, 0.15)
    centre, direction = _place(canvas.part, rng), rng.uniform(0, 2 * np.pi)
    turn = rng.choice((-1, 1)) * np.deg2rad(_log_uniform(rng, 5, 90)) if rng.random() < 0.5 else 0.0
    window = _around(centre, 3 * radius + distance, canvas.part.mask.shape)
    down, right = _offsets(window, centre)
    piece = (_spot((down, right), radius, 1, rng) > 0.5) & canvas.part.mask[window]
    filled = np.where(piece[..., None], _removed(canvas, window, piece, rng), canvas.image[window])
    # Whole pixels, so that a piece that is not turned keeps its colours to the last bit.
    shift = round(distance * np.sin(direction)), round(distance * np.cos(direction))
    moved = _turned((down - shift[0], right - shift[1]), -turn)
    in_window = centre[0] - window[0].start, centre[1] - window[1].start
    arrived = _sampled(piece[..., None].astype(np.float32), in_window, moved, beyond="constant") > 0.5
    pasted = np.where(arrived, _sampled(canvas.image, centre, moved), filled)
    return _blended(canvas, window, np.ones(piece.shape, dtype=np.float32), pasted)


KINDS: dict[str, Callable[[Canvas, np.random.Generator], _Patch]] = {
    "blob": _blob,
    "cutpaste": _cutpaste,
    "deformation": _deformation,
    "displaced": _displaced,
    "missing": _missing,
    "perlin": _perlin,
    "scar": _scar,
    "scratch": _scratch,
}
"""The kinds of synthetic defects; each gives a window of the picture and its new pixels ``[h, w, 3]`` there."""


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _size(canvas: Canvas, rng: np.random.Generator, low: float, high: float) -> float:
    """A length in pixels, log-uniform between two shares of the part's scale, but at least one pixel."""
    return max(1.0, canvas.part.scale * _log_uniform(rng, low, high))


def _place(part: Part, rng: np.random.Generator) -> _Point:
    """Row and column of some pixel of the part."""
    row, column = divmod(int(rng.choice(np.flatnonzero(part.mask))), part.mask.shape[1])
    return row, column


def _around(centre: _Point, reach: float, shape: tuple[int, ...]) -> _Window:
    """Rows and columns no farther than ``reach`` from the centre, within the picture."""
    rows, columns = (
        slice(max(0, at - math.ceil(reach)), min(side, at + math.ceil(reach) + 1))
        for at, side in zip(centre, shape, strict=True)
    )
    return rows, columns


def _cropped(window: _Window, mask: _Mask) -> tuple[_Window, _Mask]:
    """The part of the window that holds all of its mask, and the mask there."""
    box = ndimage.find_objects(mask.astype(np.int8))[0]
    rows, columns = (
        slice((outer.start or 0) + inner.start, (outer.start or 0) + inner.stop)
        for outer, inner in zip(window, box, strict=True)
    )
    return (rows, columns), mask[box]


def _offsets(window: _Window, centre: _Point) -> _Offsets:
    """How far below and right of the centre the window's pixels are, ``[h, 1]`` and ``[1, w]``."""
    down, right = (
        np.arange(part.start, part.stop, dtype=np.float32) - at for part, at in zip(window, centre, strict=True)
    )
    return down[:, None], right[None, :]


def _turned(offsets: _Offsets, angle: float) -> _Offsets:
    """Offsets ``[h, w]`` turned by an angle in radians."""
    down, right = offsets
    sine, cosine = np.float32(np.sin(angle)), np.float32(np.cos(angle))
    return cosine * down + sine * right, cosine * right - sine * down


def _spot(offsets: _Offsets, radius: float, softness: float, rng: np.random.Generator) -> _Weight:
    """``[h, w]``, 0 outside of an irregular, elongated spot and rising to 1 over ``softness`` pixels into it.

    Its outline is a circle with four harmonics, stretched up to 2.5 times; it reaches no farther than 2.3 radii.
    """
    stretch = np.sqrt(_log_uniform(rng, 1, 2.5))
    down, right = _turned(offsets, rng.uniform(0, np.pi))
    down, right = down * np.float32(stretch), right / np.float32(stretch)
    angle = np.arctan2(down, right)
    outline = 1 + sum(
        rng.uniform(0, 0.35 / k) * np.cos(k * angle + np.float32(rng.uniform(0, 2 * np.pi))) for k in range(2, 6)
    )
    return np.asarray(((radius * outline - np.hypot(down, right)) / softness).clip(0, 1), dtype=np.float32)


def _removed(canvas: Canvas, window: _Window, piece: _Mask, rng: np.random.Generator) -> _Pixels:
    """The window's pixels without the piece: half the time, if there is one, the background shows in its place."""
    if canvas.part.plane is not None and rng.random() < 0.5:
        return canvas.part.background(window, rng)
    return heal(canvas.image[window].astype(np.float32), piece, rng)


def _sampled(
    pixels: _Pixels | NDArray[np.uint8], centre: _Point, offsets: _Offsets, *, beyond: str = "nearest"
) -> _Pixels:
    """Pixels ``[h, w, C]`` at these offsets from a centre, interpolated linearly."""
    at = np.stack([centre[0] + offsets[0], centre[1] + offsets[1]])
    channels = [
        ndimage.map_coordinates(pixels[..., channel], at, np.float32, order=1, mode=beyond)
        for channel in range(pixels.shape[2])
    ]
    return np.stack(channels, axis=2)


def _blended(
    canvas: Canvas, window: _Window, weight: _Weight, colours: NDArray[np.floating[Any]] | np.float32
) -> _Patch:
    """The window and its pixels covered by the colours, by ``weight`` ``[h, w]`` from 0 to 1."""
    ground = canvas.image[window].astype(np.float32)
    return window, ground + weight[..., None] * (colours - ground)
