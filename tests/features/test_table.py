from __future__ import annotations

import errno
import json
import mmap
import os
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autoad.errors import UsageError
from autoad.features import shard as shard_module
from autoad.features.room import Room
from autoad.features.shard import Chunk
from autoad.features.table import ShardTable


class Source:
    """Computes rows: row ``"7"`` of column ``b`` is ``[[7, 7], [7, 7]] + 0.5``; remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[list[str], list[str]]] = []

    def __call__(self, keys: list[str], columns: list[str]) -> Iterator[Chunk]:
        self.asked.append((keys, columns))
        for start in range(0, len(keys), 2):
            yield {column: expected(keys[start : start + 2], column) for column in columns}


def expected(keys: list[str], column: str) -> np.ndarray:
    values = np.array([float(key) for key in keys], np.float16) + (0.5 if column == "b" else 0)
    return np.broadcast_to(values[:, None, None], (len(keys), 2, 2))


def open_table(folder: Path) -> ShardTable:
    return ShardTable(folder, Room(folder))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


def base_of(array: np.ndarray) -> Any:
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array.base


def test_rows_come_in_the_order_asked_for(tmp_path: Path) -> None:
    table, source = open_table(tmp_path / "t"), Source()
    got = table.take(["3", "1", "2", "5", "4"], ["a", "b"], source)
    for column, array in got.items():
        assert np.array_equal(array, expected(["3", "1", "2", "5", "4"], column))
        assert array.dtype == np.float16
        assert not array.flags.writeable
    assert source.asked == [(["3", "1", "2", "5", "4"], ["a", "b"])]
    keys = ["5", "3", "5", "1"]
    again = table.take(keys, ["a"], source)["a"]
    assert np.array_equal(again, expected(keys, "a"))
    assert not again.flags.writeable
    assert len(source.asked) == 1


def test_only_missing_rows_are_computed(tmp_path: Path) -> None:
    table, source = open_table(tmp_path), Source()
    table.take(["1", "2", "3"], ["a"], source)
    keys = ["9", "2", "8", "9", "1"]
    assert np.array_equal(table.take(keys, ["a"], source)["a"], expected(keys, "a"))
    assert source.asked[1] == (["9", "8"], ["a"])
    assert np.array_equal(open_table(tmp_path).take(keys, ["a"], source)["a"], expected(keys, "a"))
    assert len(source.asked) == 2


def test_only_missing_columns_are_computed(tmp_path: Path) -> None:
    table, source = open_table(tmp_path), Source()
    table.take(["1", "2"], ["a"], source, welcome=["b"])
    table.take(["1", "2"], ["b"], source)
    assert source.asked == [(["1", "2"], ["a", "b"])]
    table.take(["1", "2"], ["c"], source, welcome=["a", "b"])
    assert source.asked[1] == (["1", "2"], ["c"])
    both = table.take(["2", "1"], ["a", "c", "b"], source)
    assert all(np.array_equal(array, expected(["2", "1"], column)) for column, array in both.items())
    assert len(source.asked) == 2


def test_neighbouring_rows_are_mapped_and_not_copied(tmp_path: Path) -> None:
    table, source = open_table(tmp_path), Source()
    whole = table.take(["1", "2", "3", "4"], ["a"], source)["a"]
    part = table.take(["2", "3"], ["a"], source)["a"]
    assert np.shares_memory(whole, part)
    assert isinstance(memoryview(base_of(part)).obj, mmap.mmap)
    scattered = table.take(["1", "3"], ["a"], source)["a"]
    assert not np.shares_memory(whole, scattered)


def test_nothing_unfinished_is_left(tmp_path: Path) -> None:
    table, source = open_table(tmp_path), Source()

    def fail(keys: list[str], columns: list[str]) -> Iterator[Chunk]:
        yield from source(keys[:1], columns)
        raise RuntimeError("out of pictures")

    with pytest.raises(RuntimeError, match="out of pictures"):
        table.take(["1", "2"], ["a"], fail)
    assert names(tmp_path) == []
    (tmp_path / ".unfinished-of-a-killed-process").mkdir()
    assert np.array_equal(table.take(["1", "2"], ["a"], source)["a"], expected(["1", "2"], "a"))
    assert len(names(tmp_path)) == 1
    assert {path.name for path in (tmp_path / names(tmp_path)[0]).iterdir()} == {"a.npy", "rows.jsonl"}


def test_too_few_rows_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="2 rows must be computed but got 1"):
        open_table(tmp_path).take(["1", "2"], ["a"], lambda keys, columns: Source()(keys[:1], columns))
    assert names(tmp_path) == []


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4])


def rewrite_rows(shard: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """As a writer with a fault would: the line's own checksum is right."""
    index = json.loads((shard / "rows.jsonl").read_text().splitlines()[0])
    change(index)
    line = json.dumps(index).encode()
    (shard / "rows.jsonl").write_bytes(line + b"\n%d\n" % zlib.crc32(line))


def empty(shard: Path) -> None:
    for path in shard.iterdir():
        path.unlink()


def swap(shard: Path) -> None:
    """Exchange two columns, of the same type and shape."""
    (shard / "a.npy").rename(shard / "c.npy")
    (shard / "b.npy").rename(shard / "a.npy")
    (shard / "c.npy").rename(shard / "b.npy")


def become_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGE: dict[str, Callable[[Path], object]] = {
    "truncated data": lambda shard: truncate(shard / "a.npy"),
    "longer data": lambda shard: (shard / "a.npy").write_bytes((shard / "a.npy").read_bytes() + b"1234"),
    "no header": lambda shard: (shard / "a.npy").write_bytes(b"not an array" * 20),
    "empty file": lambda shard: (shard / "a.npy").write_bytes(b""),
    "no column": lambda shard: (shard / "a.npy").unlink(),
    "columns exchanged": swap,
    "a folder for a column": lambda shard: become_a_folder(shard / "a.npy"),
    "an endless link": lambda shard: ((shard / "a.npy").unlink(), (shard / "a.npy").symlink_to("a.npy")),
    "no rows": lambda shard: (shard / "rows.jsonl").unlink(),
    "empty rows": lambda shard: (shard / "rows.jsonl").write_bytes(b""),
    "half the rows": lambda shard: truncate(shard / "rows.jsonl"),
    "rows of another format": lambda shard: (shard / "rows.jsonl").write_text('["1", "2", "3"]'),
    "rows in another order": lambda shard: rewrite_rows(shard, lambda index: index["keys"].reverse()),
    "another type": lambda shard: rewrite_rows(shard, lambda index: index["columns"]["a"].update(dtype="<i2")),
    "another shape": lambda shard: rewrite_rows(shard, lambda index: index["columns"]["a"].update(shape=[4])),
    "an empty folder": empty,
    "a pickle": lambda shard: np.save(shard / "a.npy", np.array([{}, {}, {}], dtype=object)),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_shard_is_computed_again(kind: str, tmp_path: Path) -> None:
    source, keys = Source(), ["1", "2", "3"]
    open_table(tmp_path).take(keys, ["a", "b"], source)
    (before,) = names(tmp_path)
    DAMAGE[kind](tmp_path / before)
    table = open_table(tmp_path)
    assert table.find(keys, ["a", "b"]) is None
    for reader in (table, table, open_table(tmp_path)):
        got = reader.take(keys, ["a", "b"], source)
        assert all(np.array_equal(got[column], expected(keys, column)) for column in ("a", "b"))
    assert len(source.asked) == 2
    (after,) = names(tmp_path)
    assert after != before


def test_no_flipped_bit_is_served(tmp_path: Path) -> None:
    rng, keys, columns, source = np.random.default_rng(0), ["1", "2", "3"], ["a", "b"], Source()
    open_table(tmp_path).take(keys, columns, source)
    (shard,) = names(tmp_path)
    for path in sorted((tmp_path / shard).iterdir()):
        data = path.read_bytes()
        for place in rng.permutation(8 * len(data))[:400]:
            flipped = bytearray(data)
            flipped[place // 8] ^= 1 << (place % 8)
            path.write_bytes(flipped)
            assert open_table(tmp_path).find(keys, columns) is None, (path, place)
        path.write_bytes(data)
        assert open_table(tmp_path).find(keys, columns) is not None
    path.write_bytes(flipped)
    got = open_table(tmp_path).take(keys, columns, source)
    assert all(np.array_equal(got[column], expected(keys, column)) for column in columns)
    assert source.asked == [(keys, columns)] * 2
    assert shard not in names(tmp_path)


def test_only_what_is_read_is_checked_and_only_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_table(tmp_path).take(["1", "2", "3", "4"], ["a", "b"], Source())
    summed, real = [], shard_module._sum
    monkeypatch.setattr(shard_module, "_sum", lambda data, key, *rest: summed.append(key) or real(data, key, *rest))
    table = open_table(tmp_path)
    table.take(["2", "3"], ["a"], Source())
    assert summed == ["2", "3"]
    table.take(["4", "3", "2"], ["a"], Source())
    table.take(["2"], ["b"], Source())
    assert summed == ["2", "3", "4", "2"]


def test_a_sound_shard_stands_in_for_a_damaged_one(tmp_path: Path) -> None:
    source = Source()
    open_table(tmp_path / "x").take(["1", "2"], ["a"], source)
    open_table(tmp_path / "t").take(["2", "1", "3"], ["a"], source)
    (path,) = (tmp_path / "t").glob("*/a.npy")
    path.write_bytes(path.read_bytes()[:-8] + b"\0" * 8)
    (tmp_path / "x" / names(tmp_path / "x")[0]).rename(tmp_path / "t" / "zz")
    got = open_table(tmp_path / "t").take(["1", "3", "2"], ["a"], source)["a"]
    assert np.array_equal(got, expected(["1", "3", "2"], "a"))
    assert [keys for keys, _ in source.asked[2:]] == [["3"]]


@pytest.mark.parametrize("error", [errno.EIO, errno.EBADMSG])
def test_what_the_disk_cannot_read_is_computed_again(
    error: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Source()
    open_table(tmp_path).take(["1", "2"], ["a"], source)
    (bad,) = names(tmp_path)
    opened = Path.open

    def failing(path: Path, *arguments: Any, **options: Any) -> Any:
        if path.parent.name == bad and arguments == ("rb",):
            raise OSError(error, os.strerror(error))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", failing)
    got = open_table(tmp_path).take(["1", "2"], ["a"], source)["a"]
    assert np.array_equal(got, expected(["1", "2"], "a"))
    assert len(source.asked) == 2


def test_a_process_that_has_no_files_left_damages_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_table(tmp_path).take(["1"], ["a"], Source())
    before = names(tmp_path)

    def failing(*_: Any, **__: Any) -> Any:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(Path, "open", failing)
    with pytest.raises(OSError, match="Too many open files"):
        open_table(tmp_path).take(["1"], ["a"], Source())
    monkeypatch.undo()
    source = Source()
    open_table(tmp_path).take(["1"], ["a"], source)
    assert (names(tmp_path), source.asked) == (before, [])


def test_a_disk_that_does_not_keep_what_is_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = shard_module.ShardWriter.publish

    def forgetful(writer: shard_module.ShardWriter) -> None:
        real(writer)
        (path,) = tmp_path.glob("*/a.npy")
        path.write_bytes(path.read_bytes()[:-2] + b"??")

    monkeypatch.setattr(shard_module.ShardWriter, "publish", forgetful)
    with pytest.raises(UsageError, match="on a disk that keeps what is written"):
        open_table(tmp_path).take(["1"], ["a"], Source())


def test_damage_elsewhere_costs_nothing(tmp_path: Path) -> None:
    source = Source()
    open_table(tmp_path).take(["1"], ["a"], source)
    truncate(tmp_path / names(tmp_path)[0] / "a.npy")
    table = open_table(tmp_path)
    table.take(["2"], ["a"], source)
    assert [keys for keys, _ in source.asked] == [["1"], ["2"]]
    assert np.array_equal(table.take(["2", "1"], ["a"], source)["a"], expected(["2", "1"], "a"))
    assert [keys for keys, _ in source.asked] == [["1"], ["2"], ["1"]]


def test_one_computes_while_the_others_wait(tmp_path: Path) -> None:
    source, slow = Source(), threading.Event()
    results: list[np.ndarray] = []

    def compute(keys: list[str], columns: list[str]) -> Iterator[Chunk]:
        slow.wait(0.3)
        yield from source(keys, columns)

    def ask(keys: list[str]) -> None:
        results.append(open_table(tmp_path).take(keys, ["a"], compute)["a"])

    threads = [threading.Thread(target=ask, args=(keys,)) for keys in (["1", "2"], ["2", "1"], ["1", "2"])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 3
    assert len(source.asked) == 1
    assert len(names(tmp_path)) == 1


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"feature store .*file/t must be writable .* AUTOAD_DATA_DIR"):
        open_table(tmp_path / "file" / "t").take(["1"], ["a"], Source())


@pytest.mark.parametrize("error", [OSError(errno.EIO, "camera"), OSError(errno.ENOSPC, "elsewhere")])
def test_a_failure_to_compute_is_no_failure_to_store(error: OSError, tmp_path: Path) -> None:
    def failing(keys: list[str], columns: list[str]) -> Iterator[Chunk]:
        yield from Source()(keys[:2], columns)
        raise error

    with pytest.raises(OSError, match=r"camera|elsewhere") as caught:
        open_table(tmp_path).take(["1", "2", "3"], ["a"], failing)
    assert caught.value is error
    assert names(tmp_path) == []
