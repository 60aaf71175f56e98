from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from autoad.errors import UsageError
from autoad.features.shards import Chunk, ShardTable


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


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


def base_of(array: np.ndarray) -> object:
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array.base


def test_rows_come_in_the_order_asked_for(tmp_path: Path) -> None:
    table, source = ShardTable(tmp_path / "t"), Source()
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
    table, source = ShardTable(tmp_path), Source()
    table.take(["1", "2", "3"], ["a"], source)
    keys = ["9", "2", "8", "9", "1"]
    assert np.array_equal(table.take(keys, ["a"], source)["a"], expected(keys, "a"))
    assert source.asked[1] == (["9", "8"], ["a"])
    assert np.array_equal(ShardTable(tmp_path).take(keys, ["a"], source)["a"], expected(keys, "a"))
    assert len(source.asked) == 2


def test_only_missing_columns_are_computed(tmp_path: Path) -> None:
    table, source = ShardTable(tmp_path), Source()
    table.take(["1", "2"], ["a"], source, welcome=["b"])
    table.take(["1", "2"], ["b"], source)
    assert source.asked == [(["1", "2"], ["a", "b"])]
    table.take(["1", "2"], ["c"], source, welcome=["a", "b"])
    assert source.asked[1] == (["1", "2"], ["c"])
    both = table.take(["2", "1"], ["a", "c", "b"], source)
    assert all(np.array_equal(array, expected(["2", "1"], column)) for column, array in both.items())
    assert len(source.asked) == 2


def test_neighbouring_rows_are_mapped_and_not_copied(tmp_path: Path) -> None:
    table, source = ShardTable(tmp_path), Source()
    whole = table.take(["1", "2", "3", "4"], ["a"], source)["a"]
    part = table.take(["2", "3"], ["a"], source)["a"]
    assert np.shares_memory(whole, part)
    assert type(base_of(part)).__name__ == "mmap"
    scattered = table.take(["1", "3"], ["a"], source)["a"]
    assert not np.shares_memory(whole, scattered)


def test_nothing_unfinished_is_left(tmp_path: Path) -> None:
    table, source = ShardTable(tmp_path), Source()

    def fail(keys: list[str], columns: list[str]) -> Iterator[Chunk]:
        yield from source(keys[:1], columns)
        raise RuntimeError("out of pictures")

    with pytest.raises(RuntimeError, match="out of pictures"):
        table.take(["1", "2"], ["a"], fail)
    assert names(tmp_path) == []
    (tmp_path / ".unfinished-of-a-killed-process").mkdir()
    assert np.array_equal(table.take(["1", "2"], ["a"], source)["a"], expected(["1", "2"], "a"))
    assert len(names(tmp_path)) == 1
    assert {path.name for path in (tmp_path / names(tmp_path)[0]).iterdir()} == {"a.npy", "rows.json"}


def test_too_few_rows_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="2 rows must be computed but got 1"):
        ShardTable(tmp_path).take(["1", "2"], ["a"], lambda keys, columns: Source()(keys[:1], columns))
    assert names(tmp_path) == []


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4])


DAMAGE: dict[str, Callable[[Path], object]] = {
    "truncated data": lambda shard: truncate(shard / "a.npy"),
    "no header": lambda shard: (shard / "a.npy").write_bytes(b"not an array" * 20),
    "empty": lambda shard: (shard / "a.npy").write_bytes(b""),
    "no rows": lambda shard: (shard / "rows.json").unlink(),
    "half the rows": lambda shard: truncate(shard / "rows.json"),
    "other rows": lambda shard: (shard / "rows.json").write_text('["1"]'),
    "a pickle": lambda shard: np.save(shard / "a.npy", np.array([{}, {}, {}], dtype=object)),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_shard_is_computed_again(kind: str, tmp_path: Path) -> None:
    source = Source()
    ShardTable(tmp_path).take(["1", "2", "3"], ["a"], source)
    (before,) = names(tmp_path)
    DAMAGE[kind](tmp_path / before)
    table = ShardTable(tmp_path)
    assert not table.holds(["1"], ["a"])
    for _ in range(2):
        assert np.array_equal(table.take(["1", "2", "3"], ["a"], source)["a"], expected(["1", "2", "3"], "a"))
    assert len(source.asked) == 2
    (after,) = names(tmp_path)
    assert after != before


def test_damage_elsewhere_costs_nothing(tmp_path: Path) -> None:
    source = Source()
    ShardTable(tmp_path).take(["1"], ["a"], source)
    truncate(tmp_path / names(tmp_path)[0] / "a.npy")
    table = ShardTable(tmp_path)
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
        results.append(ShardTable(tmp_path).take(keys, ["a"], compute)["a"])

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
        ShardTable(tmp_path / "file" / "t").take(["1"], ["a"], Source())
