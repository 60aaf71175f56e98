"""What a search costs beside its trials: trials that only sleep, through the whole machinery.

Dispatcher, Optuna study, metadata database, lease and Ray Tune are the product's own; only the work inside a trial is
replaced by ``sleep``.

    python benchmarks/search_overhead.py --trials 1000 --workers 4 --sleep 2
    python benchmarks/search_overhead.py --speedup 20 --sleep 5     # two workers against one, trials that compute
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # as in a worker, and before NumPy is imported

import argparse
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from autoad.database import Database, this_process
from autoad.features import choose_engine
from autoad.schema import Metrics, TrialRow
from autoad.search.budget import Budget
from autoad.search.cluster import LocalWorkers, local_ray
from autoad.search.dispatch import Dispatcher
from autoad.search.lease import Lease
from autoad.search.selection_scores import SelectionScores
from autoad.search.space import load_spaces
from autoad.search.study import Proposer, study_storage
from autoad.search.trial import TrialReport, TrialTask
from autoad.search.tuning import run_trials
from autoad.settings import Settings


class Sleeper:
    """Takes its time instead of fitting; with ``work`` it computes for as long as the sleep would be."""

    def __init__(self, seconds: float, rounds: int) -> None:
        self._seconds, self._rounds = seconds, rounds

    def load(self, algorithm: str, config: Mapping[str, Any]) -> float:
        """There are no features."""
        return 0.0

    def run(self, algorithm: str, config: Mapping[str, Any], **options: object) -> Iterator[TrialReport]:
        """One report at the end."""
        if self._rounds:
            matrix = np.random.default_rng(0).standard_normal((512, 512))
            for _ in range(self._rounds):
                matrix = np.tanh(matrix @ matrix / 512)
        else:
            time.sleep(self._seconds)
        value = float(np.random.default_rng(abs(hash(str(config))) % 2**32).uniform(0.5, 1))
        yield TrialReport(
            objective=value,
            validation=Metrics(image_auroc=value),
            by_kind={},
            swept={},
            variants=1,
            epochs_done=None,
            budget_limited=False,
            final=True,
            exact=False,
            latency_ms=None,
            peak_memory_mb=None,
            model_mb=0.0,
            scores=np.zeros(0, np.float32),
        )


@dataclasses.dataclass(frozen=True)
class SleepTask(TrialTask):
    """A task whose workers sleep."""

    sleep: float = 0.0
    rounds: int = 0

    def open_worker(self) -> Any:
        """A sleeper."""
        return Sleeper(self.sleep, self.rounds)


class Silent:
    """Hears everything and says nothing."""

    def started(self, row: TrialRow) -> None:
        """A trial begins."""

    def reported(self, row: TrialRow) -> None:
        """It was evaluated."""

    def finished(self, row: TrialRow) -> None:
        """It has ended."""


def search(trials: int, workers: int, sleep: float, rounds: int = 0) -> dict[str, float]:
    """Run a search of sleeping trials; how long it took, and what each cost beyond its sleep."""
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(data_dir=Path(folder))
        spaces = load_spaces(["dfm", "dfkde", "padim", "patchcore"])
        task = SleepTask(
            (), (), 1.0, settings.features_dir, choose_engine(), "float32", "image_auroc", {}, 0, True,
            sleep=sleep, rounds=rounds,
        )  # fmt: skip
        database = Database(settings)
        database.add_search("s", "s", "hash", {}, {}, owner=this_process())
        proposer = Proposer.open(study_storage(settings), "s", spaces, seed=0, liar=True)
        started = time.monotonic()
        with Lease(database, "s", 0.0, 60.0) as lease, local_ray(LocalWorkers(workers)):
            up = time.monotonic()
            dispatcher = Dispatcher(proposer, spaces, Budget(trials, None, workers), lease.write_trial, Silent())
            run_trials(
                dispatcher,
                task,
                LocalWorkers(workers),
                None,
                settings.searches_dir / "tune",
                SelectionScores(settings.searches_dir / "s"),
            )
            ended = time.monotonic()
        rows = sorted(database.trials("s"), key=lambda row: row.started_after or 0.0)
        database.close()
    assert len(rows) == trials
    assert all(row.status == "complete" for row in rows)
    first = min(row.started_after or 0.0 for row in rows)
    last = max(row.ended_after or 0.0 for row in rows)
    own = sleep if not rounds else statistics.median(row.seconds or 0.0 for row in rows)
    return {
        "seconds": ended - started,
        "ray up": up - started,
        "first trial after": first,
        "overhead per trial": (last - first) * workers / trials - own,
        "trial": statistics.median(row.seconds or 0.0 for row in rows),
    }


def main() -> None:
    """Print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--sleep", type=float, default=2.0, help="seconds of a trial")
    parser.add_argument("--speedup", type=int, help="compare two workers with one over so many trials that compute")
    parsed = parser.parse_args()
    if parsed.speedup is None:
        print(search(parsed.trials, parsed.workers, parsed.sleep))
        return
    started = time.perf_counter()
    next(Sleeper(0, 200).run("", {}))
    rounds = round(200 * parsed.sleep / (time.perf_counter() - started))
    times = {}
    for workers in (1, 2, 1, 2):
        figures = search(parsed.speedup, workers, 0.0, rounds)
        times.setdefault(workers, []).append(figures["seconds"] - figures["ray up"])
        print(workers, figures)
    print("speed-up of two workers:", statistics.median(times[1]) / statistics.median(times[2]))


if __name__ == "__main__":
    main()
