"""Datasets over HTTP: uploads, archives, single examples, and what there is.

A replica's event loop only reads bodies. What is done with them (hashing, decoding, waiting for the disk) is done by a
few threads of the router's own, so that however much is sent, pictures go on being scored.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Annotated, Any, ParamSpec, TypeVar

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import BaseModel

from autoad.data.catalog import Catalog, Limits, UnknownArchiveError
from autoad.errors import FileStoreError, StateError, StorageFullError, is_full
from autoad.schema import (
    FRAME_HEADER,
    PACK_BYTES,
    DatasetEntry,
    DatasetPage,
    DatasetVersions,
    PicturePage,
    ReceivedEntry,
    UploadEntry,
)
from autoad.schema import Scope as KeyScope
from autoad.serve.auth import Identity
from autoad.serve.faults import RequestTooLargeError, UnsupportedError, describe_errors
from autoad.serve.options import ServeOptions
from autoad.serve.pictures import BodyBudget, read_body
from autoad.serve.submitting import (
    UPLOAD_SCHEMA,
    Room,
    most_upload_bytes,
    parse_upload,
    read_example,
    spool,
)

__all__ = ["datasets_router", "limits_of"]

_logger = logging.getLogger(__name__)
_P = ParamSpec("_P")
_R = TypeVar("_R")
_THREADS = 2
_Name = Annotated[str, Path(description="Name of a dataset.", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
_Upload = Annotated[str, Path(alias="id", description="Id of an upload.", pattern=r"^[0-9a-f]{32}$")]
_Version = Annotated[int, Path(description="Number of a version.", ge=1, le=999_999_999)]
_Limit = Annotated[int, Query(description="How many at most.", ge=1, le=1000)]
_Note = Annotated[str, Query(description="Kept with the version.", max_length=1000, pattern=r"^[^\x00]*$")]
_THERE: dict[int | str, dict[str, Any]] = {
    200: {"model": DatasetEntry, "description": "There is such a version already: it is this."}
}
_Label = Annotated[
    str, Query(description="good, or the name of a defect.", min_length=1, max_length=200, pattern=r"^[^\x00]*$")
]
_BYTES = {"schema": {"type": "string", "format": "binary"}}
_FRAMES = {
    "requestBody": {
        "required": True,
        "description": "Files one after the other, each after the 32 bytes of its sha256 and its length as 8 bytes, "
        f"most significant first. At most {PACK_BYTES} bytes, unless it is a single file.",
        "content": {"application/octet-stream": _BYTES},
    }
}
_ARCHIVE = {
    "requestBody": {
        "required": True,
        "description": "A zip file, or a tar file that is plain or packed by gzip, bzip2 or xz.",
        "content": {"application/octet-stream": _BYTES},
    }
}
_EXAMPLE = {
    "requestBody": {
        "required": True,
        "description": "One picture as it is, or in a form, where a mask of its defective pixels may come with it.",
        "content": {
            "image/*": _BYTES,
            "application/octet-stream": _BYTES,
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {name: {"type": "string", "format": "binary"} for name in ("picture", "mask")},
                    "required": ["picture"],
                }
            },
        },
    }
}


def limits_of(options: ServeOptions) -> Limits:
    """What a server's options say of datasets."""
    return Limits(
        most_files=options.max_dataset_files,
        most_bytes=int(options.project_bytes),
        most_file_bytes=int(options.max_request_bytes),
        most_archive_bytes=int(options.max_archive_bytes),
    )


def datasets_router(
    catalog: Catalog, may: Callable[[KeyScope], Any], bodies: BodyBudget, options: ServeOptions
) -> APIRouter:
    """The routes.

    Args:
        catalog: the datasets.
        may: the dependency that gives the identity of who asks, if its key has a scope.
        bodies: bytes of all requests' bodies.
        options: limits.
    """
    workers = _Workers()
    router = APIRouter(prefix="/v1/datasets", tags=["datasets"], lifespan=workers.running)
    room = Room(bodies, options)
    may_score, may_submit = may("score"), may("submit")

    @router.get("", responses=describe_errors(400), response_model=DatasetPage, summary="List datasets")
    async def datasets(
        identity: Identity = may_score,
        limit: _Limit = 100,
        after: Annotated[str, Query(description="What the page before gave as next.", pattern=r"^[ -~]{0,100}$")] = "",
    ) -> Response:
        """The newest version of each dataset of the key's project, by name; skipped files are only counted."""
        return _json(await asyncio.to_thread(catalog.page, limit, after, identity.project))

    @router.get(
        "/{name}", responses=describe_errors(400, 404), response_model=DatasetVersions, summary="Show a dataset"
    )
    async def dataset(name: _Name, identity: Identity = may_score) -> Response:
        """All versions of a dataset, newest first; skipped files are only counted."""
        return _json(await asyncio.to_thread(catalog.versions, name, identity.project))

    @router.get(
        "/{name}/versions/{version}",
        responses=describe_errors(400, 404),
        response_model=DatasetEntry,
        summary="Show a version",
    )
    async def one_version(name: _Name, version: _Version, identity: Identity = may_score) -> Response:
        """A version of a dataset, with the files that were skipped and why."""
        return _json(await asyncio.to_thread(catalog.entry, name, version, identity.project))

    @router.get(
        "/{name}/versions/{version}/pictures",
        responses=describe_errors(400, 404),
        response_model=PicturePage,
        summary="List a version's pictures",
    )
    async def pictures(
        name: _Name,
        version: _Version,
        identity: Identity = may_score,
        limit: _Limit = 100,
        after: Annotated[int, Query(description="What the page before gave as next.", ge=0, le=999_999_999)] = 0,
    ) -> Response:
        """Pictures of a version with their labels and masks, by path."""
        return _json(await asyncio.to_thread(catalog.pictures, name, version, limit, after, identity.project))

    @router.post(
        "/{name}/uploads",
        status_code=201,
        responses=describe_errors(400, 413, 429),
        response_model=UploadEntry,
        openapi_extra={"requestBody": {"required": True, "content": {"application/json": {"schema": UPLOAD_SCHEMA}}}},
        summary="Begin an upload",
    )
    async def begin(request: Request, name: _Name, identity: Identity = may_submit) -> Response:
        """Say which files a dataset is to have; the reply names those that the project lacks.

        The same files for the same dataset are the same upload, which is gone on with.
        """
        with room.hold() as take:
            body = await read_body(request, most_upload_bytes(options.max_dataset_files), take)

            def work() -> UploadEntry:
                return catalog.begin_upload(name, parse_upload(body, options.max_dataset_files), identity.project)

            return _json(await workers.run(work), 201)

    @router.get(
        "/{name}/uploads/{id}",
        responses=describe_errors(400, 404),
        response_model=UploadEntry,
        summary="Show an upload",
    )
    async def show(name: _Name, upload: _Upload, identity: Identity = may_submit) -> Response:
        """An upload as it stands, with what is still missing."""
        return _json(await asyncio.to_thread(catalog.upload, name, upload, identity.project))

    @router.post(
        "/{name}/uploads/{id}/files",
        responses=describe_errors(400, 404, 413, 429),
        response_model=ReceivedEntry,
        openapi_extra=_FRAMES,
        summary="Send files",
    )
    async def receive(request: Request, name: _Name, upload: _Upload, identity: Identity = may_submit) -> Response:
        """Send files of an upload. All are kept, or none; to send them again does no harm."""
        with room.hold() as take:
            body = await read_body(request, int(options.max_request_bytes) + FRAME_HEADER.size, take)
            first = int.from_bytes(body[32 : FRAME_HEADER.size], "big")
            if len(body) > PACK_BYTES and len(body) != FRAME_HEADER.size + first:
                raise RequestTooLargeError(
                    f"a body of several files must have at most {PACK_BYTES} bytes but has {len(body)}"
                )
            done = workers.run(catalog.receive, name, upload, memoryview(body), identity.project)
            return _json(await done)

    @router.post(
        "/{name}/uploads/{id}/commit",
        status_code=201,
        response_model=DatasetEntry,
        responses=describe_errors(400, 404, 409, 413) | _THERE,
        summary="Commit an upload",
    )
    async def commit(name: _Name, upload: _Upload, identity: Identity = may_submit) -> Response:
        """Make an upload the next version of its dataset, once all its files have been sent."""

        def work() -> tuple[DatasetEntry, bool]:
            return catalog.commit(name, upload, actor=identity.name, project=identity.project)

        return _version(await workers.run(work))

    @router.post(
        "/{name}/archive",
        status_code=201,
        response_model=DatasetEntry,
        responses=describe_errors(400, 404, 409, 413, 415, 429) | _THERE,
        openapi_extra=_ARCHIVE,
        summary="Send an archive",
    )
    async def archive(request: Request, name: _Name, identity: Identity = may_submit, note: _Note = "") -> Response:
        """Make the files of an archive the next version of a dataset."""
        with room.spool(catalog) as file:
            await spool(request, file, int(options.max_archive_bytes))

            def work() -> tuple[DatasetEntry, bool]:
                return catalog.add_archive(name, file, note=note, actor=identity.name, project=identity.project)

            try:
                return _version(await workers.unpack(work))
            except UnknownArchiveError as error:
                raise UnsupportedError(str(error)) from error

    @router.post(
        "/{name}/examples",
        status_code=201,
        response_model=DatasetEntry,
        responses=describe_errors(400, 404, 409, 413, 415, 422, 429) | _THERE,
        openapi_extra=_EXAMPLE,
        summary="Add an example",
    )
    async def example(
        request: Request,
        name: _Name,
        label: _Label,
        identity: Identity = may_submit,
        note: _Note = "",
    ) -> Response:
        """Make a dataset's next version: the newest, with this picture added, or labelled so if it has it already."""
        with room.hold() as take:
            picture, mask = await read_example(request, options, take)

            def work() -> tuple[DatasetEntry, bool]:
                return catalog.add_example(
                    name, picture, mask, label=label, note=note, actor=identity.name, project=identity.project
                )

            return _version(await workers.run(work))

    return router


class _Workers:
    """The threads that do what would keep the event loop waiting; archives, which may take minutes, have their own."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="autoad-datasets")
        self._unpacker = ThreadPoolExecutor(1, thread_name_prefix="autoad-archives")

    @asynccontextmanager
    async def running(self, _: object) -> AsyncIterator[None]:
        """Ends the threads with the application."""
        try:
            yield
        finally:
            self._threads.shutdown(wait=False, cancel_futures=True)
            self._unpacker.shutdown(wait=False, cancel_futures=True)

    async def run(self, function: Callable[_P, _R], *arguments: _P.args, **options: _P.kwargs) -> _R:
        """What a function returns."""
        return await self._run(self._threads, lambda: function(*arguments, **options))

    async def unpack(self, function: Callable[[], _R]) -> _R:
        """What a function returns that unpacks an archive."""
        return await self._run(self._unpacker, function)

    @staticmethod
    async def _run(pool: ThreadPoolExecutor, function: Callable[[], _R]) -> _R:
        work = asyncio.get_running_loop().run_in_executor(pool, function)
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            await asyncio.wait([work])  # who asked has gone, but the body is held, and counts, until this has ended
            raise
        except (FileStoreError, StorageFullError, OSError) as error:
            if isinstance(error, OSError) and not is_full(error):
                raise
            _logger.warning("a dataset's files cannot be kept or fetched: %s", error)
            raise StateError("the server cannot keep or fetch files now; its log says why") from error


def _json(record: BaseModel, status: int = 200) -> Response:
    return Response(record.model_dump_json(), status, media_type="application/json")


def _version(outcome: tuple[DatasetEntry, bool]) -> Response:
    entry, is_new = outcome
    return _json(entry, 201 if is_new else 200)
