"""Searches that are hurt on purpose, and what must hold afterwards."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import optuna
import psutil
from optuna.trial import TrialState

from autoad.database import Database, describe_search
from autoad.schema import SearchEntry, TrialRow
from autoad.search import load_result
from autoad.search.study import study_storage
from autoad.settings import Settings

ENDED = {"complete", "pruned", "failed"}
_DEADLINE = 240.0
_MARK = "AUTOAD_PATIENT"


class Patient:
    """A search of the command line, and all that it leaves in its data folder.

    Args:
        settings: where; searches may share it.
        pictures: what is searched.
        name: of the search.
        options: of ``autoad search``.
        environment: of all its processes.
    """

    def __init__(self, settings: Settings, pictures: Path, name: str, *options: str, **environment: str) -> None:
        self.settings = settings
        self.name = name
        self._begin = ("search", "--data", str(pictures), "--name", name, *options)
        # A temporary folder of its own, with a path that is short enough for Ray's sockets.
        self.scratch = Path(tempfile.mkdtemp(prefix="ad-"))
        self._environment = (
            os.environ
            | environment
            | {
                "AUTOAD_DATA_DIR": str(settings.data_dir),
                "COLUMNS": "200",
                "TMPDIR": str(self.scratch),
                _MARK: self.scratch.name,
            }
        )
        self._process: subprocess.Popen[bytes] | None = None
        self._runs = 0
        self._known: set[tuple[int, int]] = set()
        self._before: dict[int, TrialRow] = {}
        self._dying: list[psutil.Process] = []

    # What a user does.

    def begin(self) -> None:
        """Type the command."""
        self._start(self._begin)

    def resume(self) -> None:
        """Type ``autoad search --resume``."""
        self._start(("search", "--resume", self.name))

    def resume_twice(self) -> None:
        """Type it in two terminals at once; exactly one goes on, the other says so and ends."""
        both = [(self._open(("search", "--resume", self.name)), self._said) for _ in range(2)]
        self._wait("one of two to be refused", lambda: any(process.poll() is not None for process, _ in both))
        refused, going = sorted(both, key=lambda pair: pair[0].poll() is None)
        said = refused[1].read_text()
        assert refused[0].returncode == 2, said
        assert "is being carried out by process" in said or "has just been taken over" in said
        assert going[0].poll() is None, going[1].read_text()
        self._process, self._said = going

    def _start(self, arguments: tuple[str, ...]) -> None:
        assert self._process is None, "one at a time"
        self._process = self._open(arguments)

    def _open(self, arguments: tuple[str, ...]) -> subprocess.Popen[bytes]:
        self._runs += 1
        self._said = self.scratch / f"said-{self._runs}"
        with self._said.open("wb") as said:
            return subprocess.Popen(
                [sys.executable, "-m", "autoad.cli", *arguments],
                stdout=subprocess.DEVNULL,
                stderr=said,
                env=self._environment,
                start_new_session=True,  # a terminal's Ctrl-C reaches the whole group, and no other
            )

    # What is done to it.

    def signal(self, number: signal.Signals) -> None:
        """Signal the driver alone."""
        assert self._process is not None
        self._process.send_signal(number)

    def interrupt(self) -> None:
        """Press Ctrl-C: all processes of the terminal's foreground group get it."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGINT)

    def forget_the_end(self) -> None:
        """As if it had been killed after the model was in place, and before the database heard of it."""
        with closing(sqlite3.connect(self.settings.data_dir / "autoad.db", timeout=60)) as connection, connection:
            owner = f"{socket.gethostname()}/{os.getpid()}/0"
            connection.execute("UPDATE searches SET status = 'running', owner = ? WHERE name = ?", [owner, self.name])

    def signal_all(self, names: tuple[str, ...], number: signal.Signals) -> None:
        """Signal the processes of the search whose title begins with one of ``names``."""
        found = [process for process in self.processes() if _title(process).startswith(names)]
        assert found, f"no {names} among {[_title(process) for process in self.processes()]}"
        for process in found:
            process.send_signal(number)

    # What is seen of it.

    @property
    def said(self) -> str:
        """What the process that was started last has said on stderr."""
        return self._said.read_text()

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return self._process is None or self._process.poll() is not None

    def wait_for(self, what: str, holds: Callable[[], object]) -> None:
        """Wait until something holds, while the search runs."""

        def looked() -> object:
            found = holds()
            assert found or not self.is_over, f"the search ended before {what}: {self.said}"
            return found

        self._wait(what, looked)

    def wait_for_end(self) -> int:
        """The exit code; :meth:`check_gone` sees to what is still on its way out."""
        assert self._process is not None
        self._wait("the end", lambda: self.is_over)
        code = self._process.wait()
        self._process = None
        self.remember()
        self._dying = self.processes()
        return code

    @staticmethod
    def _wait(what: str, holds: Callable[[], object], limit: float = _DEADLINE) -> None:
        deadline = time.monotonic() + limit
        while not holds():
            assert time.monotonic() < deadline, f"waited in vain for {what}"
            time.sleep(0.03)

    def rows(self) -> dict[int, TrialRow]:
        """The trials in the database, by number; read by SQL, for migrations would disturb who writes."""
        file = self.settings.data_dir / "autoad.db"
        if not file.exists():
            return {}
        query = "SELECT number, row FROM trials JOIN searches ON id = search_id WHERE name = ?"
        with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=60)) as connection:
            try:
                found = connection.execute(query, [self.name]).fetchall()
            except sqlite3.OperationalError:  # the tables are being made
                return {}
        return {number: TrialRow.model_validate(json.loads(row)) for number, row in found}

    def ended(self) -> dict[int, TrialRow]:
        """Those that have ended by themselves."""
        return {number: row for number, row in self.rows().items() if row.status in ENDED}

    def under_way(self) -> set[tuple[int, int]]:
        """Trials that run, each with its attempt."""
        return {(number, row.attempts) for number, row in self.rows().items() if row.status == "running"}

    def remember(self) -> None:
        """Trials that there are now, to compare with later."""
        rows = self.rows()
        self._known = {(number, row.attempts) for number, row in rows.items()}
        self._before = {number: row for number, row in rows.items() if row.status in ENDED}

    def goes_on(self) -> bool:
        """Whether a trial, or another attempt at one, has begun since."""
        return any(
            (number, row.attempts) not in self._known for number, row in self.rows().items() if row.status != "stopped"
        )

    def goes_further(self) -> bool:
        """Whether a trial has ended since."""
        return len(self.ended()) > len(self._before)

    def processes(self) -> list[psutil.Process]:
        """All its processes, Ray's among them."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(_MARK) == self.scratch.name and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def entry(self) -> SearchEntry:
        """Its line in the list of searches."""
        database = Database(self.settings)
        try:
            return describe_search(database, self.name)
        finally:
            database.close()

    # What must hold.

    def check_gone(self) -> None:
        """All processes of the run that ended last have gone, too."""
        self._wait("all processes to go", lambda: not any(process.is_running() for process in self._dying), 30.0)

    def check_cut_off(self) -> None:
        """Nobody runs it: whoever asks is told so, and how to go on."""
        entry = self.entry()
        assert entry.status in {"lost", "interrupted"}
        assert entry.hint == f"autoad search --resume {entry.search_id}"
        assert load_result(self.name, self.settings).status == "interrupted"

    def check_nothing_half_written(self) -> None:
        """Nothing is left of what was being written when a process died."""
        search_id = self.entry().search_id
        assert not list(self.settings.models_dir.glob(f".{search_id}-*"))
        folder = self.settings.searches_dir / search_id
        assert not [path for path in folder.rglob(".*") if "tune" not in path.parts]
        assert len(list(self.scratch.glob("autoad-ray-*"))) <= (not self.is_over)
        assert not self.is_over or not (folder / "tune").exists()

    def check_nothing_open(self) -> None:
        """No trial of a search that has ended is running, neither in the database nor in the study."""
        assert not self.under_way()
        study = optuna.load_study(study_name=self.entry().search_id, storage=study_storage(self.settings))
        assert not [t for t in study.trials if t.state in (TrialState.RUNNING, TrialState.WAITING)]

    def lost_and_repeated(self) -> tuple[list[int], list[int]]:
        """Trials that had ended and whose rows are not what they were; and new ones that try one of them again."""
        rows, before = self.rows(), self._before
        lost = [number for number, row in before.items() if rows.get(number) != row]
        known = [(row.algorithm, row.proposed) for row in before.values()]
        earlier = {number for number, _ in self._known}
        again = [n for n, row in rows.items() if n not in earlier and (row.algorithm, row.proposed) in known]
        return lost, again

    def check_complete(self) -> None:
        """It has ended well, as if nothing had been."""
        assert self.wait_for_end() == 0, self.said
        self.check_gone()
        assert self.entry().status == "complete"
        self.check_nothing_open()
        self.check_nothing_half_written()
        result = load_result(self.name, self.settings)
        assert result.champion is not None
        assert result.choice is not None
        assert result.champion.trial == result.choice.trial
        (chosen,) = [row for row in result.leaderboard if row.trial == result.champion.trial]
        assert result.champion.config == chosen.config
        assert {row.trial for row in result.leaderboard} == set(self.rows())
        manifest = json.loads((Path(result.champion.model) / "manifest.json").read_text())
        assert manifest["provenance"]["trial"] == chosen.trial

    def end(self) -> None:
        """Leave nothing behind, whatever has happened."""
        for process in self.processes():
            try:
                process.kill()
            except psutil.Error:
                continue
        if self._process is not None:
            self._process.wait()
        shutil.rmtree(self.scratch)


def _title(process: psutil.Process) -> str:
    """The file name of its program, or what the process calls itself."""
    try:
        return Path(process.cmdline()[0]).name
    except (psutil.Error, IndexError):
        return ""
