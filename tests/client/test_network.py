"""A network that is cut for seconds: connections drop, new ones are refused, and then all is well again."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from autoad.client import Client, _uploads
from autoad.errors import UnreachableError
from tests.client.service import Service, score_of, some_events
from tests.client.wire import Wire

CUT = 2.5


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
    monkeypatch.setattr(_uploads, "PACK_BYTES", 200_000)
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
