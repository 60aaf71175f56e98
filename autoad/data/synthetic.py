"""Synthetic defects: what ranks the trials while no real defect is known.

Eight kinds, chosen because they fail in different ways. ``cutpaste`` and ``scar`` break the arrangement of a part but
not its texture; ``perlin``, ``blob`` and ``scratch`` put on it what does not belong there (a texture, a stain, a thin
line); ``deformation`` bends it; with ``missing`` a piece is gone, with ``displaced`` one is beside its place.
Each goes from subtle to plain (:mod:`autoad.data._defects`), so that they neither all tie nor all drown, and lies on
the part (:mod:`autoad.data._foreground`), because a detector that a speck on the background alarms is not a better one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from autoad.data._defects import KINDS, draw_defect
from autoad.data._foreground import Part, find_part
from autoad.data._picture import Picture, Split
from autoad.data.decoding import decode_image
from autoad.errors import DatasetError, FileStoreError, UnreadableImageError
from autoad.files import write_atomically

__all__ = ["draw_defects"]

LONGEST_SIDE = 512


@dataclasses.dataclass(frozen=True)
class _Ground:
    """A normal picture to draw on."""

    sha256: str
    split: Split
    image: NDArray[np.uint8]
    part: Part


def draw_defects(pictures: Sequence[Picture], folder: Path, *, per_kind: int, seed: int = 0) -> tuple[Picture, ...]:
    """Draw defects of each kind on normal pictures and write them, with their masks, as PNG files.

    Pictures take turns in the order of their sha256: of more than ``per_kind`` only the first are used, and of fewer
    each gets several draws of a kind, which differ in everything that is drawn by lot.

    A defect depends on ``(seed, sha256, kind, draw)`` alone, but that half of the ``perlin`` defects borrow the texture
    of the next picture; running it again writes the same bytes. The pixels outside a mask are the original's, and each
    mask holds pixels that changed visibly. At least four fifths of those lie on the part, wherever one is found. A file
    names what it was drawn from, so no two have the same sha256. Pictures keep their size, but for those longer than
    512 pixels, which are reduced (Lanczos, so that a further reduction to the input size of a detector leaves no trace
    of the first one).

    Args:
        pictures: normals.
        folder: where ``<kind>/<sha256>-<draw>.png`` and ``<kind>/<sha256>-<draw>_mask.png`` are written, each
            atomically.
        per_kind: how many of each kind, over however many pictures.
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
    chosen = sorted(pictures, key=lambda picture: picture.sha256)[:per_kind]
    if not chosen:
        return ()
    jobs = [(kind, *divmod(number, len(chosen))) for kind in sorted(KINDS) for number in range(per_kind)]
    try:
        with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
            grounds = list(pool.map(_read, chosen))

            def draw(job: tuple[str, int, int]) -> Picture:
                kind, turn, index = job
                lender = grounds[(index + 1) % len(grounds)]
                return _draw_on(grounds[index], lender, kind, turn, folder, seed)

            return tuple(pool.map(draw, jobs))
    except OSError as error:
        raise DatasetError(f"synthetic defects need {error.filename or folder} but {error.strerror}") from error
    except (FileStoreError, UnreadableImageError) as error:
        raise DatasetError(f"a picture to draw defects on {error}") from error


def _read(picture: Picture) -> _Ground:
    image = _reduced(picture.read())
    return _Ground(picture.sha256, picture.split, image, find_part(image))


def _draw_on(ground: _Ground, lender: _Ground, kind: str, draw: int, folder: Path, seed: int) -> Picture:
    """One defective picture, written to ``folder``."""
    origin = f"{seed}/{ground.sha256}/{kind}/{draw}"
    defective, mask = draw_defect(ground.image, ground.part, lender.image, kind, _generator(origin))
    path = folder / kind / f"{ground.sha256}-{draw}.png"
    mask_path = path.with_name(f"{path.stem}_mask.png")
    data, mask_data = _png(defective, origin), _png(mask.astype(np.uint8) * 255, origin)
    _write(path, data)
    _write(mask_path, mask_data)
    return Picture(
        path,
        hashlib.sha256(data).hexdigest(),
        kind,
        mask_path,
        ground.split,
        synthetic=True,
        mask_sha256=hashlib.sha256(mask_data).hexdigest(),
    )


def _reduced(data: bytes) -> NDArray[np.uint8]:
    image = Image.fromarray(decode_image(data))
    if max(image.size) > LONGEST_SIDE:
        scale = LONGEST_SIDE / max(image.size)
        width, height = (max(1, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    return np.array(image)


def _generator(origin: str) -> np.random.Generator:
    return np.random.default_rng(int.from_bytes(hashlib.sha256(origin.encode()).digest()[:16]))


def _png(pixels: NDArray[np.uint8], origin: str) -> bytes:
    """A PNG file that says what it was drawn from: small defects on uniform pictures may come out alike."""
    described = PngImagePlugin.PngInfo()
    described.add_text("Source", origin)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1, pnginfo=described)
    return buffer.getvalue()


def _write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all; a file that holds these bytes already is left alone."""
    if path.is_file() and path.read_bytes() == data:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, data)
