"""Searches that are hurt on purpose, and what must hold afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
from optuna.trial import TrialState

from autoad.database import Database
from autoad.schema import TrialRow
from autoad.search.study import study_storage
from autoad.settings import Settings

ENDED = {"complete", "pruned", "failed"}
DEADLINE = 180.0


class Patient:
    """A search of the command line in a data folder of its own.

    Args:
        data_dir: the folder.
        pictures: what is searched.
        name: of the search.
        options: of ``autoad search``.
    """

    def __init__(self, data_dir: Path, pictures: Path, name: str, options: list[str]) -> None:
        self.settings = Settings(data_dir=data_dir)
        self._name = name
        self._begin = ["search", "--data", str(pictures), "--name", name, *options]
        self._process: subprocess.Popen[str] | None = None

    @contextmanager
    def running(self, *arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
        """The search begun, or with ``arguments`` (``--resume``) gone on with."""
        with subprocess.Popen(
            [sys.executable, "-m", "autoad.cli", *(arguments or self._begin)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"AUTOAD_DATA_DIR": str(self.settings.data_dir), "COLUMNS": "200"} | environment,
        ) as process:
            self._process = process
            try:
                yield process
            finally:
                if process.poll() is None:
                    process.kill()

    def resume(self) -> str:
        """Go on to the end; what it said."""
        with self.running("search", "--resume", self._name) as process:
            out, said = process.communicate(timeout=DEADLINE)
            assert process.returncode == 0, said
            return said + out

    def rows(self) -> dict[int, TrialRow]:
        """The trials in the database, by number."""
        database = Database(self.settings)
        try:
            return {row.trial: row for row in database.trials(database.find_search(self._name).id)}
        finally:
            database.close()

    def ended(self) -> dict[int, TrialRow]:
        """Those that have ended by themselves."""
        return {number: row for number, row in self.rows().items() if row.status in ENDED}

    def wait_for(self, what: str, holds: Callable[[], object]) -> None:
        """Wait until something holds, while the search runs."""
        deadline = time.monotonic() + DEADLINE
        while time.monotonic() < deadline:
            if self._began() and holds():
                return
            if self._process is not None and self._process.poll() is not None:
                raise AssertionError(f"the search ended before {what}: {self._process.communicate()[1]}")
            time.sleep(0.05)
        raise AssertionError(f"waited in vain for {what}")

    def _began(self) -> bool:
        return (self.settings.data_dir / "autoad.db").exists() and bool(self._search_count())

    def _search_count(self) -> int:
        database = Database(self.settings)
        try:
            return len(database.find_search(self._name).name)
        except Exception:
            return 0
        finally:
            database.close()

    def workers(self) -> list[int]:
        """Process ids of the workers that are carrying out a step."""
        return [pid for pid in self.processes() if "ResourceTrainable.train" in _title(pid)]

    def is_busy(self) -> bool:
        """Whether a trial is under way."""
        return any(row.status == "running" for row in self.rows().values())

    def processes(self) -> list[int]:
        """All processes of this data folder but the test's own, Ray's among them."""
        mine = f"AUTOAD_DATA_DIR={self.settings.data_dir}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                try:
                    if mine in (entry / "environ").read_bytes().split(b"\0"):
                        found.append(int(entry.name))
                except OSError:
                    continue
        return found

    def check_nothing_runs(self) -> float:
        """Every process of the search goes; how many seconds that took."""
        started = time.monotonic()
        while alive := self.processes():
            assert time.monotonic() - started < 30, [_title(pid) for pid in alive]
            time.sleep(0.1)
        return time.monotonic() - started

    def check_left_in_order(self, before: dict[int, TrialRow]) -> dict[str, int]:
        """After resuming: nothing is running, half-written, lost or repeated."""
        rows = self.rows()
        assert {row.status for row in rows.values()} <= ENDED | {"stopped"}
        database = Database(self.settings)
        search = database.find_search(self._name)
        database.close()
        assert search.status == "complete"
        study = optuna.load_study(study_name=search.id, storage=study_storage(self.settings))
        assert not [t for t in study.trials if t.state in (TrialState.RUNNING, TrialState.WAITING)]
        lost = [number for number, row in before.items() if rows.get(number) != row]
        known = [(row.algorithm, row.config) for row in before.values()]
        again = [n for n, row in rows.items() if n not in before and (row.algorithm, row.config) in known]
        assert (lost, again) == ([], [])
        folder = self.settings.data_dir
        assert not list(folder.rglob(".unfinished-*")), "features"
        assert not list(self.settings.models_dir.glob(".*")), "models"
        assert not list(self.settings.searches_dir.glob("*/tune")), "Tune's records"
        assert (self.settings.models_dir / self._name / "manifest.json").exists()
        return {"lost": len(lost), "repeated": len(again)}


def _title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def kill(pid: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Signal a process that the test itself started."""
    os.kill(pid, number)
