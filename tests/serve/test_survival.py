"""A search goes on and is promoted, whatever part of the deployed server is killed.

One of the faults comes once here, and each five times with ``make faults``, which prints how long each took to recover
from.
"""

from __future__ import annotations

import contextlib
import itertools
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from autoad.database import Database
from autoad.models.registry import Registry
from autoad.schema import SubmissionEntry, TrialRow
from autoad.search.submissions import Submissions
from autoad.settings import Settings
from tests.serve.deployed import Deployment, deploy
from tests.serve.factory import add_dataset, make_state
from tests.serve.test_driver import ENDED

FAULTS = ("control", "driver", "server", "promotion")
ROUNDS = 5
DEADLINE = 300.0
TRIALS = 4


class Site:
    """A data folder, the server that runs on it, and what is seen of its searches past the server."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.database = Database(settings)
        self.submissions = Submissions(self.database)
        self.registry = Registry(self.database, settings)
        self._stack = contextlib.ExitStack()
        self.server = self._deploy()

    def _deploy(self) -> Deployment:
        return self._stack.enter_context(deploy(self.settings.data_dir, "--replicas", "1"))

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """Ask the server, for as long as it does not answer yet."""
        deadline = time.monotonic() + DEADLINE
        while True:
            with contextlib.suppress(httpx2.TransportError):
                reply = httpx2.request(method, self.server.address + path, json=body, timeout=30)
                assert reply.status_code < 400 or reply.status_code >= 500, reply.text
                if reply.status_code < 400:
                    return reply.json()
            assert time.monotonic() < deadline, f"{path} was not answered"
            time.sleep(0.2)

    def entry(self, search: str) -> SubmissionEntry:
        return self.submissions.entry("default", search)

    def rows(self, search: str) -> dict[int, TrialRow]:
        return {row.trial: row for row in self.database.trials(search)}

    def wait(self, search: str, what: str, holds: Callable[[SubmissionEntry], object]) -> SubmissionEntry:
        deadline = time.monotonic() + DEADLINE
        while not holds(entry := self.entry(search)):
            assert time.monotonic() < deadline, f"waited in vain for {what}: {entry}"
            time.sleep(0.05)
        return entry

    def driver(self, search: str) -> psutil.Process:
        return psutil.Process(int((self.submissions.row("default", search).owner or "").split("/")[-2]))

    def kill_all(self) -> None:
        """End every process of the server at once, and start another server."""
        self.server.kill_all()
        self._stack.close()
        self.server = self._deploy()

    def end(self) -> None:
        self._stack.close()
        for row in self.submissions.tables.running():
            with contextlib.suppress(psutil.Error, IndexError, ValueError):
                self.driver(row.id).kill()
        self.database.close()


@pytest.fixture(scope="module")
def site(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    settings = make_state(tmp_path_factory.mktemp("survival"))
    add_dataset(settings, "bottle", demo)
    made = Site(settings)
    yield made
    made.end()


def survive(site: Site, fault: str, turn: int) -> float:
    """Seconds from a fault until a trial, or for ``promotion`` the promotion, has come to its end."""
    body = {"dataset": "bottle", "name": f"{fault}-{turn}", "algorithms": ["dfm", "dfkde"], "trials": TRIALS}
    body |= {"promote_when": "always", "seed": turn, "keep_suspicious": True}
    search = site.ask("POST", "/v1/searches", body)["id"]
    if fault == "promotion":
        site.wait(search, "a promotion", lambda entry: entry.status == "complete")
    else:
        site.wait(search, "a trial", lambda entry: entry.trials >= 1)
    before = site.rows(search)
    began = time.monotonic()
    if fault == "control":
        site.server.kill("control")
    elif fault == "driver":
        site.driver(search).send_signal(signal.SIGKILL)
    else:
        site.kill_all()
    ended = len([row for row in before.values() if row.status in ENDED])
    if fault != "promotion":
        site.wait(search, "another trial", lambda entry: entry.trials > ended or entry.status == "complete")
        seconds = time.monotonic() - began
    entry = site.wait(search, "the end", lambda entry: entry.ended)
    if fault == "promotion":
        seconds = time.monotonic() - began
    check(site, entry, before, restarts=1 if fault == "driver" else 0)
    return seconds


def check(site: Site, entry: SubmissionEntry, before: dict[int, TrialRow], *, restarts: int) -> None:
    """Nothing is lost, nothing done twice, and the champion serves."""
    assert (entry.status, entry.restarts, entry.error) == ("complete", restarts, None)
    rows = site.rows(entry.id)
    finished = {number: row for number, row in before.items() if row.status in ENDED}
    assert {number: rows[number] for number in finished} == finished
    tried = [(row.algorithm, row.proposed) for row in finished.values()]
    assert not [row for number, row in rows.items() if number not in before and (row.algorithm, row.proposed) in tried]
    assert sum(row.status in ENDED for row in rows.values()) == TRIALS
    model = site.registry.model("bottle")
    [version] = [version for version in model.versions if version.search == entry.id]
    assert entry.champion is not None
    assert (entry.champion.version, entry.champion.trial) == (version.version, version.trial)
    assert entry.promotion is not None
    assert entry.promotion.state == "promoted", entry.promotion
    assert model.route.champion == version.version
    assert model.route.staged is None
    assert [line.after for line in model.history].count(version.version) == 1
    shown = site.ask("GET", f"/v1/searches/{entry.id}")
    assert (shown["status"], shown["promotion"]["state"]) == ("complete", "promoted")
    assert len(site.ask("GET", f"/v1/searches/{entry.id}/leaderboard")["leaderboard"]) == len(rows)


def test_a_search_survives_its_server(site: Site) -> None:
    survive(site, "server", 0)


@pytest.mark.faults
def test_each_fault_five_times(site: Site) -> None:
    seconds: dict[str, list[float]] = {fault: [] for fault in FAULTS}
    for turn, fault in itertools.product(range(1, 1 + ROUNDS), FAULTS):
        seconds[fault].append(survive(site, fault, turn))
    print("\n| killed | times | lost | repeated | median s | longest s |\n|---|---|---|---|---|---|")
    for fault, values in seconds.items():
        print(f"| {fault} | {len(values)} | 0 | 0 | {statistics.median(values):.1f} | {max(values):.1f} |")
