"""`autoad serve` as its user runs it, and clients that put it under load."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

from autoad.client import Client, Score
from tests.ports import free_port

READY_SECONDS = 120
PROCESSES = {
    "replica": "ray::ServeReplica:autoad:Scoring",
    "controller": "ray::ServeController",
    "proxy": "/haproxy -db",
    "control": "ray::ServeReplica:autoad:Control",
}


@dataclasses.dataclass
class Deployment:
    """A server that runs."""

    address: str
    process: subprocess.Popen[bytes]
    log: Path

    def connect(self, **options: Any) -> Client:
        """A client."""
        return Client(self.address, **options)

    def children(self, kind: str | None = None) -> list[psutil.Process]:
        """Its processes, or those of a kind in PROCESSES."""
        found = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                line = " ".join(child.cmdline())
                if kind is None or PROCESSES[kind] in line:
                    found.append(child)
        return found

    def kill_all(self) -> None:
        """End every process of the server at once, as a power cut does."""
        for process in [psutil.Process(self.process.pid), *self.children()]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        self.process.wait()

    def kill(self, kind: str) -> None:
        """End one process of a kind as the kernel does when memory is short."""
        self.children(kind)[0].send_signal(signal.SIGKILL)


@contextlib.contextmanager
def deploy(state: Path, *arguments: str, port: int = 0, **environment: str) -> Iterator[Deployment]:
    """Start a server on a data folder, at any port unless one is given, and stop it as Ctrl-C does."""
    port = port or free_port()
    log = state / "serve.log"
    # What this process has imported has set some of Ray's variables; a user's shell has none of them.
    own = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "TUNE_"))}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "autoad.cli", "serve", "--port", str(port), *arguments],
            stdout=output,
            stderr=output,
            env=own | {"AUTOAD_DATA_DIR": str(state)} | environment,
        )
    try:
        deadline = time.monotonic() + READY_SECONDS
        while b"serving at" not in log.read_bytes():
            if process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"the server did not start: {log.read_text()[-3000:]}")
            time.sleep(0.1)
        yield Deployment(f"http://127.0.0.1:{port}", process, log)
    finally:
        process.terminate()
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@dataclasses.dataclass(frozen=True)
class Reply:
    """What a client got: which picture, when it asked (seconds), how long it took, and the answer or the error."""

    picture: int
    asked: float
    seconds: float
    answer: Score | None
    error: str


class Load:
    """Threads of one client that score pictures over and over until the context ends.

    Args:
        deployment: whom they ask.
        model: name.
        pictures: encoded.
        clients: how many at once.
        retries: of each request.
    """

    def __init__(
        self, deployment: Deployment, model: str, pictures: Sequence[bytes], *, clients: int = 8, retries: int = 3
    ) -> None:
        self._model = model
        self._pictures = pictures
        self._stop = threading.Event()
        self.replies: list[Reply] = []
        self._client = deployment.connect(retries=retries, timeout=30)
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._client.close()

    def wait(self, replies: int, seconds: float) -> None:
        """Until so many more replies have come."""
        goal = len(self.replies) + replies
        deadline = time.monotonic() + seconds
        while len(self.replies) < goal:
            assert time.monotonic() < deadline, f"{goal - len(self.replies)} replies are missing after {seconds} s"
            time.sleep(0.05)

    @property
    def lost(self) -> list[Reply]:
        """Requests that ended in an error after all retries."""
        return [reply for reply in self.replies if reply.answer is None]

    def _ask(self, number: int) -> None:
        picture = number
        while not self._stop.is_set():
            picture = (picture + 1) % len(self._pictures)
            asked, answer, error = time.monotonic(), None, ""
            try:
                answer = self._client.score(self._model, self._pictures[picture])
            except Exception as failure:
                error = repr(failure)
            self.replies.append(Reply(picture, asked, time.monotonic() - asked, answer, error))
