"""Ranking trials."""

from __future__ import annotations

from collections.abc import Sequence

from autoad.schema import Objective, TrialRow

__all__ = ["rank_trials"]

_ORDER = {"complete": 0, "pruned": 1, "running": 2, "stopped": 3, "failed": 4}


def rank_trials(rows: Sequence[TrialRow], objective: Objective) -> list[TrialRow]:
    """The rows, best first.

    Finished trials come before pruned ones, and those before the rest. Among them what the search maximises decides,
    then AUPRO, then latency, then the trial's number.
    """

    def key(row: TrialRow) -> tuple[float, float, float, float, int]:
        value = row.value(objective)
        quality = float("inf") if value is None else -value
        aupro = row.validation.aupro or 0.0
        latency = float("inf") if row.latency_ms is None else row.latency_ms
        return (_ORDER[row.status], quality, -aupro, latency, row.trial)

    return sorted(rows, key=key)
