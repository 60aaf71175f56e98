"""The supervisor's decisions, with made-up drivers and a control plane that does what it is told."""

from __future__ import annotations

import asyncio
import datetime
import json
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy

from autoad.database import Database, RouteConflictError, Submission, name_process, this_process
from autoad.database._records import utc_now
from autoad.errors import PromotionError, StateError, UsageError
from autoad.models.registry import Registry
from autoad.schema import PromoteRequest, PromotionVerdict, SubmitRequest, TrialRow
from autoad.search.submissions import Submissions
from autoad.serve import supervisor as module
from autoad.serve.control import NotReadyError
from autoad.serve.supervisor import Supervisor
from autoad.settings import Settings
from tests.models.registering import make_artifact
from tests.search.test_submissions import Datasets

GONE = this_process().rsplit("/", 1)[0] + "/1"  # this process's number, started at another time
ALIVE = name_process(1)


class Drivers:
    """Processes that are started in name only."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.name = ALIVE
        self.failure: OSError | None = None
        self.meanwhile: Callable[[Submission, str], object] = lambda row, starter: None

    def __call__(self, row: Submission, starter: str) -> str:
        if self.failure is not None:
            raise self.failure
        self.started.append(row.id)
        self.meanwhile(row, starter)
        return self.name


class Control:
    """Moves the alias, or raises."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.up = True
        self.failure: Exception | None = None
        self.before: Callable[[], object] | None = None
        self.asked: list[PromoteRequest] = []

    async def is_up(self) -> bool:
        return self.up

    async def promote(self, project: str, actor: str, name: str, request: PromoteRequest, instead_of: Any = ...) -> Any:
        self.asked.append(request)
        if self.failure is not None:
            raise self.failure
        assert request.version is not None
        if self.before is not None:
            self.before()
        self.registry.promote(
            name, request.version, reason=request.reason, actor=actor, project=project, instead_of=instead_of
        )


class Plant:
    def __init__(self, folder: Path, *, most: int = 1) -> None:
        self.settings = Settings(data_dir=folder)
        self.database = Database(self.settings)
        self.registry = Registry(self.database, self.settings)
        self.submissions = Submissions(self.database)
        self.tables = self.submissions.tables
        self.drivers = Drivers()
        self.control = Control(self.registry)
        self.later = datetime.timedelta(0)
        self.supervisor = self.another(most=most)

    def another(self, *, most: int = 1) -> Supervisor:
        return Supervisor(
            self.database,
            self.settings,
            self.registry,
            self.control,
            self.drivers,
            most=most,
            clock=lambda: utc_now() + self.later,
        )

    def submit(self, name: str = "s", **options: Any) -> str:
        request = SubmitRequest(**{"dataset": "bottle", "name": name} | options)
        return self.submissions.submit("default", "tester", request, Datasets(), most=20).id

    def row(self, name: str = "s") -> Submission:
        return self.submissions.row("default", name)

    def look(self, *, later: float = 0.0) -> None:
        """So many seconds later."""
        self.later += datetime.timedelta(seconds=later)
        self.supervisor.look()

    def lose(self, search: str) -> None:
        """As if its driver had been killed."""
        with self.database.transaction() as session:
            session.get_one(Submission, search).owner = GONE

    def begin_search(self, search: str, *, owner: str = GONE) -> None:
        summary = {"champion": None, "seconds": 0.0, "notes": []}
        self.database.add_search(search, "s", "hash", {}, summary, owner=owner)

    def end_trial(self, search: str, number: int, status: Any = "complete") -> None:
        self.database.write_trial(search, TrialRow(trial=number, algorithm="dfm", config={}, status=status))

    def complete(self, version: int, **verdict: Any) -> str:
        """A search that has ended, and made a version of ``bottle``."""
        name = f"s{version}"
        search = self.submit(name, promote_when=verdict.pop("promote_when", "always"))
        row = self.tables.begin_next(ALIVE, 100)
        assert row is not None
        champion = {"trial": 0, "algorithm": "dfm", "config": {}, "validation": {}, "test": {}, "threshold": 1.0}
        champion |= {"default_patchcore": None, "difference": None, "false_positive_rate": 0.1, "speed": None}
        champion |= {"model": "", "name": "bottle", "version": version}
        self.database.add_search(search, name, "hash", {}, {"champion": champion, "seconds": 0.0, "notes": []})
        self.registry.register(make_artifact(self.settings.data_dir / name, search=search), "bottle")
        promotion = PromotionVerdict(**{"state": "pending", "reason": "better"} | verdict)
        assert self.tables.finish(row.id, ALIVE, "complete", promotion=promotion.model_dump(mode="json"))
        return search

    def promote(self) -> None:
        asyncio.run(self.supervisor.promote())

    def verdict(self, version: int) -> PromotionVerdict:
        found = self.submissions.entry("default", f"s{version}").promotion
        assert found is not None
        return found


@pytest.fixture
def plant(tmp_path: Path) -> Iterator[Plant]:
    made = Plant(tmp_path)
    yield made
    made.database.close()


def test_searches_are_started_one_after_the_other(plant: Plant) -> None:
    first, second = plant.submit("s1"), plant.submit("s2")
    for _ in range(3):
        plant.look()
    assert plant.drivers.started == [first]
    assert (plant.row("s1").status, plant.row("s1").owner) == ("running", ALIVE)
    plant.tables.finish(first, ALIVE, "complete")
    plant.look()
    assert plant.drivers.started == [first, second]


def test_a_server_may_be_told_to_start_none(tmp_path: Path) -> None:
    plant = Plant(tmp_path, most=0)
    plant.submit()
    plant.lose(plant.submit("other"))
    plant.look()
    assert plant.drivers.started == []
    plant.database.close()


def test_a_driver_that_was_quicker_than_its_supervisor_stays(plant: Plant) -> None:
    search = plant.submit()
    plant.drivers.meanwhile = lambda row, starter: plant.tables.claim(row.id, starter, "h/k/1/1")
    plant.look()
    assert plant.row().owner == "h/k/1/1"
    assert plant.drivers.started == [search]


def test_while_a_driver_is_being_started_nobody_starts_another(plant: Plant) -> None:
    search, other = plant.submit(), plant.another()
    plant.drivers.meanwhile = lambda row, starter: other.look()
    plant.look()
    plant.look()
    other.look()
    assert plant.drivers.started == [search]


def test_a_driver_whose_start_could_not_be_written_down_is_waited_for(
    plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = plant.submit()
    outage = sqlalchemy.exc.OperationalError("", {}, Exception("gone"))
    with monkeypatch.context() as patch:

        def fail(*_: object) -> None:
            raise outage

        patch.setattr(plant.supervisor._tables, "hand_over", fail)
        with pytest.raises(sqlalchemy.exc.OperationalError):
            plant.look()
    plant.look(later=30)
    assert plant.drivers.started == [search], "it may still come"
    plant.look(later=40)
    assert plant.drivers.started == [search, search]
    assert plant.row().restarts == 1


def test_a_dead_driver_is_replaced_sooner_or_later(plant: Plant) -> None:
    search = plant.submit()
    plant.look()
    began, started = [], time.monotonic()
    for seconds in range(700):
        plant.lose(search)
        before = len(plant.drivers.started)
        plant.look(later=1)
        if len(plant.drivers.started) > before:
            began.append(seconds + time.monotonic() - started)  # simulated ones and real ones
            plant.later = datetime.timedelta(0)  # the heartbeat is written by the real clock
        if plant.row().status == "failed":
            break
    assert plant.row().restarts == 5
    pauses = [later - earlier for earlier, later in zip([0, *began], began, strict=False)]
    assert pauses == pytest.approx([0, 5, 30, 120, 300], abs=1)
    entry = plant.submissions.entry("default", "s")
    assert entry.status == "failed"
    assert "5 processes in a row have died before a trial of it ended" in (entry.error or "")


def test_as_long_as_trials_end_it_goes_on(plant: Plant) -> None:
    search = plant.submit()
    plant.look()
    plant.begin_search(search)
    for number in range(12):
        plant.lose(search)
        plant.end_trial(search, number)
        plant.look()
    assert plant.row().status == "running"
    assert plant.row().restarts == 12
    assert len(plant.drivers.started) == 13


def test_an_outage_that_a_driver_can_name_is_waited_for(plant: Plant) -> None:
    search = plant.submit()
    plant.look()
    for _ in range(6):
        plant.tables.release(search, ALIVE, "the disk of the server is full")
        plant.look(later=1000)
    assert (plant.row().status, plant.row().restarts) == ("running", 6)
    plant.tables.release(search, ALIVE, "the disk of the server is full")
    plant.later = datetime.timedelta()
    plant.look(later=200)
    assert plant.row().restarts == 6, "it is tried every five minutes"


def test_a_driver_that_cannot_be_started_is_tried_again(plant: Plant, caplog: pytest.LogCaptureFixture) -> None:
    search = plant.submit()
    plant.drivers.failure = OSError("no more processes")
    plant.look()
    assert plant.row().status == "running"
    assert "cannot be started: no more processes" in caplog.text
    plant.drivers.failure = None
    plant.look()
    assert plant.drivers.started == [search]


def test_a_cancelled_driver_that_is_dead_is_seen_to(plant: Plant) -> None:
    search = plant.submit()
    plant.look()
    plant.begin_search(search)
    plant.end_trial(search, 0)
    plant.end_trial(search, 1, "running")
    plant.submissions.cancel("default", search)
    plant.look()
    assert plant.row().status == "running", "its driver lives and has not stopped yet"
    plant.lose(search)
    plant.look()
    assert plant.submissions.entry("default", "s").status == "cancelled"
    assert [row.status for row in plant.database.trials(search)] == ["complete", "stopped"]
    assert plant.database.find_search(search).status == "interrupted"
    assert plant.drivers.started == [search]


def test_a_champion_is_promoted(plant: Plant) -> None:
    plant.complete(1)
    plant.control.up = False
    plant.promote()
    assert (plant.control.asked, plant.verdict(1).state) == ([], "pending"), "no replica could load it yet"
    plant.control.up = True
    plant.promote()
    assert plant.verdict(1).state == "promoted"
    model = plant.registry.model("bottle")
    assert model.route.champion == 1
    assert (model.history[0].actor, model.history[0].reason) == ("tester", "search s1: better")
    plant.promote()
    assert len(plant.control.asked) == 1


def test_a_promotion_that_was_not_written_down_is_found_out(plant: Plant) -> None:
    plant.complete(1)
    plant.registry.promote("bottle", 1, reason="", actor="")
    plant.promote()
    assert (plant.verdict(1).state, plant.control.asked) == ("promoted", [])


@pytest.mark.parametrize("holder", [ALIVE, GONE], ids=["alive", "gone"])
def test_a_promotion_is_taken_over_from_a_dead_supervisor_only(plant: Plant, holder: str) -> None:
    plant.complete(1)
    [row] = plant.tables.pending()
    plant.tables.hold(row, holder)
    plant.promote()
    assert plant.verdict(1).state == ("pending" if holder == ALIVE else "promoted")


@pytest.mark.parametrize(
    "failure",
    [
        PromotionError("version 1 does not score here what was evaluated", ["picture 1: 0.5"]),
        UsageError("there is no version 1"),
    ],
)
def test_what_is_refused_says_why(plant: Plant, failure: Exception) -> None:
    plant.complete(1)
    plant.control.failure = failure
    plant.promote()
    verdict = plant.verdict(1)
    assert verdict.state == "refused"
    assert str(failure).splitlines()[0] in verdict.reason


@pytest.mark.parametrize("failure", [RouteConflictError("another"), StateError("not now")])
def test_what_only_comes_at_a_bad_moment_is_tried_again(plant: Plant, failure: Exception) -> None:
    plant.complete(1)
    plant.control.failure = failure
    plant.promote()
    assert plant.verdict(1).state == "pending"
    plant.control.failure = None
    plant.promote()
    assert plant.verdict(1).state == "promoted"


def test_better_than_one_is_not_better_than_another(plant: Plant) -> None:
    plant.complete(1)
    plant.promote()
    plant.complete(2, promote_when="better", compared_with=1)
    plant.complete(3, promote_when="always")
    plant.complete(4, promote_when="better", compared_with=1)
    plant.promote()
    assert [plant.verdict(version).state for version in (1, 2, 3, 4)] == ["promoted", "promoted", "promoted", "kept"]
    assert plant.verdict(4).reason == "version 3 has come to serve since it was compared; better"


def test_better_than_one_takes_nobody_elses_place_while_it_is_checked(plant: Plant) -> None:
    plant.complete(1)
    plant.promote()
    plant.complete(2, promote_when="always")
    plant.promote()
    plant.complete(3, promote_when="better", compared_with=2)
    plant.control.before = lambda: plant.registry.rollback("bottle", reason="", actor="somebody")
    plant.promote()
    assert plant.registry.model("bottle").route.champion == 1
    plant.control.before = None
    plant.promote()
    assert plant.verdict(3).state == "kept"


def test_replicas_that_are_not_ready_are_waited_for_but_not_for_ever(plant: Plant) -> None:
    plant.complete(1)
    plant.control.failure = NotReadyError("after 120 s no replica is up that could have loaded it; try again")
    for _ in range(4):
        plant.promote()
    assert plant.verdict(1).state == "pending"
    plant.promote()
    assert plant.verdict(1).state == "refused"


def test_outages_are_told_once_and_survived(
    plant: Plant, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "_LOOK_SECONDS", 0.001)
    plant.complete(1)
    plant.submit()
    failures: list[Exception] = [sqlalchemy.exc.OperationalError("", {}, Exception("gone"))] * 3
    running, pending = plant.tables.running, plant.tables.pending

    def fail_first(answer: Callable[[], Any]) -> Callable[[], Any]:
        left = list(failures)

        def ask() -> Any:
            if left:
                raise left.pop()
            return answer()

        return ask

    monkeypatch.setattr(plant.supervisor._tables, "running", fail_first(running))
    monkeypatch.setattr(plant.supervisor._tables, "pending", fail_first(pending))

    async def main() -> None:
        task = asyncio.create_task(plant.supervisor.run())
        while (
            not plant.drivers.started
            or plant.verdict(1).state == "pending"
            or caplog.text.count("can be seen to again") < 2
        ):
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    with caplog.at_level(logging.INFO, logger=module.__name__):
        asyncio.run(asyncio.wait_for(main(), 20))
    assert caplog.text.count("cannot be seen to (OperationalError)") == 2
    assert caplog.text.count("can be seen to again") == 2
    assert json.loads(plant.verdict(1).model_dump_json())["state"] == "promoted"
