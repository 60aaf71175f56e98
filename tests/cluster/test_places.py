"""What can be said of a cluster without one."""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

import autoad
from autoad import files
from autoad.errors import FileStoreError, UsageError
from autoad.files import FileStore, read_file, use_source
from autoad.search import cluster
from autoad.search.cluster import ClusterWorkers, check_reachable, explain_death
from autoad.search.place import Desk, Place

DIED = """Failure # 1 (occurred at 2026-01-01_00-00-00)
The actor died unexpectedly before finishing this task.
\tclass_name: ResourceTrainable
\tpid: 93
\tip: 10.203.0.2
"""
NODE = {"NodeManagerAddress": "10.203.0.2", "NodeName": "press 2", "NodeID": "b"}


class Remote:
    """A desk's method, called at once, as if in the driver's process: that has no other source."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self.read = self

    def remote(self, sha256: str) -> bytes | str:
        source = files._source
        use_source(None)
        try:
            return self._desk.read(sha256)
        finally:
            use_source(source)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """A place whose desk has one file, ``driver/a.png``; this process is on another node and has none."""
    monkeypatch.setenv("AUTOAD_DATA_DIR", str(tmp_path / "node"))
    monkeypatch.setattr(ray, "get", lambda answer, timeout: answer)
    monkeypatch.setattr("autoad.search.place._here", lambda: "press 2")
    (tmp_path / "driver").mkdir()
    path = tmp_path / "driver" / "a.png"
    path.write_bytes(b"picture")
    desk = Desk({hashlib.sha256(b"picture").hexdigest(): path})
    yield Place(autoad.__version__, "default", "", Remote(desk))
    use_source(None)


@pytest.mark.parametrize("alive", [True, False])
@pytest.mark.parametrize("words", ["The actor died because its node has died. Node Id: 5e", "Worker exited."])
def test_a_death_is_the_nodes_or_the_process_own(monkeypatch: pytest.MonkeyPatch, alive: bool, words: str) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: [NODE | {"Alive": alive}])
    death = explain_death(DIED + words)
    assert death.node == "press 2"
    assert death.node_lost == ("its node" in words or not alive)
    assert ("the node press 2 was lost" in death.reason) == death.node_lost
    assert ("its process died on node press 2" in death.reason) != death.node_lost


def test_a_death_without_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: [NODE | {"Alive": False}])
    assert explain_death("") == cluster.Death(None, False, "its process died, most likely out of memory")


def test_a_worker_fetches_once_and_keeps_what_it_got(place: Place, tmp_path: Path) -> None:
    name, elsewhere = hashlib.sha256(b"picture").hexdigest(), Path("/of/the/driver/a.png")
    node, features = place.settle()
    assert (node, features) == ("press 2", tmp_path / "node" / "features")
    assert read_file(elsewhere, name) == b"picture"
    (tmp_path / "driver" / "a.png").unlink()
    assert read_file(elsewhere, name) == b"picture", "kept on the node"
    kept = tmp_path / "node" / "files" / "default" / "pictures" / name[:2] / name
    kept.write_bytes(b"damaged")
    with pytest.raises(FileStoreError, match="driver's node"):
        read_file(elsewhere, name)


def test_the_desk_says_why_it_has_nothing(place: Place, tmp_path: Path) -> None:
    place.settle()
    with pytest.raises(FileStoreError, match="belongs to this search"):
        read_file(Path("/b.png"), "0" * 64)
    (tmp_path / "driver" / "a.png").write_bytes(b"another")
    with pytest.raises(FileStoreError, match="has changed since the dataset was read"):
        read_file(Path("/a.png"), hashlib.sha256(b"picture").hexdigest())


def test_a_worker_takes_files_from_the_store(place: Place, tmp_path: Path) -> None:
    name = FileStore(str(tmp_path / "shared"), "default").write(b"stored")
    Place(place.version, "default", str(tmp_path / "shared"), None).settle()
    assert read_file(Path("/c.png"), name) == b"stored"


def test_another_version_is_refused(place: Place) -> None:
    with pytest.raises(UsageError, match=r"node press 2 must have autoad 0\.0\.1 but has"):
        Place("0.0.1", "default", "", place.desk).settle()


def test_a_node_without_a_data_folder_uses_a_temporary_one(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AUTOAD_DATA_DIR")
    monkeypatch.setattr("tempfile.tempdir", "/some/tmp")
    assert place.settle()[1] == Path(f"/some/tmp/autoad-{os.getuid()}/features")
    monkeypatch.delenv("AUTOAD_DATA_DIR")


def test_workers_follow_the_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    has: dict[str, Any] = {"CPU": 3.0, "GPU": 1.0}
    monkeypatch.setattr(ray, "cluster_resources", lambda: has)
    monkeypatch.setattr(cluster, "_RECOUNT_SECONDS", -1.0)
    plain, cuda, alone = (ClusterWorkers(cuda=c, alone=a) for c, a in ((False, False), (True, False), (False, True)))
    assert (plain.count, cuda.count, alone.count) == (3, 3, 1)
    has |= {"CPU": 16.0}
    assert (plain.count, cuda.count, alone.count) == (16, 4, 1)
    has.clear()
    assert (plain.count, cuda.count, alone.count) == (1, 1, 1)


@pytest.mark.parametrize("address", ["head", "head:", ":6379", "ray://head:10001/x"])
def test_an_address_must_be_one(address: str) -> None:
    with pytest.raises(UsageError, match="--address must be HOST:PORT"):
        check_reachable(address)


def test_a_silent_address_is_refused_at_once() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with pytest.raises(UsageError, match="no Ray cluster answers"):
            check_reachable(f"127.0.0.1:{free.getsockname()[1]}")
