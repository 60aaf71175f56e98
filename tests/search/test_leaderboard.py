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


def test_what_was_maximised_counts_before_the_metric() -> None:
    assert order(row(0, 0.8, objective=0.6), row(1, 0.7, objective=0.65), row(2, 0.63)) == [1, 2, 0]
