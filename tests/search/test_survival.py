"""Nothing that has been found out is lost, whatever happens to the processes, the disk or the database.

Two searches are hurt again and again. ``steady`` is deterministic: whatever happens, it must end like its twin that
nobody has touched. ``busy`` runs trials side by side and loses some of them by its own limits. ``make test`` hurts
``busy`` once; ``make faults`` both, five times, in another order and at other moments each time.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import random
import shutil
import signal
import sqlite3
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from autoad.search import load_result
from autoad.settings import Settings
from tests.search.survival import ENDED, Patient

ALGORITHMS = ("--algorithms", "dfm,dfkde,padim")
WORKER = ("ray::WorkerActor", "ray::ResourceTrainable")
PATIENCE, TIMEOUT = 4, 10
"""Seconds."""

ROUNDS = 5
TABLE = Path("build/survival.json")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a search that was hurt.

    Attributes:
        lost: finished trials whose rows have changed or gone.
        repeated: trials that try again what had been finished.
        seconds: from the fault, or from its end where it lasts, until a trial began.
    """

    fault: str
    lost: int
    repeated: int
    seconds: float


Fault = Callable[[Patient], float]


def kill_the_driver(patient: Patient) -> float:
    began = time.monotonic()
    patient.signal(signal.SIGKILL)
    assert patient.wait_for_end() == -signal.SIGKILL
    patient.check_cut_off()
    patient.resume()
    return began


def kill_the_driver_and_resume_twice(patient: Patient) -> float:
    began = time.monotonic()
    patient.signal(signal.SIGKILL)
    assert patient.wait_for_end() == -signal.SIGKILL
    patient.resume_twice()
    return began


def kill_the_raylet(patient: Patient) -> float:
    began = time.monotonic()
    patient.signal_all(("raylet",), signal.SIGKILL)
    _check_resumable(patient, "a process of Ray's own has died")
    patient.resume()
    return began


def kill_the_worker(patient: Patient) -> float:
    began = time.monotonic()
    patient.signal_all(WORKER, signal.SIGKILL)
    _let_news_arrive(patient)
    return began


def stop_the_workers(patient: Patient) -> float:
    began = time.monotonic()
    patient.signal_all(WORKER, signal.SIGSTOP)
    _let_news_arrive(patient)
    return began


def press_ctrl_c(patient: Patient) -> float:
    began = time.monotonic()
    patient.interrupt()
    return _resumed_after_interruption(patient, began)


def press_ctrl_c_twice(patient: Patient) -> float:
    began = time.monotonic()
    patient.interrupt()
    time.sleep(0.2)
    patient.interrupt()
    assert patient.wait_for_end() == 130, patient.said
    patient.check_cut_off()  # what it had no time to put in order, the next does
    patient.resume()
    return began


def ask_to_terminate(patient: Patient) -> float:
    began = time.monotonic()
    patient.signal(signal.SIGTERM)
    return _resumed_after_interruption(patient, began)


def keep_the_database_for_a_moment(patient: Patient) -> float:
    with _database_out_of_reach(patient):
        time.sleep(PATIENCE / 2)
    return time.monotonic()


def keep_the_database(patient: Patient) -> float:
    with _database_out_of_reach(patient):
        _check_resumable(patient, "the metadata database cannot be written (database is locked)")
    began = time.monotonic()
    patient.resume()
    return began


STEADY: dict[str, Fault] = {
    "kill -9 of the driver, trials run": kill_the_driver,
    "the same, then two `--resume` at once": kill_the_driver_and_resume_twice,
    "kill -9 of the raylet": kill_the_raylet,
    "kill -9 of a worker in mid-trial": kill_the_worker,
    "Ctrl-C": press_ctrl_c,
    "Ctrl-C twice": press_ctrl_c_twice,
    "SIGTERM": ask_to_terminate,
    f"database locked for {PATIENCE / 2:.0f} s": keep_the_database_for_a_moment,
    f"database locked for longer than {PATIENCE} s of patience": keep_the_database,
}
BUSY: dict[str, Fault] = {
    "kill -9 of all workers at once": kill_the_worker,
    f"all workers hang (`--trial-timeout {TIMEOUT}`)": stop_the_workers,
}
CHAMPION, DISK = "kill -9 of the driver, champion refitted", "disk full of features"


def _let_news_arrive(patient: Patient) -> None:
    """What workers sent just before may still make the driver give them a job, which is no sign of recovery."""
    time.sleep(0.5)
    patient.remember()


def _check_resumable(patient: Patient, reason: str) -> None:
    assert patient.wait_for_end() == 1, patient.said
    assert reason in patient.said
    assert f"go on with: autoad search --resume {patient.entry().search_id}" in patient.said
    patient.check_cut_off()


def _resumed_after_interruption(patient: Patient, began: float) -> float:
    assert patient.wait_for_end() == 130, patient.said
    assert "Traceback" not in patient.said
    patient.check_gone()
    patient.check_cut_off()
    patient.check_nothing_open()
    patient.check_nothing_half_written()
    patient.resume()
    return began


@contextmanager
def _database_out_of_reach(patient: Patient) -> Iterator[None]:
    with closing(sqlite3.connect(patient.settings.data_dir / "autoad.db", timeout=60)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        yield


def suffer(patient: Patient, name: str, fault: Fault, moment: float) -> Outcome:
    """Hurt a search in mid-trial, and see it go on."""
    patient.wait_for(f"a trial is under way ({name})", patient.under_way)
    time.sleep(moment)
    patient.remember()
    began = fault(patient)
    patient.wait_for(f"trials go on ({name})", patient.goes_on)
    seconds = time.monotonic() - began
    patient.check_gone()
    patient.check_nothing_half_written()
    patient.wait_for(f"a trial ends ({name})", patient.goes_further)
    lost, repeated = patient.lost_and_repeated()
    print(f"{name}: went on after {seconds:.1f} s")
    return Outcome(name, len(lost), len(repeated), seconds)


def suffer_at_the_end(patient: Patient, moment: float) -> Outcome:
    """Kill it when all trials are done and the champion is being made."""
    patient.wait_for("the champion is refitted", lambda: "refitting" in patient.said)
    time.sleep(moment)
    began = kill_the_driver(patient)
    patient.wait_for("it is refitted again", lambda: "refitting" in patient.said)
    seconds = time.monotonic() - began
    print(f"{CHAMPION}: went on after {seconds:.1f} s")
    patient.check_complete()
    lost, repeated = patient.lost_and_repeated()
    return Outcome(CHAMPION, len(lost), len(repeated), seconds)


def finished(patient: Patient) -> list[object]:
    """What a deterministic search has found out, without numbers and times, in the order in which it did."""
    return [
        (row.algorithm, row.proposed, row.config, row.status, row.reason, row.validation, row.epochs_done)
        for _, row in sorted(patient.ended().items())
    ]


def hurt_steady(folder: Path, pictures: Path, order: list[str], moments: Iterator[float]) -> list[Outcome]:
    """A deterministic search through all its faults, beside a twin; both begin in the same fresh folder at once."""
    settings = Settings(data_dir=folder)
    options = ("--deterministic", "--trials", str(8 * len(order)), *ALGORITHMS)
    environment = {"AUTOAD_DATABASE_PATIENCE": str(PATIENCE)}
    steady = Patient(settings, pictures, "steady", *options, **environment)
    twin = Patient(settings, pictures, "twin", *options)
    try:
        twin.begin()
        steady.begin()
        outcomes = [suffer(steady, name, STEADY[name], next(moments)) for name in order]
        outcomes.append(suffer_at_the_end(steady, next(moments)))
        twin.check_complete()
        twin.forget_the_end()
        twin.resume()
        twin.check_complete()
        assert not list(settings.features_dir.rglob(".unfinished-*"))
    finally:
        steady.end()
        twin.end()
    assert finished(steady) == finished(twin)
    results = [load_result(patient.name, settings) for patient in (steady, twin)]
    champions = [result.champion for result in results]
    assert champions[0] is not None
    assert champions[1] is not None
    assert (champions[0].config, champions[0].test) == (champions[1].config, champions[1].test)
    return outcomes


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system of its own, in memory."""
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def hurt_busy(
    folder: Path, pictures: Path, order: list[str], moments: Iterator[float], megabytes: int
) -> list[Outcome]:
    """A search side by side: no room for features, no memory for some trials, hanging and dying workers."""
    settings = Settings(data_dir=folder)
    options = ("--trials", "10", "--trial-timeout", str(TIMEOUT), "--keep-suspicious", *ALGORITHMS)
    busy = Patient(settings, pictures, "busy", *options, AUTOAD_MEMORY_LIMIT="165MiB")
    with small_disk(settings.features_dir, f"{megabytes}m") as disk:
        try:
            busy.begin()
            _check_resumable(busy, f"{disk}")
            assert "must have room for" in busy.said
            subprocess.run(["mount", "-o", "remount,size=1g", disk], check=True)
            began = time.monotonic()
            busy.resume()
            busy.wait_for("trials go on", busy.goes_on)
            outcomes = [Outcome(DISK, *map(len, busy.lost_and_repeated()), time.monotonic() - began)]
            print(f"{DISK}: went on after {outcomes[0].seconds:.1f} s")
            outcomes += [suffer(busy, name, BUSY[name], next(moments)) for name in order]
            busy.check_complete()
            assert not list(disk.rglob(".unfinished-*"))
        finally:
            busy.end()
        shutil.rmtree(disk, ignore_errors=True)
    rows = busy.rows().values()
    assert {row.status for row in rows} <= ENDED | {"stopped"}
    refused = [row for row in rows if row.status == "failed" and "of memory and the machine has" in (row.reason or "")]
    assert [(row.algorithm, row.origin) for row in refused] == [("padim", "default")]
    return outcomes


def check(outcomes: list[Outcome]) -> None:
    assert [(o.fault, o.lost, o.repeated) for o in outcomes if o.lost or o.repeated] == []


def test_a_busy_search_survives_its_limits_and_its_workers(tmp_path: Path, demo: Path) -> None:
    check(hurt_busy(tmp_path, demo, list(BUSY), itertools.repeat(0.0), 4))


@pytest.mark.faults
def test_every_fault_again_and_again(tmp_path: Path, demo: Path) -> None:
    """Each round in another order, at other moments; the survival table goes to stdout and to a file."""
    seed = int(os.environ.get("AUTOAD_FAULTS_SEED", time.time_ns() % 10**6))
    print(f"\nAUTOAD_FAULTS_SEED={seed}", flush=True)
    outcomes: list[Outcome] = []
    for number in range(ROUNDS):
        draw = random.Random(seed + number)
        moments = iter([draw.uniform(0.0, 1.0) for _ in range(len(STEADY) + len(BUSY) + 1)])
        folder = tmp_path / str(number)
        outcomes += hurt_steady(folder / "steady", demo, draw.sample(list(STEADY), len(STEADY)), moments)
        outcomes += hurt_busy(
            folder / "busy", demo, draw.sample(list(BUSY), len(BUSY)), moments, megabytes=draw.randint(1, 12)
        )
        print(write_table(outcomes), flush=True)
        shutil.rmtree(folder)
    check(outcomes)


def write_table(outcomes: list[Outcome]) -> str:
    """The survival table in Markdown; the outcomes also go to a file."""
    TABLE.parent.mkdir(exist_ok=True)
    TABLE.write_text(json.dumps([dataclasses.asdict(outcome) for outcome in outcomes], indent=1))
    lines = ["| fault | times tried | lost | repeated | median s | longest s |", "|---|---|---|---|---|---|"]
    for fault in dict.fromkeys([*STEADY, CHAMPION, *BUSY, DISK]):
        tried = [outcome for outcome in outcomes if outcome.fault == fault]
        if tried:
            seconds = [outcome.seconds for outcome in tried]
            lost, repeated = sum(outcome.lost for outcome in tried), sum(outcome.repeated for outcome in tried)
            lines.append(
                f"| {fault} | {len(tried)} | {lost} | {repeated} "
                f"| {statistics.median(seconds):.1f} | {max(seconds):.1f} |"
            )
    return "\n".join(lines)
