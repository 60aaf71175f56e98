from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from autoad.database import Database, this_process
from autoad.errors import UnknownNameError, UsageError
from autoad.schema import Metrics, PromotionVerdict, SearchEvent, SubmitRequest, TrialRow
from autoad.search.submissions import Submissions
from autoad.serve.following import Follower, Numbers
from autoad.settings import Settings
from tests.search.test_submissions import Datasets
from tests.serve.yard import CHAMPION

ME = this_process()


class Plant:
    """A search that is told what happens to it."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.database = Database(Settings(data_dir=folder))
        self.submissions = Submissions(self.database)
        self.id = self.submit("s", **options)

    def submit(self, name: str, **options: Any) -> str:
        request = SubmitRequest(**{"dataset": "bottle", "name": name, "seconds": 1200} | options)
        return self.submissions.submit("default", "tester", request, Datasets(), most=20).id

    def follow(self, position: str = "") -> Follower:
        return Follower(self.submissions, "default", "s", position)

    def begin(self) -> None:
        assert self.submissions.tables.begin_next(ME, 1) is not None

    def begin_search(self, *notes: str) -> None:
        self.summary: dict[str, Any] = {"champion": None, "seconds": 0.0, "notes": list(notes)}
        self.database.add_search(self.id, "s", "hash", {}, self.summary, owner=ME)

    def end_trial(self, number: int, value: float | None = 0.5, status: Any = "complete", **fields: Any) -> None:
        metrics = Metrics(image_auroc=value if status == "complete" else None)
        row = TrialRow(trial=number, algorithm="dfm", config={}, status=status, validation=metrics, **fields)
        self.database.write_trial(self.id, row, owner=ME)

    def complete(self, **verdict: Any) -> None:
        summary = self.summary | {"champion": CHAMPION, "seconds": 60.0}
        self.database.update_search(self.id, status="complete", summary=summary, owner=ME)
        promotion = PromotionVerdict(**verdict).model_dump(mode="json") if verdict else None
        assert self.submissions.tables.finish(self.id, ME, "complete", promotion=promotion)


@pytest.fixture
def plant(tmp_path: Path) -> Iterator[Plant]:
    made = Plant(tmp_path)
    yield made
    made.database.close()


def told(events: list[SearchEvent]) -> list[str]:
    return [f"{event.kind}: {event}" for event in events]


def test_a_search_from_its_submission_to_its_promotion(tmp_path: Path) -> None:
    plant = Plant(tmp_path)
    follower = plant.follow()
    assert told(follower.poll()) == ["status: queued"]
    assert follower.poll() == []
    plant.begin()
    assert told(follower.poll()) == ["status: running"]
    plant.begin_search("skipped /srv/x.png: too small")
    assert told(follower.poll()) == ["note: skipped x.png: too small"]
    plant.end_trial(0, ended_after=34.0)
    plant.end_trial(2, 0.75, ended_after=90.4)
    plant.end_trial(1, status="failed", reason="cannot read /srv/x", ended_after=91.0)
    assert told(follower.poll()) == [
        "trial: trial 0 dfm: image_auroc 0.500 (best 0.500), 34 s of 20 min",
        "trial: trial 2 dfm: image_auroc 0.750 (best 0.750), 1 min 30 s of 20 min",
        "trial: trial 1 dfm: failed (cannot read x) (best 0.750), 1 min 31 s of 20 min",
    ]
    plant.complete(state="pending", reason="better")
    events = follower.poll()
    assert told(events) == [
        "champion: champion: trial 1 dfm, image_auroc 0.900 on the test pictures, kept as bottle/3",
        "status: complete after 1 min, 3 trials",
        "promotion: pending: better",
    ]
    assert [event.search.status for event in events] == ["running", "complete", "complete"]
    [row] = plant.submissions.tables.pending()
    plant.submissions.tables.hold(row, ME)
    plant.submissions.tables.settle(row.id, ME, {"state": "promoted", "reason": "better"})
    assert told(follower.poll()) == ["promotion: promoted: better", "end: s is complete"]
    plant.database.close()


def test_the_whole_story_can_be_heard_afterwards(plant: Plant) -> None:
    plant.begin()
    plant.begin_search()
    for number, value in enumerate((0.5, 0.75, 0.25)):
        plant.end_trial(number, value)
    plant.complete()
    events = plant.follow().poll()
    assert [event.kind for event in events] == ["trial", "trial", "trial", "champion", "status", "end"]
    then = [(event.search.trials, event.search.best, event.search.status) for event in events]
    assert then[:4] == [(1, 0.5, "running"), (2, 0.75, "running"), (3, 0.75, "running"), (3, 0.75, "running")]
    assert then[-1] == (3, 0.75, "complete")
    assert events[-1].search.champion is not None
    assert events[-1].search.champion.model == "bottle/3"
    assert [event.search.champion for event in events[:3]] == [None] * 3


def test_going_on_after_any_event_nothing_is_lost_or_repeated(plant: Plant) -> None:
    plant.begin()
    plant.begin_search("note")
    for number in (0, 3, 1, 2, 7, 5):
        plant.end_trial(number, number / 10)
    plant.complete(state="kept", reason="not better")
    whole = plant.follow().poll()
    for place, event in enumerate(whole[:-1]):
        rest = plant.follow(event.id).poll()
        assert rest == whole[place + 1 :]
    assert told(plant.follow(whole[-1].id).poll()) == ["end: s is complete"]


def test_a_clock_that_is_set_back_loses_no_trial(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    plant.begin()
    plant.begin_search()
    plant.end_trial(0)
    follower = plant.follow()
    position = follower.poll()[-1].id
    from autoad.database import _session
    from autoad.database._records import utc_now

    monkeypatch.setattr(_session, "utc_now", lambda: utc_now().replace(year=2000))
    plant.end_trial(1)
    for one in (follower, plant.follow(position)):
        assert [event.trial.trial for event in one.poll() if event.trial] == [1]


def test_an_outage_in_the_middle_of_a_look_loses_no_event(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    plant.begin()
    plant.begin_search("a note")
    plant.end_trial(0)
    expected = [event.text for event in plant.follow().poll()]
    follower = plant.follow()
    with monkeypatch.context() as context:
        context.setattr(follower, "_trials", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            follower.poll()
    assert [event.text for event in follower.poll()] == expected
    assert len(expected) >= 3


def test_the_queue_moves(plant: Plant) -> None:
    with plant.database.transaction() as session:
        session.get_one(type(plant.submissions.row("default", "s")), plant.id).name = "first"
    second = plant.submit("s")
    follower = plant.follow()
    assert told(follower.poll()) == ["status: queued, 1 before it"]
    plant.submissions.cancel("default", "first")
    assert told(follower.poll()) == ["status: queued"]
    plant.submissions.cancel("default", second)
    assert told(follower.poll()) == ["status: cancelled after 0 s, 0 trials", "end: s is cancelled"]


def test_a_driver_that_is_started_again_is_told(plant: Plant) -> None:
    plant.begin()
    follower = plant.follow()
    follower.poll()
    [row] = plant.submissions.tables.running()
    plant.submissions.tables.restart(row, ME, ended=0, futile=1)
    assert told(follower.poll()) == ["status: running, after its process was started again (1)"]


def test_a_failure_says_why(plant: Plant) -> None:
    plant.begin()
    plant.submissions.tables.finish(plant.id, ME, "failed", error="no trial\nsucceeded")
    assert told(plant.follow().poll()) == ["status: failed: no trial succeeded", "end: s is failed"]


def test_with_a_number_of_trials_they_are_counted(tmp_path: Path) -> None:
    plant = Plant(tmp_path, seconds=None, trials=4)
    plant.begin()
    plant.begin_search()
    plant.end_trial(3, ended_after=3725.0)
    plant.end_trial(1, status="stopped", reason="its process was killed")
    plant.end_trial(0, status="pruned", ended_after=1.0)
    events = plant.follow().poll()
    assert told(events)[1:] == [
        "trial: trial 3 dfm: image_auroc 0.500 (best 0.500), 1 h 2 min, 1 of 4 trials",
        "trial: trial 1 dfm: stopped (its process was killed) (best 0.500), 1 of 4 trials",
        "trial: trial 0 dfm: pruned (best 0.500), 1 s, 2 of 4 trials",
    ]
    assert plant.follow(events[2].id).poll() == events[3:]
    plant.database.close()


def test_only_the_projects_own_are_followed(plant: Plant) -> None:
    for name in ("s", plant.id):
        with pytest.raises(UnknownNameError, match="unknown search"):
            Follower(plant.submissions, "other", name)


@pytest.mark.parametrize("position", ["x", "running.0.0.0..9-3", "running.0.0.0..5-99999999", "running.0.0.0..+"])
def test_a_position_that_is_none_is_refused(plant: Plant, position: str) -> None:
    with pytest.raises(UsageError, match="Last-Event-ID must be"):
        plant.follow(position)


def test_numbers_are_told_in_few_characters() -> None:
    numbers = Numbers()
    for number in [*range(12), 13, 15, 16, 17]:
        numbers.add(number)
    assert str(numbers) == "0-11+13+15-17"
    again = Numbers.read(str(numbers))
    assert (str(again), len(again), again.below) == (str(numbers), 16, 12)
    assert 13 in again
    assert 14 not in again
    again.add(12)
    assert str(again) == "0-13+15-17"
    assert str(Numbers.read("")) == ""
    assert len(Numbers.read("0-999999999")) == 10**9
