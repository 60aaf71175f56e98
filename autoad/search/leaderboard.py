"""Ranking trials."""

from __future__ import annotations

from collections.abc import Sequence

from autoad.evaluation import average_ranks
from autoad.schema import Objective, TrialRow

__all__ = ["rank_trials"]

_ORDER = {"complete": 0, "pruned": 1, "running": 2, "stopped": 3, "failed": 4}


def rank_trials(rows: Sequence[TrialRow], objective: Objective) -> list[TrialRow]:
    """The rows, best first.

    Finished trials come before pruned ones, and those before the rest. Among them the objective decides, then AUPRO,
    then latency, then the trial's number. Where synthetic defects selected by image AUROC, the average over their
    kinds of a trial's rank takes the objective's place, so that no kind decides by its spread.
    """
    ranks: dict[int, float] = {}
    if objective == "image_auroc":
        kinds = {row.trial: row.by_kind for row in rows if row.by_kind and row.status == "complete"}
        ranks = average_ranks(kinds) if kinds else {}

    def key(row: TrialRow) -> tuple[float, float, float, float, int]:
        value = getattr(row.validation, objective)
        quality = ranks[row.trial] if row.trial in ranks else (float("inf") if value is None else -value)
        aupro = row.validation.aupro or 0.0
        latency = float("inf") if row.latency_ms is None else row.latency_ms
        return (_ORDER[row.status], quality, -aupro, latency, row.trial)

    return sorted(rows, key=key)
