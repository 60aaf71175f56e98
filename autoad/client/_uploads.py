"""Sending a dataset: hashes first, then the files that the server lacks, several packs at a time."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from autoad.client._local import LocalDataset, LocalFile, hash_files, list_dataset
from autoad.client._records import make_record, segment
from autoad.client._transport import Transport
from autoad.errors import DatasetError, ServerError
from autoad.schema import FRAME_HEADER, PACK_BYTES, DatasetEntry, FileEntry, ReceivedEntry, UploadEntry, UploadRequest

__all__ = ["Progress", "send_archive", "send_dataset"]

Progress = Callable[[int, int, str], None]
"""Told of bytes done, bytes in all, and what is being done; in each step from 0 to all."""

_CHUNK = 2**20
_HASHED_AT_ONCE = 64
_ROUNDS = 3
_COMMIT_SECONDS = 900.0
_BYTES = {"Content-Type": "application/octet-stream"}


async def send_dataset(
    transport: Transport, data: Path, name: str, note: str, parallel: int, progress: Progress
) -> DatasetEntry:
    """Make a folder or manifest the next version of a dataset.

    Raises:
        DatasetError: it cannot be read, or a file changed while it was sent.
        ServerError: the server refuses or fails.
    """
    dataset = await asyncio.to_thread(list_dataset, data)
    entries = await _hash_all(dataset, progress)
    base = f"/v1/datasets/{segment(name)}/uploads"
    request = make_record(UploadRequest, files=entries, table=dataset.table, note=note)
    upload = await transport.post(UploadEntry, base, request, repeat="patience", timeout=_COMMIT_SECONDS)
    sources = {entry.sha256: (file, entry) for file, entry in zip(dataset.files, entries, strict=True)}
    sender = _Sender(transport, f"{base}/{segment(upload.id)}", sources, parallel, progress)
    for _ in range(_ROUNDS):
        if not upload.missing:
            break
        await sender.send(upload.missing)
        upload = await transport.get(UploadEntry, sender.path, repeat="patience")
    if upload.missing:
        example = sources[upload.missing[0]][0].source
        raise ServerError(
            f"the server lacks {len(upload.missing)} files although all were sent {_ROUNDS} times, such as {example}; "
            "its log may say why",
            "files_missing",
            200,
        )
    progress(0, upload.bytes, f"committing {upload.files} files")
    path = f"{sender.path}/commit"
    entry = await transport.post(DatasetEntry, path, repeat="patience", timeout=_COMMIT_SECONDS)
    progress(upload.bytes, upload.bytes, f"committed as {entry}")
    return entry


async def send_archive(transport: Transport, file: Path, name: str, note: str, progress: Progress) -> DatasetEntry:
    """Make an archive the next version of a dataset.

    Raises:
        DatasetError: it cannot be read.
        ServerError: the server refuses or fails.
    """
    try:
        size = file.stat().st_size
    except OSError as error:
        raise DatasetError(f"{file} must be readable but {error.strerror}") from error

    async def body() -> AsyncIterator[bytes]:
        done = 0
        try:
            with file.open("rb") as stream:
                while chunk := await asyncio.to_thread(stream.read, _CHUNK):
                    if done + len(chunk) > size:
                        break
                    yield chunk
                    done += len(chunk)
                    progress(done, size, f"sending {file.name}")
        except OSError as error:
            raise DatasetError(f"{file} must be readable but {error.strerror}") from error
        if done != size:
            raise DatasetError(f"{file} changed while it was sent: send it again when nothing writes to it")

    return await transport.post(
        DatasetEntry,
        f"/v1/datasets/{segment(name)}/archive",
        repeat="patience",
        params={"note": note or None},
        content=body,
        headers=_BYTES | {"Content-Length": str(size)},
        timeout=_COMMIT_SECONDS,
    )


async def _hash_all(dataset: LocalDataset, progress: Progress) -> list[FileEntry]:
    """Entries of all files, in their order; as many threads as there are cores."""
    total = await asyncio.to_thread(lambda: sum(_size(file) for file in dataset.files))
    starts = range(0, len(dataset.files), _HASHED_AT_ONCE)
    found: dict[int, list[FileEntry]] = {}
    turns = iter(starts)
    done = 0

    async def work() -> None:
        nonlocal done
        for start in turns:
            found[start] = await asyncio.to_thread(hash_files, dataset.files[start : start + _HASHED_AT_ONCE])
            done += sum(entry.size for entry in found[start])
            progress(done, max(total, done), f"hashing {len(dataset.files)} files")

    progress(0, total, f"hashing {len(dataset.files)} files")
    await _together(work() for _ in range(min(8, os.cpu_count() or 1)))
    return [entry for start in starts for entry in found[start]]


def _size(file: LocalFile) -> int:
    try:
        return file.source.stat().st_size
    except OSError as error:
        raise DatasetError(f"{file.source} must be readable but {error.strerror}") from error


async def _together(work: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run coroutines at once; the first error ends all and is raised as it is."""
    tasks = [asyncio.create_task(one) for one in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Sender:
    """Sends files in packs; each pack is read when its turn comes, so that memory does not depend on the dataset.

    Args:
        transport: to the server.
        path: of the upload.
        sources: where each file lies and what it held when it was hashed, by sha256.
        parallel: packs at once.
        progress: told of what has arrived.
    """

    def __init__(
        self,
        transport: Transport,
        path: str,
        sources: dict[str, tuple[LocalFile, FileEntry]],
        parallel: int,
        progress: Progress,
    ) -> None:
        self.path = path
        self._transport = transport
        self._sources = sources
        self._parallel = parallel
        self._progress = progress

    async def send(self, missing: Sequence[str]) -> None:
        """Send the files with these sha256."""
        unknown = [sha256 for sha256 in missing if sha256 not in self._sources]
        if unknown:
            raise ServerError(
                f"the server asks for a file that the dataset does not have: {unknown[0]}", "unknown", 200
            )
        total = sum(self._sources[sha256][1].size for sha256 in missing)
        text = f"sending {len(missing)} of {len(self._sources)} files"
        packs = self._packs(missing)
        done = 0
        self._progress(0, total, text)

        async def work() -> None:
            nonlocal done
            for pack in packs:
                await self._send_pack(pack)
                done += sum(entry.size for _, entry in pack)
                self._progress(done, total, text)

        await _together(work() for _ in range(self._parallel))

    async def _send_pack(self, pack: Sequence[tuple[LocalFile, FileEntry]]) -> None:
        """One request; a function of its own, so that its bytes are gone before the next pack is read."""
        body = await asyncio.to_thread(_pack, pack)
        await self._transport.post(
            ReceivedEntry,
            f"{self.path}/files",
            repeat="patience",
            content=_in_chunks(body),
            headers=_BYTES | {"Content-Length": str(len(body))},
        )

    def _packs(self, missing: Sequence[str]) -> Iterator[list[tuple[LocalFile, FileEntry]]]:
        pack: list[tuple[LocalFile, FileEntry]] = []
        size = 0
        for sha256 in missing:
            one = self._sources[sha256]
            needed = FRAME_HEADER.size + one[1].size
            if pack and size + needed > PACK_BYTES:
                yield pack
                pack, size = [], 0
            pack.append(one)
            size += needed
        if pack:
            yield pack


def _pack(files: Sequence[tuple[LocalFile, FileEntry]]) -> memoryview:
    """The frames of files: sha256, length, bytes; read straight into their places."""
    body = memoryview(bytearray(sum(FRAME_HEADER.size + entry.size for _, entry in files)))
    place = 0
    for file, entry in files:
        start = place + FRAME_HEADER.size
        FRAME_HEADER.pack_into(body, place, bytes.fromhex(entry.sha256), entry.size)
        place = start + entry.size
        try:
            with file.source.open("rb") as stream:
                whole = stream.readinto(body[start:place]) == entry.size and not stream.read(1)
        except OSError as error:
            raise DatasetError(f"{file.source} must be readable but {error.strerror}") from error
        if not whole or hashlib.sha256(body[start:place]).hexdigest() != entry.sha256:
            raise DatasetError(f"{file.source} changed while it was sent: send it again when nothing writes to it")
    return body


def _in_chunks(body: memoryview) -> Callable[[], AsyncIterator[bytes]]:
    """So that the time limit is one on each megabyte, and a slow line is no error."""

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(body), _CHUNK):
            yield bytes(body[start : start + _CHUNK])

    return chunks
