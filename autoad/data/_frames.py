"""Packed bodies: files one after the other, each after its sha256 and its length."""

from __future__ import annotations

from collections.abc import Iterator

from autoad.errors import UsageError
from autoad.schema import FRAME_HEADER

__all__ = ["read_frames"]


def read_frames(body: memoryview) -> Iterator[tuple[str, memoryview]]:
    """The files of a body: the sha256 that each claims, as hexadecimal digits, and its bytes.

    Raises:
        UsageError: the body ends within a frame, or holds none.
    """
    position = number = 0
    while position < len(body):
        number += 1
        left = len(body) - position
        if left < FRAME_HEADER.size:
            raise UsageError(f"file {number} of the body must have {FRAME_HEADER.size} bytes before it but has {left}")
        digest, length = FRAME_HEADER.unpack_from(body, position)
        position += FRAME_HEADER.size
        if length > len(body) - position:
            raise UsageError(
                f"file {number} of the body must have {length} bytes, as it says, but only {len(body) - position} are "
                "left"
            )
        yield digest.hex(), body[position : position + length]
        position += length
    if not number:
        raise UsageError("the body must hold at least one file but is empty")
