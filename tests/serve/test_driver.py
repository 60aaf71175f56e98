"""Drivers: what they say in the database, and whole ones in processes of their own that are killed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import sqlalchemy

from autoad.data.catalog import Catalog
from autoad.database import Database, Submission, SubmissionTables, this_process
from autoad.models.registry import Registry
from autoad.schema import PromoteRequest, SubmissionEntry, SubmitRequest, TrialRow
from autoad.search.results import read_result
from autoad.search.submissions import Submissions
from autoad.serve import driver as module
from autoad.serve.driver import Watch, record
from autoad.serve.ending import Ending
from autoad.serve.reports import report_store
from autoad.serve.spawning import LOG, Spawner, driver_environment
from autoad.serve.supervisor import Supervisor
from autoad.settings import Settings
from tests.search.test_submissions import Datasets
from tests.serve.factory import add_dataset, make_state

ME = this_process()
OUTAGE = sqlalchemy.exc.OperationalError("", {}, Exception("gone"))
DEADLINE = 240.0
QUICK: dict[str, Any] = {"keep_suspicious": True}
ENDED = {"complete", "pruned", "failed"}


# In one process


@pytest.fixture
def submissions(tmp_path: Path) -> Iterator[Submissions]:
    database = Database(Settings(data_dir=tmp_path))
    made = Submissions(database)
    made.submit("default", "tester", SubmitRequest(dataset="bottle", name="s"), Datasets(), most=20)
    assert made.tables.begin_next(ME, 1) is not None
    yield made
    database.close()


class Interrupted:
    """The main thread of a driver."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, patience: float = 60.0) -> None:
        for name, seconds in (("_POLL_SECONDS", 0.01), ("_RENEWAL_SECONDS", 0.02), ("_STOP_SECONDS", patience)):
            monkeypatch.setattr(module, name, seconds)
        self.times = 0
        self.happened = threading.Event()
        self.given_up = threading.Event()

    def __call__(self) -> None:
        self.times += 1
        self.happened.set()

    def watch(self, submissions: Submissions) -> Watch:
        search = submissions.row("default", "s").id
        return Watch(submissions.tables, search, ME, self, self.given_up.set)


def test_a_driver_is_stopped_once_when_its_search_is_cancelled(
    submissions: Submissions, monkeypatch: pytest.MonkeyPatch
) -> None:
    main = Interrupted(monkeypatch)
    with main.watch(submissions) as watch:
        assert not main.happened.wait(0.1)
        submissions.cancel("default", "s")
        assert main.happened.wait(10)
        time.sleep(0.1)
    assert (main.times, watch.cancelled, watch.lost, main.given_up.is_set()) == (1, True, False, False)


def test_a_driver_that_does_not_stop_is_ended(submissions: Submissions, monkeypatch: pytest.MonkeyPatch) -> None:
    main = Interrupted(monkeypatch, patience=0.05)
    with main.watch(submissions):
        submissions.cancel("default", "s")
        assert main.given_up.wait(10)


def test_a_driver_whose_search_is_anothers_stops(submissions: Submissions, monkeypatch: pytest.MonkeyPatch) -> None:
    main = Interrupted(monkeypatch)
    with main.watch(submissions) as watch:
        assert submissions.tables.restart(submissions.row("default", "s"), "h/k/1/1", ended=0, futile=1)
        assert main.happened.wait(10)
    assert (watch.cancelled, watch.lost) == (False, True)


def test_a_driver_says_that_it_lives_through_an_outage(
    submissions: Submissions, monkeypatch: pytest.MonkeyPatch
) -> None:
    main = Interrupted(monkeypatch)
    before = submissions.row("default", "s").heartbeat
    asked, answer = 0, submissions.tables.is_cancelled

    def fail_first(search: str, driver: str) -> bool | None:
        nonlocal asked
        asked += 1
        if asked < 5:
            raise OUTAGE
        return answer(search, driver)

    monkeypatch.setattr(submissions.tables, "is_cancelled", fail_first)
    with main.watch(submissions):
        deadline = time.monotonic() + 10
        while submissions.row("default", "s").heartbeat == before:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert main.times == 0


@pytest.mark.parametrize(
    ("ending", "cancelled", "status"),
    [
        (Ending("complete", promotion={"state": "kept", "reason": "r"}, report="r"), False, "complete"),
        (Ending("failed", "no trial succeeded"), False, "failed"),
        (Ending("later", "the disk is full"), False, "running"),
        (Ending("later", report="r"), True, "cancelled"),
        (Ending("complete"), True, "cancelled"),
    ],
)
def test_how_it_ends_is_written_down_when_that_can_be(
    submissions: Submissions, monkeypatch: pytest.MonkeyPatch, ending: Ending, cancelled: bool, status: str
) -> None:
    monkeypatch.setattr(module, "_RETRY_SECONDS", 0.01)
    search, left = submissions.row("default", "s").id, [OUTAGE] * 3
    if cancelled:
        submissions.cancel("default", "s")
    change = SubmissionTables._change

    def fail_first(*arguments: Any, **values: Any) -> bool:
        if left:
            raise left.pop()
        return change(*arguments, **values)

    monkeypatch.setattr(SubmissionTables, "_change", fail_first)
    record(submissions.tables, search, ME, ending, cancelled=cancelled, patience=10)
    row = submissions.row("default", "s")
    assert (row.status, row.owner, row.report) == (status, None, ending.report)
    assert row.error == (None if cancelled else ending.error)


def test_what_cannot_be_written_down_for_long_ends_the_process(
    submissions: Submissions, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> bool:
        raise OUTAGE

    monkeypatch.setattr(module, "_RETRY_SECONDS", 0.01)
    monkeypatch.setattr(SubmissionTables, "_change", fail)
    with pytest.raises(sqlalchemy.exc.OperationalError):
        record(submissions.tables, "s", ME, Ending("complete"), cancelled=False, patience=0.05)


def test_a_driver_has_the_environment_of_the_server_and_nothing_of_its_ray() -> None:
    own = {"PATH": "/bin", "AUTOAD_WEIGHTS_DIR": "/w", "RAY_JOB_ID": "1", "TUNE_X": "1", "RAY_AUTH_TOKEN": "t"}
    own |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONPATH": "/code"}
    alone = driver_environment(own, {"CUDA_VISIBLE_DEVICES": "3", "RAY_X": "1"}, cluster=False)
    path = alone.pop("PYTHONPATH").split(os.pathsep)
    assert (path[0], path[-1]) == (str(Path(module.__file__).resolve().parent.parent), "/code")
    assert alone == {"PATH": "/bin", "AUTOAD_WEIGHTS_DIR": "/w", "CUDA_VISIBLE_DEVICES": "3"}
    joined = driver_environment(own, {}, cluster=True)
    assert joined["RAY_AUTH_TOKEN"] == "t"
    assert "RAY_JOB_ID" not in joined
    assert "OMP_NUM_THREADS" not in joined


# In processes of their own


class Control:
    """Moves the alias without a replica."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def is_up(self) -> bool:
        return True

    async def promote(self, project: str, actor: str, name: str, request: PromoteRequest, instead_of: Any = ...) -> Any:
        self._registry.promote(
            name, request.version or 0, reason=request.reason, actor=actor, project=project, instead_of=instead_of
        )


class Server:
    """A supervisor with real drivers, which goes on only when it is asked to look."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.database = Database(settings)
        self.submissions = Submissions(self.database)
        registry = Registry(self.database, settings)
        self.spawner = Spawner(settings)
        self.supervisor = Supervisor(self.database, settings, registry, Control(registry), self.spawner, most=1)

    def submit(self, name: str, **options: Any) -> str:
        request = SubmitRequest(**{"dataset": "bottle", "name": name, "algorithms": ["dfm", "dfkde"]} | QUICK | options)
        catalog = Catalog(self.database, self.settings)
        return self.submissions.submit("default", "tester", request, catalog, most=20).id

    def entry(self, search: str) -> SubmissionEntry:
        return self.submissions.entry("default", search)

    def rows(self, search: str) -> dict[int, TrialRow]:
        return {row.trial: row for row in self.database.trials(search)}

    def owner(self, search: str) -> int:
        """Process id of the driver."""
        return int((self.submissions.row("default", search).owner or "").split("/")[-2])

    def wait(self, search: str, what: str, holds: Callable[[SubmissionEntry], object]) -> SubmissionEntry:
        """Look until something holds."""
        deadline = time.monotonic() + DEADLINE
        while not holds(entry := self.entry(search)):
            log = self.settings.searches_dir / search / LOG
            said = log.read_text()[-2000:] if log.exists() else "nothing"
            assert time.monotonic() < deadline, f"waited in vain for {what}: {entry}\n{said}"
            self.supervisor.look()
            asyncio.run(self.supervisor.promote())
            time.sleep(0.2)
        return entry

    def end(self) -> None:
        """Leave no driver behind."""
        for row in self.submissions.tables.running():
            with contextlib.suppress(psutil.Error, IndexError, ValueError):
                psutil.Process(self.owner(row.id)).kill()
        self.database.close()


@pytest.fixture(scope="module")
def state(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = make_state(tmp_path_factory.mktemp("drivers"))
    add_dataset(settings, "bottle", demo)
    return settings.data_dir


@pytest.fixture
def server(state: Path) -> Iterator[Server]:
    made = Server(Settings(data_dir=state))
    yield made
    made.end()


def test_a_search_survives_its_driver_and_is_promoted(server: Server) -> None:
    search = server.submit("killed", trials=5, promote_when="better")
    server.wait(search, "two trials", lambda entry: entry.trials >= 2)
    process = psutil.Process(server.owner(search))
    assert process.ppid() != os.getpid()
    assert process.nice() == 10
    assert os.getsid(process.pid) != os.getsid(0)
    known, before = set(server.rows(search)), server.rows(search)
    process.send_signal(signal.SIGKILL)
    entry = server.wait(search, "the end", lambda entry: entry.ended)
    assert (entry.status, entry.restarts, entry.error) == ("complete", 1, None), entry
    rows = server.rows(search)
    finished = {number: row for number, row in before.items() if row.status in ENDED}
    assert {number: rows[number] for number in finished} == finished
    tried = [(row.algorithm, row.proposed) for row in finished.values()]
    assert not [number for number in set(rows) - known if (rows[number].algorithm, rows[number].proposed) in tried]
    assert sum(row.status in ENDED for row in rows.values()) == 5
    assert entry.champion is not None
    assert (entry.champion.model, entry.champion.version) == ("bottle/1", 1)
    assert entry.promotion is not None
    assert (entry.promotion.state, entry.promotion.reason) == ("promoted", "no version of 'bottle' serves yet")
    assert server.submissions.row("default", search).report is not None
    page = report_store(server.settings, "default").read(server.submissions.row("default", search).report or "")
    assert b"bottle/1" in page
    assert str(server.settings.data_dir).encode() not in page
    shown = server.submissions.result("default", search)
    assert shown is not None
    assert str(server.settings.data_dir) not in shown.model_dump_json()
    assert shown.dataset.hash == Catalog(server.database, server.settings).entry("bottle", 1, "default").hash


def test_a_search_is_cancelled_and_its_trials_are_kept(server: Server) -> None:
    search = server.submit("cancelled", seconds=1200)
    server.wait(search, "a trial", lambda entry: entry.trials >= 1)
    process, began = psutil.Process(server.owner(search)), time.monotonic()
    children = process.children(recursive=True)
    assert server.submissions.cancel("default", search).status == "running"
    entry = server.wait(search, "the end", lambda entry: entry.ended)
    assert (entry.status, entry.champion, entry.error) == ("cancelled", None, None)
    assert time.monotonic() - began < 60
    assert entry.trials >= 1
    assert not [row for row in server.rows(search).values() if row.status == "running"]
    assert read_result(server.database, search).status == "interrupted"
    assert server.submissions.row("default", search).report is not None
    _, alive = psutil.wait_procs([process, *children], timeout=30)
    assert alive == []


def test_of_two_drivers_of_a_search_one_carries_it_out(server: Server) -> None:
    search = server.submit("twice")
    row = server.submissions.tables.begin_next(ME, 1)
    assert row is not None
    with server.database.transaction() as session:  # so that it ends soon, and says why
        found = session.get_one(Submission, search)
        found.request = found.request | {"dataset": "nothing/1"}
    for _ in range(2):
        server.spawner(row, ME)
    deadline = time.monotonic() + DEADLINE
    log = server.settings.searches_dir / search / LOG
    while server.entry(search).status == "running":
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)
    entry = server.entry(search)
    assert entry.status == "failed"
    assert "unknown dataset 'nothing'" in (entry.error or "")
    said = log.read_text()
    assert said.count("carries the search") == 1
    assert said.count("is another process's") == 1
