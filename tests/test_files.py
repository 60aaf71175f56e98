from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from autoad.errors import FileStoreError, UsageError
from autoad.files import FileStore, read_file, remove_leftovers, use_source, write_atomically, write_durably
from tests.ports import free_port

ABSENT = "0" * 64


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """HOST:PORT of an S3 server with the bucket ``pictures``."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], stderr=subprocess.DEVNULL
    )
    variables = {"AWS_ACCESS_KEY_ID": "user", "AWS_SECRET_ACCESS_KEY": "top-secret", "AWS_DEFAULT_REGION": "us-east-1"}
    os.environ.update(variables)
    try:
        for _ in range(300):
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                time.sleep(0.1)
        code = "import boto3, sys; boto3.client('s3', endpoint_url=sys.argv[1]).create_bucket(Bucket='pictures')"
        subprocess.run([sys.executable, "-c", code, f"http://127.0.0.1:{port}"], check=True)
        yield f"127.0.0.1:{port}"
    finally:
        for name in variables:
            del os.environ[name]
        process.terminate()
        process.wait()


@pytest.fixture(params=["folder", "s3"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return str(tmp_path / "store")
    return f"s3://pictures/{tmp_path.name}?endpoint_override={request.getfixturevalue('server')}&scheme=http"


def test_what_is_kept_is_read_by_its_hash(address: str) -> None:
    store = FileStore(address, "default")
    data = os.urandom(100_000)
    assert store.write(data) == sha256(data)
    assert store.read(sha256(data)) == data
    assert FileStore(address, "default").missing({sha256(data): len(data), ABSENT: 1}) == {ABSENT}
    with pytest.raises(FileStoreError, match="has no file"):
        store.read(ABSENT)
    with pytest.raises(FileStoreError, match="has no file"):
        FileStore(address, "other project").read(sha256(data))


def test_only_what_is_missing_is_uploaded(address: str, tmp_path: Path) -> None:
    store, files = FileStore(address, "default"), {}
    for number in range(20):
        path = tmp_path / f"{number}.png"
        path.write_bytes(b"picture %d" % number)
        files[sha256(path.read_bytes())] = path
    kept = list(files)[3]
    store.write(files[kept].read_bytes())
    assert store.upload(files) == 19
    assert store.upload(files) == 0
    assert all(store.read(name) == path.read_bytes() for name, path in files.items())


def test_a_file_that_changed_is_not_uploaded_under_its_old_name(address: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"new")
    with pytest.raises(FileStoreError, match="has changed"):
        FileStore(address, "default").upload({sha256(b"old"): tmp_path / "a.png"})
    with pytest.raises(FileStoreError, match="has no file"):
        FileStore(address, "default").read(sha256(b"old"))


def test_damage_is_noticed_and_mended(tmp_path: Path) -> None:
    store = FileStore(str(tmp_path), "default")
    name = store.write(b"picture")
    path = tmp_path / "default" / "pictures" / name[:2] / name
    path.write_bytes(b"Picture")
    with pytest.raises(FileStoreError, match="damaged"):
        store.read(name)
    store.write(b"picture")
    assert store.read(name) == b"picture"


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ("s3://no-such-bucket/x?endpoint_override={server}&scheme=http", "there is no such bucket"),
        ("s3://user:top-secret@pictures/x?endpoint_override=127.0.0.1:1&scheme=http", "the server cannot be reached"),
    ],
)
def test_an_error_says_why_and_no_secret(server: str, wrong: str, reason: str) -> None:
    with pytest.raises(FileStoreError, match=reason) as caught:
        FileStore(wrong.format(server=server), "default").write(b"picture")
    assert "AUTOAD_FILES_URL" in str(caught.value)
    assert "top-secret" not in str(caught.value)


@pytest.mark.parametrize("wrong", ["relative/folder", "ftp://user:top-secret@host/x", "s3://u:top-secret@b/p?bogus=1"])
def test_what_is_no_address_is_refused(wrong: str) -> None:
    with pytest.raises(UsageError, match="must") as caught:
        FileStore(wrong, "default")
    assert "top-secret" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_denied_store_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, data: bytes) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("autoad.files.write_atomically", refuse)
    with pytest.raises(FileStoreError, match="could not be written: Permission denied"):
        FileStore(str(tmp_path), "default").write(b"picture")


def test_the_endpoint_may_come_from_the_environment(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{server}")
    store = FileStore("s3://pictures/by-environment", "default")
    assert store.read(store.write(b"picture")) == b"picture"


def test_the_path_counts_only_while_it_holds_that_file(tmp_path: Path) -> None:
    path, gone = tmp_path / "000.png", tmp_path / "gone.png"
    path.write_bytes(b"mine")
    fetched = []

    def source(name: str) -> bytes:
        fetched.append(name)
        return b"theirs"

    assert read_file(path, sha256(b"mine")) == b"mine"
    with pytest.raises(FileStoreError, match="has changed since the dataset was read"):
        read_file(path, sha256(b"theirs"))
    with pytest.raises(FileNotFoundError):
        read_file(gone, sha256(b"theirs"))
    use_source(source)
    try:
        assert read_file(path, sha256(b"mine")) == b"mine"
        assert not fetched
        assert read_file(path, sha256(b"theirs")) == b"theirs"
        assert read_file(gone, sha256(b"theirs")) == b"theirs"
        assert fetched == [sha256(b"theirs")] * 2
    finally:
        use_source(None)


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_atomically(tmp_path / "file", b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_writing_many_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def count(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", count)
    files = {tmp_path / "a" / f"{index % 3}" / str(index): bytes([index]) for index in range(20)}
    write_durably(files)
    assert {path: path.read_bytes() for path in files} == files
    names = Counter(Path(path).name.split(".")[1] if "/." in path else path for path in synced)
    assert [names[str(index)] for index in range(20)] == [1] * 20
    for folder in (tmp_path, tmp_path / "a", *(tmp_path / "a" / str(index) for index in range(3))):
        assert names[str(folder)] == 1  # or a new name in it could be lost
    write_durably(dict.fromkeys(files, b"new"))
    assert {path.read_bytes() for path in files} == {b"new"}
    assert len(list(tmp_path.rglob("*"))) == 24


def test_what_was_left_half_written_is_removed_once_it_is_old(tmp_path: Path) -> None:
    store = FileStore(str(tmp_path), "p")
    kept = [store.local_path(store.write(data)) for data in (b"one", b"two")]
    left = [tmp_path / "p/pictures/ab" / f".{64 * 'a'}.0123456{number}" for number in (7, 8)]
    left[0].parent.mkdir()
    for path in left:
        path.write_bytes(b"half")
    os.utime(left[0], (0, 0))
    assert remove_leftovers(tmp_path) == 1
    assert [path.exists() for path in (*left, *kept) if path is not None] == [False, True, True, True]
    assert remove_leftovers(tmp_path / "nowhere") == 0
