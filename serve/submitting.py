"""Bodies of requests that submit datasets: what of them is held, in which form, and how much."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any

import pydantic_core
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect

from autoad.data.catalog import Catalog
from autoad.errors import UsageError
from autoad.schema import FRAME_HEADER, UploadRequest
from autoad.serve.batching import QueueFullError
from autoad.serve.faults import RequestTooLargeError, UnsupportedError
from autoad.serve.options import ServeOptions
from autoad.serve.pictures import BodyBudget, read_body, read_form

__all__ = [
    "UPLOAD_SCHEMA",
    "Room",
    "most_upload_bytes",
    "parse_upload",
    "read_example",
    "spool",
]

_ARCHIVES = 4  # at once, of which one is unpacked while the others arrive or wait on the disk
_FILE_BYTES = 400  # of a file in an upload's JSON, with its row of a table, on the average
_COMMAS = 16  # likewise; lists of nothing take ten times the bytes of their JSON
_SPOOLED = 2**20
_SHARE = 4  # of the bytes that all requests' bodies may take, a quarter may be datasets'


class Room:
    """What bodies of datasets may take of a replica's memory and disk.

    Args:
        bodies: bytes of all requests' bodies.
        options: limits.
    """

    def __init__(self, bodies: BodyBudget, options: ServeOptions) -> None:
        self._all = bodies
        self._mine = BodyBudget(
            max(int(options.max_held_bytes) // _SHARE, int(options.max_request_bytes) + FRAME_HEADER.size)
        )
        self._archives = 0

    @contextmanager
    def hold(self) -> Iterator[Callable[[int], None]]:
        """As :meth:`BodyBudget.hold`; pictures that are to be scored keep the larger part."""
        with self._mine.hold() as mine, self._all.hold() as of_all:

            def take(size: int) -> None:
                mine(size)
                of_all(size)

            yield take

    @contextmanager
    def spool(self, catalog: Catalog) -> Iterator[IO[bytes]]:
        """A file for an archive, which nobody else sees and which is gone when the context ends.

        Raises:
            QueueFullError: there are too many already.
        """
        if self._archives >= _ARCHIVES:
            raise QueueFullError(f"{_ARCHIVES} archives are being taken, which is the most; try again in a moment")
        self._archives += 1
        try:
            with catalog.scratch() as file:
                yield file
        finally:
            self._archives -= 1


def most_upload_bytes(files: int) -> int:
    """Most bytes of the JSON that says which files an upload has."""
    return _FILE_BYTES * files + 2**16


def parse_upload(body: bytes, most: int) -> UploadRequest:
    """The request in a body of JSON, at a cost that the number of files bounds.

    Args:
        body: of the request.
        most: files that it may have.

    Raises:
        RequestTooLargeError: it has more.
        UsageError: it is no JSON.
        RequestValidationError: it is no such request.
    """
    too_many = f"an upload may have at most {most} files here but the request has more"
    if body.count(b",") > _COMMAS * most + 100:
        raise RequestTooLargeError(too_many)
    try:
        document = pydantic_core.from_json(body)
    except ValueError as error:
        raise UsageError(f"the body must be JSON but {error}") from error
    if isinstance(document, dict):
        for key in ("files", "table"):
            rows = document.get(key)
            if isinstance(rows, list):
                if len(rows) > most:
                    raise RequestTooLargeError(too_many)
                if not all(isinstance(row, dict) for row in rows):
                    raise UsageError(f"{key} must hold objects")
    try:
        return UploadRequest.model_validate(document)
    except ValidationError as error:
        raise RequestValidationError(error.errors(include_url=False, include_context=False)) from error


async def spool(request: Request, file: IO[bytes], limit: int) -> None:
    """Write a body to a file, in pieces and not by the event loop.

    Args:
        request: whose body has not been read.
        file: open for writing.
        limit: most bytes that it may have.

    Raises:
        RequestTooLargeError: it has more.
        UsageError: it ends too early.
    """
    size, pieces, waiting = 0, list[bytes](), 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if size > limit:
                raise RequestTooLargeError(f"the archive has more than {limit} bytes, which is the most that is read")
            pieces.append(chunk)
            waiting += len(chunk)
            if waiting >= _SPOOLED:
                await asyncio.to_thread(file.writelines, pieces)
                pieces, waiting = [], 0
    except ClientDisconnect as error:
        raise UsageError("the request ended before its body did") from error
    await asyncio.to_thread(file.writelines, pieces)


async def read_example(
    request: Request, options: ServeOptions, take: Callable[[int], None]
) -> tuple[bytes, bytes | None]:
    """A picture, and its mask where one comes with it.

    Args:
        request: whose body has not been read.
        options: limits.
        take: told of the bytes of each chunk that has arrived, before it is kept.

    Raises:
        QueueFullError: other requests' bodies take the room.
        RequestTooLargeError: it has more bytes than a request may have.
        UnsupportedError: its body is neither a picture nor a form.
        UsageError: the form cannot be read, or holds something else.
    """
    kind = request.headers.get("Content-Type", "application/octet-stream").partition(";")[0].strip().lower()
    is_form = kind == "multipart/form-data"
    if not (is_form or kind.startswith(("image/", "application/octet-stream"))):
        raise UnsupportedError(
            f"a picture must come as image/*, application/octet-stream or multipart/form-data but got {kind[:100]!r}"
        )
    body = await read_body(request, int(options.max_request_bytes), take)
    if not is_form:
        return body, None
    files = await read_form(request, body, 2)
    names = [name for name, _ in files]
    if names.count("picture") != 1 or sorted({*names, "mask"}) != ["mask", "picture"] or len(names) > 2:
        raise UsageError(f"the form must hold a file 'picture', and may hold a file 'mask', but holds {names}")
    by_name = dict(files)
    return by_name["picture"], by_name.get("mask")


def _schema(model: type[BaseModel]) -> dict[str, Any]:
    """A record's JSON schema without references, for the document of a route that reads its body itself."""
    whole = model.model_json_schema()
    definitions: dict[str, Any] = whole.pop("$defs", {})

    def inlined(part: Any) -> Any:
        if isinstance(part, list):
            return [inlined(one) for one in part]
        if not isinstance(part, dict):
            return part
        if "$ref" in part:
            return inlined(definitions[part["$ref"].rpartition("/")[2]])
        return {key: inlined(one) for key, one in part.items()}

    result: dict[str, Any] = inlined(whole)
    return result


UPLOAD_SCHEMA = _schema(UploadRequest)
"""JSON schema of what begins an upload."""
