"""Reading pictures out of a request: a raw body, a form, or JSON."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager

from fastapi import Request
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from autoad.errors import UsageError
from autoad.serve.batching import QueueFullError
from autoad.serve.faults import RequestTooLargeError, UnsupportedError
from autoad.serve.options import ServeOptions

__all__ = ["BodyBudget", "read_body", "read_form", "read_pictures"]

_RAW = ("image/", "application/octet-stream")
_DIGITS = 18
_ASIDE = 10**6  # bytes of JSON, which take a millisecond or two to decode
_COMMAS = 16  # for each picture that may come; base64 has none


class BodyBudget:
    """Bytes of bodies that one replica may hold at once: what each request may bring, many together may not.

    Args:
        limit: bytes.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0

    @property
    def held(self) -> int:
        """Bytes that are held now."""
        return self._held

    @contextmanager
    def hold(self) -> Iterator[Callable[[int], None]]:
        """A request's share, given back when the context ends; called with the bytes that have arrived.

        Raises:
            QueueFullError: (when called) there is no room for them; they are not counted.
        """
        mine = 0

        def take(size: int) -> None:
            nonlocal mine
            if self._held + size > self._limit:
                raise QueueFullError(
                    f"requests of {self._held} bytes are held and at most {self._limit} may be; try again in a moment"
                )
            self._held += size
            mine += size

        try:
            yield take
        finally:
            self._held -= mine


async def read_pictures(request: Request, options: ServeOptions, take: Callable[[int], None]) -> list[bytes]:
    """The encoded pictures of a request; nothing of it ever touches the disk.

    Args:
        request: whose body has not been read.
        options: limits.
        take: told of the bytes of each chunk that has arrived, before it is kept.

    Raises:
        QueueFullError: other requests' bodies take the room.
        RequestTooLargeError: it has more bytes or pictures than a request may have.
        UnsupportedError: its body is none of the three.
        UsageError: the body is not what its Content-Type says, or holds no picture.
    """
    kind = request.headers.get("Content-Type", "application/octet-stream").partition(";")[0].strip().lower()
    is_form, is_json = kind == "multipart/form-data", kind == "application/json"
    if not (is_form or is_json or kind.startswith(_RAW)):
        raise UnsupportedError(
            "a picture must come as image/*, application/octet-stream, multipart/form-data or application/json but "
            f"got {kind[:100]!r}"
        )
    body = await read_body(request, int(options.max_request_bytes), take)
    if is_form:
        pictures = [data for _, data in await read_form(request, body, options.max_pictures)]
    elif is_json:  # much of it in a thread, or all other requests would wait
        aside = len(body) > _ASIDE
        pictures = await asyncio.to_thread(_from_json, body, options) if aside else _from_json(body, options)
    else:
        pictures = [body]
    if not pictures or not all(pictures):
        raise UsageError("the request must hold at least one picture, and none of 0 bytes")
    if len(pictures) > options.max_pictures:
        raise RequestTooLargeError(
            f"the request holds {len(pictures)} pictures but at most {options.max_pictures} are scored at once"
        )
    return pictures


async def read_body(request: Request, limit: int, take: Callable[[int], None]) -> bytes:
    """A request's whole body.

    Args:
        request: whose body has not been read.
        limit: most bytes that it may have.
        take: told of the bytes of each chunk that has arrived, before it is kept.

    Raises:
        QueueFullError: other requests' bodies take the room.
        RequestTooLargeError: it has more bytes.
        UsageError: it ends too early.
    """
    length = request.headers.get("Content-Length", "")
    if length.isascii() and length.isdigit() and (len(length) > _DIGITS or int(length) > limit):
        raise RequestTooLargeError(f"the request has {length[:_DIGITS]} bytes but at most {limit} are read")
    chunks: list[bytes] = []
    size = 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if size > limit:
                raise RequestTooLargeError(f"the request has more than {limit} bytes, which is the most that is read")
            take(len(chunk))
            chunks.append(chunk)
    except ClientDisconnect as error:
        raise UsageError("the request ended before its body did") from error
    return b"".join(chunks)


async def read_form(request: Request, body: bytes, most: int) -> list[tuple[str, bytes]]:
    """The files of a form, each with the name of its field.

    Args:
        request: with the form's boundary in its header.
        body: of the request.
        most: files that it may have.

    Raises:
        RequestTooLargeError: it has more.
        UsageError: the body is no such form.
    """
    boundary = parse_options_header(request.headers["Content-Type"])[1].get(b"boundary")
    if not boundary:
        raise UsageError("the form cannot be read: it must be multipart/form-data with a boundary")
    if b"--" + boundary + b"--" not in body:  # the parser would leave out without a word what was cut off
        raise UsageError("the form cannot be read: it ends before its last boundary")

    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    parser = MultiPartParser(request.headers, stream(), max_files=most + 1, max_fields=10, max_part_size=len(body) + 1)
    parser.spool_max_size = len(body) + 1  # in memory, which the limit on the whole request bounds
    try:
        form = await parser.parse()
    except MultiPartException as error:
        if "Too many files" in error.message:
            raise RequestTooLargeError(f"the form holds more than {most} pictures") from error
        raise UsageError(f"the form cannot be read: {error.message}") from error
    except (ValueError, LookupError) as error:
        raise UsageError("the form cannot be read: it is damaged") from error
    try:
        return [(name, await part.read()) for name, part in form.multi_items() if isinstance(part, UploadFile)]
    finally:
        await form.close()


def _from_json(body: bytes, options: ServeOptions) -> list[bytes]:
    if body.count(b",") > _COMMAS * options.max_pictures:  # millions of empty lists would take a gigabyte
        raise RequestTooLargeError(f"the JSON holds more than {options.max_pictures} pictures")
    try:
        pictures = json.loads(body)["pictures"]
        if not isinstance(pictures, list):
            raise TypeError
        return [base64.b64decode(picture, validate=True) for picture in pictures]
    except (ValueError, KeyError, TypeError, RecursionError, binascii.Error) as error:
        raise UsageError('the JSON must be {"pictures": [...]} with pictures in base64') from error
