import datetime
import errno
import fcntl
import multiprocessing
import os
import shutil
import socket
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import psutil
import pytest
import sqlalchemy

from autoad.data import Roles
from autoad.database import Database, is_gone, this_process
from autoad.database._records import utc_now
from autoad.errors import FileStoreError, LeaseLostError, StateError, StorageFullError, UsageError
from autoad.models.registry import Registry
from autoad.schema import Champion, TrialRow
from autoad.search import champion, cluster
from autoad.search.candidate import Candidate
from autoad.search.champion import RefitError
from autoad.search.choice import Limits
from autoad.search.cluster import LocalWorkers
from autoad.search.jobs import Suggestion
from autoad.search.lease import Lease
from autoad.search.recovery import outstanding, recover_lost_searches
from autoad.search.run import _what_can_be_mended
from autoad.search.space import load_spaces
from autoad.settings import Settings
from tests.models.registering import make_artifact

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
    host, kernel, pid, start = this_process().split("/")
    assert is_gone(f"{host}/{kernel}/{pid}/{int(start) + 1}", utc_now()), "another process of the same number"
    assert is_gone(f"{host}/{kernel}/{pid}/", utc_now()), "it had ended before its start could be read"
    assert not is_gone(f"{host}/other/{pid}/{int(start) + 1}", utc_now()), "a container of the same name: its heartbeat"


def test_on_another_machine_the_heartbeat_decides() -> None:
    elsewhere = f"not-{socket.gethostname()}/kernel/1/1"
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


def test_a_search_that_is_resumed_already_is_left_alone(
    database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes find it lost; before this one gets to it, the other goes on with it."""
    add(database, "s", dead_process())
    found = list(database.lost_searches())
    database.take_over("s", this_process())
    database.write_trial("s", TrialRow(trial=0, algorithm="dfm", config={}, status="running"))
    monkeypatch.setattr(database, "lost_searches", lambda: found)
    assert recover_lost_searches(database, settings) == []
    assert [row.status for row in database.trials("s")] == ["running"]
    assert database.find_search("s").owner == this_process()


def test_a_complete_search_is_not_taken_over(database: Database) -> None:
    add(database, "s", this_process())
    database.update_search("s", status="complete")
    with pytest.raises(UsageError, match="nothing to resume"):
        database.take_over("s", this_process())


def test_a_database_out_of_reach_is_waited_for_and_then_stops_the_search(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, database_patience=0.3)
    database = Database(settings)
    add(database, "s", this_process())
    row = TrialRow(trial=0, algorithm="dfm", config={}, status="complete")
    with Lease(database, "s", 0.0, settings.database_patience) as lease:
        with closing(sqlite3.connect(tmp_path / "autoad.db")) as other:
            other.execute("BEGIN EXCLUSIVE")
            with pytest.raises(StateError, match=r"cannot be written \(database is locked\)"):
                lease.write_trial(row)
            began = time.monotonic()
            with pytest.raises(StateError):
                lease.close("interrupted")
            assert time.monotonic() - began < 1.0, "who has waited in vain does not wait again"
        lease.close("interrupted")
    assert database.find_search("s").status == "interrupted"
    database.close()


def test_who_has_lost_a_search_does_not_end_it(database: Database) -> None:
    add(database, "s", this_process())
    with Lease(database, "s", 0.0, 1.0) as lease:
        database.update_search("s", status="interrupted")
        database.take_over("s", "host/1/1")
        with pytest.raises(LeaseLostError):
            lease.close("complete", {})
    assert database.find_search("s").status == "running"


def test_a_folder_that_is_tidied_away_before_it_is_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    lock, removed = fcntl.flock, []

    def late(file: int, operation: int) -> None:
        if not removed:
            removed.extend(tmp_path.iterdir())
            shutil.rmtree(removed[0])
        lock(file, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    folder, file = cluster._locked_folder()
    assert list(folder.iterdir()) == [folder / "lock"]
    cluster._remove_leftovers()
    assert folder.exists()
    os.close(file)
    cluster._remove_leftovers()
    assert not folder.exists()


def test_the_death_of_rays_own_processes_is_noticed() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        workers = LocalWorkers(2, machinery=[psutil.Process(process.pid)])
        workers.check()
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(StateError, match="Ray's own has died"):
            workers.check()


def test_what_can_be_mended_leaves_the_search_to_be_resumed(tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "somewhere")
    assert _what_can_be_mended(full) == "somewhere must have room for another file but its disk is full"
    assert "room for another file" in str(_what_can_be_mended(StorageFullError(tmp_path, 0, 0)))
    assert _what_can_be_mended(FileStoreError("the file store is away")) == "the file store is away"
    assert _what_can_be_mended(StateError("no worker comes up")) == "no worker comes up"
    locked = sqlalchemy.exc.OperationalError("UPDATE", {}, sqlite3.OperationalError("database is locked"))
    assert "cannot be reached (database is locked)" in str(_what_can_be_mended(locked))
    assert _what_can_be_mended(OSError(errno.ENOENT, "no such file")) is None
    assert _what_can_be_mended(ValueError("a bug")) is None


def finish(registry: Registry, settings: Settings, trial: int, said: list[str]) -> Champion:
    """Finish a trial of the search ``s`` as a version of ``bottle``; there is nothing that it could be fitted on."""
    dataset: Any = SimpleNamespace(hash="h", counts=dict)
    row = TrialRow(trial=trial, algorithm="dfm", config={"stage": 2}, status="complete")
    return champion.Finisher(
        cast(Any, None),
        Roles((), (), (), ()),
        dataset,
        name="bottle",
        search="s",
        evidence="labelled",
        threshold="conformal",
        rate=0.1,
        limits=Limits(),
        registry=registry,
        scratch_dir=settings.models_dir,
        scores_file=settings.data_dir / "scores",
        default_config={},
        threads=1,
        say=said.append,
        note=said.append,
    ).finish(Candidate((row,)))


def test_what_a_killed_process_has_registered_is_taken_as_it_is(
    database: Database, settings: Settings, tmp_path: Path
) -> None:
    """It was killed before it could say so in the search's row; another trial of the search is another matter."""
    registry = Registry(database, settings)
    registry.register(make_artifact(tmp_path / "new", search="s", trial=4), "bottle")
    said: list[str] = []
    found = finish(registry, settings, 4, said)
    assert said == ["trial 4 (dfm) has already been finished as bottle/1"]
    assert (found.name, found.version, found.trial, found.config) == ("bottle", 1, 4, {"stage": 2})
    assert found.model == str(registry.open("bottle", 1))
    assert (found.threshold, found.threshold_method, found.false_positive_rate) == (1.5, "conformal", 0.1)
    assert (found.false_positive_rate_upper, found.smallest_false_positive_rate) == (0.25, 0.1)
    assert (found.validation.image_auroc, found.test.image_auroc, found.test.image_auroc_low) == (0.75, 0.625, 0.5)
    with pytest.raises(RefitError, match="trial 5"):
        finish(registry, settings, 5, said)
    assert len(registry.model("bottle").versions) == 1


@pytest.mark.parametrize(
    ("error", "raised"), [(OSError(errno.ENOSPC, "full"), OSError), (ValueError("too few pictures"), RefitError)]
)
def test_a_full_disk_is_no_fault_of_the_champion(
    error: Exception,
    raised: type[Exception],
    tmp_path: Path,
    database: Database,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(folder: Path, *_: object, **__: object) -> None:
        folder.mkdir(parents=True)
        raise error

    monkeypatch.setattr(champion, "fit_model", fail)
    with pytest.raises(raised):
        finish(Registry(database, settings), settings, 0, [])
    assert list(settings.models_dir.iterdir()) == []
