"""A dataset on the local disk: which files are to be sent, and what they hold."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from autoad.errors import DatasetError, UsageError
from autoad.folders import ManifestRow, files_below, read_manifest
from autoad.schema import FileEntry, TableRow

__all__ = ["LocalDataset", "LocalFile", "dataset_name", "hash_files", "is_archive", "list_dataset"]

_ARCHIVE = re.compile(r"\.(zip|tar|tar\.(gz|bz2|xz)|tgz|tbz2?|txz)$", re.IGNORECASE)
_OUTSIDE = "outside"
_LARGE = 2**20
_LONGEST_PATH = 1024


@dataclasses.dataclass(frozen=True)
class LocalFile:
    """A file of a dataset.

    Attributes:
        path: by which the server is to know it; parts separated by ``/``.
        source: where it lies.
    """

    path: str
    source: Path


@dataclasses.dataclass(frozen=True)
class LocalDataset:
    """What is to be sent; ``table`` is what a manifest says of the files, None for a folder."""

    files: Sequence[LocalFile]
    table: list[TableRow] | None


def is_archive(path: Path) -> bool:
    """Whether a file's name says that it is an archive that a server unpacks."""
    return _ARCHIVE.search(path.name) is not None


def dataset_name(path: Path) -> str:
    """A name for a dataset, made of the folder's, the manifest's or the archive's.

    Raises:
        UsageError: nothing of it may stand in one.
    """
    own = path.resolve().name if path.is_dir() else _ARCHIVE.sub("", path.name)
    own = own if path.is_dir() or own != path.name else path.stem
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", own).lstrip("._-").rstrip("-")[:100]
    if not name:
        raise UsageError(f"no name can be made of {own!r}: give one with name=")
    return name


def list_dataset(path: Path) -> LocalDataset:
    """The files of a folder or manifest, by the rules of local datasets; none is opened.

    Raises:
        DatasetError: there is no such folder or manifest, it holds no file, or a file's name cannot be sent.
    """
    try:
        if path.is_dir():
            files = [LocalFile(file.relative_to(path).as_posix(), file) for file in files_below(path)]
            found = LocalDataset(files, None)
        elif path.is_file():
            found = _list_manifest(path)
        else:
            raise DatasetError(f"dataset {path} must be an existing folder, manifest or archive but there is none")
    except OSError as error:
        raise DatasetError(f"{error.filename} must be readable but {error.strerror}") from error
    if not found.files:
        raise DatasetError(f"dataset {path} must hold pictures but holds no file")
    for file in found.files:
        if len(file.path) > _LONGEST_PATH:
            raise DatasetError(f"{file.source} must have a path of at most {_LONGEST_PATH} letters below {path}")
        try:
            file.path.encode()
        except UnicodeEncodeError as error:
            raise DatasetError(f"{file.path!r} must have a name in UTF-8: rename it") from error
    return found


def _list_manifest(path: Path) -> LocalDataset:
    namer = _Namer(path.absolute().parent)
    rows = read_manifest(path)
    table = [_table_row(row, namer) for row in rows]
    return LocalDataset([LocalFile(name, source) for source, name in namer.names.items()], table)


def _table_row(row: ManifestRow, namer: _Namer) -> TableRow:
    if len(row.label) > 200 or "\0" in row.label:
        raise DatasetError(f"{row.row}: label must have at most 200 letters but got {row.label[:50]!r}...")
    mask = namer.name(row.mask) if row.mask else None
    return TableRow(path=namer.name(row.path), label=row.label, split=row.split, mask=mask)


class _Namer:
    """Relative paths for what a manifest names, which may lie anywhere.

    What lies outside the manifest's folder is called ``outside/N/NAME``, numbered in the order of the rows, so that the
    same manifest is the same upload.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._numbers: dict[str, int] = {}
        self.names: dict[Path, str] = {}

    def name(self, written: str) -> str:
        source = Path(os.path.normpath(self._root / written))
        if source not in self.names:
            self.names[source] = self._relative(source)
        return self.names[source]

    def _relative(self, source: Path) -> str:
        if source.is_relative_to(self._root):
            relative = source.relative_to(self._root)
            if relative.parts[0] != _OUTSIDE:
                return relative.as_posix()
        number = self._numbers.setdefault(str(source.parent), len(self._numbers) + 1)
        return f"{_OUTSIDE}/{number}/{source.name}"


def hash_files(files: Iterable[LocalFile]) -> list[FileEntry]:
    """What the files hold.

    Raises:
        DatasetError: one cannot be read.
    """
    return [_hash(file) for file in files]


def _hash(file: LocalFile) -> FileEntry:
    try:
        with file.source.open("rb", buffering=0) as stream:
            if os.fstat(stream.fileno()).st_size < _LARGE:
                data = stream.readall()
                return FileEntry(path=file.path, sha256=hashlib.sha256(data).hexdigest(), size=len(data))
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
            return FileEntry(path=file.path, sha256=digest, size=stream.tell())
    except OSError as error:
        raise DatasetError(f"{file.source} must be readable but {error.strerror}") from error
