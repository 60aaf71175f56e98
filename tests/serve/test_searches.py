from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import sqlalchemy
import uvicorn

from autoad.database import Database, Keys, this_process
from autoad.schema import Metrics, SearchEvent, SearchResult, SubmissionEntry, SubmissionPage, TrialRow
from autoad.search.submissions import Submissions
from autoad.serve import searches
from autoad.serve.auth import Authenticator
from autoad.serve.http import create_app
from autoad.serve.options import ServeOptions
from autoad.serve.reports import report_store
from autoad.serve.scorer import Scorer
from autoad.settings import Settings
from tests.serve.factory import add_dataset
from tests.serve.test_following import CHAMPION
from tests.serve.test_http import check_error

SEARCHES = "/v1/searches"
ME = this_process()
Serve = Callable[..., None]


@dataclasses.dataclass
class Yard:
    """The queue, and what its driver does to it."""

    database: Database
    settings: Settings
    submissions: Submissions

    def begin(self, search: str, name: str) -> None:
        assert self.submissions.tables.begin_next(ME, 100) is not None
        self.summary: dict[str, Any] = {
            "search_id": search,
            "name": name,
            "status": "running",
            "objective": "image_auroc",
            "seed": 0,
            "seconds": 0.0,
            "dataset": {"path": str(self.settings.data_dir / "d.parquet"), "layout": "manifest", "hash": "h"}
            | {"counts": {}, "roles": {}},
            "evidence": "labelled",
            "engine": "torch float32",
            "notes": [f"skipped {self.settings.data_dir}/pictures/x.png: too small"],
            "champion": None,
            "leaderboard": [],
        }
        self.database.add_search(search, name, "hash", {}, self.summary, owner=ME)

    def end_trial(self, search: str, number: int, **fields: Any) -> None:
        row = {"trial": number, "algorithm": "dfm", "config": {}, "status": "complete"}
        row |= {"validation": Metrics(image_auroc=0.5)}
        self.database.write_trial(search, TrialRow.model_validate(row | fields), owner=ME)

    def complete(self, search: str) -> None:
        champion = CHAMPION | {"model": str(self.settings.data_dir / "models/default/bottle/3")}
        summary = self.summary | {"champion": champion, "status": "complete"}
        self.database.update_search(search, status="complete", summary=summary, owner=ME)
        report = report_store(self.settings, "default").write(b"<!doctype html><title>report</title>")
        assert self.submissions.tables.finish(search, ME, "complete", report=report)


@pytest.fixture
def yard(database: Database, demo: Path, tmp_path: Path) -> Yard:
    settings = Settings(data_dir=tmp_path / "data")
    add_dataset(settings, "bottle", demo)
    return Yard(database, settings, Submissions(database))


async def submit(service: Any, **body: Any) -> SubmissionEntry:
    reply = await service.client.post(SEARCHES, json={"dataset": "bottle"} | body)
    assert reply.status_code == 202, reply.text
    return SubmissionEntry.model_validate(reply.json())


def test_a_search_is_submitted_shown_and_cancelled(yard: Yard, serve: Serve) -> None:
    async def main(service: Any) -> None:
        reply = await service.client.post(SEARCHES, json={"dataset": "bottle", "name": "mine", "trials": 3})
        entry = SubmissionEntry.model_validate(reply.json())
        assert (reply.status_code, reply.headers["Location"]) == (202, f"{SEARCHES}/{entry.id}")
        assert (entry.dataset, entry.model, entry.status, entry.actor) == ("bottle/1", "bottle", "queued", "local")
        for name in (entry.id, "mine"):
            assert (await service.client.get(f"{SEARCHES}/{name}")).json() == reply.json()
        page = SubmissionPage.model_validate((await service.client.get(SEARCHES)).json())
        assert (page.items, page.next) == ([entry], None)
        ended = [(await service.client.post(f"{SEARCHES}/mine/cancel")).json() for _ in range(2)]
        assert ended[0] == ended[1]
        assert ended[0]["status"] == "cancelled"

    serve(main)


def test_the_list_has_pages(yard: Yard, serve: Serve) -> None:
    async def main(service: Any) -> None:
        names = [(await submit(service, name=f"s{number}")).name for number in range(3)]
        first = (await service.client.get(SEARCHES, params={"limit": 2})).json()
        rest = (await service.client.get(SEARCHES, params={"limit": 2, "after": first["next"]})).json()
        assert [entry["name"] for entry in first["items"] + rest["items"]] == names[::-1]
        assert rest["next"] is None
        check_error(await service.client.get(SEARCHES, params={"after": "123"}), 400, "bad_request")

    serve(main)


def test_a_key_makes_a_request_harmless_to_repeat(yard: Yard, serve: Serve) -> None:
    async def main(service: Any) -> None:
        async def send(**body: Any) -> Any:
            content = {"dataset": "bottle"} | body
            return await service.client.post(SEARCHES, json=content, headers={"Idempotency-Key": "one"})

        first, again = await send(), await send()
        assert (first.status_code, again.status_code) == (202, 202)
        assert first.json() == again.json()
        check_error(await send(trials=3), 409, "conflict")
        assert len((await service.client.get(SEARCHES)).json()["items"]) == 1

    serve(main)


def test_what_cannot_be_is_refused(yard: Yard, serve: Serve) -> None:
    async def main(service: Any) -> None:
        async def send(**body: Any) -> Any:
            return await service.client.post(SEARCHES, json={"dataset": "bottle"} | body)

        check_error(await send(dataset="cup"), 404, "unknown_name")
        check_error(await send(dataset="bottle/7"), 404, "unknown_name")
        check_error(await send(algorithms=["patchcor"]), 400, "bad_request")
        check_error(await send(objective="speed"), 400, "bad_request")
        check_error(await send(seconds=60, deterministic=True), 400, "bad_request")
        check_error(await send(colour="red"), 400, "bad_request")
        await submit(service, name="mine")
        check_error(await send(name="mine"), 409, "conflict")
        for path in ("nothing", "nothing/leaderboard", "nothing/report", "nothing/events"):
            check_error(await service.client.get(f"{SEARCHES}/{path}"), 404, "unknown_name")
        check_error(await service.client.post(f"{SEARCHES}/nothing/cancel"), 404, "unknown_name")

    serve(main)


def test_so_many_wait(yard: Yard, serve: Serve) -> None:
    async def main(service: Any) -> None:
        await submit(service)
        reply = await service.client.post(SEARCHES, json={"dataset": "bottle"})
        check_error(reply, 429, "search_queue_full")
        assert reply.headers["Retry-After"] == "30"

    serve(main, max_queued=1)


def test_who_may_do_what(yard: Yard, serve: Serve) -> None:
    async def main(service: Any) -> None:
        keys = {scope: service.keys.create(scope, [scope])[1] for scope in ("score", "submit", "admin")}
        await asyncio.sleep(0.1)

        async def send(scope: str, path: str = "", **body: Any) -> Any:
            headers = {"Authorization": f"Bearer {keys[scope]}"}
            return await service.client.post(SEARCHES + path, json={"dataset": "bottle"} | body, headers=headers)

        check_error(await send("score"), 403, "forbidden")
        check_error(await send("submit", promote_when="better"), 403, "forbidden")
        assert (await send("submit", name="mine")).status_code == 202
        assert (await send("admin", promote_when="better")).status_code == 202
        check_error(await send("score", "/mine/cancel"), 403, "forbidden")
        reply = await service.client.get(f"{SEARCHES}/mine", headers={"Authorization": f"Bearer {keys['score']}"})
        assert reply.status_code == 403 or reply.json()["actor"] == "submit"
        check_error(await service.client.get(SEARCHES), 401, "unauthenticated")

    serve(main)


def test_another_project_sees_nothing(yard: Yard, serve: Serve) -> None:
    async def main(service: Any) -> None:
        entry = await submit(service, name="mine")
        yard.begin(entry.id, "mine")
        yard.complete(entry.id)
        _, secret = service.keys.create("theirs", ["admin"], "other")
        await asyncio.sleep(0.1)
        headers = {"Authorization": f"Bearer {secret}"}
        assert (await service.client.get(SEARCHES, headers=headers)).json()["items"] == []
        for name in (entry.id, "mine"):
            for path in ("", "/leaderboard", "/report", "/events"):
                reply = await service.client.get(f"{SEARCHES}/{name}{path}", headers=headers)
                check_error(reply, 404, "unknown_name")
            reply = await service.client.post(f"{SEARCHES}/{name}/cancel", headers=headers)
            check_error(reply, 404, "unknown_name")
        reply = await service.client.post(SEARCHES, json={"dataset": "bottle"}, headers=headers)
        check_error(reply, 404, "unknown_name")

    serve(main)


def test_leaderboard_and_report_come_when_they_are_there(yard: Yard, serve: Serve) -> None:
    async def main(service: Any) -> None:
        entry = await submit(service, name="mine")
        path = f"{SEARCHES}/mine"
        for what in ("leaderboard", "report"):
            check_error(await service.client.get(f"{path}/{what}"), 404, "not_found")
        yard.begin(entry.id, "mine")
        yard.end_trial(entry.id, 0)
        yard.end_trial(entry.id, 1, status="failed", reason=f"cannot write {yard.settings.data_dir}/features/x")
        reply = await service.client.get(f"{path}/leaderboard")
        result = SearchResult.model_validate(reply.json())
        assert (result.status, len(result.leaderboard)) == ("running", 2)
        check_error(await service.client.get(f"{path}/report"), 404, "not_found")
        yard.complete(entry.id)
        ended = await service.client.get(f"{path}/leaderboard")
        result = SearchResult.model_validate(ended.json())
        assert result.champion is not None
        assert (result.status, result.dataset.path, result.champion.model) == ("complete", "bottle/1", "bottle/3")
        shown = (await service.client.get(path)).text
        told = (await service.client.get(f"{path}/events")).text
        for text in (reply.text, ended.text, shown, told):
            assert str(yard.settings.data_dir) not in text
            assert "/data/" not in text
        page = await service.client.get(f"{path}/report")
        assert (page.status_code, page.text) == (200, "<!doctype html><title>report</title>")
        assert page.headers["Content-Type"] == "text/html; charset=utf-8"

    serve(main)


def read_events(lines: Iterator[str]) -> Iterator[SearchEvent]:
    """Those of a stream, each with the fields that it must have."""
    fields: dict[str, str] = {}
    for line in lines:
        if line.startswith(":"):
            continue
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
            continue
        if fields:
            event = SearchEvent.model_validate(json.loads(fields["data"]))
            assert (fields["id"], fields["event"]) == (event.id, event.kind)
            yield event
        fields = {}


def test_an_ended_search_is_told_at_once(yard: Yard, serve: Serve) -> None:
    async def main(service: Any) -> None:
        entry = await submit(service, name="mine")
        yard.begin(entry.id, "mine")
        for number in range(3):
            yard.end_trial(entry.id, number)
        yard.complete(entry.id)
        reply = await service.client.get(f"{SEARCHES}/mine/events")
        assert reply.headers["Content-Type"].startswith("text/event-stream")
        events = list(read_events(iter(reply.text.split("\n"))))
        assert [event.kind for event in events] == ["note", *["trial"] * 3, "champion", "status", "end"]
        later = await service.client.get(f"{SEARCHES}/mine/events", headers={"Last-Event-ID": events[2].id})
        assert list(read_events(iter(later.text.split("\n")))) == events[3:]
        wrong = {"Last-Event-ID": "running.0.0.0..9-3"}
        check_error(await service.client.get(f"{SEARCHES}/mine/events", headers=wrong), 400, "bad_request")

    serve(main)


@dataclasses.dataclass
class Replica:
    """An application behind a port; ``httpx2`` reads no stream from one in its own process."""

    client: httpx2.Client
    search: SubmissionEntry

    def follow(self, position: str = "", **options: Any) -> Any:
        headers = {"Last-Event-ID": position} if position else {}
        return self.client.stream("GET", f"{SEARCHES}/mine/events", headers=headers, **options)


@contextlib.contextmanager
def replica(yard: Yard, registry: Any, plane: Any, **options: Any) -> Iterator[Replica]:
    chosen = ServeOptions(**{"replicas": 1, "threads": 1, "poll_seconds": 0.02} | options)
    scorer = Scorer(registry, chosen, "r1")
    doorkeeper = Authenticator(Keys(yard.database), "default", loopback=True)
    app = create_app(scorer, registry, plane(registry, scorer), doorkeeper, chosen, yard.database, yard.settings)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
            reply = client.post(SEARCHES, json={"dataset": "bottle", "name": "mine"})
            yield Replica(client, SubmissionEntry.model_validate(reply.json()))
    finally:
        server.should_exit = True
        thread.join()


def test_following_live_with_a_pause(yard: Yard, registry: Any, plane: Any) -> None:
    with replica(yard, registry, plane) as one:
        search = one.search.id
        with one.follow() as reply:
            events = read_events(reply.iter_lines())
            assert next(events).search.status == "queued"
            yard.begin(search, "mine")
            assert [next(events).kind for _ in range(2)] == ["status", "note"]
            yard.end_trial(search, 0)
            first = next(events)
            assert first.trial is not None
            assert first.trial.trial == 0
        yard.end_trial(search, 1)
        with one.follow(first.id) as reply:
            events = read_events(reply.iter_lines())
            second = next(events)
            assert second.trial is not None
            assert second.trial.trial == 1
            yard.complete(search)
            assert [event.kind for event in events] == ["champion", "status", "end"]


def test_so_many_follow_and_those_who_leave_make_room(
    yard: Yard, registry: Any, plane: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searches, "_HEARTBEAT_SECONDS", 0.1)
    monkeypatch.setattr(searches, "_POLL_SECONDS", 0.05)
    with replica(yard, registry, plane, max_streams=2) as one:
        with one.follow() as first, one.follow() as second:
            heard = [first.iter_lines(), second.iter_lines()]  # a line that is dropped is a stream that is closed
            assert next(heard[0]).startswith("id: queued")
            assert ": still there" in heard[1]
            refused = one.client.get(f"{SEARCHES}/mine/events")
            check_error(refused, 429, "rate_exceeded")
            assert refused.headers["Retry-After"] == "5"
        for _ in range(100):
            with one.follow() as again:
                if again.status_code == 200:
                    break
            time.sleep(0.05)
        assert again.status_code == 200


def test_an_outage_of_the_database_ends_no_stream(
    yard: Yard, registry: Any, plane: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(searches, "_POLL_SECONDS", 0.02)
    with replica(yard, registry, plane) as one, one.follow() as reply:
        events = read_events(reply.iter_lines())
        assert next(events).kind == "status"
        tables = type(yard.submissions.tables)
        with monkeypatch.context() as patch:

            def fail(*_: object) -> None:
                raise sqlalchemy.exc.OperationalError("", {}, Exception("gone"))

            patch.setattr(tables, "mark", fail)
            time.sleep(0.3)
        yard.submissions.cancel("default", "mine")
        assert [event.kind for event in events] == ["status", "end"]
    assert caplog.text.count("cannot be followed") == 1


def test_a_stream_asks_seldom_and_little(yard: Yard, registry: Any, plane: Any) -> None:
    """Where nothing happens, one query twice a second."""
    asked: list[str] = []

    def count(*arguments: Any) -> None:
        if "submissions" in arguments[2]:
            asked.append(arguments[2])

    with replica(yard, registry, plane) as one, one.follow() as reply:
        events = read_events(reply.iter_lines())
        assert next(events).kind == "status"
        sqlalchemy.event.listen(yard.database._engine, "before_cursor_execute", count)
        time.sleep(2.2)
        sqlalchemy.event.remove(yard.database._engine, "before_cursor_execute", count)
    assert 2 <= len(asked) <= 5
