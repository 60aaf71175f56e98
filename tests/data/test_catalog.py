from __future__ import annotations

import datetime
import hashlib
import os
import struct
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from autoad.data import read_dataset
from autoad.data.catalog import Catalog, Limits
from autoad.database import Database, DatasetTables
from autoad.database._records import StoredFile, Upload, utc_now
from autoad.errors import ConflictError, DatasetError, FileStoreError, UnknownNameError
from autoad.files import FileStore, folder_named
from autoad.schema import DatasetEntry, UploadRequest
from autoad.settings import Settings


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = Database(Settings(data_dir=tmp_path / "data"))
    yield made
    made.close()


@pytest.fixture
def catalog(database: Database, tmp_path: Path) -> Catalog:
    return Catalog(database, Settings(data_dir=tmp_path / "data"))


def below(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def announced(files: Mapping[str, bytes], **more: Any) -> UploadRequest:
    rows = [
        {"path": path, "sha256": hashlib.sha256(data).hexdigest(), "size": len(data)} for path, data in files.items()
    ]
    return UploadRequest.model_validate({"files": rows} | more)


def framed(files: Mapping[str, bytes]) -> memoryview:
    return memoryview(
        b"".join(hashlib.sha256(data).digest() + struct.pack(">Q", len(data)) + data for data in files.values())
    )


def send(catalog: Catalog, name: str, files: Mapping[str, bytes], project: str | None = None) -> str:
    upload = catalog.begin_upload(name, announced(files), project)
    catalog.receive(name, upload.id, framed(files), project)
    return upload.id


def submit(catalog: Catalog, name: str, files: Mapping[str, bytes], project: str | None = None) -> DatasetEntry:
    return catalog.commit(name, send(catalog, name, files, project), actor="test", project=project)[0]


# Versions.


def test_commits_at_once_get_numbers_of_their_own(catalog: Catalog, mvtec: Path, write_picture) -> None:
    uploads = []
    for index in range(6):
        write_picture(mvtec / "train/good/more.png", 5000 + index)
        uploads.append(send(catalog, "bottle", below(mvtec)))
    wanted = [*uploads, *uploads]  # each by two
    begin = threading.Barrier(len(wanted))
    outcomes: list[tuple[str, int, bool]] = []

    def commit(upload: str) -> None:
        begin.wait()
        entry, is_new = catalog.commit("bottle", upload, actor="test")
        outcomes.append((upload, entry.version, is_new))

    threads = [threading.Thread(target=commit, args=(upload,)) for upload in wanted]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 12
    assert len({(upload, version) for upload, version, _ in outcomes}) == 6  # the same upload, the same version
    assert sorted(version for _, version, is_new in outcomes if is_new) == list(range(1, 7))
    hashes = [entry.hash for entry in catalog.versions("bottle").versions]
    assert len(set(hashes)) == 6


def test_examples_added_at_once_are_all_there(catalog: Catalog, mvtec: Path, tmp_path: Path, write_picture) -> None:
    submit(catalog, "bottle", below(mvtec))
    pictures = [write_picture(tmp_path / f"{index}.png", 7000 + index).read_bytes() for index in range(6)]
    threads = [
        threading.Thread(
            target=catalog.add_example, args=("bottle", data), kwargs={"label": "dent", "note": "", "actor": "test"}
        )
        for data in pictures
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    entry = catalog.entry("bottle")
    assert (entry.version, entry.counts["defective"]) == (7, 13)
    labels = Counter(picture.label for picture in catalog.pictures("bottle", 7, 100).items)
    assert labels["dent"] == 6


def test_an_upload_that_nobody_goes_on_with_is_forgotten(catalog: Catalog, database: Database, mvtec: Path) -> None:
    files = below(mvtec)
    old = catalog.begin_upload("bottle", announced(files))
    kept = catalog.commit("can", send(catalog, "can", files), actor="test")[0]
    elsewhere = catalog.begin_upload("bottle", announced(files), "other")
    with database.transaction() as session:
        session.execute(update(Upload).values(created=utc_now() - datetime.timedelta(days=8)))
    again = catalog.begin_upload("bottle", announced(files))  # gone on with: it is young again
    assert again.id == old.id
    fewer = dict(list(files.items())[1:])
    catalog.begin_upload("bottle", announced(fewer))
    assert catalog.upload("bottle", old.id) == again
    with database.transaction() as session:
        session.execute(update(Upload).values(created=utc_now() - datetime.timedelta(days=8)))
    catalog.begin_upload("bottle", announced(fewer))
    with pytest.raises(UnknownNameError):
        catalog.upload("bottle", old.id)
    with pytest.raises(UnknownNameError):
        catalog.commit("bottle", old.id, actor="test")
    assert catalog.upload("bottle", elsewhere.id, "other").missing
    assert catalog.begin_upload("can", announced(files)).version == kept.version


def test_a_row_is_there_when_the_bytes_are(
    catalog: Catalog, database: Database, mvtec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = below(mvtec)
    upload = catalog.begin_upload("bottle", announced(files))
    replace = os.replace

    def fail(source: Any, target: Any) -> None:
        if str(target).endswith("f"):
            raise OSError(5, "Input/output error")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(FileStoreError, match="could not be written"):
        catalog.receive("bottle", upload.id, framed(files))
    monkeypatch.undo()
    assert catalog.upload("bottle", upload.id).missing == upload.missing
    store = FileStore(str(tmp_path / "data" / "files"), "default")
    assert not list((tmp_path / "data" / "files").rglob(".*"))
    catalog.receive("bottle", upload.id, framed(files))
    with database.sessions() as session:
        rows = session.scalars(select(StoredFile)).all()
    assert {row.sha256: len(store.read(row.sha256)) for row in rows} == {row.sha256: row.size for row in rows}
    assert len(rows) == len(set(files.values()))


def test_what_was_sent_is_stored_once_and_known_at_the_commit(
    catalog: Catalog, mvtec: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = send(catalog, "bottle", below(mvtec))
    monkeypatch.setattr("autoad.data._uploads.inspect_image", None)
    monkeypatch.setattr(FileStore, "read", None)
    monkeypatch.setattr(FileStore, "write_many", None)
    assert catalog.commit("bottle", upload, actor="test")[0].hash == read_dataset(mvtec).hash
    send(catalog, "bottle", below(mvtec))


def test_a_commit_before_all_is_sent(catalog: Catalog, mvtec: Path) -> None:
    files = below(mvtec)
    upload = catalog.begin_upload("bottle", announced(files))
    with pytest.raises(
        ConflictError, match=r"40 of 40 are missing, the first of them ground_truth/crack/000_mask\.png"
    ):
        catalog.commit("bottle", upload.id, actor="test")


def test_a_known_file_is_as_large_as_it_is(catalog: Catalog, mvtec: Path) -> None:
    files = below(mvtec)
    submit(catalog, "bottle", files)
    request = announced(files).model_dump()
    unique = next(file for file in request["files"] if file["path"] == "train/good/003.png")
    unique["size"] += 1
    with pytest.raises(DatasetError, match=r"train/good/003\.png must have \d+ bytes, going by its sha256, but says"):
        catalog.begin_upload("bottle", UploadRequest.model_validate(request))
    request["files"][0]["size"] += 1  # a mask that is there several times
    with pytest.raises(DatasetError, match="files of one sha256 must have one size"):
        catalog.begin_upload("bottle", UploadRequest.model_validate(request))


def test_sizes_are_remembered_for_a_few_uploads_only(
    catalog: Catalog, mvtec: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autoad.data._uploads._REMEMBERED", 50)
    files = below(mvtec)
    first = catalog.begin_upload("bottle", announced(files))
    catalog.begin_upload("can", announced(files))
    assert len(catalog._uploads._sizes) == 1
    assert catalog.receive("bottle", first.id, framed(files)).files == len(set(files.values()))


@pytest.mark.parametrize("limit", [1, 3, 100])
def test_pages_of_pictures(catalog: Catalog, mvtec: Path, limit: int) -> None:
    submit(catalog, "bottle", below(mvtec))
    paths: list[str] = []
    after: str | None = "0"
    while after is not None:
        page = catalog.pictures("bottle", 1, limit, int(after))
        paths += [picture.path for picture in page.items]
        after = page.next
    local = read_dataset(mvtec)
    assert paths == sorted(str(picture.path.relative_to(mvtec)) for picture in local.pictures)


# Folders.


def test_opening_links_to_what_is_there(catalog: Catalog, mvtec: Path, tmp_path: Path) -> None:
    entry = submit(catalog, "bottle", below(mvtec))
    manifest = catalog.open("bottle")
    assert manifest == tmp_path / "data/datasets/default/bottle/1/bottle.parquet"
    picture = manifest.parent / "pictures/train/good/000.png"
    assert picture.stat().st_nlink == 2
    before = manifest.stat().st_mtime_ns
    assert catalog.open("bottle", 1) == manifest
    assert manifest.stat().st_mtime_ns == before
    assert read_dataset(manifest).hash == entry.hash
    for missing in (("bottle", 2), ("can", None)):
        with pytest.raises(UnknownNameError):
            catalog.open(*missing)


def test_opening_fetches_and_verifies_what_is_elsewhere(
    catalog: Catalog, mvtec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = submit(catalog, "bottle", below(mvtec))
    monkeypatch.setattr(FileStore, "local_path", lambda *_: None)  # as S3 has it
    manifest = catalog.open("bottle")
    assert read_dataset(manifest).hash == entry.hash
    assert (manifest.parent / "pictures/train/good/000.png").stat().st_nlink == 1
    submit(catalog, "can", below(mvtec))
    damaged = next((tmp_path / "data/files/default/pictures").glob("*/*"))
    damaged.write_bytes(b"another")
    with pytest.raises(FileStoreError, match="is damaged"):
        catalog.open("can")
    assert list((tmp_path / "data/datasets/default/can").iterdir()) == []


def test_names_that_a_manifest_cannot_say(catalog: Catalog, mvtec: Path) -> None:
    files = below(mvtec)
    files |= {"train/good/ padded .png ": files.pop("train/good/000.png")}
    files |= {"train/good/\u00fc,\"' \u4e2d.png": files.pop("train/good/001.png")}
    files = {path.replace("crack", " cr,ack "): data for path, data in files.items()}
    root = mvtec.with_name("again")
    for path, data in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    local = read_dataset(root)
    assert {picture.label for picture in local.pictures} == {"good", "cr,ack", "hole"}
    entry = submit(catalog, "bottle", files)
    assert entry.hash == local.hash == read_dataset(catalog.open("bottle")).hash


def test_several_processes_open_at_once(catalog: Catalog, mvtec: Path, tmp_path: Path) -> None:
    entry = submit(catalog, "bottle", below(mvtec))
    code = """
import sys, time
from pathlib import Path
from autoad.data.catalog import Catalog
from autoad.database import Database
from autoad.data import read_dataset
catalog = Catalog(Database())
Path(sys.argv[1], sys.argv[2]).touch()
while len(list(Path(sys.argv[1]).iterdir())) < 3:
    time.sleep(0.001)
print(read_dataset(catalog.open("bottle")).hash)
"""
    (tmp_path / "ready").mkdir()
    environment = os.environ | {"AUTOAD_DATA_DIR": str(tmp_path / "data")}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "ready"), str(number)],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(3)
    ]
    assert [process.communicate(timeout=60)[0].strip() for process in processes] == [entry.hash] * 3
    assert [path.name for path in (tmp_path / "data/datasets/default/bottle").iterdir()] == ["1"]


@pytest.mark.parametrize("project", ["..", ".", "a/b", "a b", "\u00fc", "%2E."])
def test_projects_of_any_name_stay_apart(catalog: Catalog, mvtec: Path, tmp_path: Path, project: str) -> None:
    entry = submit(catalog, "bottle", below(mvtec), project)
    manifest = catalog.open("bottle", None, project)
    assert manifest.parents[3] == tmp_path / "data" / "datasets"
    assert manifest.parents[2].name == folder_named(project)
    assert read_dataset(manifest).hash == entry.hash
    with pytest.raises(UnknownNameError):
        catalog.entry("bottle")
    assert set(catalog.begin_upload("bottle", announced(below(mvtec))).missing) == {
        hashlib.sha256(data).hexdigest() for data in below(mvtec).values()
    }


def test_folder_names_are_different_for_different_projects() -> None:
    names = ["..", ".", "%2E.", "%2E", "a", "a/b", "a%2Fb", ".a", "%2Ea"]
    folders = [folder_named(name) for name in names]
    assert len(set(folders)) == len(names)
    assert not [folder for folder in folders if "/" in folder or folder.startswith(".")]


def test_limits(database: Database, mvtec: Path, tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data")
    files = below(mvtec)
    for limits, reason in (
        (Limits(most_files=39), "at most 39 files here but has 40"),
        (Limits(most_file_bytes=100), r"must have at most 100 bytes but has \d+; save it smaller"),
    ):
        with pytest.raises(DatasetError, match=reason):
            Catalog(database, settings, limits).begin_upload("bottle", announced(files))
    table = [{"path": "train/good/000.png"}] * 41
    with pytest.raises(DatasetError, match="at most 40 rows here but has 41"):
        Catalog(database, settings, Limits(most_files=40)).begin_upload("bottle", announced(files, table=table))


def test_lookups_go_by_project_and_in_portions(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autoad.database._datasets._AT_ONCE", 7)
    tables = DatasetTables(database)
    blank = {"height": None, "width": None, "marks": None, "fault": "is empty"}
    mine = [f"{number:064x}" for number in range(20)]
    rows = [{"project": "a", "sha256": sha256, "size": 3, **blank} for sha256 in mine]
    tables.add_files(rows)
    tables.add_files([row | {"size": 9} for row in rows[:5]] + [rows[0] | {"project": "b", "size": 5}])
    assert tables.sizes("a", [*mine, "f" * 64]) == dict.fromkeys(mine, 3)
    assert tables.sizes("b", mine) == {mine[0]: 5}
    assert (tables.used("a"), tables.used("b"), tables.used("c")) == (60, 5, 0)
    assert tables.files("b", mine)[mine[0]].fault == "is empty"
