from __future__ import annotations

import errno
import os
import pickle
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autoad.errors import StorageFullError, UsageError
from autoad.features.room import TABLE_LOCK, Room, hold
from autoad.features.shard import Chunk, ShardWriter
from autoad.features.table import ShardTable

MIB = 2**20
ROW = 64 * 1024
DISK = 16 * ROW


def fill(keys: list[str], columns: list[str]) -> Iterator[Chunk]:
    """Row ``"7"`` is 64 KiB of 7."""
    for key in keys:
        yield {column: np.full((1, ROW), int(key), np.uint8) for column in columns}


def rows(*keys: str) -> np.ndarray:
    return np.stack([np.full(ROW, int(key), np.uint8) for key in keys])


def never(keys: list[str], columns: list[str]) -> Iterator[Chunk]:
    raise AssertionError(f"computed {columns} of {keys}")


class Store:
    """Tables that share a room, each opened anew, as by another process."""

    def __init__(self, root: Path, limit: int | None = None) -> None:
        self.root = root
        self.room = Room(root, limit)

    def take(self, table: str, *keys: str, compute: Any = fill) -> np.ndarray:
        return ShardTable(self.root / table, Room(self.root, self.room._limit)).take(keys, ["a"], compute)["a"]

    def holds(self, table: str, *keys: str) -> bool:
        return ShardTable(self.root / table, self.room).find(keys, ["a"]) is not None

    def age(self, table: str, seconds: float) -> None:
        """Nobody has used the table's shards for so long."""
        for shard in self.shards(table):
            os.utime(shard, (time.time() - seconds,) * 2)

    def shards(self, table: str) -> list[Path]:
        return [path for path in (self.root / table).iterdir() if path.is_dir()]

    def taken(self) -> int:
        return sum(512 * path.stat().st_blocks for path in self.root.rglob("*") if path.is_file())


@pytest.fixture
def small_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file system of 1 MiB: a real one, or a substitute where this user may not mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = (
        shutil.which("mount") is not None
        and subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", folder], capture_output=True, check=False
        ).returncode
        == 0
    )
    if not mounted:
        _pretend(folder, monkeypatch)
    yield folder
    if mounted:
        subprocess.run(["umount", "--lazy", folder], check=True)


def _pretend(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage, sync = shutil.disk_usage(folder), os.fsync

    def free() -> int:
        return DISK - Store(folder).taken()

    def reserve(descriptor: int, start: int, length: int) -> None:
        if length > free():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.truncate(descriptor, length)
        os.pwrite(descriptor, bytes(length), 0)

    def flush(descriptor: int) -> None:
        if free() < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    monkeypatch.setattr(os, "posix_fallocate", reserve)
    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(total=DISK, free=max(0, free())))


def test_what_has_not_been_used_longest_goes_first(tmp_path: Path) -> None:
    store = Store(tmp_path, limit=5 * ROW)
    for age, table in ((30, "x"), (20, "y"), (10, "deeper/z")):
        store.take(table, "1")
        store.age(table, age)
    assert np.array_equal(store.take("x", "1", compute=never), rows("1"))  # the oldest, but now in use
    assert np.array_equal(store.take("y", "2", "3"), rows("2", "3"))
    assert store.holds("x", "1")
    assert not store.holds("y", "1")
    assert store.holds("y", "2", "3")
    assert store.holds("deeper/z", "1")
    assert store.taken() <= 5 * ROW


def test_no_more_goes_than_must(tmp_path: Path) -> None:
    store = Store(tmp_path, limit=MIB)
    for number in range(8):
        store.take(f"t{number}", "1")
        store.age(f"t{number}", 100 - number)
    store.take("last", *"1234567890")
    assert [store.holds(f"t{number}", "1") for number in range(8)] == [False] * 3 + [True] * 5


def test_one_request_may_take_more_than_the_limit(tmp_path: Path) -> None:
    store = Store(tmp_path, limit=2 * ROW)
    store.take("x", "1")
    assert np.array_equal(store.take("y", "1", "2", "3"), rows("1", "2", "3"))
    assert not store.holds("x", "1")
    assert np.array_equal(store.take("y", "4", "2", "1"), rows("4", "2", "1"))
    assert store.holds("y", "1", "2", "3", "4")
    assert np.array_equal(store.take("x", "1"), rows("1"))
    assert not store.holds("y", "1")


def test_without_a_limit_half_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    store.take("x", "1", "2")
    used = sum(512 * file.stat().st_blocks for shard in store.shards("x") for file in shard.iterdir())
    usage = shutil.disk_usage(tmp_path)
    need = ShardWriter(tmp_path, ["1", "2"]).bytes_needed({"a": rows("1")})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=used + 2 * need))
    store.age("x", 10)
    store.take("y", "1", "2")
    assert store.holds("x", "1")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2 * need - 2 * 4096))
    store.take("z", "1", "2")
    assert not store.holds("x", "1")


def test_use_is_noted_once_a_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    store.take("x", "1")
    noted, now, real = [], [1000.0], os.utime
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(os, "utime", lambda path: noted.append(now[0]) or real(path))
    table = ShardTable(tmp_path / "x", store.room)
    for now[0] in (1000.0, 1001.0, 1059.0, 1060.0, 1061.0):
        table.take(["1"], ["a"], never)
    assert noted == [1000.0, 1060.0]


def test_what_is_mapped_outlives_its_shard_and_then_frees_its_space(small_disk: Path) -> None:
    store = Store(small_disk, limit=8 * ROW)
    array = store.take("x", "1", "2", "3", "4")
    store.age("x", 10)
    store.take("y", "1", "2", "3", "4", "5", "6")
    assert not store.holds("x", "1")
    assert np.array_equal(array, rows("1", "2", "3", "4"))
    before = shutil.disk_usage(small_disk).free
    del array
    assert shutil.disk_usage(small_disk).free >= before


def test_a_table_forgets_what_another_process_removed(tmp_path: Path) -> None:
    table = ShardTable(tmp_path / "x", Room(tmp_path))
    first = table.take(["1", "2"], ["a"], fill)["a"]
    assert Room(tmp_path).evict(1)
    assert table.find(["1"], ["a"]) is None
    asked = []
    again = table.take(["1", "2"], ["a"], lambda keys, columns: asked.append(keys) or fill(keys, columns))["a"]
    assert asked == [["1", "2"]]
    assert np.array_equal(again, first)


def test_what_goes_while_a_call_computes_is_not_computed_again(tmp_path: Path) -> None:
    store, asked = Store(tmp_path), []
    store.take("x", "1", "2")

    def compute(keys: list[str], columns: list[str]) -> Iterator[Chunk]:
        asked.append(keys)
        assert Room(tmp_path).evict(1)
        yield from fill(keys, columns)

    assert np.array_equal(store.take("x", "3", "1", "2", compute=compute), rows("3", "1", "2"))
    assert asked == [["3"]]
    assert not store.holds("x", "1")


def test_a_shard_that_goes_between_listing_and_reading_is_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    store.take("x", "1")
    table = ShardTable(tmp_path / "x", store.room)
    refresh = ShardTable._refresh

    def late(self: ShardTable) -> None:
        refresh(self)
        monkeypatch.undo()
        assert Room(tmp_path).evict(1)

    monkeypatch.setattr(ShardTable, "_refresh", late)
    assert np.array_equal(table.take(["1"], ["a"], fill)["a"], rows("1"))
    assert store.holds("x", "1")


def test_leftovers_go_unless_their_writer_lives(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for table in ("dead", "alive"):
        store.take(table, "1")
        (tmp_path / table / ".unfinished-0").mkdir()
        (tmp_path / table / "half-removed").mkdir()
        (tmp_path / table / "half-removed" / "a.npy").write_bytes(b"1")
    with hold(tmp_path / "alive" / TABLE_LOCK):
        store.room.sweep()
        assert len(store.shards("dead")) == 1
        assert len(store.shards("alive")) == 3
    store.take("new", "1")
    assert len(store.shards("alive")) == 1
    assert store.holds("dead", "1")
    assert store.holds("alive", "1")


def test_a_full_disk_makes_room_and_tries_again(small_disk: Path) -> None:
    store = Store(small_disk, limit=100 * MIB)
    for number in range(3):
        store.take(f"t{number}", "1", "2", "3", "4")
        store.age(f"t{number}", 100 - number)
    asked = []
    keys = ["1", "2", "3", "4", "5"]
    got = store.take("x", *keys, compute=lambda keys, columns: asked.append(keys) or fill(keys, columns))
    assert np.array_equal(got, rows(*keys))
    assert asked == [keys, keys]
    assert [store.holds(f"t{number}", "1") for number in range(3)] == [False, False, True]


@pytest.mark.parametrize("reserving", [True, False])
def test_a_disk_that_is_too_small(small_disk: Path, reserving: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(small_disk, limit=100 * MIB)
    store.take("x", "1", "2", "3")
    if not reserving:

        def cannot(*_: int) -> None:
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")

        monkeypatch.setattr(os, "posix_fallocate", cannot)
    keys, computed = [str(number) for number in range(20)], []

    def compute(keys: list[str], columns: list[str]) -> Iterator[Chunk]:
        for chunk in fill(keys, columns):
            computed.append(1)
            yield chunk

    with pytest.raises(StorageFullError, match=r"disk/y must have room for 1.3 MB more but .* has 1.0 MB free") as full:
        store.take("y", *keys, compute=compute)
    assert full.value.exit_code == 1
    assert full.value.needed > 20 * ROW
    assert full.value.free <= DISK
    assert not reserving or len(computed) == 2  # one row a try, before the rest is computed for nothing
    assert store.shards("y") == []
    assert np.array_equal(store.take("y", "1", "2"), rows("1", "2"))


def test_a_disk_full_of_other_things(small_disk: Path) -> None:
    (small_disk / "other").write_bytes(bytes(DISK - 2 * ROW))
    store = Store(small_disk)
    with pytest.raises(StorageFullError, match="AUTOAD_DATA_DIR"):
        store.take("x", "1", "2")
    assert store.shards("x") == []
    (small_disk / "other").unlink()
    assert np.array_equal(store.take("x", "1", "2"), rows("1", "2"))


@pytest.mark.parametrize("method", ["start", "add", "finish", "publish"])
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT])
def test_wherever_it_is_full(method: str, error: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, real, failures = Store(tmp_path), getattr(ShardWriter, method), [error, error]

    def failing(*arguments: Any) -> Any:
        if failures:
            raise OSError(failures.pop(), "full")
        return real(*arguments)

    store.take("x", "1")
    monkeypatch.setattr(ShardWriter, method, failing)
    with pytest.raises(StorageFullError):
        store.take("y", "1", "2")
    assert store.shards("y") == store.shards("x") == []  # it made room in vain
    store.take("x", "1")
    failures.append(error)
    assert np.array_equal(store.take("y", "1", "2"), rows("1", "2"))
    assert not store.holds("x", "1")


def test_other_failures_to_write_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)

    def failing(*_: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(ShardWriter, "add", failing)
    with pytest.raises(UsageError, match="x must be writable but Read-only file system; set AUTOAD_DATA_DIR"):
        store.take("x", "1")
    assert store.shards("x") == []


def test_the_error_can_be_sent_between_processes() -> None:
    error = pickle.loads(pickle.dumps(StorageFullError(Path("/x"), 3_000_000, 1_000_000)))
    assert str(error).startswith("/x must have room for 3.0 MB more but its disk, or your share of it, has 1.0 MB free")
    assert "another file" in str(StorageFullError(Path("/x"), 0, 0))


STORM = """
import os, random, signal, sys, time
from pathlib import Path
import numpy as np
from autoad.features.room import Room
from autoad.features.shard import UNFINISHED, Shard
from autoad.features.table import ShardTable

root, limit, seconds = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])

def value(table, key, column):
    return np.full((16, 32), hash((table, int(key), column == "b")) % 2**31, np.int32)

def work(seed):
    rng = random.Random(seed)
    room = Room(root, limit)
    tables = [ShardTable(root / f"t{number}", room) for number in range(3)]
    takes = 0
    while True:
        number = rng.randrange(3)
        keys = [str(rng.randrange(40)) for _ in range(rng.randint(1, 12))]
        columns = rng.choice([["a"], ["a", "b"]])
        def compute(missing, lacking):
            for key in missing:
                time.sleep(rng.random() * 0.002)
                yield {column: value(number, key, column)[None] for column in lacking}
        got = tables[number].take(keys, columns, compute)
        for column in columns:
            assert np.array_equal(got[column], np.stack([value(number, key, column) for key in keys]))
        takes += 1
        (root / f"done-{seed}").write_text(str(takes))

def start(seed):
    child = os.fork()
    if child == 0:
        try:
            work(seed)
        finally:
            os._exit(1)
    return child

children, seed, killed, rng = {}, 0, 0, random.Random(0)
end = time.monotonic() + seconds
while time.monotonic() < end:
    while len(children) < 4:
        children[start(seed)] = seed
        seed += 1
    time.sleep(rng.random() * 0.1)
    for child in list(children):
        pid, status = os.waitpid(child, os.WNOHANG)
        assert pid == 0, f"a worker failed: {status}"
    victim = rng.choice(list(children))
    os.kill(victim, signal.SIGKILL)
    os.waitpid(victim, 0)
    del children[victim]
    killed += 1
for child in children:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
Room(root, limit).sweep()
shards = [path for path in root.glob("*/*") if path.is_dir()]
assert not [path for path in shards if path.name.startswith(UNFINISHED)]
for path in shards:
    shard = Shard.open(path)
    for column in shard.columns.values():
        column.load(list(shard.rows.values()))
taken = sum(512 * file.stat().st_blocks for shard in shards for file in shard.iterdir())
takes = sum(int(path.read_text() or 0) for path in root.glob("done-*"))
print(killed, takes, taken, len(shards))
"""


def test_processes_that_fill_evict_and_are_killed_at_once(tmp_path: Path) -> None:
    limit = 200_000
    done = subprocess.run(
        [sys.executable, "-c", STORM, str(tmp_path), str(limit), "3"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    killed, takes, taken, shards = map(int, done.stdout.split())
    assert killed >= 10
    assert takes >= 100
    assert shards >= 2
    assert taken <= limit + 8 * 4096 * 4  # no more than what each of four was adding
