"""Several pictures: a folder, an iterable, an asynchronous iterable."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterable, Iterable
from contextlib import aclosing
from pathlib import Path

from autoad.client._pictures import Picture, Pictures
from autoad.client._streams import from_thread
from autoad.errors import UsageError
from autoad.folders import files_below

__all__ = ["check_several", "numbered"]


def check_several(pictures: Pictures) -> None:
    """Refuse what is one picture, or none.

    Raises:
        UsageError: it is.
    """
    if isinstance(pictures, str | os.PathLike):
        if not Path(pictures).is_dir():
            raise UsageError(f"{pictures} must be a folder; to score a picture, use score()")
        return
    one = isinstance(pictures, bytes | bytearray | memoryview) or 0 < getattr(pictures, "ndim", 4) < 4
    if one or not isinstance(pictures, Iterable | AsyncIterable):
        raise UsageError(
            f"pictures must be a folder or several pictures but got one {type(pictures).__name__}; use score()"
        )


async def numbered(pictures: Pictures) -> AsyncGenerator[tuple[int, Picture], None]:
    """The pictures with their numbers, from 1.

    Raises:
        UsageError: the folder cannot be read.
    """
    number = 0
    async with aclosing(_each(pictures)) as each:
        async for picture in each:
            number += 1
            yield number, picture


async def _each(pictures: Pictures) -> AsyncGenerator[Picture, None]:
    if isinstance(pictures, str | os.PathLike):
        folder = Path(pictures)
        try:
            pictures = await asyncio.to_thread(lambda: list(files_below(folder)))
        except OSError as error:
            raise UsageError(f"{error.filename} must be readable but {error.strerror}") from error
        for file in pictures:
            yield file
    elif isinstance(pictures, AsyncIterable):
        async for picture in pictures:
            yield picture
    else:
        async with aclosing(from_thread(pictures)) as items:
            async for picture in items:
                yield picture
