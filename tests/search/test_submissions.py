from __future__ import annotations

import datetime
import multiprocessing
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from autoad.database import Database, Submission, SubmissionTables, name_process, this_process
from autoad.database._records import utc_now
from autoad.errors import ConflictError, QueueLimitError, UnknownNameError, UsageError
from autoad.schema import DatasetEntry, Metrics, SubmitRequest, TrialRow
from autoad.search import DEFAULT_SECONDS
from autoad.search.public import without_paths
from autoad.search.submissions import Submissions
from autoad.settings import Settings

STARTER, DRIVER = this_process(), name_process(1)


class Datasets:
    """``bottle`` in three versions, of every project."""

    def entry(self, name: str, version: int | None, project: str) -> DatasetEntry:
        if name != "bottle" or (version or 3) > 3:
            raise UnknownNameError("dataset", name, ["bottle"])
        return DatasetEntry(
            name=name, version=version or 3, hash="h", layout="folder", counts={}, size=0, created=utc_now()
        )


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = Database(Settings(data_dir=tmp_path))
    yield made
    made.close()


@pytest.fixture
def submissions(database: Database) -> Submissions:
    return Submissions(database)


def submit(submissions: Submissions, project: str = "default", **options: Any) -> Any:
    limits: dict[str, Any] = {name: options.pop(name) for name in ("key", "most") if name in options}
    request = SubmitRequest(**{"dataset": "bottle"} | options)
    return submissions.submit(project, "tester", request, Datasets(), **{"most": 20} | limits)


def test_names_versions_and_time_are_filled_in(submissions: Submissions) -> None:
    entry = submit(submissions)
    assert (entry.dataset, entry.model, entry.status, entry.position) == ("bottle/3", "bottle", "queued", 0)
    assert entry.name.startswith("bottle-2")
    assert submissions.row("default", entry.id).request["seconds"] == DEFAULT_SECONDS
    second = submit(submissions, dataset="bottle/2", name="mine", model="other", trials=3)
    assert (second.dataset, second.name, second.model, second.position) == ("bottle/2", "mine", "other", 1)
    assert submissions.row("default", "mine").request["seconds"] is None
    assert submissions.row("default", submit(submissions, deterministic=True).id).request["seconds"] is None


def test_names_made_in_the_same_second_differ(submissions: Submissions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autoad.search.submissions.time.strftime", lambda *_: "20300101-000000")
    assert len({submit(submissions).name for _ in range(5)}) == 5


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"dataset": "cup"}, UnknownNameError, "unknown dataset 'cup'"),
        ({"dataset": "bottle/9"}, UnknownNameError, "unknown dataset"),
        ({"algorithms": ["patchcor"]}, UsageError, "Did you mean 'patchcore'"),
        ({"algorithms": ["dfm"], "objective": "aupro"}, UsageError, "needs a map and dfm give none"),
        ({"threshold": "f1-max"}, UsageError, "needs labelled defects and the dataset bottle/3 has none"),
    ],
)
def test_what_can_be_checked_at_once_is(
    submissions: Submissions, wrong: dict[str, Any], error: type[UsageError], message: str
) -> None:
    with pytest.raises(error, match=message):
        submit(submissions, **wrong)
    assert submissions.page("default", 10).items == []


def test_a_name_is_given_once_in_a_project(submissions: Submissions, database: Database) -> None:
    submit(submissions, name="mine")
    database.add_search("abc", "local", "hash", {}, {})
    for name in ("mine", "local"):
        with pytest.raises(ConflictError, match=f"a search named '{name}' already"):
            submit(submissions, name=name)
        submit(submissions, "other", name=name)


def test_a_key_makes_the_same_request_once(submissions: Submissions) -> None:
    first = submit(submissions, key="k", name="mine")
    assert submit(submissions, key="k", name="mine") == first
    with pytest.raises(ConflictError, match="came with another request"):
        submit(submissions, key="k", name="other")
    assert submit(submissions, "other", key="k", name="mine").id != first.id
    assert len(submissions.page("default", 10).items) == 1


def test_the_same_key_at_once_makes_one(submissions: Submissions) -> None:
    barrier, made = threading.Barrier(8), list[str]()

    def send() -> None:
        barrier.wait()
        made.append(submit(submissions, key="k", name="mine").id)

    threads = [threading.Thread(target=send) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 8
    assert len(set(made)) == 1


def test_so_many_of_a_project_wait(submissions: Submissions) -> None:
    entries = [submit(submissions, most=2, name=f"s{number}") for number in range(2)]
    with pytest.raises(QueueLimitError, match="2 searches of this project wait already"):
        submit(submissions, most=2)
    submit(submissions, "other", most=2)
    submissions.cancel("default", entries[0].id)
    submit(submissions, most=2, name="s2")
    assert [entry.position for entry in submissions.page("default", 10).items] == [1, 0, None]


def test_pages_follow_each_other(submissions: Submissions) -> None:
    names = [submit(submissions, name=f"s{number}").name for number in range(5)]
    submit(submissions, "other", name="theirs")
    seen, after = [], None
    while True:
        page = submissions.page("default", 2, after)
        seen += [entry.name for entry in page.items]
        if (after := page.next) is None:
            break
    assert seen == names[::-1]
    with pytest.raises(UsageError, match="after must be"):
        submissions.page("other", 2, submissions.row("default", "s3").id)


def test_of_another_project_nothing_is_found(submissions: Submissions) -> None:
    entry = submit(submissions, name="mine")
    for ask in (submissions.entry, submissions.cancel, submissions.result):
        for name in (entry.id, "mine"):
            with pytest.raises(UnknownNameError, match="There is none yet"):
                ask("other", name)
    assert submissions.entry("default", "mine").status == "queued"


def test_so_many_run_the_longest_waiting_first(submissions: Submissions) -> None:
    tables = submissions.tables
    entries = [submit(submissions, project, name=f"s{n}") for n, project in enumerate(("a", "b", "a"))]
    taken = [tables.begin_next(STARTER, 2) for _ in range(3)]
    assert [row and row.id for row in taken] == [entries[0].id, entries[1].id, None]
    assert submissions.entry("a", "s0").status == "running"
    assert submissions.entry("a", "s2").position == 0
    tables.finish(entries[0].id, STARTER, "complete")
    row = tables.begin_next(STARTER, 2)
    assert row is not None
    assert row.id == entries[2].id


def test_several_that_start_searches_share_them(submissions: Submissions) -> None:
    for number in range(12):
        submit(submissions, name=f"s{number}")
    barrier, taken = threading.Barrier(6), list[str]()

    def take() -> None:
        barrier.wait()
        while (row := submissions.tables.begin_next(STARTER, 10)) is not None:
            taken.append(row.id)

    threads = [threading.Thread(target=take) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == len(set(taken)) == 10


def begin(submissions: Submissions, **options: Any) -> Submission:
    submit(submissions, **{"name": "s"} | options)
    row = submissions.tables.begin_next(STARTER, 1)
    assert row is not None
    return row


def test_one_driver_alone_has_a_submission(submissions: Submissions) -> None:
    tables, row = submissions.tables, begin(submissions)
    assert tables.claim(row.id, "somebody/else/1/1", DRIVER) is None
    claimed = tables.claim(row.id, STARTER, DRIVER)
    assert claimed is not None
    assert claimed.owner == DRIVER
    assert tables.claim(row.id, STARTER, "h/k/2/2") is None
    assert not tables.hand_over(row.id, STARTER, DRIVER), "the driver was quicker"
    assert tables.is_cancelled(row.id, DRIVER) is False
    assert tables.is_cancelled(row.id, "h/k/2/2") is None
    assert tables.renew(row.id, DRIVER)
    assert not tables.release(row.id, "h/k/2/2", None)
    assert not tables.finish(row.id, "h/k/2/2", "failed")
    assert tables.finish(row.id, DRIVER, "complete", report="r")
    assert (submissions.entry("default", "s").status, submissions.row("default", "s").owner) == ("complete", None)


def test_a_driver_may_find_itself_named_already(submissions: Submissions) -> None:
    row = begin(submissions)
    assert submissions.tables.hand_over(row.id, STARTER, DRIVER)
    assert submissions.tables.claim(row.id, STARTER, DRIVER) is not None


def test_who_is_started_again_takes_it_from_the_first(submissions: Submissions) -> None:
    tables, row = submissions.tables, begin(submissions)
    tables.hand_over(row.id, STARTER, DRIVER)
    [lost] = tables.running()
    assert tables.restart(lost, "h/k/3/3", ended=4, futile=1)
    assert not tables.restart(lost, "h/k/4/4", ended=4, futile=1), "another was quicker"
    assert tables.claim(row.id, STARTER, DRIVER) is None
    assert tables.claim(row.id, "h/k/3/3", "h/k/5/5") is not None
    again = submissions.row("default", "s")
    assert (again.restarts, again.futile, again.ended) == (1, 1, 4)


def test_cancelling(submissions: Submissions) -> None:
    tables, row = submissions.tables, begin(submissions)
    waiting = submit(submissions, name="waiting")
    assert submissions.cancel("default", "waiting").status == "cancelled"
    assert submissions.cancel("default", waiting.id).finished is not None
    assert submissions.cancel("default", "s").status == "running"
    tables.claim(row.id, STARTER, DRIVER)
    assert tables.is_cancelled(row.id, DRIVER) is True
    promotion = {"state": "pending", "reason": "r"}
    assert tables.finish(row.id, DRIVER, "complete", promotion=promotion, report="r")
    ended = submissions.entry("default", "s")
    assert (ended.status, ended.promotion, ended.ended) == ("cancelled", None, True)
    assert submissions.row("default", "s").report == "r"
    assert submissions.cancel("default", "s") == ended


def test_an_entry_tells_of_the_search(submissions: Submissions, database: Database) -> None:
    row = begin(submissions, trials=5)
    summary = {"champion": None, "seconds": 0.0, "notes": ["skipped /srv/data/x.png: too small"]}
    database.add_search(row.id, "s", "hash", {}, summary, owner=STARTER)
    for number, value in enumerate((0.5, 0.75)):
        metrics = Metrics(image_auroc=value)
        trial = TrialRow(trial=number, algorithm="dfm", config={}, status="complete", validation=metrics)
        database.write_trial(row.id, trial, owner=STARTER, spent=3.0)
    entry = submissions.entry("default", "s")
    assert (entry.trials, entry.best, entry.restarts, entry.error) == (2, 0.75, 0, None)
    assert 3.0 <= entry.seconds < 5.0
    assert submissions.notes("default", row.id) == ["skipped x.png: too small"]
    assert submissions.notes("other", row.id) == []
    submissions.tables.finish(row.id, STARTER, "failed", error="no trial succeeded")
    assert submissions.entry("default", "s").error == "no trial succeeded"


def test_what_is_released_goes_on(submissions: Submissions) -> None:
    row = begin(submissions)
    submissions.tables.release(row.id, STARTER, "the disk is full")
    entry = submissions.entry("default", "s")
    assert (entry.status, entry.error) == ("running", "the disk is full"), "what it waits for"


def _take(folder: Path, answers: Any) -> None:
    tables = SubmissionTables(Database(Settings(data_dir=folder)))
    answers.put([row.id for _ in range(3) if (row := tables.begin_next(this_process(), 100)) is not None])


def test_processes_share_the_queue(submissions: Submissions, tmp_path: Path) -> None:
    for number in range(6):
        submit(submissions, name=f"s{number}")
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    processes = [context.Process(target=_take, args=(tmp_path, answers)) for _ in range(2)]
    for process in processes:
        process.start()
    taken = [search for _ in processes for search in answers.get(timeout=60)]
    for process in processes:
        process.join()
    answers.close()
    answers.join_thread()
    assert len(taken) == len(set(taken)) == 6


def test_promotions_are_held_by_one(submissions: Submissions) -> None:
    tables, row = submissions.tables, begin(submissions)
    assert list(tables.pending()) == []
    tables.finish(row.id, STARTER, "complete", promotion={"state": "pending", "reason": "r"})
    [waiting] = tables.pending()
    assert not submissions.entry("default", "s").ended
    assert tables.hold(waiting, "h/k/1/1")
    assert not tables.hold(waiting, "h/k/2/2")
    assert not tables.settle(row.id, "h/k/2/2", {"state": "kept", "reason": "r"})
    assert tables.settle(row.id, "h/k/1/1", {"state": "promoted", "reason": "r"})
    assert not tables.hold(waiting, "h/k/2/2"), "nobody holds it any more, but it is settled"
    assert submissions.entry("default", "s").ended
    assert list(tables.pending()) == []


def test_moments_have_a_time_zone(submissions: Submissions) -> None:
    begin(submissions)
    entry = submissions.entry("default", "s")
    assert entry.created.tzinfo is not None
    assert entry.started is not None
    assert datetime.timedelta(0) <= entry.started - entry.created < datetime.timedelta(minutes=1)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("the model '/srv/autoad/models/default/bottle/2' is damaged", "the model '2' is damaged"),
        ("cannot write /tmp/a/ here", "cannot write the folder here"),
        ("and/or 3/4 at http://host/a/b, bottle/2", "and/or 3/4 at http://host/a/b, bottle/2"),
    ],
)
def test_messages_name_no_folder(text: str, shown: str) -> None:
    assert without_paths(text) == shown
