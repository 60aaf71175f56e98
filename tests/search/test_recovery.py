import datetime
import multiprocessing
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from autoad.database import Database, is_gone, this_process
from autoad.database._records import utc_now
from autoad.errors import LeaseLostError, UsageError
from autoad.schema import TrialRow
from autoad.search.dispatch import Suggestion
from autoad.search.lease import Lease
from autoad.search.recovery import outstanding, recover_lost_searches
from autoad.search.space import load_spaces
from autoad.settings import Settings

SPACES = load_spaces(["dfm", "stfpm"])


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path)


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    database = Database(settings)
    yield database
    database.close()


def dead_process() -> str:
    """The owner's name that a process has which is over."""
    context = multiprocessing.get_context("spawn")
    answers = context.SimpleQueue()
    process = context.Process(target=_tell_name, args=(answers,))
    process.start()
    name: str = answers.get()
    process.join()
    return name


def _tell_name(answers: "multiprocessing.SimpleQueue[str]") -> None:
    answers.put(this_process())


def add(database: Database, search_id: str, owner: str) -> None:
    database.add_search(search_id, search_id, "hash", {}, {}, owner=owner)


def test_a_process_is_gone_when_it_is_over_and_not_before() -> None:
    assert not is_gone(this_process(), None)
    assert is_gone(dead_process(), utc_now())
    host, pid, start = this_process().split("/")
    assert is_gone(f"{host}/{pid}/{int(start) + 1}", utc_now()), "another process of the same number"


def test_on_another_machine_the_heartbeat_decides() -> None:
    elsewhere = f"not-{socket.gethostname()}/1/1"
    assert not is_gone(elsewhere, utc_now())
    assert is_gone(elsewhere, utc_now() - datetime.timedelta(seconds=60))
    assert is_gone(elsewhere, (utc_now() - datetime.timedelta(seconds=60)).replace(tzinfo=None)), "as SQLite tells it"


def test_a_search_is_taken_over_only_from_a_dead_owner(database: Database) -> None:
    add(database, "mine", this_process())
    with pytest.raises(UsageError, match=f"carried out by process .*/{os.getpid()}/"):
        database.take_over("mine", "host/1/1")
    add(database, "lost", dead_process())
    assert [search.id for search in database.lost_searches()] == ["lost"]
    assert database.take_over("lost", this_process()).status == "running"
    assert database.lost_searches() == []


def test_who_has_lost_a_search_writes_nothing_more(database: Database) -> None:
    add(database, "s", this_process())
    row = TrialRow(trial=0, algorithm="dfm", config={}, status="running")
    with Lease(database, "s", 10.0, 60.0) as lease:
        lease.write_trial(row)
        database.renew("s", this_process(), lease.spent)
        assert database.find_search("s").spent >= 10.0
        database.update_search("s", status="interrupted")
        database.take_over("s", "host/1/1")
        with pytest.raises(LeaseLostError):
            lease.write_trial(row.model_copy(update={"status": "complete"}))
        with pytest.raises(LeaseLostError):
            database.renew("s", this_process(), 0.0)
    assert [stored.status for stored in database.trials("s")] == ["running"]


def test_lost_searches_are_put_in_order(database: Database, settings: Settings) -> None:
    add(database, "lost", dead_process())
    add(database, "alive", this_process())
    for search in ("lost", "alive"):
        database.write_trial(search, TrialRow(trial=0, algorithm="dfm", config={}, status="complete"))
        database.write_trial(search, TrialRow(trial=1, algorithm="dfm", config={}, status="running"))
        (settings.models_dir / f".{search}-123" / "champion").mkdir(parents=True)
    assert [search.name for search in recover_lost_searches(database, settings)] == ["lost"]
    assert [row.status for row in database.trials("lost")] == ["complete", "stopped"]
    assert [row.status for row in database.trials("alive")] == ["complete", "running"]
    assert database.find_search("lost").status == "interrupted"
    assert [path.name for path in settings.models_dir.iterdir()] == [".alive-123"]
    assert recover_lost_searches(database, settings) == []


def test_what_was_cut_off_is_tried_first_and_what_has_ended_not_again() -> None:
    dfm, stfpm = SPACES["dfm"].defaults(), SPACES["stfpm"].defaults()
    first = [Suggestion("default", "dfm", dfm), Suggestion("default", "stfpm", stfpm)]
    sampled = dfm | {"stage": 1}
    rows = [
        TrialRow(trial=0, algorithm="dfm", config={}, proposed=dfm, status="failed", origin="default"),
        TrialRow(trial=1, algorithm="dfm", config={}, proposed=sampled, status="stopped"),
        TrialRow(trial=2, algorithm="dfm", config={}, proposed=dfm | {"stage": 2}, status="stopped"),
        TrialRow(trial=3, algorithm="dfm", config={}, proposed=dfm | {"stage": 2}, status="complete"),
    ]
    assert outstanding(first, rows, SPACES) == [Suggestion("sampler", "dfm", sampled), first[1]]
    assert outstanding(first, [], SPACES) == first
