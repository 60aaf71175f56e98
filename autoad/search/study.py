"""The Optuna study of a search: opened, asked for one algorithm at a time, brought in line with the database."""

from __future__ import annotations

import contextlib
import fcntl
import sqlite3
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import sqlalchemy
from optuna.trial import TrialState

from autoad.errors import StateError
from autoad.schema import Objective, TrialRow
from autoad.search.space import Space, suggest_config
from autoad.settings import Settings

__all__ = ["Proposer", "study_storage"]


def _set_aside_if_damaged(path: Path) -> None:
    """Make way for a new file: whatever a power failure has left, each search makes its study again from its rows."""
    if not path.exists():
        return
    try:
        with contextlib.closing(sqlite3.connect(path)) as connection:
            sound = connection.execute("PRAGMA quick_check(1)").fetchone() == ("ok",)
    except sqlite3.OperationalError:  # out of reach, or locked: that is no damage
        return
    except sqlite3.DatabaseError:
        sound = False
    if not sound:
        for file in (path, *(path.with_name(path.name + ending) for ending in ("-wal", "-shm"))):
            if file.exists():
                file.rename(file.with_name(f"{file.name}.damaged-{time.time_ns()}"))


def study_storage(settings: Settings) -> optuna.storages.RDBStorage:
    """Where the studies of all searches are, for ``optuna-dashboard`` too."""
    # Optuna makes its tables without a lock: of two processes that begin at once one would fail.
    with (settings.data_dir / "optuna.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _set_aside_if_damaged(settings.data_dir / "optuna.db")
        storage = optuna.storages.RDBStorage(f"sqlite:///{settings.data_dir / 'optuna.db'}")
    # A study repeats what the metadata database knows, so it need not survive a power failure: six times as fast.
    sqlalchemy.event.listen(storage.engine, "connect", _hurry)
    storage.engine.dispose()
    return storage


def _hurry(connection: Any, _record: Any) -> None:
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=OFF")


class Proposer:
    """Asks the study for configurations, and tells it what became of them.

    Args:
        study: the study.
        spaces: search space by algorithm.
        seed: of the sampler.
        liar: whether running trials count as bad ones, so that workers do not try the same thing at once.
    """

    def __init__(self, study: optuna.Study, spaces: Mapping[str, Space], *, seed: int, liar: bool) -> None:
        self._study = study
        self._spaces = spaces
        self._seed = seed
        self._liar = liar
        self._ended = 0
        self._asked = 0

    @classmethod
    def open(
        cls, storage: optuna.storages.BaseStorage, name: str, spaces: Mapping[str, Space], *, seed: int, liar: bool
    ) -> Proposer:
        """The study of that name, made if there is none."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(storage=storage, study_name=name, direction="maximize", load_if_exists=True)
        return cls(study, spaces, seed=seed, liar=liar)

    def ask(
        self, algorithm: str | None, config: Mapping[str, Any], *, at_random: bool = False
    ) -> tuple[optuna.Trial, str, dict[str, Any]]:
        """A new trial.

        Args:
            algorithm: its algorithm; None to let the sampler choose that, too.
            config: hyperparameters that are given; the sampler chooses the others.
            at_random: whether it is to do so blindly.

        Returns:
            Optuna's trial, the algorithm, its hyperparameters.

        Raises:
            StateError: the study cannot be written.
        """
        fixed = {} if algorithm is None else {"algorithm": algorithm} | self._spaces[algorithm].encode(config)
        with _quiet(), _written():
            sampler = self._sampler(at_random)
            self._study.sampler = optuna.samplers.PartialFixedSampler(fixed, sampler) if fixed else sampler
            trial = self._study.ask()
            return trial, *suggest_config(trial, self._spaces)

    def _sampler(self, at_random: bool) -> optuna.samplers.BaseSampler:
        """Seeded by how many trials have ended, and how often it was asked since.

        So a resumed search goes on where it stopped: whatever was asked for in vain, or was cut off, is not counted.
        """
        seed = int(np.random.SeedSequence([self._seed, self._ended, self._asked]).generate_state(1)[0])
        self._asked += 1
        if at_random:
            return optuna.samplers.RandomSampler(seed=seed)
        return optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True, constant_liar=self._liar)

    def tell(self, trial: optuna.Trial, row: TrialRow, objective: float | None) -> None:
        """Say how a trial has ended; ``objective`` is None where it gave none.

        Raises:
            StateError: the study cannot be written.
        """
        with _written():
            if row.status == "complete" and objective is not None:
                self._study.tell(trial, objective)
            elif row.status == "pruned":
                self._study.tell(trial, state=TrialState.PRUNED)
            else:
                trial.set_user_attr("reason", row.reason or row.status)
                self._study.tell(trial, state=TrialState.FAIL)
        if _was_carried_out(row):
            self._ended, self._asked = self._ended + 1, 0

    def reconcile(self, rows: Sequence[TrialRow], objective: Objective) -> None:
        """Bring the study in line with the rows of the database, which are the truth.

        A process that was killed may have left trials running that have no row, or finished rows that the study has
        not heard of; and the study's file may have been lost altogether.

        Raises:
            StateError: the study cannot be read or written.
        """
        with _written():
            self._reconcile(rows, objective)
        self._ended, self._asked = sum(_was_carried_out(row) for row in rows), 0

    def _reconcile(self, rows: Sequence[TrialRow], objective: Objective) -> None:
        by_number = {row.trial: row for row in rows}
        for number in range(len(self._study.get_trials(deepcopy=False)), max(by_number, default=-1) + 1):
            row = by_number.get(number)
            if row is None:
                self._study.ask()
            else:
                self.ask(row.algorithm, row.proposed)
        for frozen in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.WAITING)):
            row = by_number.get(frozen.number) or TrialRow(
                trial=frozen.number, algorithm="", config={}, status="stopped", reason="no row of it was written"
            )
            trial = optuna.Trial(self._study, frozen._trial_id)
            value = row.value(objective)
            if row.status == "pruned" and value is not None and row.epochs_done:
                trial.report(value, row.epochs_done)
            self.tell(trial, row, value)


def _was_carried_out(row: TrialRow) -> bool:
    """Whether a trial has begun and come to its own end."""
    return row.started_after is not None and row.status not in {"running", "stopped"}


@contextlib.contextmanager
def _written() -> Iterator[None]:
    try:
        yield
    except (optuna.exceptions.StorageInternalError, sqlalchemy.exc.SQLAlchemyError) as error:
        cause = error.__cause__ or error
        reason = str(getattr(cause, "orig", cause)).strip()
        raise StateError(f"the sampler's database (optuna.db) cannot be written ({reason})") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # group, constant_liar, PartialFixed
        yield
