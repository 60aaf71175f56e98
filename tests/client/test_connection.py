from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from autoad.client import Connection
from autoad.errors import ServerError, UnreachableError

Script = list[tuple[int, dict[str, str], str]]
ERROR = '{"error": {"code": "queue_full", "message": "the queue is full", "hint": "try again"}}'


class _Server:
    """Answers each request with the next line of a script, and the last line from then on."""

    def __init__(self) -> None:
        self.script: Script = []
        self.seen: list[tuple[str, str, bytes, str | None]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                outer.seen.append((self.command, self.path, body, self.headers.get("Authorization")))
                status, headers, text = outer.script.pop(0) if len(outer.script) > 1 else outer.script[0]
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text.encode())

            do_GET = do_POST  # noqa: N815 (what the base class calls)

            def log_message(self, *_: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._http.server_address[1]}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def server() -> Iterator[_Server]:
    one = _Server()
    yield one
    one.close()


def test_the_key_and_the_picture_are_sent(server: _Server) -> None:
    server.script = [(200, {}, '{"score": 1.5}')]
    with Connection(server.address + "/", "autoad_1_2") as connection:
        assert connection.send("/v1/models/a/score", b"picture", version=2) == {"score": 1.5}
    assert server.seen == [("POST", "/v1/models/a/score?version=2", b"picture", "Bearer autoad_1_2")]


def test_scoring_is_tried_again_after_growing_waits(server: _Server) -> None:
    server.script = [(503, {}, ERROR), (500, {}, "oops"), (429, {"Retry-After": "3"}, ERROR), (200, {}, "{}")]
    waits: list[float] = []
    with Connection(server.address, retries=3, sleep=waits.append) as connection:
        assert connection.send("/score", b"") == {}
    assert 1 <= waits[0] <= 1.25
    assert 2 <= waits[1] <= 2.5
    assert 4 <= waits[2] <= 5


def test_what_the_server_asks_for_is_waited_at_least(server: _Server) -> None:
    server.script = [(429, {"Retry-After": "7"}, ERROR), (200, {}, "{}")]
    waits: list[float] = []
    with Connection(server.address, sleep=waits.append) as connection:
        connection.get("/x")
    assert 7 <= waits[0] <= 8.75


def test_the_last_refusal_is_told(server: _Server) -> None:
    server.script = [(429, {}, ERROR)]
    with (
        Connection(server.address, retries=2, sleep=lambda _: None) as connection,
        pytest.raises(ServerError, match="the queue is full\ntry again") as raised,
    ):
        connection.get("/x")
    assert (raised.value.code, raised.value.status, len(server.seen)) == ("queue_full", 429, 3)


def test_a_wrong_request_is_not_repeated(server: _Server) -> None:
    server.script = [(404, {}, '{"error": {"code": "unknown_model", "message": "there is no model \'a\'"}}')]
    with Connection(server.address) as connection, pytest.raises(ServerError, match="no model"):
        connection.get("/x")
    assert len(server.seen) == 1


def test_what_changes_something_is_not_repeated(server: _Server) -> None:
    server.script = [(503, {}, ERROR)]
    with Connection(server.address) as connection, pytest.raises(ServerError):
        connection.post("/v1/models/a/promote", {})
    assert len(server.seen) == 1


def test_an_answer_that_is_not_ours_is_quoted(server: _Server) -> None:
    server.script = [(502, {}, "<html>bad gateway</html>")]
    with Connection(server.address) as connection, pytest.raises(ServerError, match="502: <html>bad gateway"):
        connection.post("/x")


def test_nobody_there() -> None:
    waits: list[float] = []
    with (
        Connection("http://127.0.0.1:9", sleep=waits.append) as connection,
        pytest.raises(UnreachableError, match="autoad serve"),
    ):
        connection.get("/x")
    assert len(waits) == 3
    assert UnreachableError.exit_code == 4


def test_the_client_imports_neither_torch_nor_ray() -> None:
    code = "import sys, autoad.client; print(sorted({'torch', 'ray', 'numpy', 'sqlalchemy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
