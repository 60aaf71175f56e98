from typing import Any

from autoad.schema import Metrics, TrialRow
from autoad.search.leaderboard import rank_trials


def row(number: int, auroc: float | None = None, status: str = "complete", **fields: Any) -> TrialRow:
    metrics = Metrics(image_auroc=auroc, aupro=fields.pop("aupro", None))
    return TrialRow(trial=number, algorithm="dfm", config={}, status=status, validation=metrics, **fields)


def order(*rows: TrialRow) -> list[int]:
    return [row.trial for row in rank_trials(rows, "image_auroc")]


def test_finished_before_pruned_before_failed() -> None:
    assert order(row(0, status="failed"), row(1, 0.99, "pruned"), row(2, 0.5), row(3, 0.6)) == [3, 2, 1, 0]


def test_ties_fall_to_aupro_then_latency_then_number() -> None:
    assert order(row(0, 0.9, aupro=0.5), row(1, 0.9, aupro=0.6)) == [1, 0]
    assert order(row(0, 0.9, latency_ms=9.0), row(1, 0.9, latency_ms=8.0)) == [1, 0]
    assert order(row(1, 0.9), row(0, 0.9)) == [0, 1]


def test_synthetic_kinds_are_ranked_one_by_one() -> None:
    """Trial 0 has the better mean by being far better at one kind; trial 1 is better at two of three."""
    wide = row(0, 0.8, by_kind={"cutpaste": 1.0, "perlin": 0.70, "scratch": 0.70})
    steady = row(1, 0.7, by_kind={"cutpaste": 0.6, "perlin": 0.72, "scratch": 0.72})
    assert order(wide, steady) == [1, 0]


def test_another_objective_is_not_ranked_by_kind() -> None:
    rows = [
        TrialRow(
            trial=0, algorithm="dfm", config={}, status="complete", by_kind={"a": 1.0}, validation=Metrics(aupro=0.1)
        ),
        TrialRow(
            trial=1, algorithm="dfm", config={}, status="complete", by_kind={"a": 0.0}, validation=Metrics(aupro=0.2)
        ),
    ]
    assert [r.trial for r in rank_trials(rows, "aupro")] == [1, 0]
