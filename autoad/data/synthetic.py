"""Synthetic defects: what ranks the trials while no real defect is known.

Three kinds, chosen because they fail in different ways: ``cutpaste`` breaks the arrangement of a part but not its
texture, ``perlin`` puts a foreign texture on it, ``scratch`` is thin and local. About half of them are plain and half
subtle, so that they neither all tie nor all drown.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from autoad.data._picture import Picture
from autoad.data.decoding import decode_image
from autoad.errors import DatasetError, FileStoreError, UnreadableImageError
from autoad.files import write_atomically

__all__ = ["KINDS", "draw_defects"]

LONGEST_SIDE = 512
_VISIBLE = 8  # grey levels by which a pixel must change to belong to the mask
_ATTEMPTS = 20

_Pixels = NDArray[np.float32]
_Draw = Callable[[_Pixels, _Pixels, bool, np.random.Generator], _Pixels]


def draw_defects(pictures: Sequence[Picture], folder: Path, *, seed: int = 0) -> tuple[Picture, ...]:
    """Draw one defect of each kind on each picture and write them, with their masks, as PNG files.

    Sizes and positions depend on ``(seed, sha256, kind)`` alone, and running it again writes the same bytes. The pixels
    outside a mask are the original's, and each mask holds pixels that changed visibly. Pictures keep
    their size, but for those longer than 512 pixels, which are reduced (Lanczos, so that a further
    reduction to the input size of a detector leaves no trace of the first one).

    Args:
        pictures: normals; the others of them also lend their texture to ``perlin`` defects.
        folder: where ``<kind>/<sha256>.png`` and ``<kind>/<sha256>_mask.png`` are written, each atomically.
        seed: another seed draws other defects.

    Returns:
        The new pictures, kind by kind, with the kind as label and ``synthetic`` set.

    Raises:
        ValueError: a picture is not normal.
        DatasetError: a picture cannot be read or the folder cannot be written.
    """
    for picture in pictures:
        if not picture.is_normal:
            raise ValueError(f"pictures to draw defects on must be good but {picture.path} is {picture.label!r}")
    ordered = sorted(pictures, key=lambda picture: picture.sha256)
    lenders = ordered[1:] + ordered[:1]
    try:
        with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
            drawn = list(pool.map(lambda picture, lender: _draw_on(picture, lender, folder, seed), ordered, lenders))
    except OSError as error:
        raise DatasetError(f"synthetic defects need {error.filename or folder} but {error.strerror}") from error
    except (FileStoreError, UnreadableImageError) as error:
        raise DatasetError(f"a picture to draw defects on {error}") from error
    return tuple(picture for of_kind in zip(*drawn, strict=True) for picture in of_kind)


def _draw_on(picture: Picture, lender: Picture, folder: Path, seed: int) -> list[Picture]:
    """One defective picture of each kind, written to ``folder``."""
    image, foreign = _reduced(picture.read()), _reduced(lender.read())
    drawn = []
    for kind, draw in KINDS.items():
        defective, mask = _defect(image, foreign, draw, _generator(seed, picture.sha256, kind))
        path = folder / kind / f"{picture.sha256}.png"
        mask_path = path.with_name(f"{picture.sha256}_mask.png")
        data = _png(defective)
        _write(path, data)
        mask_data = _png(mask.astype(np.uint8) * 255)
        _write(mask_path, mask_data)
        drawn.append(
            Picture(
                path,
                hashlib.sha256(data).hexdigest(),
                kind,
                mask_path,
                picture.split,
                synthetic=True,
                mask_sha256=hashlib.sha256(mask_data).hexdigest(),
            )
        )
    return drawn


def _defect(
    image: NDArray[np.uint8], foreign: NDArray[np.uint8], draw: _Draw, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A defective copy and the mask of what changed; drawn anew until something visible did."""
    plain = bool(rng.random() < 0.5)
    source, texture = image.astype(np.float32), foreign.astype(np.float32)
    for _ in range(_ATTEMPTS):
        changed = np.rint(draw(source, texture, plain, rng)).clip(0, 255).astype(np.uint8)
        visible = np.abs(changed.astype(np.int16) - image).max(axis=2) >= _VISIBLE
        if visible.any():
            # Pixels that match by chance inside a defect belong to it; those that fade out around it do not.
            touched = (changed != image).any(axis=2)
            mask = (ndimage.binary_closing(visible, np.ones((3, 3)), iterations=2) & touched) | visible
            return np.where(mask[..., None], changed, image), mask
    # A picture so uniform, or so small, that nothing shows: half the range away is visible on any ground.
    mask = np.zeros(image.shape[:2], dtype=np.bool_)
    size = [max(1, side // 8) for side in mask.shape]
    y, x = (int(rng.integers(side - part + 1)) for side, part in zip(mask.shape, size, strict=True))
    mask[y : y + size[0], x : x + size[1]] = True
    return np.where(mask[..., None], image + np.uint8(128), image), mask


def _cutpaste(image: _Pixels, _: _Pixels, plain: bool, rng: np.random.Generator) -> _Pixels:
    """CutPaste (Li et al., 2021): a rectangle of the picture, its colours jittered, pasted elsewhere in it."""
    height, width = image.shape[:2]
    area = rng.uniform(0.02, 0.12) if plain else rng.uniform(0.005, 0.02)
    aspect = np.exp(rng.uniform(np.log(0.3), np.log(3.3)))
    h = int(np.clip(np.sqrt(area * aspect) * height, 1, height))
    w = int(np.clip(np.sqrt(area / aspect) * width, 1, width))
    (y, x), (to_y, to_x) = (
        (int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))) for _ in ("from", "to")
    )
    jitter = 0.2 if plain else 0.05
    patch = image[y : y + h, x : x + w] * rng.uniform(1 - jitter, 1 + jitter, size=3).astype(np.float32)
    changed = image.copy()
    changed[to_y : to_y + h, to_x : to_x + w] = patch
    return changed


def _perlin(image: _Pixels, foreign: _Pixels, plain: bool, rng: np.random.Generator) -> _Pixels:
    """A foreign texture blended in under a thresholded Perlin noise mask, as in DRAEM (Zavrtanik et al., 2021)."""
    height, width = image.shape[:2]
    noise = _perlin_noise((height, width), int(rng.integers(2, 9)), rng)
    area = np.exp(rng.uniform(np.log(0.01), np.log(0.15)))
    regions, _ = ndimage.label(noise >= np.quantile(noise, 1 - area))
    sizes = np.bincount(regions.ravel())[1:]
    large = 1 + np.flatnonzero(sizes >= 0.2 * sizes.max())
    mask = np.isin(regions, rng.choice(large, size=min(len(large), int(rng.integers(1, 4))), replace=False))
    texture = _foreign_patch(foreign, (height, width), rng) if rng.random() < 0.5 else _procedural(height, width, rng)
    opacity = rng.uniform(0.6, 1.0) if plain else rng.uniform(0.2, 0.45)
    return np.where(mask[..., None], image + np.float32(opacity) * (texture - image), image)


def _scratch(image: _Pixels, _: _Pixels, plain: bool, rng: np.random.Generator) -> _Pixels:
    """A thin curved line (a quadratic Bezier curve), lighter or darker than its ground, with soft edges."""
    height, width = image.shape[:2]
    scale = min(height, width)
    start = rng.uniform(0.1, 0.9, size=2) * (height, width)
    angle = rng.uniform(0, 2 * np.pi)
    length = rng.uniform(0.15, 0.5) * scale
    along = np.array([np.sin(angle), np.cos(angle)])
    bend = rng.uniform(-0.25, 0.25) * length * along[::-1] * (1, -1)
    t = np.linspace(0, 1, 4 * scale)[:, None]
    middle, end = start + along * length / 2 + bend, start + along * length
    points = ((1 - t) ** 2 * start + 2 * t * (1 - t) * middle + t**2 * end).astype(np.intp)
    inside = ((points >= 0) & (points < (height, width))).all(axis=1)
    line = np.ones((height, width), dtype=np.bool_)
    line[tuple(points[inside].T)] = False
    radius = scale * (rng.uniform(0.004, 0.008) if plain else rng.uniform(0.002, 0.004))
    opacity = rng.uniform(0.6, 0.95) if plain else rng.uniform(0.25, 0.5)
    weight = opacity * (radius + 1 - ndimage.distance_transform_edt(line)).clip(0, 1)
    ground = float(image[~line].mean()) if inside.any() else 0.0
    ink = rng.uniform(200, 255) if ground < 128 else rng.uniform(0, 55)
    return np.asarray(image + weight[..., None].astype(np.float32) * (np.float32(ink) - image))


KINDS: dict[str, _Draw] = {"cutpaste": _cutpaste, "perlin": _perlin, "scratch": _scratch}
"""The kinds of synthetic defects; each is drawn by ``(image, foreign, plain, rng) -> changed``, all ``[H, W, 3]``."""


def _perlin_noise(shape: tuple[int, int], cells: int, rng: np.random.Generator) -> NDArray[np.float32]:
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


def _foreign_patch(foreign: _Pixels, shape: tuple[int, int], rng: np.random.Generator) -> _Pixels:
    """Another picture's pixels, flipped, shifted and with its channels shuffled, tiled to ``shape``."""
    texture = foreign[:: rng.choice((-1, 1)), :: rng.choice((-1, 1)), rng.permutation(3)]
    rows = (np.arange(shape[0]) + rng.integers(texture.shape[0])) % texture.shape[0]
    columns = (np.arange(shape[1]) + rng.integers(texture.shape[1])) % texture.shape[1]
    shifted = texture[rows][:, columns]
    # Most parts look alike: without a shift of level, one's picture under another's mask would hardly show.
    return np.asarray((shifted + np.float32(rng.uniform(-60, 60))).clip(0, 255))


def _procedural(height: int, width: int, rng: np.random.Generator) -> _Pixels:
    """Two colours mixed by stripes, by fine noise or by clouds."""
    dark, light = rng.uniform(0, 255, size=(2, 3)).astype(np.float32)
    kind = rng.integers(3)
    if kind == 0:
        angle, period = rng.uniform(0, np.pi), rng.uniform(4, 24)
        y, x = np.mgrid[:height, :width]
        mix = 0.5 + 0.5 * np.sin(2 * np.pi * (y * np.sin(angle) + x * np.cos(angle)) / period)
    elif kind == 1:
        mix = rng.uniform(size=(height, width))
    else:
        mix = 0.5 + sum(_perlin_noise((height, width), 4 * 2**o, rng) / 2**o for o in range(4))
    return np.asarray(dark + mix[..., None].clip(0, 1).astype(np.float32) * (light - dark))


def _reduced(data: bytes) -> NDArray[np.uint8]:
    image = Image.fromarray(decode_image(data))
    if max(image.size) > LONGEST_SIDE:
        scale = LONGEST_SIDE / max(image.size)
        width, height = (max(1, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    return np.array(image)


def _generator(seed: int, sha256: str, kind: str) -> np.random.Generator:
    digest = hashlib.sha256(f"{seed}/{sha256}/{kind}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16]))


def _png(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all; a file that holds these bytes already is left alone."""
    if path.is_file() and path.read_bytes() == data:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, data)
