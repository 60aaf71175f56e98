"""The disk space of a feature store: how much it may take, and what goes first when it is short.

A store is a folder of tables (:mod:`autoad.features.table`); a table is a folder with a file ``lock``, and its other
folders are shards. A shard's time of modification is when a process last noted that it uses it, so that all processes
of the node agree on which one has not been used longest.

Two sorts of file lock: a table's, held while rows of it are computed, and the room's, held while space is given away.
Whoever holds the room never waits for a table, so they cannot deadlock. The kernel frees both when a process dies.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import shutil
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from autoad.errors import StorageFullError, UsageError, is_full
from autoad.features.shard import is_finished, remove_shard

__all__ = ["TABLE_LOCK", "Room", "hold", "storing"]

TABLE_LOCK = "lock"

_ROOM_LOCK = "room.lock"
_SHARE = 0.5


@dataclasses.dataclass(frozen=True)
class _Occupant:
    """A shard, finished or not, and what it takes."""

    folder: Path
    size: int
    used: int


class Room:
    """See the module.

    Args:
        root: the store's folder; need not exist.
        limit: bytes that the store may take; None for half of what the disk would have free without it.
    """

    def __init__(self, root: Path, limit: int | None = None) -> None:
        self._root = root
        self._limit = limit

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only process of the node that gives space away.

        Raises:
            StorageFullError: the disk has no room for the lock.
            UsageError: the folder cannot be written.
        """
        with contextlib.ExitStack() as stack:
            with storing(self._root):
                self._root.mkdir(parents=True, exist_ok=True)
                stack.enter_context(hold(self._root / _ROOM_LOCK))
            yield

    def make(self, needed: int, keep: Collection[Path] = ()) -> None:
        """Remove what has not been used longest until ``needed`` more bytes are within the limit, or nothing is left.

        Call this, and reserve the space, while :meth:`locked`: two processes must not count on the same bytes.

        Args:
            needed: bytes.
            keep: shards that stay, whatever the limit.
        """
        occupants = self._survey()
        taken = sum(occupant.size for occupant in occupants)
        limit = self._limit
        if limit is None:
            limit = int(_SHARE * (taken + _free(self._root)))
        self._remove(occupants, taken + needed - limit, keep)

    def evict(self, needed: int, keep: Collection[Path] = ()) -> bool:
        """Remove what has not been used longest, ``needed`` bytes of it (one shard where that is 0).

        Returns:
            Whether there was anything to remove.

        Raises:
            StorageFullError: the disk has no room for the lock.
            UsageError: the folder cannot be written.
        """
        with self.locked():
            return self._remove(self._survey(), max(1, needed), keep)

    def sweep(self) -> None:
        """Remove what processes that were killed have left behind."""
        for table in self._tables():
            _sweep(table)

    def _tables(self) -> Iterator[Path]:
        for folder, folders, files in os.walk(self._root):
            if TABLE_LOCK in files:
                folders.clear()
                yield Path(folder)

    def _survey(self) -> list[_Occupant]:
        """What takes space, after sweeping."""
        occupants = []
        for table in self._tables():
            _sweep(table)
            for folder in _shards(table):
                with contextlib.suppress(FileNotFoundError):  # removed by a process that found it damaged
                    size = sum(512 * entry.stat().st_blocks for entry in os.scandir(folder))
                    occupants.append(_Occupant(folder, size, folder.stat().st_mtime_ns))
        return occupants

    def _remove(self, occupants: list[_Occupant], excess: int, keep: Collection[Path]) -> bool:
        removed = False
        for occupant in sorted(occupants, key=lambda occupant: occupant.used):
            if excess <= 0:
                break
            if occupant.folder not in keep and is_finished(occupant.folder) and remove_shard(occupant.folder):
                excess -= occupant.size
                removed = True
        return removed


@contextlib.contextmanager
def hold(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold a file lock; yields whether it is held, which without ``wait`` it may not be.

    Raises:
        OSError: the file cannot be made.
    """
    with path.open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


@contextlib.contextmanager
def storing(folder: Path, needed: int = 0, undo: Callable[[], object] | None = None) -> Iterator[None]:
    """Say what a failure to write into the store means.

    Args:
        folder: in which is written.
        needed: bytes of all that is being written, if known.
        undo: called first after a failure, so that half a shard does not count as taken.

    Raises:
        StorageFullError: the disk, or the user's share of it, is full.
        UsageError: the folder cannot be written.
    """
    try:
        yield
    except OSError as error:
        if undo is not None:
            undo()
        if is_full(error):
            raise StorageFullError(folder, needed, _free(folder)) from error
        raise UsageError(
            f"the feature store {folder} must be writable but {error.strerror or error}; set AUTOAD_DATA_DIR to "
            "another folder"
        ) from error


def _shards(table: Path) -> list[Path]:
    try:
        return [Path(entry.path) for entry in os.scandir(table) if entry.is_dir()]
    except FileNotFoundError:
        return []


def _sweep(table: Path) -> None:
    """Remove leftovers, unless somebody is filling this table and they may be his."""
    leftovers = [folder for folder in _shards(table) if not is_finished(folder)]
    if not leftovers:
        return
    with contextlib.suppress(OSError), hold(table / TABLE_LOCK, wait=False) as held:
        if held:
            for folder in leftovers:
                remove_shard(folder)


def _free(folder: Path) -> int:
    """Bytes that may still be written."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
