from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from autoad.features import kept as module
from autoad.features.kept import keep, recall, remember

KEY = {"of": "a test", "number": 1}


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("AUTOAD_DATA_DIR", str(tmp_path))
    return tmp_path / "kept"


def test_what_is_kept_is_found_under_its_key_alone(folder: Path) -> None:
    assert recall(KEY) is None
    keep(KEY, b"one\n\x00two\n")
    keep(KEY | {"number": 2}, b"")
    assert recall(KEY) == b"one\n\x00two\n"
    assert recall(dict(reversed(KEY.items()))) == b"one\n\x00two\n"
    assert recall(KEY | {"number": 2}) == b""
    assert recall(KEY | {"number": 3}) is None
    keep(KEY, b"other")
    assert recall(KEY) == b"other"
    assert len(list(folder.iterdir())) == 2


@pytest.mark.parametrize("damage", ["flipped", "cut", "longer", "empty", "foreign"])
def test_a_file_that_is_not_what_was_written_counts_as_missing(folder: Path, damage: str) -> None:
    keep(KEY, b"payload" * 100)
    (path,) = folder.iterdir()
    data = path.read_bytes()
    if damage == "foreign":  # whole, but another key's
        keep({"of": "another"}, b"payload")
        (other,) = set(folder.iterdir()) - {path}
        data = other.read_bytes()
    else:
        middle = len(data) // 2
        flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        data = {"flipped": flipped, "cut": data[:-1], "longer": data + b"\n", "empty": b""}[damage]
    path.write_bytes(data)
    assert recall(KEY) is None
    keep(KEY, b"again")
    assert recall(KEY) == b"again"


def test_a_folder_that_cannot_be_written_keeps_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("AUTOAD_DATA_DIR", str(tmp_path / "file" / "below"))
    keep(KEY, b"payload")
    assert recall(KEY) is None
    assert remember("fact", lambda: [1, 2], of="it") == [1, 2]


def test_what_was_not_used_longest_goes_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        keep({"number": number}, bytes(1000))
        for path in folder.iterdir():
            os.utime(path, (path.stat().st_atime, path.stat().st_mtime - 10))
    assert recall({"number": 0}) is not None
    monkeypatch.setattr(module, "_LIMIT", 3500)
    keep({"number": 3}, bytes(1000))
    assert [recall({"number": number}) is not None for number in range(4)] == [True, False, True, True]
    keep({"number": 4}, bytes(9000))  # alone larger than the limit, but wanted now
    assert [recall({"number": number}) is not None for number in range(5)] == [False, False, False, False, True]


def test_a_fact_is_worked_out_once_and_a_failure_is_not_remembered() -> None:
    asked = []

    def compute() -> dict[str, object]:
        asked.append(None)
        if len(asked) == 1:
            raise ValueError("not yet")
        return {"shape": (1, 2), "none": None}

    with pytest.raises(ValueError, match="not yet"):
        remember("fact", compute, of="it")
    for _ in range(3):
        assert remember("fact", compute, of="it") == {"shape": [1, 2], "none": None}
    assert len(asked) == 2
    remember("fact", compute, of="other")
    assert len(asked) == 3


def test_many_may_write_and_read_the_same(folder: Path) -> None:
    payloads = [bytes([number]) * 200_000 for number in range(4)]
    wrong: list[object] = []

    def work(payload: bytes) -> None:
        for _ in range(10):
            keep(KEY, payload)
            if recall(KEY) not in payloads:
                wrong.append(payload[0])

    threads = [threading.Thread(target=work, args=[payload]) for payload in payloads]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(list(folder.iterdir())) == 1
