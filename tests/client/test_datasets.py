"""Submitting datasets: layouts, resuming, packs, and what goes wrong on the way."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from autoad.client import Client, _uploads
from autoad.errors import (
    ConflictError,
    DatasetError,
    NotFoundError,
    RefusedError,
    ServerError,
    UnreadableImageError,
    UsageError,
)
from autoad.schema import UploadRequest
from tests.client.service import Service


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def sent(service: Service) -> UploadRequest:
    return UploadRequest.model_validate_json(service.last("/uploads").body)


def test_a_folder_becomes_a_version_and_a_second_submit_sends_nothing(
    client: Any, service: Service, folder: Path
) -> None:
    told: list[tuple[int, int, str]] = []
    entry = client.submit_dataset(folder, note="first", progress=lambda *one: told.append(one))
    assert (entry.name, entry.version, entry.note, str(entry)) == ("bottle", 1, "first", "bottle/1")
    request = sent(service)
    assert sorted(file.path for file in request.files) == [
        "test/scratch/0.png",
        *(f"train/good/{number}.png" for number in range(8)),
    ]
    assert request.table is None
    assert {file.sha256 for file in request.files} == set(service.files)
    assert len(service.received) == 9
    for step in ("hashing 9 files", "sending 9 of 9 files", "committ"):
        numbers = [one[:2] for one in told if one[2].startswith(step)]
        assert (numbers[0][0], numbers[-1]) == (0, (sum(file.size for file in request.files),) * 2), step
    again = client.submit_dataset(str(folder), note="first")
    assert again == entry
    assert len(service.received) == 9


def test_an_upload_that_was_cut_off_goes_on(client: Any, service: Service, folder: Path) -> None:
    service.files[sha256(b"good 3")] = b"good 3"
    (folder / "train/good/copy.png").write_bytes(b"good 5")
    client.submit_dataset(folder)
    assert sha256(b"good 3") not in service.received
    assert len(service.received) == len(set(service.received)) == 8, "what is twice in the folder is sent once"


def test_files_that_the_server_loses_are_sent_again_and_not_for_ever(
    client: Any, service: Service, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = service.receive
    rounds = []

    def lose(body: bytes) -> int:
        count = keep(body)
        rounds.append(count)
        if len(rounds) < 3:
            service.files.pop(sha256(b"good 0"), None)
        return count

    monkeypatch.setattr(service, "receive", lose)
    assert client.submit_dataset(folder).version == 1
    assert rounds == [9, 1, 1]
    monkeypatch.setattr(service, "receive", lambda _: 0)
    (folder / "train/good/new.png").write_bytes(b"new")
    with pytest.raises(ServerError, match=r"lacks 1 files although all were sent 3 times, such as .*new\.png"):
        client.submit_dataset(folder)


def test_packs_are_bounded_and_only_a_large_file_is_alone_in_more(
    client: Any, service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_uploads, "PACK_BYTES", 1000)
    monkeypatch.setattr(_uploads, "_CHUNK", 256)
    for number in range(20):
        (tmp_path / f"{number:02}.png").write_bytes(bytes([number]) * 200)
    (tmp_path / "large.png").write_bytes(b"x" * 5000)
    client.submit_dataset(tmp_path, name="packs", parallel=2)
    sizes = sorted(len(one.body) for one in service.asked if one.path.endswith("/files"))
    assert sizes == [960, 960, 960, 960, 960, 5040]
    assert all(one.headers["content-length"] == str(len(one.body)) for one in service.asked if one.body)


def test_a_file_that_changes_while_it_is_sent_is_named(
    client: Any, service: Service, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(done: int, total: int, text: str) -> None:
        if text.startswith("sending") and not done:
            (folder / "train/good/4.png").write_bytes(b"other")

    with pytest.raises(DatasetError, match=r"4\.png changed while it was sent"):
        client.submit_dataset(folder, progress=change)
    assert service.datasets == {}

    def remove(done: int, total: int, text: str) -> None:
        if text.startswith("sending") and not done:
            (folder / "train/good/4.png").unlink()

    with pytest.raises(DatasetError, match=r"4\.png must be readable but No such file"):
        client.submit_dataset(folder, progress=remove)


def test_a_callback_that_fails_ends_the_upload(client: Any, folder: Path) -> None:
    def fail(done: int, total: int, text: str) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        client.submit_dataset(folder, progress=fail)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_manifest_says_what_the_files_are_wherever_they_lie(
    client: Any, service: Service, tmp_path: Path, kind: str
) -> None:
    root, elsewhere = tmp_path / "set", tmp_path / "elsewhere"
    for folder in (root / "a", root / "outside", elsewhere / "b", elsewhere / "c"):
        folder.mkdir(parents=True)
    for file in (root / "a/0.png", root / "outside/0.png", elsewhere / "b/0.png", elsewhere / "c/0.png"):
        file.write_bytes(str(file.relative_to(tmp_path)).encode())
    (root / "a/0_mask.png").write_bytes(b"mask")
    rows: list[dict[str, str | None]] = [
        {"path": "a/0.png", "label": "scratch", "split": "test", "mask": "a/0_mask.png"},
        {"path": "../elsewhere/b/0.png", "label": "OK", "split": "train", "mask": None},
        {"path": str(elsewhere / "c/0.png"), "label": None, "split": None, "mask": None},
        {"path": "outside/0.png", "label": "good", "split": None, "mask": None},
        {"path": "./a/../a/0.png", "label": "scratch", "split": "test", "mask": None},
    ]
    manifest = root / f"Parts list.{kind}"
    if kind == "csv":
        lines = [";".join(row[name] or "" for name in ("path", "label", "split", "mask")) for row in rows]
        manifest.write_text("\ufeffPath;label;split;mask\n" + "\n".join(lines))
    else:
        pq.write_table(pa.Table.from_pylist(rows), manifest)
    entry = client.submit_dataset(manifest)
    assert entry.name == "Parts-list"
    request = sent(service)
    assert request.table is not None
    assert [(row.path, row.label, row.split, row.mask) for row in request.table] == [
        ("a/0.png", "scratch", "test", "a/0_mask.png"),
        ("outside/1/0.png", "good", "train", None),
        ("outside/2/0.png", "good", "", None),
        ("outside/3/0.png", "good", "", None),
        ("a/0.png", "scratch", "test", None),
    ]
    hashes = {file.path: file.sha256 for file in request.files}
    assert len(hashes) == len(request.files) == 5
    assert hashes["outside/3/0.png"] == sha256(b"set/outside/0.png")
    assert client.submit_dataset(manifest) == entry
    assert len(service.received) == 5


def test_an_archive_is_sent_as_it_is_and_again_after_a_failure(
    client: Any, service: Service, tmp_path: Path, waits: list[float]
) -> None:
    file = tmp_path / "my bottle.tar.gz"
    file.write_bytes(bytes(range(256)) * 10000)
    told: list[tuple[int, int, str]] = []
    service.fail("/archive", 503)
    entry = client.submit_dataset(file, note="a note", progress=lambda *one: told.append(one))
    assert (entry.name, entry.size, entry.note) == ("my-bottle", 2_560_000, "a note")
    assert [len(one.body) for one in service.asked] == [2_560_000] * 2
    assert service.asked[0].headers["content-length"] == "2560000"
    assert told[-1] == (2_560_000, 2_560_000, "sending my bottle.tar.gz")
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as one:
        one.writestr("x", "y")
    assert client.submit_dataset(tmp_path / "set.zip").name == "set"
    with pytest.raises(DatasetError, match=r"absent\.zip must be readable"):
        client.submit_dataset(tmp_path / "absent.zip")


def test_what_cannot_be_sent_is_refused_before_anything_is(client: Any, service: Service, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("x")
    (tmp_path / "wrong.csv").write_text("path\nabsent.png\n")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / b"\xff.png".decode("utf-8", "surrogateescape")).write_bytes(b"x")
    (tmp_path / "\u4e2d").mkdir()
    (tmp_path / "\u4e2d" / "0.png").write_bytes(b"x")
    for data, message in (
        ("absent", "must be an existing folder, manifest or archive"),
        ("empty", "holds no file"),
        ("text.txt", "must be a folder or a .csv or .parquet manifest"),
        ("wrong.csv", "line 2: path must name an existing file but got absent.png"),
        ("odd", "must have a name in UTF-8"),
    ):
        with pytest.raises(DatasetError, match=message):
            client.submit_dataset(tmp_path / data)
    with pytest.raises(UsageError, match="give one with name="):
        client.submit_dataset(tmp_path / "\u4e2d")
    with pytest.raises(UsageError, match=r"note: .* at most 1000"):
        client.submit_dataset(tmp_path / "\u4e2d", name="x", note="n" * 1001)
    with pytest.raises(UsageError, match="parallel must be"):
        client.submit_dataset(tmp_path / "\u4e2d", name="x", parallel=0)
    assert service.asked == []


def test_what_the_server_refuses_is_told(client: Any, service: Service, folder: Path) -> None:
    service.fail("/commit", 400, code="bad_request")
    with pytest.raises(RefusedError, match="no: 400\none\ntwo\ntry again") as raised:
        client.submit_dataset(folder)
    assert (raised.value.status, raised.value.code) == (400, "bad_request")
    service.fail("/uploads", 413, code="quota_exceeded")
    with pytest.raises(RefusedError) as raised:
        client.submit_dataset(folder)
    assert (raised.value.status, raised.value.code) == (413, "quota_exceeded")
    assert not isinstance(raised.value, ConflictError)


def test_a_wrong_score_becomes_an_example(client: Any, service: Service, folder: Path, tmp_path: Path) -> None:
    bottle = client.submit_dataset(folder)
    wrong = folder / "test/scratch/0.png"
    entry = client.add_example(bottle, wrong, "Normal", note="seen at the line")
    assert (entry.version, entry.note) == (2, "seen at the line")
    asked = service.last("/examples")
    assert (asked.query, asked.body) == ({"label": "good", "note": "seen at the line"}, b"scratch 0")
    mask = np.zeros((4, 4), bool)
    entry = client.add_example("bottle", b"a picture", label="scratch", mask=mask)
    assert entry.version == 3
    asked = service.last("/examples")
    assert asked.headers["content-type"].startswith("multipart/form-data")
    for part in (b'name="picture"', b'name="mask"', b"a picture", b"\x89PNG"):
        assert part in asked.body
    with pytest.raises(UnreadableImageError, match=r"absent\.png cannot be read"):
        client.add_example("bottle", tmp_path / "absent.png", "good")
    with pytest.raises(NotFoundError, match="unknown dataset 'botle'"):
        client.add_example("botle", wrong, "good")


def test_datasets_their_versions_and_pictures_come_in_pages(client: Any, service: Service, folder: Path) -> None:
    for name in ("a", "b", "c", "d", "e"):
        client.submit_dataset(folder, name=name)
    assert [entry.name for entry in client.datasets()] == ["a", "b", "c", "d", "e"]
    assert service.count("GET", "/v1/datasets") == 3
    (folder / "train/good/8.png").write_bytes(b"good 8")
    client.submit_dataset(folder, name="c")
    assert [client.dataset("c").version, client.dataset("c", 1).version, client.dataset("c/1").version] == [2, 1, 1]
    assert [entry.version for entry in client.dataset_versions("c").versions] == [2, 1]
    assert len(list(client.dataset_pictures("c"))) == 10
    assert len(list(client.dataset_pictures("c/1"))) == 9
    with pytest.raises(NotFoundError, match="Did you mean"):
        client.dataset("botle")
    with pytest.raises(UsageError, match="bottle or bottle/3"):
        client.dataset("c/x")


def test_an_iterator_may_be_left(service: Service, address: str, folder: Path) -> None:
    with Client(address) as client:
        for name in ("a", "b", "c"):
            client.submit_dataset(folder, name=name)
        assert next(iter(client.datasets())).name == "a"
        assert service.count("GET", "/v1/datasets") == 1
