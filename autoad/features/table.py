"""A table of arrays on disk, filled once per node by whichever process comes first.

A table is a folder. Its rows are named by keys, its columns hold one array per row, all of the same shape. Each fill
adds a shard (:mod:`autoad.features.shard`). Readers need no lock; one process at a time fills, under a file lock.

A shard may go at any moment, because another process needs its space (:mod:`autoad.features.room`) or because it is
damaged. A call maps what it finds before it computes what is missing, and its own shard before anybody can remove it;
what is mapped stays readable though its file has gone. So whatever happens, a call computes what it lacks once.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoad.errors import StorageFullError, UsageError
from autoad.features.room import TABLE_LOCK, Room, hold, storing
from autoad.features.shard import Chunk, DamagedError, Shard, ShardWriter, is_finished, remove_shard

__all__ = ["Compute", "ShardTable"]

Compute = Callable[[list[str], list[str]], Iterable[Chunk]]
"""Given the keys of the missing rows and the columns that they lack, yields these rows in order, a chunk at a time.

Every chunk has all those columns. It may be called a second time, when the disk was full."""

_NOTE_EVERY = 60.0
"""Seconds between two notes of one process that it uses a shard."""


class ShardTable:
    """See the module.

    Args:
        folder: need not exist.
        room: whose space the shards take; ``folder`` lies in its root.
    """

    def __init__(self, folder: Path, room: Room) -> None:
        self._folder = folder
        self._room = room
        self._shards: dict[str, Shard] = {}
        self._damaged: set[str] = set()

    def take(
        self, keys: Sequence[str], columns: Sequence[str], compute: Compute, *, welcome: Sequence[str] = ()
    ) -> dict[str, NDArray[Any]]:
        """Rows by column, in the order of ``keys``, computing those that the table does not hold.

        Args:
            keys: of the rows, at least one; may repeat.
            columns: which ones are wanted.
            compute: of missing rows. What it raises is passed on.
            welcome: columns to be computed along with missing rows, though nobody has asked for them yet.

        Returns:
            Read-only arrays: a map of the file where the rows lie one behind the other in one shard, else a copy.

        Raises:
            StorageFullError: the disk has no room for the missing rows, not even without all other shards.
            UsageError: the folder cannot be written, or its disk does not keep what is written.
        """
        found = _Found(keys, columns)
        self._collect(found)
        if found.missing():
            try:
                self._fill(found, compute, welcome)
            except StorageFullError as full:
                if not self._room.evict(full.needed, found.folders):
                    raise
                self._fill(found, compute, welcome)
        return found.gather()

    def find(self, keys: Sequence[str], columns: Sequence[str]) -> dict[str, NDArray[Any]] | None:
        """As :meth:`take`, but None if anything would have to be computed."""
        found = _Found(keys, columns)
        self._collect(found)
        return None if found.missing() else found.gather()

    def _collect(self, found: _Found) -> None:
        """Map all that the table holds of what is still missing."""
        self._refresh()
        for column in found.columns:
            while not self._map(found, column):
                pass  # another shard may have what a damaged one had

    def _map(self, found: _Found, column: str) -> bool:
        """Map what is still missing of a column; False if a shard turned out to be damaged."""
        sound = True
        for name, rows in self._places(found.missing(column), column).items():
            shard = self._shards[name]
            try:
                array = shard.columns[column].load(list(rows.values()))
            except DamagedError:
                self._damaged.add(name)
                del self._shards[name]
                sound = False
            else:
                self._note(shard)
                found.add(column, shard.folder, array, rows)
        return sound

    def _places(self, keys: Sequence[str], column: str) -> dict[str, dict[str, int]]:
        """By shard, the rows of those keys that have one."""
        places: dict[str, dict[str, int]] = {}
        for key in keys:
            for name, shard in self._shards.items():
                if key in shard.rows and column in shard.columns:
                    places.setdefault(name, {})[key] = shard.rows[key]
                    break
        return places

    def _holds(self, keys: Sequence[str], column: str) -> bool:
        return sum(map(len, self._places(keys, column).values())) == len(keys)

    def _refresh(self) -> None:
        """Open the shards that have appeared, forget those that have gone."""
        try:
            names = {entry.name for entry in os.scandir(self._folder) if entry.is_dir()}
        except OSError:  # not there yet; if it can never be, writing says so
            names = set()
        names = {name for name in names if not name.startswith(".")}
        self._damaged &= names
        self._shards = {name: shard for name, shard in self._shards.items() if name in names}
        for name in sorted(names - self._damaged - self._shards.keys()):
            try:
                self._shards[name] = Shard.open(self._folder / name)
            except DamagedError:
                self._damaged.add(name)

    @staticmethod
    def _note(shard: Shard) -> None:
        """Note that the shard is used, for those that look for one to remove."""
        now = time.monotonic()
        if now - shard.noted >= _NOTE_EVERY:
            shard.noted = now
            with contextlib.suppress(OSError):  # it has gone, or the store cannot be written
                os.utime(shard.folder)

    def _fill(self, found: _Found, compute: Compute, welcome: Sequence[str]) -> None:
        """Compute what no other process has computed by the time that it is this one's turn."""
        with self._filling():
            self._collect(found)
            self._remove_damaged()
            if missing := found.missing():
                asked = dict.fromkeys((*found.columns, *welcome))
                lacking = [column for column in asked if not self._holds(missing, column)]
                self._write(missing, compute(missing, lacking), found)
                if found.missing():
                    raise UsageError(
                        f"the feature store {self._folder} must be on a disk that keeps what is written but what was "
                        "read back differs; check the disk or set AUTOAD_DATA_DIR to a folder on another"
                    )

    @contextlib.contextmanager
    def _filling(self) -> Iterator[None]:
        """Be the only process that fills this table."""
        with contextlib.ExitStack() as stack:
            with storing(self._folder):
                self._folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(hold(self._folder / TABLE_LOCK))
            yield

    def _remove_damaged(self) -> None:
        """Delete what cannot be read, and what processes that were killed have left behind."""
        with storing(self._folder):
            folders = [Path(entry.path) for entry in os.scandir(self._folder) if entry.is_dir()]
        for folder in folders:
            if folder.name in self._damaged or not is_finished(folder):
                remove_shard(folder)
        self._damaged.clear()

    def _write(self, keys: list[str], chunks: Iterable[Chunk], found: _Found) -> None:
        """Add a shard, and map what is wanted of it."""
        writer, needed = ShardWriter(self._folder, keys), 0
        try:
            for chunk in chunks:  # not within storing(): what computing raises is no fault of the store
                if not writer.started:
                    needed = writer.bytes_needed(chunk)
                    with self._room.locked(), storing(self._folder, needed, writer.discard):
                        self._room.make(needed, found.folders)
                        writer.start(chunk)
                with storing(self._folder, needed, writer.discard):
                    writer.add(chunk)
            with storing(self._folder, needed, writer.discard):
                writer.finish()
            with self._room.locked():
                with storing(self._folder, needed):
                    writer.publish()
                self._collect(found)
        except BaseException:
            writer.discard()
            raise


class _Found:
    """The maps that one call has gathered so far."""

    def __init__(self, keys: Sequence[str], columns: Sequence[str]) -> None:
        self.columns = tuple(columns)
        self.folders: set[Path] = set()
        self._keys = keys
        self._places: dict[str, dict[str, tuple[NDArray[Any], int]]] = {column: {} for column in columns}

    def add(self, column: str, folder: Path, array: NDArray[Any], rows: dict[str, int]) -> None:
        self.folders.add(folder)
        self._places[column] |= {key: (array, row) for key, row in rows.items()}

    def missing(self, *columns: str) -> list[str]:
        """Keys of rows of which one of the columns (any column if none is named) is missing, without repetition."""
        places = [self._places[column] for column in columns or self.columns]
        return list(dict.fromkeys(key for key in self._keys if any(key not in known for known in places)))

    def gather(self) -> dict[str, NDArray[Any]]:
        return {column: self._gather(column) for column in self.columns}

    def _gather(self, column: str) -> NDArray[Any]:
        places = [self._places[column][key] for key in self._keys]
        like, first = places[0]
        if all(array is like and row == first + index for index, (array, row) in enumerate(places)):
            return like[first : first + len(places)]
        gathered = np.empty((len(places), *like.shape[1:]), like.dtype)
        for index, (array, row) in enumerate(places):
            gathered[index] = array[row]
        gathered.flags.writeable = False
        return gathered
