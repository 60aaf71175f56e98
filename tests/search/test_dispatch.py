import dataclasses
import math
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from autoad.schema import Metrics, TrialRow
from autoad.search.budget import Budget
from autoad.search.dispatch import Dispatcher
from autoad.search.jobs import Job, Strategy, Suggestion
from autoad.search.space import load_spaces
from autoad.search.study import Proposer

GIB = 2**30


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
    """A dispatcher on an in-memory study and a clock that stands still, with the rows that it committed."""

    def __init__(self, algorithms: tuple[str, ...] = ("dfm", "stfpm"), **options: Any) -> None:
        budget = {name: options.pop(name) for name in ("trials", "seconds", "patience", "timeout") if name in options}
        self.now = 0.0
        self.spaces = load_spaces(algorithms)
        self.study = optuna.create_study(direction="maximize")
        self.rows: dict[int, TrialRow] = {}
        self.told_at_commit: list[TrialState] = []
        self.heard = Heard()
        self.budget = Budget(
            budget.get("trials"), budget.get("seconds"), 2, budget.get("patience"), budget.get("timeout"),
            clock=lambda: self.now,
        )  # fmt: skip
        self.dispatcher = Dispatcher(
            Proposer(self.study, self.spaces, seed=0, liar=True),
            self.spaces,
            self.budget,
            self.commit,
            self.heard,
            **({"epochs": {"stfpm": 100}, "pictures": (20, 20)} | options),
        )

    def commit(self, row: TrialRow) -> None:
        if row.status != "running":
            self.told_at_commit.append(self.study.trials[row.trial].state)
        self.rows[row.trial] = row

    def job(self, worker: str = "a", **of: Any) -> Job:
        job = self.dispatcher.next_job(worker, **of)
        assert job is not None
        return job

    def complete(self, objective: float, worker: str = "a", *, seconds: float = 1.0, epochs: int | None = None) -> None:
        self.now += seconds
        self.report(objective, worker, epochs=epochs, final=True)

    def report(self, objective: float, worker: str, *, epochs: int | None = None, final: bool = False) -> bool:
        update = {"validation": {"image_auroc": objective}, "epochs_done": epochs}
        return self.dispatcher.report(worker, update, objective, final=final)


def test_a_result_is_committed_before_the_study_hears_of_it() -> None:
    bench = Bench()
    bench.job()
    bench.complete(0.75)
    assert bench.told_at_commit == [TrialState.RUNNING]
    assert bench.study.trials[0].value == 0.75
    assert bench.rows[0].status == "complete"
    assert bench.rows[0].validation == Metrics(image_auroc=0.75)
    assert (bench.rows[0].seconds, bench.rows[0].started_after, bench.rows[0].ended_after) == (1.0, 0.0, 1.0)
    assert bench.heard.events == [("started", 0), ("complete", 0)]


def test_no_more_trials_than_the_budget_has() -> None:
    bench = Bench(trials=3)
    for worker in ("a", "b", "c"):
        bench.job(worker)
    assert bench.dispatcher.next_job("d") is None
    assert not bench.dispatcher.finished
    for worker in ("a", "b", "c"):
        bench.complete(0.5, worker)
    assert bench.dispatcher.next_job("d") is None
    assert bench.dispatcher.finished
    assert len(bench.study.trials) == 3


def test_time_limits_new_trials_and_their_share() -> None:
    bench = Bench(seconds=100.0)
    assert bench.job("a").seconds == pytest.approx(0.06 * 100 * 2)
    bench.now = 95
    assert bench.job("b").seconds == pytest.approx(5), "no more than what is left"
    bench.now = 99
    assert bench.dispatcher.next_job("c") is None


def test_patience_ends_a_search_that_gets_no_better() -> None:
    bench = Bench(patience=3)
    for value in (0.5, 0.9, 0.8, 0.7):
        bench.job()
        bench.complete(value)
        assert not bench.dispatcher.finished
    bench.job()
    bench.complete(0.9)
    assert bench.dispatcher.finished, "three after the best, and an equal is no better"


def test_the_first_five_are_measured_exactly() -> None:
    bench = Bench()
    for value in (0.5, 0.6, 0.7, 0.8, 0.9):
        assert bench.job().exact_above == -math.inf
        bench.complete(value)
    assert bench.job().exact_above == 0.5


def test_every_end_leaves_a_row_with_its_reason_and_nothing_running() -> None:
    bench = Bench(("stfpm",))
    for worker in ("failed", "died", "pruned", "cut off", *"123"):
        bench.job(worker)
    bench.dispatcher.failed("failed", "ValueError: boom")
    bench.dispatcher.lost("died", "its process died")
    assert bench.rows[1].status == "running", "it gets another chance"
    assert bench.job("another").trial == 1
    bench.dispatcher.lost("another", "its process died")
    for worker in "123":
        assert bench.report(0.9, worker, epochs=3)
    assert not bench.report(0.2, "pruned", epochs=3), "not among the best third at this rung"
    bench.dispatcher.stop("the search ended first")
    assert [(bench.rows[n].status, bench.rows[n].reason) for n in range(4)] == [
        ("failed", "ValueError: boom"),
        ("failed", "its process died (2 times)"),
        ("pruned", None),
        ("stopped", "the search ended first"),
    ]
    assert bench.rows[1].attempts == 2
    states = [trial.state for trial in bench.study.trials]
    assert states == [TrialState.FAIL, TrialState.FAIL, TrialState.PRUNED, *[TrialState.FAIL] * 4]
    assert bench.study.trials[2].value == 0.2, "what it had reached still informs the sampler"
    assert bench.rows[2].epochs_done == 3


def test_another_attempt_begins_from_nothing() -> None:
    bench = Bench(("stfpm",))
    bench.job("a")
    assert bench.report(0.9, "a", epochs=3)
    bench.dispatcher.lost("a", "its process died")
    bench.job("b")
    assert (bench.rows[0].validation, bench.rows[0].epochs_done) == (Metrics(), None)
    assert bench.report(0.8, "b", epochs=3), "nor is Optuna told the same epoch twice, of which it would warn"
    bench.complete(0.7, "b", epochs=5)
    assert bench.study.trials[0].intermediate_values == {3: 0.9}


def test_without_ladders_nothing_is_pruned() -> None:
    bench = Bench(("stfpm",), strategy=Strategy(ladders=False))
    for worker in "123":
        bench.job(worker)
        assert bench.report(0.9, worker, epochs=3)
    bench.job("weak")
    assert bench.report(0.1, "weak", epochs=3)


def test_a_hanging_trial_is_overdue_and_not_tried_again() -> None:
    bench = Bench(timeout=50.0)
    bench.job()
    bench.now = 150
    assert bench.dispatcher.overdue() == [], "features are waited for four times as long"
    bench.dispatcher.loaded("a", 150.0)
    bench.now = 199
    assert bench.dispatcher.overdue() == []
    bench.now = 201
    assert bench.dispatcher.overdue() == ["a"]
    bench.dispatcher.lost("a", "its process died", hung=True)
    assert bench.rows[0].status == "failed"
    assert bench.rows[0].reason == "took longer than 50 s (--trial-timeout)"
    bench.job()
    bench.now = 402
    assert bench.dispatcher.overdue() == ["a"]
    bench.dispatcher.lost("a", "the node was lost")
    assert bench.rows[1].status == "running", "it did not hang, though it was late"


def test_queued_trials_come_first_and_keep_their_origin() -> None:
    queue = [Suggestion("default", "stfpm", {}), Suggestion("warm", "dfm", {"stage": 2, "pca_level": 0.95})]
    bench = Bench(queue=[Suggestion(s.origin, s.algorithm, s.config) for s in queue])
    assert bench.job().algorithm == "stfpm"
    bench.complete(0.5, epochs=2)
    job = bench.job()
    assert (job.algorithm, job.config["stage"], job.config["pca_level"]) == ("dfm", 2, 0.95)
    bench.complete(0.6)
    bench.job()
    assert [bench.rows[n].origin for n in range(3)] == ["default", "warm", "sampler"]


def test_time_goes_to_algorithms_by_promise() -> None:
    """PaDiM is as good as the best and ten times dearer than DFM; DFKDE is far behind."""
    quality = {"dfm": 0.9, "padim": 0.9, "dfkde": 0.5}
    cost = {"dfm": 1.0, "padim": 10.0, "dfkde": 1.0}
    bench = Bench(("dfm", "padim", "dfkde"))
    spent = dict.fromkeys(quality, 0.0)
    for _ in range(100):
        name = bench.job().algorithm
        spent[name] += cost[name]
        bench.complete(quality[name], seconds=cost[name])
    assert spent["padim"] / spent["dfm"] == pytest.approx(1.0, abs=0.3)
    assert 0 < spent["dfkde"] < 0.1 * spent["dfm"]


def test_nothing_begins_that_would_outlast_the_time() -> None:
    bench = Bench(("padim",), seconds=1000.0)
    bench.job()
    bench.complete(0.5, seconds=100.0)
    predicted = bench.rows[bench.job().trial].predicted_seconds
    assert predicted is not None
    assert 30 < predicted < 300
    bench.complete(0.5, seconds=predicted)
    bench.now = 970
    assert bench.dispatcher.next_job("a") is None, "30 s are left"
    assert bench.dispatcher.finished
    refused = [trial for trial in bench.study.trials if trial.state == TrialState.FAIL]
    assert refused
    assert all("would take" in trial.user_attrs["reason"] for trial in refused)
    assert len(bench.rows) == 2, "what never began has no row"


def test_nothing_is_tried_twice() -> None:
    bench = Bench(("dfm",))
    fixed = bench.spaces["dfm"].defaults()
    bench.spaces["dfm"] = dataclasses.replace(
        bench.spaces["dfm"],
        parameters=tuple(
            dataclasses.replace(parameter, type="fixed") if parameter.name != "pooling_kernel_size" else parameter
            for parameter in bench.spaces["dfm"].parameters
        ),
    )
    sizes = set()
    while (job := bench.dispatcher.next_job("a")) is not None:
        sizes.add(job.config["pooling_kernel_size"])
        assert job.config == fixed | {"pooling_kernel_size": job.config["pooling_kernel_size"]}
        bench.complete(0.5)
    assert len(sizes) == len(bench.rows) == 8, "each once, and each that there is"
    assert bench.dispatcher.finished
    assert bench.dispatcher.refusal == "nothing was proposed that had not been tried before"


def test_trials_side_by_side_fit_into_memory() -> None:
    bench = Bench(("dfm",), memory=lambda algorithm, config: 3 * GIB)
    first = bench.job("a", node="one", memory=8 * GIB)
    assert first.memory_limit == 4 * GIB, "half of it, for there are two workers"
    assert bench.job("b", node="one", memory=8 * GIB).memory_limit == 4 * GIB
    assert bench.dispatcher.next_job("c", node="one", memory=8 * GIB) is None, "nothing is left"
    elsewhere = bench.job("d", node="other", memory=8 * GIB)
    assert elsewhere.trial == 2, "the one that had to wait"
    bench.complete(0.5, "a")
    assert bench.job("c", node="one", memory=8 * GIB).memory_limit == 4 * GIB


def test_a_large_trial_waits_for_a_large_machine() -> None:
    needs = {"dfm": 9 * GIB, "padim": GIB}
    queue = [Suggestion("default", name, {}) for name in needs]
    bench = Bench(("dfm", "padim"), memory=lambda algorithm, config: needs[algorithm], queue=queue)
    bench.dispatcher.next_job("big", node="large", memory=64 * GIB)
    bench.dispatcher.stop("the search ended first")
    bench = Bench(("dfm", "padim"), memory=lambda algorithm, config: needs[algorithm], queue=[queue[1], *queue])
    assert bench.job("big", node="large", memory=64 * GIB).algorithm == "padim"
    assert bench.job("small", node="small", memory=8 * GIB).algorithm == "padim", "what fits goes first"
    bench.complete(0.5, "big")
    assert bench.job("big", node="large", memory=64 * GIB).algorithm == "dfm"
    assert {row.status for row in bench.rows.values()} == {"complete", "running"}, "nothing was refused"


def test_with_many_workers_training_ends_before_it_hangs_and_is_not_refused() -> None:
    bench = Bench(("stfpm",), seconds=984.0)
    bench.dispatcher.resize(8)
    share = bench.job().seconds
    assert share is not None
    assert share < bench.budget.trial_timeout()
    bench.complete(0.5, seconds=200.0, epochs=3)
    assert bench.job().algorithm == "stfpm"
    short = Bench(("stfpm",), seconds=984.0, timeout=60.0)
    assert (short.job().seconds or math.inf) < 60


def test_refused_defaults_do_not_end_a_search() -> None:
    names = ("dfm", "padim", "patchcore", "dfkde", "stfpm")
    bench = Bench(
        names,
        memory=lambda algorithm, config: GIB if algorithm == "stfpm" else 9 * GIB,
        queue=[Suggestion("default", name, {}) for name in names],
    )
    assert bench.job("a", node="one", memory=8 * GIB).algorithm == "stfpm"
    assert sorted(row.status for row in bench.rows.values()) == ["failed"] * 4 + ["running"]


def test_a_trial_that_no_memory_would_hold_never_begins() -> None:
    bench = Bench(("dfm",), memory=lambda algorithm, config: 9 * GIB, queue=[Suggestion("default", "dfm", {})])
    assert bench.dispatcher.next_job("a", node="one", memory=8 * GIB) is None
    assert bench.rows[0].status == "failed"
    assert "9.0 GiB of memory and the machine has 8.0 GiB" in (bench.rows[0].reason or "")
    assert bench.dispatcher.finished


def test_out_of_memory_is_tried_again_once_and_alone() -> None:
    bench = Bench(("dfm",))
    bench.job("a", node="one")
    bench.job("b", node="one")
    bench.dispatcher.failed("a", "out of memory", out_of_memory=True)
    assert bench.dispatcher.next_job("a", node="one") is None, "b is still running"
    bench.complete(0.5, "b")
    assert bench.job("a", node="one").trial == 0
    assert bench.dispatcher.next_job("b", node="one") is None, "the first is to be alone"
    bench.dispatcher.failed("a", "out of memory", out_of_memory=True)
    assert (bench.rows[0].status, bench.rows[0].attempts) == ("failed", 2)
    bench.job("a", node="one")
    bench.dispatcher.failed("a", "out of memory", out_of_memory=True)
    assert (bench.rows[2].status, bench.rows[2].attempts) == ("failed", 1), "it had all that there is"


def test_a_resumed_search_counts_what_had_ended() -> None:
    default = load_spaces(["dfm"])["dfm"].defaults()
    ended = TrialRow(
        trial=0, algorithm="dfm", config={}, proposed=default, status="complete", seconds=5.0, started_after=0.0
    )
    known = [
        ended.model_copy(update={"validation": Metrics(image_auroc=0.8)}),
        TrialRow(trial=1, algorithm="stfpm", config={}, status="stopped", seconds=5.0),
    ]
    bench = Bench(known=known, trials=2)
    bench.study.add_trials([optuna.create_trial(state=TrialState.FAIL)] * 2)
    bench.job()
    assert bench.dispatcher.next_job("b") is None, "one had ended, one is running"
    assert bench.rows[2].algorithm == "stfpm", "which has had no time yet"


def test_a_resumed_search_tries_nothing_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows come back from the database with lists where the sampler gives tuples."""
    default = load_spaces(["padim"])["padim"].defaults()
    ended = TrialRow(
        trial=0, algorithm="padim", config=default, proposed=default, status="failed", seconds=5.0, started_after=0.0
    )
    sample = Proposer.ask
    monkeypatch.setattr(Proposer, "ask", lambda self, algorithm, config, **_: sample(self, "padim", default))
    assert Bench(("padim",)).dispatcher.next_job("a") is not None
    bench = Bench(("padim",), known=[TrialRow.model_validate_json(ended.model_dump_json())])
    assert bench.dispatcher.next_job("a") is None


def test_a_resumed_ladder_is_the_one_that_was_interrupted() -> None:
    """What a trial reached at each rung counts, not what it ended with."""
    known = [
        TrialRow(
            trial=number, algorithm="stfpm", config={}, proposed={"number": number}, status="complete", seconds=9.0,
            started_after=0.0, validation=Metrics(image_auroc=0.95), epochs_done=12, curve={3: 0.9, 9: 0.93, 12: 0.95},
        )
        for number in range(3)
    ]  # fmt: skip
    bench = Bench(("stfpm",), known=known)
    bench.study.add_trials([optuna.create_trial(state=TrialState.FAIL)] * 3)
    bench.job()
    assert bench.report(0.92, "a", epochs=3), "better than they were after three epochs"
    assert not bench.report(0.92, "a", epochs=9)
