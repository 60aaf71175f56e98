"""The report's tables as records that the template lays out."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence

from autoad.algorithms import ALGORITHMS
from autoad.report import words
from autoad.report.material import Material
from autoad.schema import Metrics, SearchResult, TestMetrics, TrialRow, TrialStatus

__all__ = ["Column", "algorithm_rows", "defect_rows", "leaderboard_columns", "origins", "statuses", "test_metrics"]

_STATUSES: tuple[TrialStatus, ...] = ("complete", "pruned", "stopped", "failed", "running")


def statuses(rows: Sequence[TrialRow]) -> list[tuple[str, int]]:
    """How many trials ended in which way."""
    counts = Counter(row.status for row in rows)
    return [(status, counts[status]) for status in _STATUSES if counts[status]]


@dataclasses.dataclass(frozen=True)
class AlgorithmRow:
    """One row of the table of algorithms; figures are those of its best finished trial."""

    name: str
    statuses: list[tuple[str, int]]
    seconds: float
    best: TrialRow | None
    objective: float | None


def algorithm_rows(material: Material) -> list[AlgorithmRow]:
    """The algorithms that were tried, best first."""
    table = []
    for name in ALGORITHMS:
        rows = [row for row in material.result.leaderboard if row.algorithm == name]
        if rows:
            best = next((row for row in material.complete if row.algorithm == name), None)
            spent = sum(row.seconds or 0.0 for row in rows)
            objective = None if best is None else material.objective(best)
            table.append(AlgorithmRow(name, statuses(rows), spent, best, objective))
    return sorted(table, key=lambda row: -1.0 if row.objective is None else row.objective, reverse=True)


def test_metrics(result: SearchResult) -> list[tuple[str, list[tuple[str, str]]]]:
    """Title of each metric on the test pictures, and the figure and interval of champion and default."""
    if result.champion is None:
        return []
    test, default = result.champion.test, result.champion.default_patchcore

    def tell(metrics: TestMetrics | None, field: str) -> tuple[str, str]:
        value, low, high = (getattr(metrics, field + end, None) for end in ("", "_low", "_high"))
        return words.number(value), words.interval(low, high)

    shown = [test] if words.is_default(result.champion) else [test, default]
    return [
        (title, [tell(metrics, field) for metrics in shown])
        for field, title in words.METRIC_TITLES.items()
        if getattr(test, field) is not None
    ]


@dataclasses.dataclass(frozen=True)
class DefectRow:
    """One row of the table of defects: found, of how many, by the champion and by the default."""

    label: str
    found: int | None
    total: int | None
    metrics: Metrics
    default_found: int | None
    default: Metrics | None


def defect_rows(material: Material) -> list[DefectRow]:
    """The types of defects among the test pictures, hardest first."""
    champion = material.result.champion
    if champion is None:
        return []
    its, others = words.found(material), words.found(material, "default_patchcore")
    default = champion.default_patchcore
    table = []
    for label, metrics in champion.test.by_defect.items():
        found, total = its.get(label, (None, None))
        table.append(
            DefectRow(
                label,
                found,
                total,
                metrics,
                others.get(label, (None, None))[0],
                None if default is None else default.by_defect.get(label),
            )
        )
    return sorted(table, key=lambda row: (row.metrics.image_auroc or 0.0, row.label))


def origins(rows: Sequence[TrialRow]) -> list[tuple[str, int]]:
    """How many trials were proposed by whom."""
    counts = Counter(row.origin for row in rows)
    titles = {"default": "defaults", "warm": "earlier searches", "sampler": "the sampler"}
    return [(title, counts[origin]) for origin, title in titles.items() if counts[origin]]  # type: ignore[index]


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of the leaderboard: a figure with so many digits, or text where ``digits`` is None."""

    title: str
    digits: int | None
    value: Callable[[TrialRow], float | str | None]


def leaderboard_columns(rows: Sequence[TrialRow]) -> list[Column]:
    """What the leaderboard tells of each trial; a column that would be empty is left out."""
    columns = [
        Column("Image AUROC", 3, lambda row: row.validation.image_auroc),
        Column("Image AUPR", 3, lambda row: row.validation.image_aupr),
        Column("Best F1", 3, lambda row: row.validation.image_f1_max),
        Column("Pixel AUROC", 3, lambda row: row.validation.pixel_auroc),
        Column("AUPRO", 3, lambda row: row.validation.aupro),
        Column("ms", 1, lambda row: row.latency_ms),
        Column("Model MB", 1, lambda row: row.model_mb),
        Column("Peak MB", 0, lambda row: row.peak_memory_mb),
        Column("Seconds", 1, lambda row: row.seconds),
        Column("Expected s", 1, lambda row: row.predicted_seconds),
        Column("Epochs", 0, lambda row: row.epochs_done),
        Column("Settings", 0, lambda row: row.variants if row.variants > 1 else None),
        Column("Attempts", 0, lambda row: row.attempts if row.attempts > 1 else None),
        Column("Proposed by", None, lambda row: row.origin),
        Column("Machine", None, lambda row: row.node),
        Column("Configuration", None, _config),
    ]
    return [column for column in columns if any(column.value(row) is not None for row in rows)]


def _config(row: TrialRow) -> str:
    """A configuration in one line."""
    parts = []
    for key, value in row.config.items():
        if isinstance(value, float):
            value = f"{value:.4g}"
        elif isinstance(value, list):
            value = "+".join(map(str, value))
        parts.append(f"{key} {value}")
    return ", ".join(parts)
