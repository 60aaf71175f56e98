"""Rows as the flat names and numbers that trackers know."""

from __future__ import annotations

from autoad.schema import Objective, TrialRow

__all__ = ["metrics", "parameters"]


def metrics(row: TrialRow, objective: Objective) -> dict[str, float]:
    """The objective and every other number that was measured, by name."""
    named: dict[str, float | None] = {"objective": getattr(row.validation, objective)}
    named |= row.validation.model_dump()
    named |= {f"image_auroc_{kind}": value for kind, value in row.by_kind.items()}
    named |= {"seconds": row.seconds, "latency_ms": row.latency_ms, "peak_memory_mb": row.peak_memory_mb}
    return {name: float(value) for name, value in named.items() if value is not None}


def parameters(row: TrialRow) -> dict[str, bool | float | str]:
    """The algorithm and its configuration; what is neither number nor truth value is written as text."""
    flat: dict[str, bool | float | str] = {"algorithm": row.algorithm}
    for name, value in row.config.items():
        flat[name] = value if isinstance(value, bool | int | float | str) else str(value)
    return flat
