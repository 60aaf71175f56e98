"""Requests: the key, what is tried again and when, and errors as exceptions."""

from __future__ import annotations

import email.utils
import json
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from autoad.client import Client
from autoad.errors import (
    AuthenticationError,
    AutoADError,
    BusyError,
    ForbiddenError,
    NotFoundError,
    RefusedError,
    ServerError,
    UnreachableError,
    UsageError,
)
from tests.client.service import Service

ERROR = {"error": {"code": "queue_full", "message": "the queue is full", "hint": "try again"}}
Answer = httpx2.Response | Exception


class Script(httpx2.AsyncBaseTransport):
    """Answers each request with the next of a script."""

    def __init__(self, *answers: Answer) -> None:
        self.answers: Iterator[Answer] = iter(answers)
        self.requests: list[httpx2.Request] = []

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        await request.aread()
        self.requests.append(request)
        answer = next(self.answers)
        if isinstance(answer, Exception):
            raise answer
        return answer


def error(status: int, **headers: str) -> httpx2.Response:
    return httpx2.Response(status, json=ERROR, headers=headers)


def up() -> httpx2.Response:
    return httpx2.Response(200, json={"status": "up"})


def test_the_key_is_sent_and_the_address_may_end_in_a_slash(service: Service, address: str) -> None:
    service.api_key = "autoad_1_2"
    with Client(address + "/", " autoad_1_2\n") as client:
        assert client.health() == {"status": "up"}
    with Client(address) as client, pytest.raises(AuthenticationError, match="an API key is needed"):
        client.health()


def test_the_environment_names_server_and_key(service: Service, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Client() as client:
        assert client.server == "http://127.0.0.1:8000"
    monkeypatch.setenv("AUTOAD_SERVER", address)
    monkeypatch.setenv("AUTOAD_API_KEY", "autoad_3_4")
    with Client() as client:
        client.health()
    with Client(api_key="") as client:
        client.health()
    assert [one.headers.get("authorization") for one in service.asked] == ["Bearer autoad_3_4", None]


def test_it_is_tried_again_after_growing_waits(waits: list[float]) -> None:
    script = Script(error(503), error(500), error(429, **{"Retry-After": "3"}), httpx2.ReadError("cut"), up())
    with Client("http://x", retries=4, transport=script) as client:
        assert client.health() == {"status": "up"}
    for wait, least in zip(waits, (1, 2, 4, 5), strict=True):
        assert least <= wait <= 1.25 * least


def test_what_the_server_asks_for_is_waited_at_least(waits: list[float]) -> None:
    date = email.utils.formatdate(time.time() + 30, usegmt=True)
    asked = ["7", date, "3600", "soon"]
    script = Script(*(error(429, **{"Retry-After": value}) for value in asked), up())
    with Client("http://x", retries=4, transport=script) as client:
        client.health()
    for wait, least in zip(waits, (7, 28, 60, 5), strict=True):
        assert least <= wait <= 1.25 * max(least, 30 if least == 28 else 0)


def test_the_last_refusal_is_told(waits: list[float]) -> None:
    script = Script(*[error(429)] * 3)
    with (
        Client("http://x", retries=2, transport=script) as client,
        pytest.raises(BusyError, match="the queue is full\ntry again") as raised,
    ):
        client.health()
    assert (raised.value.code, raised.value.status, len(script.requests)) == ("queue_full", 429, 3)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (301, ServerError),
        (400, RefusedError),
        (401, AuthenticationError),
        (403, ForbiddenError),
        (404, NotFoundError),
        (409, RefusedError),
        (413, RefusedError),
        (422, RefusedError),
        (429, BusyError),
        (500, ServerError),
        (502, ServerError),
        (503, BusyError),
    ],
)
def test_each_status_has_its_exception(client: Any, service: Service, status: int, kind: type, waits: Any) -> None:
    service.fail("/health", *[status] * 4, headers={"WWW-Authenticate": 'Bearer realm="x"'})
    with pytest.raises(AutoADError, match=f"no: {status}\none\ntwo\ntry again") as raised:
        client.health()
    assert type(raised.value) is kind
    if isinstance(raised.value, AuthenticationError):
        assert raised.value.challenge == 'Bearer realm="x"'
    elif isinstance(raised.value, ServerError):
        assert (raised.value.status, raised.value.code) == (status, "busy")
    repeated = status in (429, 500, 502, 503)
    assert len(service.asked) == (4 if repeated else 1)


def test_what_changes_something_is_not_repeated_once_it_arrived(waits: list[float]) -> None:
    script = Script(httpx2.ConnectError("refused"), error(503))
    with Client("http://x", transport=script) as client, pytest.raises(BusyError):
        client.promote("bottle")
    assert (len(script.requests), len(waits)) == (2, 1), "nobody heard the first"
    for call in ("promote", "rollback"):
        script = Script(httpx2.ReadError("cut"))
        with Client("http://x", transport=script) as client, pytest.raises(UnreachableError, match="cut"):
            getattr(client, call)("bottle")


def test_nobody_there(waits: list[float]) -> None:
    with (
        Client("http://127.0.0.1:9") as client,
        pytest.raises(UnreachableError, match=r"no autoad server answers at http://127.0.0.1:9 .*autoad serve"),
    ):
        client.health()
    assert len(waits) == 3
    assert UnreachableError.exit_code == 4


def test_an_answer_that_is_not_ours_is_quoted(client: Any, service: Service) -> None:
    service.answer("/health", "<html>bad request</html>", 400)
    with pytest.raises(RefusedError, match="the server answered 400: <html>bad request"):
        client.health()
    for text in ("<html>a hotel's page</html>", '{"name": "bottle"}', "[]", ""):
        service.answer("/v1/models/bottle", text)
        with pytest.raises(ServerError, match="the answer to GET /v1/models/bottle must be ModelEntry but") as raised:
            client.model("bottle")
        assert raised.value.code == "unreadable_reply"
    script = Script(httpx2.Response(308, headers={"Location": "https://x"}))
    with (
        Client("http://x", transport=script) as moved,
        pytest.raises(ServerError, match=r"answered 308 \(to https://x\)"),
    ):
        moved.health()


def test_what_a_newer_server_adds_is_ignored(client: Any, service: Service) -> None:
    known = service.models["bottle"]
    newer = known.model_dump(mode="json") | {"colour": "green"}
    newer["route"]["tags"] = []
    newer["versions"][0]["tags"] = []
    service.answer("/v1/models/bottle", json.dumps(newer))
    assert client.model("bottle") == known


def test_models(client: Any, service: Service) -> None:
    assert [model.name for model in client.models()] == ["bottle"]
    assert client.ready() is True
    service.fail("/ready", 503)
    assert client.ready() is False
    assert client.promote("bottle", 2, reason="better").version == 2
    assert json.loads(service.last("/promote").body) == {
        "version": 2,
        "reason": "better",
        "canary": None,
        "shadow": False,
    }
    assert client.rollback("bottle", reason="worse").champion == 1
    assert client.end_canary("bottle", reason="seen").champion == 1
    assert service.last("/canary").query == {"reason": "seen"}
    assert client.end_shadow("bottle").champion == 1
    assert client.delete("bottle", 2, reason="a try") is None
    assert service.last("/versions/2").query == {"reason": "a try"}
    with pytest.raises(RefusedError, match="cannot be deleted"):
        client.delete("bottle", 1)
    with pytest.raises(UsageError, match="canary or a shadow, not both"):
        client.promote("bottle", canary=0.1, shadow=True)
    with pytest.raises(UsageError, match=r"canary: .* but got 2"):
        client.promote("bottle", canary=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"server": "127.0.0.1:8000"}, "server must be an address such as"),
        ({"server": "ftp://host"}, "server must be an address such as"),
        ({"server": "http://"}, "server must be an address such as"),
        ({"api_key": "a\nb"}, "the API key must be as"),
        ({"api_key": "schl\u00fcssel"}, "the API key must be as"),
        ({"timeout": 0}, "timeout must be at least"),
        ({"retries": -1}, "retries must be at least"),
        ({"patience": float("nan")}, "patience must be at least"),
    ],
)
def test_a_client_that_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as raised:
        Client(**{"server": "http://x"} | options)
    assert "schl" not in str(raised.value)


@pytest.mark.parametrize("name", ["", ".", ".."])
def test_a_name_that_would_be_another_path_is_refused(client: Any, service: Service, name: str) -> None:
    with pytest.raises(UsageError, match="a name must not be empty or of dots"):
        client.model(name)
    assert service.asked == []
    with pytest.raises(NotFoundError):
        client.model("a/../b?c")
    assert service.asked[0].path == "/v1/models/a/../b?c", "quoted on its way"
