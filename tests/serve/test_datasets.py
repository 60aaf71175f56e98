from __future__ import annotations

import asyncio
import csv
import hashlib
import io
import json
import os
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autoad.data import read_dataset
from autoad.data.catalog import Catalog
from autoad.database import Database
from autoad.errors import StorageFullError
from autoad.files import FileStore
from autoad.models.registry import Registry
from autoad.schema import DatasetEntry, DatasetPage, DatasetVersions, PicturePage, UploadEntry
from autoad.settings import Settings
from tests.serve.submitting import announced, files_below, folder, framed, mask, picture, submit, tarred, zipped
from tests.serve.test_http import check_error

Serve = Callable[..., None]
BOTTLE = "/v1/datasets/bottle"
PNG = {"Content-Type": "image/png"}


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    """An empty one: no model is needed here."""
    made = Database(Settings(data_dir=tmp_path / "data"))
    yield made
    made.close()


@pytest.fixture
def registry(database: Database, tmp_path: Path) -> Registry:
    return Registry(database, Settings(data_dir=tmp_path / "data"))


def write(root: Path, files: dict[str, bytes]) -> Path:
    for path, data in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    return root


def opened(database: Database, tmp_path: Path, name: str, version: int | None = None) -> Path:
    return Catalog(database, Settings(data_dir=tmp_path / "data")).open(name, version)


# What is sent becomes what it would be on a local disk.


def plain_folder() -> dict[str, bytes]:
    files = {f"{index}.png": picture(index) for index in range(18)}
    files |= {"bad/a.png": picture(100), "bad/dent/a.png": picture(101), "ground_truth/dent/a_mask.png": mask()}
    return files | {"broken.png": b"\x89PNG no more", "again.png": files["3.png"], "README.md": b"", ".DS_Store": b"x"}


@pytest.mark.parametrize("layout", ["mvtec", "folder"])
def test_a_folder_has_the_hash_that_it_has_locally(
    serve: Serve, database: Database, demo: Path, tmp_path: Path, layout: str
) -> None:
    root = demo if layout == "mvtec" else write(tmp_path / "bottle", plain_folder())
    local = read_dataset(root)

    async def main(service: Any) -> None:
        reply = await submit(service.client, "bottle", files_below(root), note="first")
        assert reply.status_code == 201
        entry = DatasetEntry.model_validate_json(reply.text)
        assert (entry.name, entry.version, entry.note, entry.actor) == ("bottle", 1, "first", "local")
        assert (entry.hash, entry.layout, entry.counts) == (local.hash, layout, local.counts())
        skipped = {one.path.relative_to(root.absolute()).as_posix() for one in local.skipped}
        assert {one.path for one in entry.skipped} == skipped
        assert str(tmp_path) not in reply.text
        shown = await service.client.get(f"{BOTTLE}/versions/1")
        assert DatasetEntry.model_validate_json(shown.text) == entry

    serve(main)
    manifest = opened(database, tmp_path, "bottle")
    again = read_dataset(manifest)
    assert (again.name, again.hash) == ("bottle", local.hash)
    assert manifest.suffix == ".parquet"
    names = {p.path.relative_to(manifest.parent / "pictures").as_posix() for p in again.pictures}
    assert names == {p.path.relative_to(root.absolute()).as_posix() for p in local.pictures}


def test_a_manifest_has_the_hash_that_it_has_locally(serve: Serve, database: Database, tmp_path: Path) -> None:
    files = {f"pictures/{index}.png": picture(index) for index in range(12)} | {"masks/11.png": mask()}
    rows = [{"path": f"pictures/{index}.png", "label": "good", "split": "train", "mask": ""} for index in range(8)]
    rows += [{"path": "pictures/8.png", "label": "OK", "split": "validation", "mask": ""}]
    rows += [{"path": f"pictures/{index}.png", "label": "dent", "split": "test", "mask": ""} for index in (9, 10)]
    rows += [{"path": "pictures/11.png", "label": " dent ", "split": "", "mask": "masks/11.png"}]
    root = write(tmp_path / "parts", files)
    with (root / "parts.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["path", "label", "split", "mask"])
        writer.writeheader()
        writer.writerows(rows)
    local = read_dataset(root / "parts.csv")
    table = [row | {"mask": row["mask"] or None} for row in rows]

    async def main(service: Any) -> None:
        entry = (await submit(service.client, "parts", files, table=table)).json()
        assert (entry["hash"], entry["layout"]) == (local.hash, "manifest")
        for wrong, reason in (
            ({"path": "pictures/no.png"}, "row 1: path must name an existing file but got pictures/no.png"),
            ({"path": "pictures/0.png", "mask": "no.png"}, "row 1: mask must name an existing file but got no.png"),
            ({"path": "/etc/passwd"}, "is absolute"),
            ({"path": "../x"}, "'.' or '..'"),
        ):
            body = announced(files, table=[wrong])
            error = check_error(await service.client.post(f"{BOTTLE}/uploads", json=body), 400, "bad_request")
            assert reason in error["message"]

    serve(main)
    assert read_dataset(opened(database, tmp_path, "parts")).hash == local.hash


def test_an_interrupted_upload_goes_on(serve: Serve) -> None:
    files = folder()

    async def main(service: Any) -> None:
        client = service.client
        begun = UploadEntry.model_validate((await client.post(f"{BOTTLE}/uploads", json=announced(files))).json())
        assert (begun.dataset, begun.files, begun.version) == ("bottle", len(files), None)
        assert begun.bytes == sum(map(len, files.values()))
        assert len(begun.missing) == len(set(files.values()))  # one mask for three pictures
        half = list(files.values())[:6]
        path = f"{BOTTLE}/uploads/{begun.id}"
        for _ in range(2):  # sent twice, it does no harm
            sent = await client.post(f"{path}/files", content=framed(half))
            assert sent.json() == {"files": 6, "bytes": sum(map(len, half))}
        error = check_error(await client.post(f"{path}/commit"), 409, "conflict")
        assert "11 of 17 are missing, the first of them train/good/006.png" in error["message"]
        # Begun again, as by a client that was started again, in another order and with another note.
        body = announced(dict(reversed(files.items())), note="again")
        again = UploadEntry.model_validate((await client.post(f"{BOTTLE}/uploads", json=body)).json())
        assert again.id == begun.id
        assert set(begun.missing) - set(again.missing) == {hashlib.sha256(data).hexdigest() for data in half}
        shown = UploadEntry.model_validate((await client.get(path)).json())
        assert set(shown.missing) == set(again.missing)
        reply = await submit(client, "bottle", files, note="again")
        assert (reply.status_code, reply.json()["note"]) == (201, "again")

    serve(main)


def test_the_same_again_sends_nothing_and_makes_nothing(serve: Serve) -> None:
    files = folder()

    async def main(service: Any) -> None:
        client = service.client
        first = await submit(client, "bottle", files)
        for _ in range(2):
            begun = (await client.post(f"{BOTTLE}/uploads", json=announced(files))).json()
            assert (begun["missing"], begun["version"]) == ([], 1)
            reply = await client.post(f"{BOTTLE}/uploads/{begun['id']}/commit")
            assert (reply.status_code, reply.json()) == (200, first.json())
        # Other names, the same pictures: another upload, and still the same version.
        renamed = {path.replace("train/good/", "train/good/x"): data for path, data in files.items()}
        reply = await submit(client, "bottle", renamed)
        assert (reply.status_code, reply.json()) == (200, first.json())
        # Another dataset of the same project needs none of the files sent.
        begun = (await client.post("/v1/datasets/can/uploads", json=announced(files))).json()
        assert (begun["missing"], begun["version"]) == ([], None)
        fewer = {path: data for path, data in files.items() if path != "train/good/000.png"}
        second = await submit(client, "bottle", fewer)
        assert (second.status_code, second.json()["version"]) == (201, 2)
        back = await submit(client, "bottle", renamed | {"train/good/more.png": picture(77)})
        assert (back.status_code, back.json()["version"]) == (201, 3)

    serve(main)


def test_versions_and_pages(serve: Serve) -> None:
    files = folder()

    async def main(service: Any) -> None:
        client = service.client
        for name in ("bottle", "Can", "a.b", "a-b"):
            await submit(client, name, files)
        second = await submit(client, "bottle", folder(12))
        everything = DatasetPage.model_validate((await client.get("/v1/datasets")).json())
        names = [entry.name for entry in everything.items]
        assert names == sorted(names) == ["Can", "a-b", "a.b", "bottle"]
        assert everything.next is None
        assert everything.items[-1].version == 2
        seen: list[str] = []
        after: str | None = ""
        while after is not None:
            page = DatasetPage.model_validate(
                (await client.get("/v1/datasets", params={"limit": 3, "after": after})).json()
            )
            seen += [entry.name for entry in page.items]
            after = page.next
        assert seen == names
        versions = DatasetVersions.model_validate((await client.get(BOTTLE)).json())
        assert [entry.version for entry in versions.versions] == [2, 1]
        assert versions.versions[0] == DatasetEntry.model_validate(second.json())
        rows: list[Any] = []
        after = "0"
        while after is not None:
            reply = await client.get(f"{BOTTLE}/versions/1/pictures", params={"limit": 4, "after": after})
            page_of = PicturePage.model_validate(reply.json())
            assert len(page_of.items) <= 4
            rows += page_of.items
            after = page_of.next
        assert [row.path for row in rows] == sorted(path for path in files if "ground" not in path)
        crack = next(row for row in rows if row.path == "test/crack/1.png")
        assert (crack.label, crack.mask, crack.split) == ("crack", "ground_truth/crack/1_mask.png", "")
        assert crack.mask_sha256 == hashlib.sha256(mask()).hexdigest()
        for path in (
            "/v1/datasets/bottl",
            "/v1/datasets/bottl/versions/1",
            f"{BOTTLE}/versions/3",
            f"{BOTTLE}/versions/3/pictures",
            f"{BOTTLE}/uploads/{'0' * 32}",
        ):
            check_error(await client.get(path), 404, "unknown_name")
        assert "Did you mean 'bottle'" in (await client.get("/v1/datasets/bottl")).text
        for path in (
            "/v1/datasets/.bottle",
            f"{BOTTLE}/versions/0",
            f"{BOTTLE}/versions/1/pictures?after=x",
            f"{BOTTLE}/versions/1/pictures?limit=1001",
            "/v1/datasets?limit=0",
            f"{BOTTLE}/uploads/nothing",
        ):
            check_error(await client.get(path), 400, "bad_request")

    serve(main)


# What is refused.


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({**folder(), "train/odd/sub": b"x", "train/odd": b"x"}, "'train/odd' must be a file or a folder but is both"),
        ({**folder(), "../x.png": b"x"}, "'.' or '..'"),
        ({**folder(), "/x.png": b"x"}, "is absolute"),
        ({**folder(), "a\\b.png": b"x"}, "no backslash"),
        ({**folder(), "a\nb.png": b"x"}, "no control characters"),
        ({**folder(), f"{'x' * 256}.png": b"x"}, "parts of at most 255 bytes"),
        ({**folder(), "val/good/x.png": b"x"}, "sub-folder val must be named train, validation, test or ground_truth"),
        ({**folder(), "ground_truth/crack/9_mask.png": b"x"}, "must belong to a picture but there is none"),
        ({f"f{index}": b"x" for index in range(41)}, "at most 40 files"),
        ({**folder(), "large.png": bytes(100_001)}, "large.png must have at most 100,000 bytes but has 100,001"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_files_that_cannot_be_a_dataset(serve: Serve, files: dict[str, bytes], reason: str) -> None:
    async def main(service: Any) -> None:
        reply = await service.client.post(f"{BOTTLE}/uploads", json=announced(files))
        if "files" in reason:
            check_error(reply, 413, "request_too_large")
        else:
            error = check_error(reply, 400, "bad_request")
            assert reason in error["message"]
        assert (await service.client.get("/v1/datasets")).json()["items"] == []

    serve(main, max_dataset_files=40, max_request_bytes=100_000)


def test_requests_that_are_none(serve: Serve) -> None:
    one = announced({"a.png": b"x"})["files"][0]

    async def main(service: Any) -> None:
        async def ask(body: Any) -> Any:
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            return await service.client.post(f"{BOTTLE}/uploads", content=content)

        for body in (
            b"",
            b"{",
            b"\xff",
            b"[" * 10_000,
            b"null",
            b"[]",
            {},
            {"files": []},
            {"files": {}},
            {"files": [1]},
            {"files": [one], "table": [[]]},
            {"files": [one | {"sha256": "A" * 64}]},
            {"files": [one | {"sha256": "a" * 63}]},
            {"files": [one | {"size": -1}]},
            {"files": [one | {"path": ""}]},
            {"files": [one | {"path": "a\0b"}]},
            b'{"files": [{"path": "\\ud800", "sha256": "' + b"0" * 64 + b'", "size": 1}]}',
            {"files": [one | {"path": "x" * 1025}]},
            {"files": [one | {"more": 1}]},
            {"files": [one], "note": "x" * 1001},
            {"files": [one, one]},
            {"files": [one, one | {"path": "b.png", "size": 2}]},
            {"files": [one], "table": []},
        ):
            if body == {"files": [one], "table": []}:
                assert (await ask(body)).status_code == 201  # too few pictures is told at the commit
            else:
                check_error(await ask(body), 400, "bad_request")
        for body in (b"[" + b"1," * 10_000 + b"1]", b" " * 200_000):
            check_error(await ask(body), 413, "request_too_large")

    serve(main, max_dataset_files=100)


def test_bodies_that_are_not_what_they_say(serve: Serve) -> None:
    files = folder()
    one, two = list(files.values())[:2]
    sha256, size = hashlib.sha256(one).digest(), len(one).to_bytes(8, "big")

    async def main(service: Any) -> None:
        begun = (await service.client.post(f"{BOTTLE}/uploads", json=announced(files))).json()
        path = f"{BOTTLE}/uploads/{begun['id']}/files"

        async def send(body: bytes) -> Any:
            return await service.client.post(path, content=body)

        for body, reason in (
            (b"", "at least one file but is empty"),
            (framed([one])[:39], "must have 40 bytes before it but has 39"),
            (framed([one])[:-1], f"must have {len(one)} bytes, as it says, but only {len(one) - 1} are left"),
            (framed([one]) + b"x", "file 2 of the body must have 40 bytes before it but has 1"),
            (sha256 + b"\xff" * 8 + one, "bytes, as it says, but only"),
            (framed([b"another"]), "must be one of the upload's"),
            (sha256 + (3).to_bytes(8, "big") + b"abc", f"must have {len(one)} bytes but has 3"),
            (sha256 + size + two[: len(one)].ljust(len(one), b"x"), "must have the sha256"),
            (framed([two]) + sha256 + size + bytes(len(one)), "file 2 of the body must have the sha256"),
        ):
            error = check_error(await send(body), 400, "bad_request")
            assert reason in error["message"]
        assert len((await service.client.get(path[:-6])).json()["missing"]) == len(begun["missing"])  # all or none
        check_error(await send(bytes(200_041)), 413, "request_too_large")
        other = f"/v1/datasets/can/uploads/{begun['id']}"
        check_error(await service.client.post(f"{other}/files", content=framed([one])), 404, "unknown_name")
        check_error(await service.client.post(f"{other}/commit"), 404, "unknown_name")
        check_error(await service.client.get(other), 404, "unknown_name")

    serve(main, max_request_bytes=200_000)


def test_one_file_may_be_larger_than_a_pack(serve: Serve) -> None:
    large = picture(1) + bytes(17 * 2**20)  # what follows the picture is part of the file
    files = folder() | {"train/good/large.png": large}

    async def main(service: Any) -> None:
        begun = (await service.client.post(f"{BOTTLE}/uploads", json=announced(files))).json()
        path = f"{BOTTLE}/uploads/{begun['id']}/files"
        rest = [data for data in files.values() if data != large]
        check_error(await service.client.post(path, content=framed([large, *rest])), 413, "request_too_large")
        for contents in ([large], rest):
            assert (await service.client.post(path, content=framed(contents))).status_code == 200
        reply = await service.client.post(path.replace("files", "commit"))
        assert reply.json()["counts"]["good"] == 12

    serve(main)


def test_errors_of_a_dataset_name_its_own_paths(serve: Serve, tmp_path: Path) -> None:
    async def main(service: Any) -> None:
        for changed, reason in (
            ({"train/good/a.png": picture(0), "test/good/b.png": picture(0)}, "test/good/b.png"),
            ({"test/crack/9.png": picture(9), "test/good/9.png": picture(9)}, "two labels"),
            ({"ground_truth/crack/0_mask.png": mask((9, 9))}, "ground_truth/crack/0_mask.png must have the size of"),
            ({"ground_truth/good/0_mask.png": mask()}, "must not be good while its mask"),
            ({f"train/good/x{index}.png": b"no picture" for index in range(2)}, "2 of 16 in bottle are: train/good/x0"),
        ):
            reply = await submit(service.client, "bottle", folder() | changed)
            error = check_error(reply, 400, "bad_request")
            assert reason in error["message"]
            assert str(tmp_path) not in error["message"]
            assert "None" not in error["message"]
        reply = await submit(service.client, "bottle", folder(6))
        error = check_error(reply, 400, "bad_request")
        assert "dataset bottle must hold at least 8 different good pictures but holds 7" in error["message"]
        assert (await service.client.get("/v1/datasets")).json()["items"] == []

    serve(main)


def test_a_project_has_so_much_room(serve: Serve) -> None:
    files = folder()
    sizes = {data: len(data) for data in files.values()}
    total = sum(sizes.values())

    async def main(service: Any) -> None:
        client = service.client
        assert (await submit(client, "bottle", files)).status_code == 201
        more = folder(seed=2000)
        error = check_error(await client.post(f"{BOTTLE}/uploads", json=announced(more)), 413, "quota_exceeded")
        needed = sum(len(data) for data in set(more.values()) - {mask()})
        for number in (total, needed, total + 2000):
            assert f"{number:,}" in error["message"]
        # What is there already needs no room.
        assert (await submit(client, "can", files)).status_code == 201
        # Begun while there was room, and sent when there is none any more.
        one, other = picture(3000, (20, 20)), picture(3001, (20, 20))
        uploads = []
        for data in (one, other):
            begun = (await client.post(f"{BOTTLE}/uploads", json=announced(files | {"train/good/x.png": data}))).json()
            uploads.append(f"{BOTTLE}/uploads/{begun['id']}/files")
        assert (await client.post(uploads[0], content=framed([one]))).status_code == 200
        check_error(await client.post(uploads[1], content=framed([other])), 413, "quota_exceeded")
        check_error(await client.post(f"{BOTTLE}/examples?label=dent", content=other), 413, "quota_exceeded")
        reply = await client.post(f"{BOTTLE}/archive", content=zipped(more))
        check_error(reply, 413, "quota_exceeded")
        # Another project has room of its own.
        _, key = service.keys.create("b", ["admin"], project="b")
        await asyncio.sleep(0.1)
        assert (await submit(client, "bottle", files, {"Authorization": f"Bearer {key}"})).status_code == 201

    serve(main, project_bytes=total + 2000)


def test_a_disk_without_room(serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    def fail(*_: object) -> None:
        raise StorageFullError(Path("/data/files"), 10, 0)

    async def main(service: Any) -> None:
        monkeypatch.setattr(FileStore, "write_many", fail)
        begun = (await service.client.post(f"{BOTTLE}/uploads", json=announced(folder()))).json()
        path = f"{BOTTLE}/uploads/{begun['id']}"
        error = check_error(
            await service.client.post(f"{path}/files", content=framed([folder()["train/good/000.png"]])),
            503,
            "unavailable",
        )
        assert "model" not in error["message"]
        assert len((await service.client.get(path)).json()["missing"]) == len(begun["missing"])

    serve(main)
    assert "/data/files" in caplog.text


def test_others_are_answered_meanwhile(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    hold = threading.Event()
    write_many = FileStore.write_many

    def slow(self: FileStore, *arguments: Any) -> None:
        assert hold.wait(20)
        write_many(self, *arguments)

    async def main(service: Any) -> None:
        monkeypatch.setattr(FileStore, "write_many", slow)
        sending = [
            asyncio.create_task(submit(service.client, f"d{seed}", folder(seed=1000 * seed))) for seed in range(4)
        ]
        await asyncio.sleep(0.5)
        assert (await service.client.get("/health")).status_code == 200
        assert (await service.client.get("/v1/datasets")).json()["items"] == []
        hold.set()
        assert [reply.status_code for reply in await asyncio.gather(*sending)] == [201] * 4

    serve(main)


def test_bodies_share_a_part_of_the_memory(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    hold = threading.Event()
    monkeypatch.setattr(Catalog, "receive", lambda *_: hold.wait(20))

    async def main(service: Any) -> None:
        path = f"{BOTTLE}/uploads/{'0' * 32}/files"
        first = asyncio.create_task(service.client.post(path, content=bytes(200_000)))
        await asyncio.sleep(0.3)
        check_error(await service.client.post(path, content=bytes(200_000)), 429, "queue_full")
        hold.set()
        await first
        assert hold.is_set()

    serve(main, raise_errors=False, max_request_bytes=200_000, max_held_bytes=1_000_000)


def test_nobody_without_a_key_has_much_read(serve: Serve) -> None:
    read = 0

    async def chunks() -> Any:
        nonlocal read
        for _ in range(100):
            read += 50_000
            yield bytes(50_000)

    async def main(service: Any) -> None:
        service.keys.create("line-1", ["score"])
        await asyncio.sleep(0.1)
        for path in ("uploads", f"uploads/{'0' * 32}/files", "archive", "examples?label=good"):
            check_error(await service.client.post(f"{BOTTLE}/{path}", content=chunks()), 401, "unauthenticated")
        big = await service.client.post(f"{BOTTLE}/uploads/{'0' * 32}/commit", content=chunks())
        assert big.status_code in (401, 413)

    serve(main)
    assert read < 200_000


# Examples.


def test_examples(serve: Serve, database: Database, tmp_path: Path) -> None:
    files = folder()
    new, known = picture(900, kind="JPEG"), files["train/good/003.png"]

    async def main(service: Any) -> None:
        client = service.client
        check_error(await client.post(f"{BOTTLE}/examples?label=dent", content=new, headers=PNG), 404, "unknown_name")
        first = (await submit(client, "bottle", files)).json()

        async def add(label: str, data: bytes, with_mask: bytes | None = None) -> Any:
            params = {"label": label, "note": f"as {label}"}
            if with_mask is None:
                return await client.post(f"{BOTTLE}/examples", params=params, content=data, headers=PNG)
            parts = [("picture", ("p", data)), ("mask", ("m", with_mask))]
            return await client.post(f"{BOTTLE}/examples", params=params, files=parts)

        async def row(version: int, data: bytes) -> dict[str, Any]:
            listed = (await client.get(f"{BOTTLE}/versions/{version}/pictures?limit=1000")).json()["items"]
            [one] = [one for one in listed if one["sha256"] == hashlib.sha256(data).hexdigest()]
            return dict(one)

        reply = await add("dent", new, mask())
        assert reply.status_code == 201
        entry = reply.json()
        assert (entry["version"], entry["note"], entry["layout"]) == (2, "as dent", "mvtec")
        assert entry["counts"] == first["counts"] | {"defective": 4, "masks": 4}
        assert entry["size"] == first["size"] + len(new)
        assert await row(2, new) == {
            "path": f"examples/{hashlib.sha256(new).hexdigest()}.jpg",
            "sha256": hashlib.sha256(new).hexdigest(),
            "label": "dent",
            "split": "",
            "mask": f"examples/{hashlib.sha256(new).hexdigest()}_mask.png",
            "mask_sha256": hashlib.sha256(mask()).hexdigest(),
        }
        assert (await add("dent", new)).status_code == 200  # nothing changes: the mask stays
        assert (await add("crack", new)).json()["version"] == 3
        assert (await row(3, new))["mask"] is not None
        entry = (await add("OK", new, mask(empty=True))).json()
        assert (entry["version"], entry["counts"]["good"]) == (4, 12)
        assert (await row(4, new))["mask"] is None
        entry = (await add("crack", known)).json()  # relabelled: it keeps its name and its split
        assert (entry["version"], entry["counts"]["good"]) == (5, 11)
        changed = await row(5, known)
        assert (changed["path"], changed["label"], changed["split"]) == ("train/good/003.png", "crack", "train")

        for label, data, with_mask, reason in (
            ("good", picture(901), mask(), "must not be good while its mask"),
            ("dent", picture(901), mask((5, 5)), "must have the size of its picture"),
            (" ", picture(901), None, "must say what a picture shows"),
            ("a\nb", picture(901), None, "no control characters"),
        ):
            error = check_error(await add(label, data, with_mask), 400, "bad_request")
            assert reason in error["message"]
        for data, with_mask in ((b"", None), (b"text", None), (picture(901), b"text"), (picture(901)[:60], None)):
            check_error(await add("dent", data, with_mask), 422, "unreadable_picture")
        url = f"{BOTTLE}/examples?label=dent"
        check_error(await client.post(url, json={}), 415, "unsupported_media_type")
        check_error(await client.post(f"{BOTTLE}/examples", content=new), 400, "bad_request")
        for parts in ([("mask", ("m", mask()))], [("picture", ("p", new))] * 2, [("other", ("p", new))]):
            check_error(await client.post(url, files=parts), 400, "bad_request")
        check_error(await client.post(url, files=[("picture", ("p", new))] * 4), 413, "request_too_large")
        assert (await client.get(BOTTLE)).json()["versions"][0]["version"] == 5
        # Too few good ones left.
        for index in (0, 1, 2):
            assert (await add("crack", files[f"train/good/00{index}.png"])).status_code == 201
        error = check_error(await add("crack", files["train/good/004.png"]), 400, "bad_request")
        assert "must hold at least 8 different good pictures but holds 7" in error["message"]

    serve(main)
    for version in (1, 2, 5, 8):
        entry = Catalog(database, Settings(data_dir=tmp_path / "data")).entry("bottle", version)
        assert read_dataset(opened(database, tmp_path, "bottle", version)).hash == entry.hash


def test_examples_take_no_name_that_is_taken(serve: Serve, database: Database, tmp_path: Path) -> None:
    new = picture(900)
    files = {f"{index}.png": picture(index) for index in range(9)} | {"examples": picture(50)}

    async def main(service: Any) -> None:
        await submit(service.client, "bottle", files)
        reply = await service.client.post(f"{BOTTLE}/examples?label=good", content=new, headers=PNG)
        assert reply.status_code == 201

    serve(main)
    paths = [picture.path.parent.name for picture in read_dataset(opened(database, tmp_path, "bottle")).pictures]
    assert paths.count("examples-2") == 1


# Archives.


@pytest.mark.parametrize("kind", ["zip", "stored", "tar", "gz", "bz2", "xz"])
def test_archives(serve: Serve, kind: str, tmp_path: Path) -> None:
    files = folder()
    inside = {f"bottle/{path}": data for path, data in files.items()} | {"bottle/.DS_Store": b"x", "__MACOSX/x": b"y"}
    local = read_dataset(write(tmp_path / "bottle", files))

    async def main(service: Any) -> None:
        if kind in ("zip", "stored"):
            body = zipped(inside, zipfile.ZIP_DEFLATED if kind == "zip" else zipfile.ZIP_STORED)
        else:
            body = tarred(inside, "" if kind == "tar" else kind)
        for status in (201, 200):
            reply = await service.client.post(f"{BOTTLE}/archive", params={"note": "n"}, content=body)
            assert (reply.status_code, reply.json()["hash"]) == (status, local.hash)
        assert (reply.json()["version"], reply.json()["note"], reply.json()["actor"]) == (1, "n", "local")
        # Sent as files it is the same, too.
        begun = (await service.client.post(f"{BOTTLE}/uploads", json=announced(files))).json()
        assert (begun["missing"], begun["version"]) == ([], 1)

    serve(main)
    assert not [path for path in (tmp_path / "data").iterdir() if path.name.startswith("tmp")]


def test_what_is_no_archive(serve: Serve) -> None:
    sound = zipped(folder())

    async def main(service: Any) -> None:
        async def send(body: Any) -> Any:
            return await service.client.post(f"{BOTTLE}/archive", content=body)

        for body in (b"", b"text", picture(0), bytes(2000), b"Rar!\x1a\x07\x00", tarred({}), b"7z\xbc\xaf\x27\x1c"):
            check_error(await send(body), 415, "unsupported_media_type")
        damaged = bytearray(sound)
        damaged[200] ^= 255
        for body in (sound[:-30], bytes(damaged), zipped({}), tarred(folder())[:-11000], tarred(folder(), "gz")[:-9]):
            check_error(await send(body), 400, "bad_request")
        check_error(await send(sound + bytes(30_000)), 413, "request_too_large")
        error = check_error(await send(zipped({"bottle/../../x": b"x"})), 400, "bad_request")
        assert "'bottle/../../x'" in error["message"]
        assert (await service.client.get("/v1/datasets")).json()["items"] == []

    serve(main, max_archive_bytes=len(sound) + 20_000)


def test_so_many_archives_at_once(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    hold = threading.Event()
    add = Catalog.add_archive

    def slow(self: Catalog, *arguments: Any, **options: Any) -> Any:
        assert hold.wait(20)
        return add(self, *arguments, **options)

    monkeypatch.setattr(Catalog, "add_archive", slow)

    async def main(service: Any) -> None:
        client = service.client
        sending = [
            asyncio.create_task(client.post(f"/v1/datasets/d{number}/archive", content=zipped(folder())))
            for number in range(4)
        ]
        await asyncio.sleep(0.3)
        check_error(await client.post(f"{BOTTLE}/archive", content=zipped(folder())), 429, "queue_full")
        assert (await submit(client, "bottle", folder(seed=50))).status_code == 201  # uploads go on
        hold.set()
        assert [reply.status_code for reply in await asyncio.gather(*sending)] == [201] * 4

    serve(main)


# Projects.


def test_keys_and_scopes(serve: Serve, tmp_path: Path) -> None:
    files = folder()

    async def main(service: Any) -> None:
        client = service.client
        _, score = service.keys.create("line-1", ["score"])
        _, owner = service.keys.create("night", ["submit", "score"])
        _, other = service.keys.create("elsewhere", ["submit", "score"], project="..")
        await asyncio.sleep(0.1)
        mine, theirs, reader = ({"Authorization": f"Bearer {key}"} for key in (owner, other, score))
        entry = (await submit(client, "bottle", files, mine)).json()
        assert entry["actor"] == "night"
        upload = (await client.post(f"{BOTTLE}/uploads", json=announced(files), headers=mine)).json()["id"]
        some = framed([files["train/good/000.png"]])
        reads = [
            ("GET", "", {}),
            ("GET", "/versions/1", {}),
            ("GET", "/versions/1/pictures", {}),
        ]
        writes = [
            ("POST", "/uploads", {"json": announced(files)}),
            ("GET", f"/uploads/{upload}", {}),
            ("POST", f"/uploads/{upload}/files", {"content": some}),
            ("POST", f"/uploads/{upload}/commit", {}),
            ("POST", "/archive", {"content": zipped(files)}),
            ("POST", "/examples?label=good", {"content": picture(0)}),
        ]
        for method, path, options in (*reads, *writes):
            check_error(await client.request(method, BOTTLE + path, **options), 401, "unauthenticated")
        for method, path, options in writes:
            check_error(await client.request(method, BOTTLE + path, headers=reader, **options), 403, "forbidden")
        for method, path, _ in reads:
            assert (await client.request(method, BOTTLE + path, headers=reader)).status_code == 200

        # Of another project nothing is to be seen: a name that exists and one that does not are alike.
        assert (await client.get("/v1/datasets", headers=theirs)).json() == {"items": [], "next": None}
        for method, path, options in (*reads, *writes[1:4], writes[5]):
            there = await client.request(method, BOTTLE + path, headers=theirs, **options)
            nowhere = await client.request(method, f"/v1/datasets/nothing{path}", headers=theirs, **options)
            assert there.status_code == nowhere.status_code == 404, (method, path)
            assert there.text.replace("bottle", "nothing") == nowhere.text
        # Nor which files it has: all are missing, although they are there.
        begun = (await client.post(f"{BOTTLE}/uploads", json=announced(files), headers=theirs)).json()
        assert (len(begun["missing"]), begun["version"]) == (len(set(files.values())), None)
        fewer = {path: data for path, data in files.items() if "9" not in path}
        assert (await submit(client, "bottle", fewer, theirs)).json()["version"] == 1
        assert (await client.get(BOTTLE, headers=mine)).json()["versions"] == [entry]

    serve(main)
    stored = tmp_path / "data" / "files"
    assert sorted(path.name for path in stored.iterdir()) == ["%2E.", "default"]
    assert not (tmp_path / "data" / "pictures").exists()


# Hostile bodies.


def test_mutated_bodies_never_make_the_server_fail(serve: Serve) -> None:
    files = folder()
    rng = np.random.default_rng(0)
    zips = [zipped(files), zipped(files, zipfile.ZIP_STORED)]
    tars = [tarred(files), *(tarred(files, kind) for kind in ("gz", "bz2", "xz"))]
    frames, document = framed(files.values()), json.dumps(announced(files)).encode()
    statuses: dict[int, int] = {}

    def mutated(sound: bytes) -> bytes:
        data = bytearray(sound)
        for _ in range(rng.integers(1, 6)):
            where = rng.integers(3)
            span = [len(data), min(600, len(data)), -min(400, len(data))][where]
            position = int(rng.integers(span)) if span > 0 else int(len(data) + rng.integers(span, 0))
            data[position] ^= 1 << int(rng.integers(8))
        if rng.random() < 0.3:
            start = int(rng.integers(len(data)))
            del data[start : start + int(rng.integers(1, 200))]
        return bytes(data)

    async def main(service: Any) -> None:
        begun = (await service.client.post(f"{BOTTLE}/uploads", json=announced(files))).json()
        paths = [
            (f"{BOTTLE}/uploads", [document]),
            (f"{BOTTLE}/uploads/{begun['id']}/files", [frames]),
            (f"{BOTTLE}/archive", zips + tars),
        ]
        for turn in range(240):
            path, sound = paths[turn % 3]
            reply = await service.client.post(path, content=mutated(sound[turn // 3 % len(sound)]))
            statuses[reply.status_code] = statuses.get(reply.status_code, 0) + 1
            assert reply.status_code < 500, reply.text
            if reply.status_code >= 400:
                codes = {400: "bad_request", 413: "request_too_large", 415: "unsupported_media_type"}
                check_error(reply, reply.status_code, codes[reply.status_code])

    serve(main)
    assert statuses[400] >= 100, statuses


def test_no_body_leaves_anything_open(serve: Serve) -> None:
    before = len(os.listdir("/proc/self/fd"))

    async def main(service: Any) -> None:
        for index in range(20):
            await service.client.post(f"{BOTTLE}/archive", content=b"PK\x03\x04" + bytes(index))
            await service.client.post(f"{BOTTLE}/archive", content=io.BytesIO(tarred(folder(), "xz")).read())

    serve(main)
    assert len(os.listdir("/proc/self/fd")) <= before + 8
