import math
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from ray.tune.search import Searcher

from autoad.schema import Metrics, TrialRow
from autoad.search.space import load_spaces
from autoad.search.tuning import AlgorithmLadders, Budget, StudySearcher


class Heard:
    def __init__(self) -> None:
        self.events: list[tuple[str, int]] = []

    def started(self, row: TrialRow) -> None:
        self.events.append(("started", row.trial))

    def reported(self, row: TrialRow) -> None:
        self.events.append(("reported", row.trial))

    def finished(self, row: TrialRow) -> None:
        self.events.append((row.status, row.trial))


class Bench:
    """A searcher on an in-memory study, with the rows that it committed."""

    def __init__(self, **budget: Any) -> None:
        self.spaces = load_spaces(["dfm", "stfpm"])
        self.study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))
        self.rows: dict[int, TrialRow] = {}
        self.told_at_commit: list[TrialState] = []
        self.heard = Heard()
        self.budget = Budget(**({"trials": None, "seconds": None, "workers": 2} | budget))
        self.searcher = StudySearcher(self.study, self.spaces, self.budget, self.commit, self.heard)

    def commit(self, row: TrialRow) -> None:
        if row.status != "running":
            self.told_at_commit.append(self.study.trials[row.trial].state)
        self.rows[row.trial] = row

    @staticmethod
    def result(objective: float, *, final: bool = True, epochs: int = 0) -> dict[str, Any]:
        report = {"report/validation/image_auroc": objective, "report/epochs_done": epochs or None}
        return {"objective": objective, "final": final, "done": final, "epochs_done": epochs} | report


def test_a_result_is_committed_before_the_study_hears_of_it() -> None:
    bench = Bench()
    bench.searcher.suggest("a")
    bench.searcher.on_trial_complete("a", bench.result(0.75))
    assert bench.told_at_commit == [TrialState.RUNNING]
    assert bench.study.trials[0].value == 0.75
    assert bench.rows[0].status == "complete"
    assert bench.rows[0].validation == Metrics(image_auroc=0.75)
    assert bench.heard.events == [("started", 0), ("complete", 0)]


def test_no_more_trials_than_workers_and_budget() -> None:
    bench = Bench(trials=3)
    assert isinstance(bench.searcher.suggest("a"), dict)
    assert isinstance(bench.searcher.suggest("b"), dict)
    assert bench.searcher.suggest("c") is None, "both workers are busy"
    bench.searcher.on_trial_complete("a", bench.result(0.5))
    assert isinstance(bench.searcher.suggest("c"), dict)
    bench.searcher.on_trial_complete("b", bench.result(0.5))
    assert bench.searcher.suggest("d") is None, "the last trial may yet have to be run again"
    bench.searcher.on_trial_complete("c", bench.result(0.5))
    assert bench.searcher.suggest("d") == Searcher.FINISHED
    assert len(bench.study.trials) == 3


def test_time_limits_new_trials_and_their_share() -> None:
    bench = Bench(seconds=100.0)
    suggestion = bench.searcher.suggest("a")
    assert suggestion is not None
    assert suggestion["seconds"] == pytest.approx(0.06 * 100 * 2, abs=0.1)
    bench.budget.started -= 95
    suggestion = bench.searcher.suggest("b")
    assert suggestion is not None
    assert suggestion["seconds"] == pytest.approx(5, abs=0.1), "no more than what is left"
    bench.searcher.on_trial_complete("a", bench.result(0.5))
    bench.budget.started -= 4
    assert bench.searcher.suggest("c") == Searcher.FINISHED


def test_the_first_five_are_measured_exactly() -> None:
    bench = Bench(workers=1)
    for number, value in enumerate([0.5, 0.6, 0.7, 0.8, 0.9]):
        suggestion = bench.searcher.suggest(str(number))
        assert suggestion is not None
        assert suggestion["exact_above"] == -math.inf
        bench.searcher.on_trial_complete(str(number), bench.result(value))
    suggestion = bench.searcher.suggest("6")
    assert suggestion is not None
    assert suggestion["exact_above"] == 0.5


def test_every_end_leaves_a_row_with_its_reason_and_nothing_running() -> None:
    bench = Bench(workers=9)
    for name in ("failed", "died", "pruned", "silent"):
        bench.searcher.suggest(name)
    bench.searcher.on_trial_complete("failed", {"objective": math.nan, "failure": "ValueError: boom", "final": True})
    bench.searcher.on_trial_complete("died", error=True)
    bench.searcher.on_trial_result("pruned", bench.result(0.6, final=False, epochs=3))
    bench.searcher.on_trial_complete("pruned", bench.result(0.6, final=False, epochs=3))
    bench.searcher.sweep()
    assert [(bench.rows[n].status, bench.rows[n].reason) for n in range(4)] == [
        ("failed", "ValueError: boom"),
        ("failed", "its process died, most likely out of memory"),
        ("pruned", None),
        ("stopped", "the search ended first"),
    ]
    assert [trial.state for trial in bench.study.trials] == [
        TrialState.FAIL,
        TrialState.FAIL,
        TrialState.PRUNED,
        TrialState.FAIL,
    ]
    assert bench.study.trials[2].value == 0.6, "what it had reached still informs the sampler"
    assert bench.rows[2].epochs_done == 3


class FakeTrial:
    def __init__(self, name: str, algorithm: str) -> None:
        self.trial_id = name
        self.config = {"algorithm": algorithm}


def test_each_algorithm_has_its_own_ladder() -> None:
    ladders = AlgorithmLadders(["stfpm", "cflow", "dfm"], lambda trial, death: None)

    def report(name: str, algorithm: str, objective: float, epochs: int) -> str:
        trial = FakeTrial(name, algorithm)
        ladders.on_trial_add(None, trial)
        return ladders.on_trial_result(None, trial, {"objective": objective, "epochs_done": epochs, "final": False})

    for number in range(3):
        assert report(f"good{number}", "stfpm", 0.9, 3) == "CONTINUE"
    assert report("weak flow", "cflow", 0.3, 3) == "CONTINUE", "the first on its ladder has nobody to be worse than"
    assert report("one pass", "dfm", 0.1, 0) == "CONTINUE"
    assert report("weak student", "stfpm", 0.3, 3) == "STOP"
