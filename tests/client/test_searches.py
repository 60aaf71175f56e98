"""Searches: submitting, following over broken connections, waiting, and what comes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from autoad.client import AsyncSearch, Client, Search, _following
from autoad.errors import BusyError, NotFoundError, ServerError, UnreachableError, UsageError
from autoad.schema import DatasetEntry
from tests.client.service import Service, some_events


@pytest.fixture
def bottle(service: Service) -> DatasetEntry:
    return service.new_version("bottle", "0" * 64, 8, 100, "")[1]


def test_a_search_is_submitted_with_what_it_needs(client: Any, service: Service, bottle: DatasetEntry) -> None:
    search = client.search(
        bottle, time="1h30m", algorithms=["dfm", "padim"], name="first", model="flask", promote_when="better"
    )
    sent = json.loads(service.last("/searches").body)
    assert sent == {
        "dataset": "bottle/1",
        "name": "first",
        "model": "flask",
        "algorithms": ["dfm", "padim"],
        "objective": "image_auroc",
        "seconds": 5400.0,
        "trials": None,
        "seed": 0,
        "deterministic": False,
        "warm_start": True,
        "max_epochs": None,
        "threshold": "conformal",
        "false_positive_rate": None,
        "patience": None,
        "max_latency_ms": None,
        "max_memory_mb": None,
        "keep_suspicious": False,
        "promote_when": "better",
    }
    assert (search.id, search.name, search.status, search.champion) == ("s1", "first", "queued", None)
    assert search.entry.dataset == "bottle/1"
    assert client.search("bottle", time=60).entry.dataset == "bottle/1"
    assert json.loads(service.last("/searches").body)["seconds"] == 60
    client.search("bottle", threshold="f1-max", max_latency_ms=8, max_memory_mb=900)
    sent = json.loads(service.last("/searches").body)
    assert (sent["threshold"], sent["max_latency_ms"], sent["max_memory_mb"]) == ("f1-max", 8, 900)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"time": "soon"}, "a duration must be written as 90s, 20m or 1h30m but got 'soon'"),
        ({"time": -1}, "seconds: .* but got -1"),
        ({"trials": 0}, "trials: .* but got 0"),
        ({"objective": "auroc"}, "objective: .*'image_auroc'.* but got 'auroc'"),
        ({"name": "a b"}, "name: .* but got 'a b'"),
        ({"max_latency_ms": 0}, "max_latency_ms: .* but got 0"),
        ({"deterministic": True, "max_memory_mb": 5}, "must not depend on what is measured"),
        ({"threshold": "f1"}, "threshold: .*'f1-max'.* but got 'f1'"),
        ({"threshold": "f1-max", "false_positive_rate": 0.1}, "the threshold f1-max keeps to no rate"),
        ({"deterministic": True, "time": 5}, "a deterministic search must not depend on the clock"),
    ],
    ids=str,
)
def test_a_wrong_search_is_not_even_sent(
    client: Any, service: Service, bottle: DatasetEntry, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        client.search(bottle, **options)
    assert service.asked == []


def test_a_reply_that_is_lost_starts_no_second_search(
    client: Any, service: Service, bottle: DatasetEntry, waits: list[float]
) -> None:
    service.fail_after_work["searches"] = 2
    assert client.search(bottle).id == "s1"
    assert (len(service.searches), len(waits)) == (1, 2)
    keys = {one.headers["idempotency-key"] for one in service.asked}
    assert len(keys) == 1
    assert client.search(bottle).id == "s2", "another call is another search"
    assert client.search(bottle, idempotency_key="mine").id == client.search(bottle, idempotency_key="mine").id == "s3"
    service.fail("/searches", *[429] * 4, code="search_queue_full")
    with pytest.raises(BusyError) as raised:
        client.search(bottle)
    assert raised.value.code == "search_queue_full"
    with pytest.raises(NotFoundError, match="unknown dataset 'botle'"):
        client.search("botle")


def test_following_tells_everything_once_over_as_many_connections_as_it_takes(
    client: Any, service: Service, bottle: DatasetEntry, waits: list[float]
) -> None:
    search = client.search(bottle)
    told = []
    for event in search.follow():
        told.append(str(event))
        assert search.entry == event.search
    assert told == ["running", "trial 0", "trial 1", "trial 2", "champion dfm", "the search is complete\u2028"]
    assert (search.status, search.champion.version, search.entry.ended) == ("complete", 2, True)
    service.events_at_once = 2
    service.events_open.set()
    service.fail("/events", 503)
    assert [event.text for event in search.follow()] == told
    asked = [one for one in service.asked if one.path.endswith("/events")]
    assert [one.headers.get("last-event-id") for one in asked] == [None, None, None, "2", "4"]
    assert [round(wait) for wait in waits] == [1, 1, 1], "each new event begins the waits anew"


def test_following_has_an_end_where_there_is_nothing_to_follow(
    client: Any, service: Service, bottle: DatasetEntry, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    search = client.search(bottle)
    with pytest.raises(NotFoundError):
        service.searches.clear() or list(search.follow())
    service.submit(_request(), "k")
    service.events["s1"] = []
    service.events_open.set()
    with Client(client.server, patience=0) as impatient:
        with pytest.raises(UnreachableError, match="ended the events of the search before the search ended"):
            list(impatient.find_search("s1").follow())
        service.fail("/events", *[500] * 4)
        with pytest.raises(ServerError, match="no: 500"):
            list(impatient.find_search("s1").follow())
    service.events["s1"] = some_events(service.searches["s1"])
    monkeypatch.setattr(_following, "_KINDS", ())
    with Client(client.server, patience=0) as impatient, pytest.raises(UnreachableError):
        list(impatient.find_search("s1").follow())
    assert len(waits) == 9
    monkeypatch.setattr(_following, "_STEADY", -1.0)
    service.searches["s1"] = service.searches["s1"].model_copy(update={"id": "s9"})
    with Client("http://127.0.0.1:9", patience=0) as nowhere, pytest.raises(UnreachableError):
        list(Search(nowhere, nowhere._portal, _found(nowhere, service)).follow())
    assert len(waits) == 12, "what never answered is no steady connection"


def _found(client: Client, service: Service) -> AsyncSearch:
    return AsyncSearch(client._client, client._client._transport, service.searches["s1"])


def _request() -> Any:
    from autoad.schema import SubmitRequest

    return SubmitRequest(dataset="bottle")


def test_waiting_has_a_limit(client: Any, service: Service, bottle: DatasetEntry) -> None:
    search = client.search(bottle)
    service.events["s1"] = service.events["s1"][:2]
    with pytest.raises(TimeoutError, match=r"bottle-search-1 has not ended after 0\.2 s; it goes on"):
        search.wait(timeout=0.2)
    assert search.status == "running"
    service.events["s1"] = some_events(service.searches["s1"])
    assert search.wait().status == search.status == "complete"
    assert search.wait(timeout=5).champion is not None


def test_what_comes_of_a_search(client: Any, service: Service, bottle: DatasetEntry, tmp_path: Path) -> None:
    search = client.search(bottle, name="first")
    with pytest.raises(UsageError, match=r"first \(queued\) has no champion to promote; wait until it has ended"):
        search.promote()
    search.wait()
    assert len(search.leaderboard().leaderboard) == 3
    assert search.report(tmp_path).read_text() == search.report(tmp_path / "r.html").read_text() == "<h1>first</h1>"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first.html", "r.html"]
    with pytest.raises(UsageError, match="cannot write the report to"):
        search.report(tmp_path / "absent" / "r.html")
    result = search.promote(reason="the best", canary=0.25)
    assert result.version == 2
    assert json.loads(service.last("/promote").body) == {
        "version": 2,
        "reason": "the best",
        "canary": 0.25,
        "shadow": False,
    }
    assert service.last("/promote").path == "/v1/models/bottle/promote"
    assert search.cancel().status == search.status == "cancelled"
    failed = client.search(bottle)
    service.searches["s2"] = failed.entry.model_copy(update={"status": "failed", "error": "no trial succeeded"})
    with pytest.raises(UsageError, match=r"\(failed\) has no champion to promote: no trial succeeded"):
        failed.promote()
    assert failed.status == "failed"


def test_searches_are_listed_and_found(client: Any, service: Service, bottle: DatasetEntry) -> None:
    for number in range(5):
        client.search(bottle, name=f"search-{number}")
    assert [search.id for search in client.searches()] == ["s5", "s4", "s3", "s2", "s1"]
    found = client.find_search("search-2")
    assert (found.id, client.find_search("s3").name) == ("s3", "search-2")
    assert found.refresh() == found.entry
    with pytest.raises(NotFoundError, match="unknown search 'absent'"):
        client.find_search("absent")
