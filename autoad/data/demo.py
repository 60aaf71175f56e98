"""The demonstration dataset: real gravel with drawn foreign bodies and faults.

The task is one that quarries and recycling plants have: a camera above a belt of crushed stone looks for what should
not be there. Everything is cropped from one photograph that scikit-image ships in its wheel, so it needs no network and
is the same, byte for byte, each time.
"""

from __future__ import annotations

import hashlib
import io
import shutil
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from autoad.errors import DatasetError

__all__ = ["write_demo_dataset"]

_PHOTOGRAPH = "gravel.png"
_SIDE, _CROP = 128, 46  # pixels, as written and in the photograph
_CELLS = 512 // _CROP  # along each side of the photograph
_TRAIN, _GOOD, _PER_KIND = 60, 20, 8
_FIRST = {"train/good": 0, "test/good": _TRAIN, "test/defective": _TRAIN + _GOOD}  # of a split's cells
_TINT = np.array([1.03, 1.0, 0.94], dtype=np.float32)
_README = """\
autoad's demonstration dataset
==============================

Crushed stone on a belt, in the layout of MVTec AD: train/good, test/good, test/<defect> and ground_truth/<defect>.

The stones are real: crops of gravel.png, the photograph that scikit-image ships (skimage.data.gravel), which is
"Gravel 04" of CC0Textures (https://cc0textures.com/view.php?tex=Gravel04), given under the Creative Commons CC0 1.0
licence. No two pictures have a pixel of the photograph in common, and which is for training and which for testing was
drawn by lot. The defects are drawn by autoad; these pictures too may be used under CC0 1.0.

Written by `autoad demo-data`; the same bytes each time.
"""

_Pixels = NDArray[np.float32]
_Weight = NDArray[np.float32]


def write_demo_dataset(folder: Path) -> Path:
    """Write the demonstration dataset: 60 train, 20 good and 40 defective test pictures with masks, 128 x 128 pixels.

    Args:
        folder: where to; it must be new or empty, or hold this very dataset already.

    Returns:
        ``folder``.

    Raises:
        DatasetError: the folder holds something else, or cannot be written.
    """
    try:
        contents = dict(_contents())
        staging = folder / ".autoad-unfinished"  # so that an interrupted run never looks like a dataset
        shutil.rmtree(staging, ignore_errors=True)
        if folder.is_dir() and any(folder.iterdir()):
            if _holds(folder, contents):
                return folder
            raise DatasetError(f"{folder} must be new or empty but holds something else: name another folder")
        folder.mkdir(parents=True, exist_ok=True)
        try:
            for name, data in contents.items():
                path = staging / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
            for entry in sorted(staging.iterdir()):
                entry.rename(folder / entry.name)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        raise DatasetError(f"demo data cannot be written: {error}; name another folder") from error
    return folder


def _holds(folder: Path, contents: dict[str, bytes]) -> bool:
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if not path.is_dir()}
    return found.keys() == contents.keys() and all(found[name].read_bytes() == contents[name] for name in contents)


def _contents() -> Iterator[tuple[str, bytes]]:
    """Name and bytes of each file."""
    photograph = _read_photograph()
    yield "README.txt", _README.encode()
    for index in range(_TRAIN):
        yield f"train/good/{index:03d}.png", _png(_photographed(photograph, "train/good", index))
    for index in range(_GOOD):
        yield f"test/good/{index:03d}.png", _png(_photographed(photograph, "test/good", index))
    for number, (kind, draw) in enumerate(_KINDS.items()):
        for index in range(_PER_KIND):
            good = _photographed(photograph, "test/defective", number * _PER_KIND + index)
            defective, mask = draw(good, _generator(kind, index))
            yield f"test/{kind}/{index:03d}.png", _png(defective)
            yield f"ground_truth/{kind}/{index:03d}_mask.png", _png(mask * np.float32(255))


def _read_photograph() -> _Pixels:
    with Image.open(io.BytesIO(files("skimage").joinpath("data", _PHOTOGRAPH).read_bytes())) as image:
        return np.array(image.convert("L"), dtype=np.float32)


def crop_box(split: str, index: int) -> tuple[int, int, int, int]:
    """Left, top, right, bottom in the photograph of a split's ``index``-th crop.

    Each picture has a cell of a grid to itself, and lots decide which. Crops that overlap within a split, or a split
    with a region of its own, would make good test pictures unlike the training ones: then a search prefers what has
    learnt the stones by heart, and no promise about false alarms holds.
    """
    cells = _generator("cells", 0).permutation(_CELLS**2)
    row, column = divmod(int(cells[_FIRST[split] + index]), _CELLS)
    return column * _CROP, row * _CROP, (column + 1) * _CROP, (row + 1) * _CROP


def _photographed(photograph: _Pixels, split: str, index: int) -> _Pixels:
    """A crop as a camera would take it: either way round, a little brighter or darker, with a little noise."""
    left, top, right, bottom = crop_box(split, index)
    rng = _generator(f"{split} light", index)
    crop = photograph[top:bottom, left:right]
    crop = crop[:, ::-1] if rng.random() < 0.5 else crop
    crop = np.array(Image.fromarray(crop).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC))
    noise = rng.normal(0, 1.5, size=(_SIDE, _SIDE, 1))
    return np.asarray(crop[..., None] * _TINT * rng.uniform(0.95, 1.05) + noise, dtype=np.float32)


def _contamination(image: _Pixels, rng: np.random.Generator) -> tuple[_Pixels, NDArray[np.bool_]]:
    """A flat coloured fragment, such as plastic or painted wood, with straight edges and a shadow."""
    weight = _polygon(rng, radius=rng.uniform(7, 14))
    colour = rng.choice([(140, 105, 92), (100, 118, 138), (110, 132, 104), (152, 142, 108)])
    shadow = ndimage.shift(weight, (2, 2), order=1)
    shaded = image * (1 - 0.35 * shadow[..., None])
    surface = colour + 0.25 * (image - image.mean())
    return _blend(shaded, surface, weight), weight > 0.5


def _dust(image: _Pixels, rng: np.random.Generator) -> tuple[_Pixels, NDArray[np.bool_]]:
    """Fines that cover the stones: lighter, with little of their relief left."""
    weight = _blob(rng, radius=rng.uniform(15, 24))
    grain = ndimage.gaussian_filter(rng.normal(0, 14, size=weight.shape), 0.7)[..., None]
    covered = 0.4 * ndimage.gaussian_filter(image, (3, 3, 0)) + 0.6 * np.array([228, 214, 184]) + grain
    return _blend(image, covered, rng.uniform(0.5, 1.0) * weight), weight > 0.5


def _fibre(image: _Pixels, rng: np.random.Generator) -> tuple[_Pixels, NDArray[np.bool_]]:
    """A wire or root: a thin curved line, light above and dark below."""
    start = rng.uniform(30, _SIDE - 30, size=2)
    angle, turn = rng.uniform(0, 2 * np.pi), rng.uniform(-0.03, 0.03)
    steps = np.arange(int(rng.uniform(40, 75)))
    heading = angle + turn * steps
    points = start + np.stack([np.sin(heading), np.cos(heading)]).cumsum(axis=1).T
    away = np.ones((_SIDE, _SIDE), dtype=np.bool_)
    inside = ((points >= 0) & (points < _SIDE)).all(axis=1)
    away[tuple(points[inside].astype(np.intp).T)] = False
    distance = ndimage.distance_transform_edt(away)
    weight = (rng.uniform(1.4, 2.4) - distance).clip(0, 1).astype(np.float32)
    shaded = image * (1 - 0.4 * ndimage.shift(weight, (2, 1), order=1)[..., None])
    surface = np.broadcast_to(_TINT * np.float32(rng.choice((50, 215))), image.shape)
    return _blend(shaded, surface, weight), weight > 0.5


def _hole(image: _Pixels, rng: np.random.Generator) -> tuple[_Pixels, NDArray[np.bool_]]:
    """Stones are missing: the dark, smooth bottom shows."""
    weight = _blob(rng, radius=rng.uniform(10, 16))
    bottom = ndimage.gaussian_filter(image, (2, 2, 0)) * rng.uniform(0.35, 0.65)
    return _blend(image, bottom, weight), weight > 0.5


def _stain(image: _Pixels, rng: np.random.Generator) -> tuple[_Pixels, NDArray[np.bool_]]:
    """Oil: darker and browner stones, their relief unchanged."""
    weight = ndimage.gaussian_filter(_blob(rng, radius=rng.uniform(14, 24)), 1.5)
    oiled = image * np.array([0.6, 0.47, 0.35]) * rng.uniform(0.9, 1.2)
    return _blend(image, oiled, rng.uniform(0.35, 1.0) * weight), weight > 0.4


_KINDS: dict[str, Callable[[_Pixels, np.random.Generator], tuple[_Pixels, NDArray[np.bool_]]]] = {
    "contamination": _contamination,
    "dust": _dust,
    "fibre": _fibre,
    "hole": _hole,
    "stain": _stain,
}


def _blend(image: _Pixels, other: _Pixels, weight: _Weight) -> _Pixels:
    return np.asarray(image + weight[..., None] * (other - image), dtype=np.float32)


def _blob(rng: np.random.Generator, radius: float) -> _Weight:
    """An irregular round shape: 1 inside, 0 outside, an edge two pixels wide."""
    y, x = _around(rng, radius)
    angle = np.arctan2(y, x)
    waves = (0.3 / n * np.sin(n * angle + rng.uniform(0, 2 * np.pi)) for n in (2, 3, 4, 5))
    edge = radius * (1 + np.sum(list(waves), axis=0))
    return np.asarray(((edge - np.hypot(y, x)) / 2 + 0.5).clip(0, 1), dtype=np.float32)


def _polygon(rng: np.random.Generator, radius: float) -> _Weight:
    """An irregular quadrilateral of about that radius."""
    corners = np.sort(rng.uniform(-0.5, 0.5, size=4) + np.arange(4) * np.pi / 2)
    y, x = _around(rng, radius)
    inside = [radius * rng.uniform(0.6, 1.0) - (y * np.sin(a) + x * np.cos(a)) for a in corners]
    return np.asarray(np.min(inside, axis=0).clip(0, 1), dtype=np.float32)


def _around(rng: np.random.Generator, radius: float) -> NDArray[np.float64]:
    """Coordinates about a centre that keeps a shape of that radius inside the picture."""
    margin = radius * 1.3
    centre = rng.uniform(margin, _SIDE - margin, size=2)
    return np.asarray(np.mgrid[:_SIDE, :_SIDE] - centre[:, None, None])


def _generator(name: str, index: int) -> np.random.Generator:
    return np.random.default_rng(int.from_bytes(hashlib.sha256(f"{name}/{index}".encode()).digest()[:16]))


def _png(pixels: NDArray[np.float32]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.rint(pixels).clip(0, 255).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()
