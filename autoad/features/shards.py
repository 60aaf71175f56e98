"""A table of arrays on disk, filled once per node by whichever process comes first.

A table is a folder. Its rows are named by keys, its columns hold one array per row, all of the same shape. Each fill
adds a shard: a folder with ``rows.json`` (the keys, in order) and one ``COLUMN.npy`` a column, written under another
name, flushed to the disk and renamed. Readers need no lock; one process at a time fills, under a file lock.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from autoad.errors import UsageError

__all__ = ["Chunk", "ShardTable"]

Chunk = Mapping[str, NDArray[Any]]
"""The next few rows: by column, an array whose first axis is the rows."""

_ROWS = "rows.json"
_UNFINISHED = ".unfinished-"


@dataclasses.dataclass(frozen=True)
class _Shard:
    rows: dict[str, int]
    columns: dict[str, NDArray[Any]]


class ShardTable:
    """See the module; ``folder`` need not exist."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._shards: dict[str, _Shard] = {}
        self._damaged: set[str] = set()

    def take(
        self,
        keys: Sequence[str],
        columns: Sequence[str],
        compute: Callable[[list[str], list[str]], Iterable[Chunk]],
        *,
        welcome: Sequence[str] = (),
    ) -> dict[str, NDArray[Any]]:
        """Rows by column, in the order of ``keys``, computing those that no process has computed before.

        Args:
            keys: of the rows, at least one; may repeat.
            columns: which ones are wanted.
            compute: given the keys of the missing rows and the columns that they lack, yields these rows in order, a
                chunk at a time.
            welcome: columns to be computed along with missing rows, though nobody has asked for them yet.

        Returns:
            Read-only arrays: a map of the file where the rows lie one behind the other in one shard, else a copy.

        Raises:
            UsageError: the folder cannot be written.
        """
        self._refresh()
        if self._missing(keys, columns):
            with self._writing():
                self._refresh()
                self._remove_damaged()
                if missing := self._missing(keys, columns):
                    asked = dict.fromkeys((*columns, *welcome))
                    lacking = [column for column in asked if self._missing(missing, [column])]
                    self._write(missing, compute(missing, lacking))
                    self._refresh()
        return {column: self._gather(keys, column) for column in columns}

    def holds(self, keys: Sequence[str], columns: Sequence[str]) -> bool:
        """Whether nothing of this would have to be computed."""
        self._refresh()
        return not self._missing(keys, columns)

    def _refresh(self) -> None:
        """Open the shards that have appeared, forget those that have gone."""
        try:
            names = {entry.name for entry in os.scandir(self._folder) if entry.is_dir()}
        except OSError:  # not there yet; if it can never be, writing says so
            names = set()
        names = {name for name in names if not name.startswith(_UNFINISHED)}
        self._damaged &= names
        self._shards = {name: shard for name, shard in self._shards.items() if name in names}
        for name in sorted(names - self._damaged - self._shards.keys()):
            try:
                self._shards[name] = _open(self._folder / name)
            except (EOFError, ValueError, TypeError, FileNotFoundError):
                self._damaged.add(name)

    def _find(self, key: str, column: str) -> tuple[str, int] | None:
        """Shard and row."""
        for name, shard in self._shards.items():
            row = shard.rows.get(key)
            if row is not None and column in shard.columns:
                return name, row
        return None

    def _missing(self, keys: Sequence[str], columns: Sequence[str]) -> list[str]:
        absent = (key for key in keys if any(self._find(key, column) is None for column in columns))
        return list(dict.fromkeys(absent))

    def _gather(self, keys: Sequence[str], column: str) -> NDArray[Any]:
        places = [self._find(key, column) for key in keys]
        by_shard: dict[str, list[tuple[int, int]]] = {}
        for target, place in enumerate(places):
            assert place is not None  # noqa: S101 - take() has filled what was missing
            by_shard.setdefault(place[0], []).append((target, place[1]))
        if len(by_shard) == 1:
            ((name, pairs),) = by_shard.items()
            rows = [row for _, row in pairs]
            if rows == list(range(rows[0], rows[0] + len(rows))):
                return self._shards[name].columns[column][rows[0] : rows[0] + len(rows)].view(np.ndarray)
        arrays = {name: self._shards[name].columns[column] for name in by_shard}
        like = next(iter(arrays.values()))
        gathered = np.empty((len(keys), *like.shape[1:]), like.dtype)
        for name, pairs in by_shard.items():
            for target, row in pairs:
                gathered[target] = arrays[name][row]
        gathered.flags.writeable = False
        return gathered

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Be the only process that fills this table."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with (self._folder / "lock").open("ab") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
        except OSError as error:
            raise UsageError(
                f"the feature store {self._folder} must be writable but {error.strerror or error}; free space or set "
                "AUTOAD_DATA_DIR to another folder"
            ) from error

    def _remove_damaged(self) -> None:
        """Delete what cannot be read, and what processes that were killed have left behind."""
        for entry in list(os.scandir(self._folder)):
            if entry.name in self._damaged or entry.name.startswith(_UNFINISHED):
                shutil.rmtree(entry.path)
        self._damaged.clear()

    def _write(self, keys: list[str], chunks: Iterable[Chunk]) -> None:
        name = secrets.token_hex(8)
        folder = self._folder / f"{_UNFINISHED}{name}"
        folder.mkdir()
        try:
            with contextlib.ExitStack() as stack:
                files: dict[str, IO[bytes]] = {}
                done = 0
                for chunk in chunks:
                    for column, array in chunk.items():
                        if column not in files:
                            files[column] = stack.enter_context((folder / f"{column}.npy").open("wb"))
                            _write_header(files[column], array.dtype, (len(keys), *array.shape[1:]))
                        files[column].write(np.ascontiguousarray(array).data.cast("B"))
                    done += len(next(iter(chunk.values())))
                if done != len(keys):
                    raise ValueError(f"{len(keys)} rows must be computed but got {done}")
                rows = stack.enter_context((folder / _ROWS).open("wb"))
                rows.write(json.dumps(keys).encode())
                for file in (*files.values(), rows):
                    file.flush()
                    os.fsync(file.fileno())
            folder.rename(self._folder / name)
            _sync_folder(self._folder)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise


def _open(folder: Path) -> _Shard:
    """Map a shard.

    Raises:
        ValueError: it is damaged.
    """
    keys: list[str] = json.loads((folder / _ROWS).read_bytes())
    columns: dict[str, NDArray[Any]] = {}
    for path in sorted(folder.glob("*.npy")):
        columns[path.stem] = array = np.load(path, mmap_mode="r", allow_pickle=False)
        if len(array) != len(keys) or not array.flags.c_contiguous:
            raise ValueError(f"{path} must hold {len(keys)} rows but holds {len(array)}")
    return _Shard({key: row for row, key in enumerate(keys)}, columns)


def _write_header(file: IO[bytes], dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    description = np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_1_0(file, {"descr": description, "fortran_order": False, "shape": shape})


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
