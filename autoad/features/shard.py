"""One shard on disk: rows that were computed together.

A shard is a folder with one ``COLUMN.npy`` a column and ``rows.jsonl``: a line that names the rows, in order, and each
column's type, shape and checksums, and a line with the checksum of the line before. It is written under another name,
flushed to the disk and renamed, so what has its name was once complete.

What a disk gives back need not be what was written. Each row has a CRC-32 of its bytes, its key, its column's name,
type and shape, so that neither a flipped bit nor a file in the wrong place goes unnoticed; a process checks a row when
it first reads it. It reads it for that with ``read``, for a disk that fails under a memory map ends the process.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import io
import json
import mmap
import os
import secrets
import shutil
import weakref
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["UNFINISHED", "Chunk", "Column", "DamagedError", "Shard", "ShardWriter", "is_finished", "remove_shard"]

Chunk = Mapping[str, NDArray[Any]]
"""The next few rows: by column, an array whose first axis is the rows."""

UNFINISHED = ".unfinished-"
"""What the name of a shard begins with while it is written."""

_ROWS = "rows.jsonl"
_NO_RESERVATIONS = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})
_UNREADABLE = frozenset(
    getattr(errno, name)
    for name in ("ENOENT", "ENOTDIR", "EISDIR", "ELOOP", "ESTALE", "EACCES", "EIO", "EBADMSG", "EUCLEAN")
)


class DamagedError(Exception):
    """A shard is not what was written, cannot be read, or has gone: what it held must be computed again."""


@dataclasses.dataclass(frozen=True)
class _Layout:
    """What a column's file holds.

    Attributes:
        dtype: of the values.
        shape: of a row.
        sums: a checksum a row.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    sums: Sequence[int]

    @property
    def header(self) -> bytes:
        """How the ``.npy`` file begins."""
        return _header(self.dtype, (len(self.sums), *self.shape))


class Column:
    """One column of a shard, opened when it is first read.

    The map of the file lives as long as an array that was made of it, so that the space of a shard that has been
    removed is free as soon as nobody uses it.
    """

    def __init__(self, path: Path, keys: Sequence[str], layout: _Layout) -> None:
        self._path = path
        self._keys = keys
        self._layout = layout
        self._row_bytes = layout.dtype.itemsize * int(np.prod(layout.shape))
        self._checked = np.zeros(len(keys), bool)
        self._map: weakref.ref[mmap.mmap] | None = None

    def load(self, rows: Sequence[int]) -> NDArray[Any]:
        """All rows ``[N, ...]``, mapped and read-only, of which ``rows`` are known to be what was written.

        Raises:
            DamagedError: one of them is not.
        """
        mapped = self._map() if self._map is not None else None
        wanted = np.asarray(rows)
        unchecked = wanted[~self._checked[wanted]].tolist()
        if mapped is None or unchecked:
            with _reading(self._path), self._path.open("rb") as file:
                self._check(file, unchecked)
                if mapped is None:
                    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._map = weakref.ref(mapped)
        layout, count = self._layout, len(self._keys)
        flat = np.frombuffer(mapped, layout.dtype, count * int(np.prod(layout.shape)), len(layout.header))
        return flat.reshape(count, *layout.shape)

    def _check(self, file: io.BufferedReader, rows: Sequence[int]) -> None:
        header = self._layout.header
        size = len(header) + len(self._keys) * self._row_bytes
        if os.fstat(file.fileno()).st_size != size or file.read(len(header)) != header:
            raise DamagedError(f"{self._path} must be {size} bytes of {self._layout.dtype} as its rows say")
        buffer = bytearray(self._row_bytes)
        for row in rows:
            file.seek(len(header) + row * self._row_bytes)
            read, key = file.readinto(buffer), self._keys[row]
            if read != len(buffer) or _sum(buffer, key, self._path.stem, self._layout) != self._layout.sums[row]:
                raise DamagedError(f"row {key} of {self._path} is not what was written")
            self._checked[row] = True


@dataclasses.dataclass
class Shard:
    """A finished shard.

    Attributes:
        folder: where it lies.
        rows: number of each key's row.
        columns: by name.
        noted: time of the monotonic clock at which this process last noted that the shard is in use.
    """

    folder: Path
    rows: dict[str, int]
    columns: dict[str, Column]
    noted: float = -float("inf")

    @classmethod
    def open(cls, folder: Path) -> Shard:
        """Read what a shard holds; not yet the values.

        Raises:
            DamagedError: see there.
        """
        path = folder / _ROWS
        with _reading(path):
            line, _, check = path.read_bytes().partition(b"\n")
        if check != _checksum_line(line):
            raise DamagedError(f"{path} is not what was written")
        index = json.loads(line)  # as it was written, so it has all that follows
        keys: list[str] = index["keys"]
        columns = {}
        for name, column in index["columns"].items():
            layout = _Layout(np.dtype(column["dtype"]), tuple(column["shape"]), column["sums"])
            columns[name] = Column(folder / f"{name}.npy", keys, layout)
            with _reading(folder):
                (folder / f"{name}.npy").stat()
        return cls(folder, {key: row for row, key in enumerate(keys)}, columns)


class ShardWriter:
    """Writes one shard; :meth:`discard` after any exception.

    Every method may raise OSError.

    Args:
        table: folder in which the shard is to lie.
        keys: of its rows.
    """

    def __init__(self, table: Path, keys: Sequence[str]) -> None:
        self._keys = keys
        self._name = secrets.token_hex(8)
        self._table = table
        self._folder = table / f"{UNFINISHED}{self._name}"
        self._files: dict[str, IO[bytes]] = {}
        self._layouts: dict[str, _Layout] = {}
        self._sums: dict[str, list[int]] = {}
        self._done = 0

    @property
    def started(self) -> bool:
        """Whether :meth:`start` has succeeded."""
        return bool(self._files)

    def bytes_needed(self, chunk: Chunk) -> int:
        """Of the whole shard, judged by its first rows."""
        arrays = len(self._keys) * sum(int(array[0].nbytes) for array in chunk.values())
        return arrays + len(self._keys) * (80 + 12 * len(chunk)) + 1024 * (1 + len(chunk))

    def start(self, chunk: Chunk) -> None:
        """Create the files and reserve their space, so that a disk that is too small says so before the computing."""
        self._folder.mkdir()
        for name, array in chunk.items():
            self._sums[name] = []
            self._layouts[name] = layout = _Layout(array.dtype, array.shape[1:], self._sums[name])
            self._files[name] = file = (self._folder / f"{name}.npy").open("wb")
            header = _header(array.dtype, (len(self._keys), *layout.shape))
            try:
                os.posix_fallocate(file.fileno(), 0, len(header) + len(self._keys) * array[0].nbytes)
            except OSError as error:
                if error.errno not in _NO_RESERVATIONS:
                    raise
            file.write(header)

    def add(self, chunk: Chunk) -> None:
        """Write the next rows."""
        count = len(next(iter(chunk.values())))
        for name, array in chunk.items():
            layout, data = self._layouts[name], np.ascontiguousarray(array)
            rows = data.reshape(count, -1).view(np.uint8)
            for key, row in zip(self._keys[self._done : self._done + count], rows, strict=True):
                self._sums[name].append(_sum(row.data, key, name, layout))
            self._files[name].write(rows.data)
        self._done += count

    def finish(self) -> None:
        """Flush everything to the disk.

        Raises:
            ValueError: rows are missing.
        """
        if self._done != len(self._keys):
            raise ValueError(f"{len(self._keys)} rows must be computed but got {self._done}")
        columns = {
            name: {"dtype": layout.dtype.str, "shape": layout.shape, "sums": layout.sums}
            for name, layout in self._layouts.items()
        }
        line = json.dumps({"keys": self._keys, "columns": columns}).encode()
        with (self._folder / _ROWS).open("wb") as rows:
            rows.write(line + b"\n" + _checksum_line(line))
            for file in (*self._files.values(), rows):
                file.flush()
                os.fsync(file.fileno())
        self._close()
        _sync_folder(self._folder)

    def publish(self) -> None:
        """Give the finished shard its name."""
        self._folder.rename(self._table / self._name)
        _sync_folder(self._table)

    def discard(self) -> None:
        """Leave nothing behind."""
        self._close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _close(self) -> None:
        for file in self._files.values():
            with contextlib.suppress(OSError):  # what is left in the buffer need not reach a full disk
                file.close()
        self._files.clear()


def is_finished(folder: Path) -> bool:
    """Whether this is a shard, and not what a process that was killed while writing or removing one has left."""
    return not folder.name.startswith(UNFINISHED) and (folder / _ROWS).exists()


def remove_shard(folder: Path) -> bool:
    """Delete a shard; whether it has gone. A reader that has mapped it can go on reading."""
    with contextlib.suppress(OSError):
        (folder / _ROWS).unlink(missing_ok=True)  # first: half a shard must not look like one
    shutil.rmtree(folder, ignore_errors=True)
    return not folder.exists()


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _UNREADABLE:  # too many open files, say, is no damage
            raise
        raise DamagedError(f"{path} cannot be read: {error.strerror}") from error


def _header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    file = io.BytesIO()
    description = np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_1_0(file, {"descr": description, "fortran_order": False, "shape": shape})
    return file.getvalue()


def _sum(data: bytearray | memoryview, key: str, column: str, layout: _Layout) -> int:
    return zlib.crc32(data, zlib.crc32(f"{key} {column} {layout.dtype.str} {layout.shape}".encode()))


def _checksum_line(line: bytes) -> bytes:
    return b"%d\n" % zlib.crc32(line)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
