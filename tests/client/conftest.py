from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from autoad.client import AsyncClient, Client, _attempts
from tests.client.service import Service, create_app, serve


class _Current:
    service: Service


@pytest.fixture(scope="session")
def _address() -> Iterator[str]:
    with serve(create_app(lambda: _Current.service)) as address:
        yield address


@pytest.fixture
def address(_address: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Of a server that runs; no environment names another."""
    for name in ("AUTOAD_SERVER", "AUTOAD_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    return _address


@pytest.fixture
def service(address: str) -> Service:
    """What that server knows."""
    _Current.service = Service()
    return _Current.service


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits between attempts, which take no time."""
    told: list[float] = []

    async def note(seconds: float) -> None:
        told.append(seconds)

    monkeypatch.setattr(_attempts, "sleep", note)
    return told


class Blocking:
    """An asynchronous client, search or score that is used as the other one."""

    def __init__(self, loop: asyncio.AbstractEventLoop, one: Any) -> None:
        self._loop, self._one = loop, one

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._one, name)
        if not inspect.ismethod(found):
            return found

        def call(*arguments: Any, **options: Any) -> Any:
            result = found(*arguments, **options)
            if inspect.isasyncgen(result):
                return self._iterate(result)
            return self._wrapped(self._loop.run_until_complete(result))

        return call

    def _iterate(self, source: Any) -> Iterator[Any]:
        end = object()
        try:
            while (item := self._loop.run_until_complete(anext(source, end))) is not end:
                yield self._wrapped(item)
        finally:
            self._loop.run_until_complete(source.aclose())

    def _wrapped(self, value: Any) -> Any:
        return Blocking(self._loop, value) if type(value).__name__ in ("AsyncSearch", "AsyncScore") else value


@pytest.fixture(params=["Client", "AsyncClient"])
def client(request: pytest.FixtureRequest, service: Service, address: str) -> Iterator[Any]:
    """Both clients, used alike."""
    if request.param == "Client":
        with Client(address) as client:
            yield client
        return
    with asyncio.Runner() as runner:
        asynchronous = AsyncClient(address)
        yield Blocking(runner.get_loop(), asynchronous)
        runner.run(asynchronous.aclose())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Nine files that belong to a dataset and some that do not."""
    root = tmp_path / "bottle"
    for name in ("train/good", "test/scratch", ".git"):
        (root / name).mkdir(parents=True)
    for number in range(8):
        (root / "train/good" / f"{number}.png").write_bytes(f"good {number}".encode())
    (root / "test/scratch/0.png").write_bytes(b"scratch 0")
    for name in ("README.md", "train/Thumbs.db", ".git/config", ".hidden.png"):
        (root / name).write_bytes(b"no data")
    return root
