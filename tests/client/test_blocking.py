"""The client without asyncio: threads, Ctrl-C, closing, forgetting to close."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from autoad.client import Client
from autoad.errors import UsageError
from tests.client.service import Service, score_of


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("autoad")}


def test_a_client_costs_no_thread_until_it_is_used_and_none_afterwards(service: Service, address: str) -> None:
    client = Client(address)
    assert threads() == set()
    client.health()
    assert threads() == {"autoad client"}
    client.close()
    assert threads() == set()
    client.close()
    with pytest.raises(UsageError, match="this client was closed"):
        client.health()
    with pytest.raises(UsageError, match="this client was closed"):
        list(client.score_many("bottle", [b"1"]))
    Client(address).close()


def test_many_threads_share_one_client(service: Service, address: str) -> None:
    service.delay = lambda _: 0.01
    with Client(address) as client, ThreadPoolExecutor(16) as pool:
        pictures = [f"{number}".encode() for number in range(200)]
        scores = list(pool.map(lambda data: client.score("bottle", data).score, pictures))
    assert scores == [score_of(data) for data in pictures]
    assert service.most_scoring > 4


def test_a_loop_that_cannot_be_made_is_said_and_tried_again(
    service: Service, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise OSError(24, "too many open files")

    with Client(address) as client:
        with monkeypatch.context() as context:
            context.setattr("asyncio.Runner", refuse)
            with pytest.raises(UsageError, match="too many open files"):
                client.health()
        assert client.health()


def test_a_source_that_ends_the_program_does_not_end_the_client(service: Service, address: str) -> None:
    def pictures() -> Iterator[bytes]:
        yield b"1"
        sys.exit("camera lost")

    with Client(address) as client:
        with pytest.raises(UsageError, match="camera lost"):
            list(client.score_many("bottle", pictures()))
        assert client.health()


def test_closing_ends_what_other_threads_wait_for(service: Service, address: str) -> None:
    service.delay = lambda _: 10.0
    client = Client(address)
    errors: list[BaseException] = []

    def wait(many: bool) -> None:
        try:
            list(client.score_many("bottle", [b"1", b"2"])) if many else client.score("bottle", b"1")
        except BaseException as error:
            errors.append(error)

    waiting = [threading.Thread(target=wait, args=[many]) for many in (True, False)]
    for thread in waiting:
        thread.start()
    while service.scoring < 3:
        time.sleep(0.01)
    client.close()
    for thread in waiting:
        thread.join(5)
    assert [type(error) for error in errors] == [UsageError, UsageError]


def test_a_client_that_is_forgotten_closes_itself(service: Service, address: str) -> None:
    client = Client(address)
    score = client.score("bottle", b"1")
    scores = client.score_many("bottle", (f"{n}".encode() for n in range(10**9)))
    next(scores)
    del client
    gc.collect()
    assert score.anomaly_map() is not None, "a score keeps its client"
    assert next(scores).score == score_of(b"1")
    del scores, score
    gc.collect()
    deadline = time.monotonic() + 5
    while threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threads() == set()


def test_a_callback_cannot_use_its_own_client(service: Service, address: str, folder: Path) -> None:
    with Client(address) as client, pytest.raises(UsageError, match="a callback must not use the client"):
        client.submit_dataset(folder, progress=lambda *_: client.health())


def test_a_source_may_use_the_client(service: Service, address: str) -> None:
    with Client(address) as client:

        def pictures() -> Iterator[bytes]:
            for number in range(5):
                client.health()
                yield f"{number}".encode()

        assert len(list(client.score_many("bottle", pictures()))) == 5


def _child(client: Client, end: multiprocessing.connection.Connection) -> None:
    try:
        client.health()
    except UsageError as error:
        end.send(str(error))
    client.close()
    os._exit(0)


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_a_forked_process_is_told(service: Service, address: str) -> None:
    here, there = multiprocessing.Pipe()
    with Client(address) as client:
        client.health()
        process = multiprocessing.get_context("fork").Process(target=_child, args=[client, there])
        process.start()
        assert here.poll(10)
        assert "make one in each process" in here.recv()
        process.join()
        assert client.health() == {"status": "up"}


@pytest.mark.parametrize(
    "what",
    [
        "client.score('bottle', b'1')",
        "list(client.score_many('bottle', (b'%d' % n for n in range(10**9))))",
        "list(client.score_many('bottle', endless()))",
    ],
)
def test_control_c_ends_what_is_under_way(service: Service, address: str, what: str) -> None:
    service.delay = lambda _: 30.0
    code = f"""
import threading, time
from autoad.client import Client
def endless():
    yield b"1"
    threading.Event().wait()
with Client({address!r}) as client:
    try:
        {what}
    except KeyboardInterrupt:
        names = [one.name for one in threading.enumerate()]
        print("interrupted", flush=True)
        time.sleep(0.2)
        print(client.health(), flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 20
        while not service.scoring and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)
        asked = time.monotonic()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
    assert (out, err) == ("interrupted\n{'status': 'up'}\n", "")
    assert time.monotonic() - asked < 5


def test_the_end_of_a_process_waits_for_no_client(service: Service, address: str) -> None:
    code = f"""
from autoad.client import Client
client = Client({address!r})
client.health()
def endless():
    yield b"1"
    import threading; threading.Event().wait()
print(next(client.score_many("bottle", endless())).score)
"""
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=20)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, str(score_of(b"1")), "")
    assert time.monotonic() - started < 10
