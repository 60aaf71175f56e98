from __future__ import annotations

import asyncio
import logging
import threading
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, generate_latest
from ray.exceptions import RayError

from autoad.serve import app
from autoad.serve.app import ControlPlane, RemoteControl
from autoad.serve.exposition import Exposition


class Remote:
    """A method of a handle: fails, or takes down what it is given."""

    def __init__(self, failures: list[Exception]) -> None:
        self.failures = failures
        self.given: list[tuple[Any, ...]] = []

    async def remote(self, *arguments: Any) -> bytes:
        if self.failures:
            raise self.failures.pop(0)
        self.given.append(arguments)
        return b"all"


def test_reporting_survives_every_failure(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(app, "_REPORT_SECONDS", 0.001)
    report = Remote([RayError("gone"), ValueError("first"), ValueError("second")])
    rendered: list[threading.Thread] = []

    def metrics() -> bytes:
        rendered.append(threading.current_thread())
        if len(rendered) == 2:
            raise RuntimeError("a gauge that asks what is no longer there")
        return b"mine"

    async def main() -> None:
        remote: Any = SimpleNamespace(report=report)
        async with RemoteControl(remote, "r1", metrics).running():
            while len(report.given) < 3:
                await asyncio.sleep(0.001)

    with caplog.at_level(logging.INFO):
        asyncio.run(asyncio.wait_for(main(), 10))
    assert report.failures == []
    assert set(report.given) == {("r1", b"mine")}
    assert threading.main_thread() not in rendered
    assert caplog.text.count("the metrics cannot be told") == 1


def test_metrics_are_asked_for_and_written_beside_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[threading.Thread] = []
    text = Exposition.text

    def watched(self: Exposition, project: str | None = None) -> bytes:
        threads.append(threading.current_thread())
        return text(self, project)

    def metrics() -> bytes:
        threads.append(threading.current_thread())
        return b""

    monkeypatch.setattr(Exposition, "text", watched)
    asked = Remote([])
    remote: Any = SimpleNamespace(metrics=asked)
    assert asyncio.run(RemoteControl(remote, "r1", metrics).metrics("plant")) == b"all"
    assert asked.given == [("r1", b"", "plant")]

    registry = CollectorRegistry()
    counter = Counter("autoad_pictures", "Pictures.", ["project"], registry=registry)
    for project in ("plant", "other"):
        counter.labels(project).inc()
    plane = ControlPlane.__new__(ControlPlane)
    plane._exposition = Exposition()
    answer = asyncio.run(plane.metrics("r1", generate_latest(registry), "plant")).decode()
    assert 'autoad_pictures_total{project="plant"} 1.0' in answer
    assert "other" not in answer
    assert len(threads) == 2
    assert threading.main_thread() not in threads
