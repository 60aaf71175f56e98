"""Pictures that no camera would send."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
from PIL import Image

__all__ = ["encodings", "mutated"]


def encodings(image: Image.Image) -> Iterator[bytes]:
    """The picture in every format that is read."""
    for kind, options in [
        ("PNG", {}),
        ("JPEG", {"quality": 90}),
        ("JPEG", {"progressive": True}),
        ("BMP", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {}),
        ("WEBP", {"quality": 80}),
        ("WEBP", {"lossless": True}),
    ]:
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        yield buffer.getvalue()


def mutated(sound: list[bytes], rng: np.random.Generator) -> bytes:
    """A picture with flipped bits, cut short, with another's bytes in it, or all of that."""
    data = bytearray(sound[rng.integers(len(sound))])
    kinds = rng.integers(1, 8)
    if kinds & 1:
        first = 64 if rng.random() < 0.5 else len(data)  # headers matter most
        for _ in range(rng.integers(1, 9)):
            data[rng.integers(min(first, len(data)))] ^= 1 << rng.integers(8)
    if kinds & 2:
        other = sound[rng.integers(len(sound))]
        start, length = rng.integers(len(other)), rng.integers(1, 200)
        at = rng.integers(len(data))
        data[at : at + length] = other[start : start + length]
    if kinds & 4:
        del data[rng.integers(1, len(data)) :]
    return bytes(data)
