"""A network that is cut for seconds: connections drop, new ones are refused, and then all is well again."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from autoad.client import Client, _uploads
from autoad.errors import UnreachableError
from tests.client.service import Service, score_of, some_events

CUT = 2.5


class Wire:
    """Passes bytes on to a server, unless it is cut."""

    def __init__(self, address: str) -> None:
        parts = urlsplit(address)
        self._server = (parts.hostname, parts.port)
        self._sockets: set[socket.socket] = set()
        self._listener = self._listen(0)
        self._port = self._listener.getsockname()[1]
        self.address = f"http://127.0.0.1:{self._port}"
        self.cuts = 0

    def cut(self, seconds: float) -> None:
        """Drop every connection, in the middle of whatever it carries, and refuse new ones for a while."""
        self.cuts += 1
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._drop()
        time.sleep(seconds)
        self._listener = self._listen(self._port)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._drop()

    def _drop(self) -> None:
        for one in list(self._sockets):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def _listen(self, port: int) -> socket.socket:
        listener = socket.create_server(("127.0.0.1", port))
        threading.Thread(target=self._accept, args=[listener], daemon=True).start()
        return listener

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                inner, _ = listener.accept()
                outer = socket.create_connection(self._server)
                for source, target in ((inner, outer), (outer, inner)):
                    self._sockets.add(source)
                    threading.Thread(target=self._pass, args=[source, target], daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)
        self._sockets.discard(source)
        source.close()


@pytest.fixture
def wire(address: str) -> Iterator[Wire]:
    one = Wire(address)
    yield one
    one.close()


def test_score_many_survives_and_loses_nothing(service: Service, wire: Wire) -> None:
    pictures = [f"{number}".encode() for number in range(80)]
    with Client(wire.address, retries=0, patience=20) as client:
        scores = client.score_many("bottle", pictures, concurrency=4)
        found = [next(scores) for _ in range(20)]
        cut = threading.Thread(target=wire.cut, args=[CUT])
        cut.start()
        found += list(scores)
        cut.join()
    assert [one.score for one in found] == [score_of(data) for data in pictures]


def test_an_upload_survives(service: Service, wire: Wire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_uploads, "_PACK", 200_000)
    for number in range(60):
        (tmp_path / f"{number:03}.png").write_bytes(bytes([number]) * 100_000)
    cut = threading.Thread(target=wire.cut, args=[CUT])

    def progress(done: int, total: int, text: str) -> None:
        if text.startswith("sending") and done > total / 4 and not cut.ident:
            cut.start()

    with Client(wire.address, retries=0, patience=20) as client:
        entry = client.submit_dataset(tmp_path, name="cut", progress=progress)
    cut.join()
    assert wire.cuts == 1
    assert len(service.committed["cut", entry.version].files) == len(service.files) == 60


def test_following_survives(service: Service, wire: Wire) -> None:
    bottle = service.new_version("bottle", "0" * 64, 8, 100, "")[1]
    with Client(wire.address, retries=0, patience=20) as client:
        search = client.search(bottle)
        service.events["s1"] = service.events["s1"][:3]
        events = search.follow()
        told = [next(events).id for _ in range(3)]
        cut = threading.Thread(target=wire.cut, args=[CUT])
        cut.start()
        service.events["s1"] = some_events(search.entry)
        told += [event.id for event in events]
        cut.join()
    assert told == ["1", "2", "3", "4", "5", "6"]


def test_patience_ends(service: Service, wire: Wire) -> None:
    cut = threading.Thread(target=wire.cut, args=[4])
    with Client(wire.address, retries=0, patience=1.2) as client:
        client.health()
        cut.start()
        time.sleep(0.1)
        started = time.monotonic()
        with pytest.raises(UnreachableError, match="no autoad server answers"):
            list(client.score_many("bottle", [b"1"]))
        assert 1 < time.monotonic() - started < 3
        with pytest.raises(UnreachableError):
            client.score("bottle", b"1")
        cut.join()
        assert client.score("bottle", b"1").score == score_of(b"1")
