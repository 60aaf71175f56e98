"""Uploads: the files that a client says it has, those of them that it sends, and the version that they become."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Container, Mapping
from pathlib import Path

from autoad.data._checks import FileFacts, check
from autoad.data._frames import read_frames
from autoad.data._listing import Listing
from autoad.data._paths import check_path, check_paths
from autoad.data._tree import NamedTree
from autoad.data.dataset import Dataset
from autoad.data.decoding import Inspection, inspect_image
from autoad.data.layouts import list_tree
from autoad.data.manifest import list_rows
from autoad.database import DatasetTables, FileRow
from autoad.errors import ConflictError, DatasetError, QuotaError, UnknownNameError, UsageError
from autoad.files import Buffer, FileStore
from autoad.schema import ReceivedEntry, UploadEntry, UploadRequest
from autoad.settings import Settings

__all__ = ["Limits", "ProjectFiles", "Uploads"]

_ID_DIGITS = 32
_NAMED = 10
_REMEMBERED = 400_000  # files of uploads whose sizes a process keeps in mind
_LONGEST_FAULT = 300


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a project may have.

    Attributes:
        most_files: of one dataset.
        most_bytes: of all its files together.
        most_file_bytes: of one file.
        most_archive_bytes: of an archive, packed and unpacked.
    """

    most_files: int = 100_000
    most_bytes: int = 100 * 10**9
    most_file_bytes: int = 64 * 2**20
    most_archive_bytes: int = 8 * 10**9


class ProjectFiles:
    """The files of projects, each kept once: bytes in the file store, what they are in a row.

    A row is committed when the disk keeps the bytes, so whatever has a row is there.

    Args:
        tables: with the rows.
        settings: where the store is; below the data folder where they name none.
        limits: of a project.
    """

    def __init__(self, tables: DatasetTables, settings: Settings, limits: Limits) -> None:
        self._tables = tables
        self._address = settings.files_url or str(settings.data_dir / "files")
        self._limits = limits

    def store(self, project: str) -> FileStore:
        """Where a project's bytes are."""
        return FileStore(self._address, project, "pictures")

    def add(self, project: str, files: Mapping[str, Buffer]) -> None:
        """Keep files by their sha256, which the caller has compared; what the project has already is left alone.

        Raises:
            QuotaError: the project has no room for them.
            FileStoreError: they cannot be kept.
        """
        known = self._tables.sizes(project, files)
        fresh = {sha256: data for sha256, data in files.items() if sha256 not in known}
        if not fresh:
            return
        self.check_room(project, sum(map(len, fresh.values())))
        rows = [_row(project, sha256, data) for sha256, data in fresh.items()]
        self.store(project).write_many(fresh)
        self._tables.add_files(rows)

    def check_room(self, project: str, needed: int) -> None:
        """Pass if the project has room for so many bytes more.

        Raises:
            QuotaError: it has not.
        """
        used, allowed = self._tables.used(project), self._limits.most_bytes
        if needed and used + needed > allowed:
            raise QuotaError(
                f"the project's files have {used:,} bytes and these {needed:,} more, but at most {allowed:,} are "
                "allowed; ask whoever runs the server for more room"
            )


class Uploads:
    """The uploads of all projects.

    Args:
        tables: with their rows.
        files: where what is sent is kept.
        limits: of an upload.
    """

    def __init__(self, tables: DatasetTables, files: ProjectFiles, limits: Limits) -> None:
        self._tables = tables
        self._files = files
        self._limits = limits
        self._sizes: OrderedDict[tuple[str, str], Mapping[str, int]] = OrderedDict()
        self._lock = threading.Lock()

    def begin(self, project: str, name: str, request: UploadRequest) -> UploadEntry:
        """Begin an upload, or go on with the one of the same files to the same dataset.

        Raises:
            DatasetError: these cannot be the files of one dataset.
            QuotaError: the project has no room for those that it lacks.
        """
        sizes = _check(request, self._limits)
        _list(name, request)  # what is wrong with the names need not wait for the bytes
        known = self._tables.sizes(project, sizes)
        for file in request.files:
            if known.get(file.sha256, file.size) != file.size:
                raise DatasetError(
                    f"{file.path} must have {known[file.sha256]} bytes, going by its sha256, but says {file.size}"
                )
        self._files.check_room(project, sum(size for sha256, size in sizes.items() if sha256 not in known))
        upload_id = _identify(name, request)
        row = self._tables.upload(project, name, upload_id)
        if row is None or row.version is None:
            self._tables.begin_upload(project, upload_id, name, request.model_dump(mode="json"))
        self._remember(project, upload_id, sizes)
        return _entry(name, upload_id, request, known, None if row is None else row.version)

    def entry(self, project: str, name: str, upload_id: str) -> UploadEntry:
        """An upload as it stands.

        Raises:
            UnknownNameError: there is none.
        """
        version = self.version(project, name, upload_id)
        request = self._request(project, name, upload_id)
        known = self._tables.sizes(project, {file.sha256 for file in request.files})
        return _entry(name, upload_id, request, known, version)

    def version(self, project: str, name: str, upload_id: str) -> int | None:
        """The version that an upload has become; None before its commit.

        Raises:
            UnknownNameError: there is no such upload.
        """
        row = self._tables.upload(project, name, upload_id)
        if row is None:
            raise self._unknown(project, name, upload_id)
        return row.version

    def receive(self, project: str, name: str, upload_id: str, body: memoryview) -> ReceivedEntry:
        """Keep the files of a packed body, all of them or none; those that are there already do no harm.

        Raises:
            UnknownNameError: there is no such upload.
            UsageError: the body cannot be read, or a file is none of the upload's, or another than it claims to be.
            QuotaError: the project has no room for them.
            FileStoreError: they cannot be kept.
        """
        sizes = self._sizes_of(project, name, upload_id)
        files: dict[str, Buffer] = {}
        for number, (sha256, data) in enumerate(read_frames(body), start=1):
            if sha256 not in sizes:
                raise UsageError(
                    f"file {number} of the body must be one of the upload's but none of those has the sha256 {sha256}"
                )
            if len(data) != sizes[sha256]:
                raise UsageError(
                    f"file {number} of the body, {sha256}, must have {sizes[sha256]} bytes but has {len(data)}"
                )
            if (digest := hashlib.sha256(data).hexdigest()) != sha256:
                raise UsageError(f"file {number} of the body must have the sha256 {sha256} but has {digest}")
            files[sha256] = data
        self._files.add(project, files)
        return ReceivedEntry(files=len(files), bytes=sum(map(len, files.values())))

    def read(self, project: str, name: str, upload_id: str) -> tuple[Dataset, UploadRequest]:
        """The dataset that an upload's files are.

        Raises:
            UnknownNameError: there is no such upload.
            ConflictError: files of it have not been sent.
            DatasetError: as :func:`autoad.data.read_dataset`; paths are relative to the dataset.
        """
        request = self._request(project, name, upload_id)
        stored = self._tables.files(project, {file.sha256 for file in request.files})
        lacking = [file.path for file in request.files if file.sha256 not in stored]
        if lacking:
            raise ConflictError(
                f"all files of the upload must have been sent but {len(lacking)} of {len(request.files)} are missing, "
                f"the first of them {lacking[0]}; send those that the upload names as missing, and commit again"
            )
        return _read(name, request, stored), request

    def _request(self, project: str, name: str, upload_id: str) -> UploadRequest:
        row = self._tables.upload(project, name, upload_id, request=True)
        if row is None:
            raise self._unknown(project, name, upload_id)
        return UploadRequest.model_validate(row.request)

    def _unknown(self, project: str, name: str, upload_id: str) -> UnknownNameError:
        return UnknownNameError("upload", upload_id, self._tables.upload_ids(project, name, _NAMED))

    def _sizes_of(self, project: str, name: str, upload_id: str) -> Mapping[str, int]:
        """Bytes of an upload's files; from memory, for it is asked with every body and the files never change."""
        with self._lock:
            known = self._sizes.get((project, upload_id))
        row = self._tables.upload(project, name, upload_id)
        if known is None or row is None:
            request = self._request(project, name, upload_id)
            known = {file.sha256: file.size for file in request.files}
            self._remember(project, upload_id, known)
        return known

    def _remember(self, project: str, upload_id: str, sizes: Mapping[str, int]) -> None:
        with self._lock:
            self._sizes[project, upload_id] = sizes
            self._sizes.move_to_end((project, upload_id))
            while len(self._sizes) > 1 and sum(map(len, self._sizes.values())) > _REMEMBERED:
                self._sizes.popitem(last=False)


def _entry(
    name: str, upload_id: str, request: UploadRequest, known: Container[str], version: int | None
) -> UploadEntry:
    return UploadEntry(
        id=upload_id,
        dataset=name,
        missing=list(dict.fromkeys(file.sha256 for file in request.files if file.sha256 not in known)),
        files=len(request.files),
        bytes=sum(file.size for file in request.files),
        version=version,
    )


def _read(name: str, request: UploadRequest, stored: Mapping[str, FileRow]) -> Dataset:
    """The dataset that files are by their names and by what was found of them when they arrived; none is opened.

    Args:
        name: of the dataset.
        request: the files.
        stored: what they are, by their sha256.

    Raises:
        DatasetError: as :func:`autoad.data.read_dataset`.
    """
    by_path = {file.path: file.sha256 for file in request.files}

    def look(path: Path) -> FileFacts:
        row = stored[by_path[str(path)]]
        size = None if row.height is None or row.width is None else (row.height, row.width)
        return FileFacts(row.sha256, Inspection(size, row.fault, row.marks))

    return check(_list(name, request), look)


def _list(name: str, request: UploadRequest) -> Listing:
    """What the names of files, or a table, say of them.

    Raises:
        DatasetError: they are laid out in no way that is understood.
    """
    paths = [file.path for file in request.files]
    if request.table is None:
        listing = list_tree(NamedTree(paths, name))
    else:
        listing = list_rows((row.model_dump() for row in request.table), paths, name)
    return dataclasses.replace(listing, root=Path(name))  # which messages show


def _check(request: UploadRequest, limits: Limits) -> dict[str, int]:
    """The files' sizes by their sha256, if they can be one dataset's."""
    for what, count in (("files", len(request.files)), ("rows", len(request.table or ()))):
        if count > limits.most_files:
            raise DatasetError(f"a dataset may have at most {limits.most_files:,} {what} here but has {count:,}")
    check_paths(file.path for file in request.files)
    for row in request.table or ():
        for path in (row.path, row.mask):
            if path is not None:
                check_path(path)
    sizes: dict[str, int] = {}
    for file in request.files:
        if sizes.setdefault(file.sha256, file.size) != file.size:
            raise DatasetError(
                f"files of one sha256 must have one size but {file.path} has {file.size} bytes and another of "
                f"{file.sha256} has {sizes[file.sha256]}"
            )
        if file.size > limits.most_file_bytes:
            raise DatasetError(
                f"{file.path} must have at most {limits.most_file_bytes:,} bytes but has {file.size:,}; save it smaller"
            )
    return sizes


def _identify(name: str, request: UploadRequest) -> str:
    files = sorted((file.path, file.sha256, file.size) for file in request.files)
    table = None if request.table is None else [(row.path, row.label, row.split, row.mask) for row in request.table]
    return hashlib.sha256(json.dumps([name, files, table]).encode()).hexdigest()[:_ID_DIGITS]


def _row(project: str, sha256: str, data: Buffer) -> dict[str, object]:
    found = inspect_image(data)
    height, width = found.size or (None, None)
    fault = found.fault
    if fault is not None:  # may quote the file, and so hold what no database takes
        fault = "".join(letter if letter.isprintable() else "?" for letter in fault)[:_LONGEST_FAULT]
    return {
        "project": project,
        "sha256": sha256,
        "size": len(data),
        "height": height,
        "width": width,
        "marks": found.marks,
        "fault": fault,
    }
