"""The Optuna study of a search: opened, asked for one algorithm at a time, brought in line with the database."""

from __future__ import annotations

import contextlib
import sqlite3
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
import sqlalchemy
from optuna.trial import TrialState

from autoad.schema import Objective, TrialRow
from autoad.search.space import Space, suggest_config
from autoad.settings import Settings

__all__ = ["Proposer", "objective_of", "study_storage"]


def study_storage(settings: Settings) -> optuna.storages.RDBStorage:
    """Where the studies of all searches are, for ``optuna-dashboard`` too."""
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
        self._drawn = 0

    @classmethod
    def open(
        cls, storage: optuna.storages.BaseStorage, name: str, spaces: Mapping[str, Space], *, seed: int, liar: bool
    ) -> Proposer:
        """The study of that name, made if there is none."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(storage=storage, study_name=name, direction="maximize", load_if_exists=True)
        return cls(study, spaces, seed=seed, liar=liar)

    def ask(self, algorithm: str | None, config: Mapping[str, Any]) -> tuple[optuna.Trial, str, dict[str, Any]]:
        """A new trial.

        Args:
            algorithm: its algorithm; None to let the sampler choose that, too.
            config: hyperparameters that are given; the sampler chooses the others.

        Returns:
            Optuna's trial, the algorithm, its hyperparameters.
        """
        fixed = {} if algorithm is None else {"algorithm": algorithm} | self._spaces[algorithm].encode(config)
        with _quiet():
            sampler: optuna.samplers.BaseSampler = self._sampler()
            self._study.sampler = optuna.samplers.PartialFixedSampler(fixed, sampler) if fixed else sampler
            trial = self._study.ask()
            return trial, *suggest_config(trial, self._spaces)

    def _sampler(self) -> optuna.samplers.TPESampler:
        """Seeded by how much was drawn before: a resumed search goes on where it stopped, not from the start."""
        seed = int(np.random.SeedSequence([self._seed, self._drawn]).generate_state(1)[0])
        self._drawn += 1
        return optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True, constant_liar=self._liar)

    def tell(self, trial: optuna.Trial, row: TrialRow, objective: float | None) -> None:
        """Say how a trial has ended; ``objective`` is None where it gave none."""
        if row.status == "complete" and objective is not None:
            self._study.tell(trial, objective)
        elif row.status == "pruned":
            self._study.tell(trial, state=TrialState.PRUNED)
        else:
            trial.set_user_attr("reason", row.reason or row.status)
            self._study.tell(trial, state=TrialState.FAIL)

    def reconcile(self, rows: Sequence[TrialRow], objective: Objective) -> None:
        """Bring the study in line with the rows of the database, which are the truth.

        A process that was killed may have left trials running that have no row, or finished rows that the study has
        not heard of; and the study's file may have been lost altogether.
        """
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
            value = objective_of(row, objective)
            if row.status == "pruned" and value is not None and row.epochs_done:
                trial.report(value, row.epochs_done)
            self.tell(trial, row, value)
        self._drawn = len({(row.algorithm, repr(row.proposed)) for row in rows})


def objective_of(row: TrialRow, objective: Objective) -> float | None:
    """What the sampler was to maximise: over synthetic kinds their mean image AUROC."""
    if objective == "image_auroc" and row.by_kind:
        return sum(row.by_kind.values()) / len(row.by_kind)
    value: float | None = getattr(row.validation, objective)
    return value


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # group, constant_liar, PartialFixed
        yield
