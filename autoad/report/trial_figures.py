"""Figures of the trials: how the search went, and what a better score costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from autoad.algorithms import ALGORITHMS
from autoad.report.figure import Figure, legend, marker
from autoad.report.material import Material
from autoad.report.words import METRIC_TITLES
from autoad.schema import TrialRow

__all__ = ["history", "pareto", "pareto_rows"]

_ROUND = [digit * 10.0**power for power in range(-3, 6) for digit in (1, 2, 5)]


def _by_algorithm(rows: Sequence[TrialRow]) -> dict[str, list[TrialRow]]:
    return {name: found for name in ALGORITHMS if (found := [row for row in rows if row.algorithm == name])}


def _hover(row: TrialRow, value: float) -> str:
    lines = [f"<b>trial {row.trial}</b> {row.algorithm}", f"objective {value:.4f}"]
    if row.latency_ms is not None:
        lines.append(f"{row.latency_ms:.1f} ms a picture")
    if row.model_mb is not None:
        lines.append(f"{row.model_mb:.1f} MB model")
    if row.seconds is not None:
        lines.append(f"trial took {row.seconds:.1f} s")
    return "<br>".join(lines)


def history(material: Material) -> Figure | None:
    """Each trial's objective when it ended, and the best so far."""
    ended = [
        (row, value)
        for row in material.result.leaderboard
        if row.status in {"complete", "pruned"} and (value := material.objective(row)) is not None
    ]
    if not ended:
        return None
    timed = all(row.ended_after is not None for row, _ in ended)
    ended.sort(key=lambda item: (item[0].ended_after if timed else 0.0, item[0].trial))
    values = {row.trial: value for row, value in ended}
    long = timed and (ended[-1][0].ended_after or 0.0) > 180
    at = {
        row.trial: (row.ended_after or 0.0) / (60 if long else 1) if timed else float(place)
        for place, (row, _) in enumerate(ended, start=1)
    }
    data: list[dict[str, Any]] = []
    for name, rows in _by_algorithm([row for row, _ in ended]).items():
        symbol = marker(name)["symbol"]
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": name,
                "x": [at[row.trial] for row in rows],
                "y": [values[row.trial] for row in rows],
                "text": [_hover(row, values[row.trial]) + (" (pruned)" * (row.status == "pruned")) for row in rows],
                "hoverinfo": "text",
                "marker": marker(name, size=9, line={"width": 1.5, "color": marker(name)["color"]})
                | {"symbol": [symbol if row.status == "complete" else f"{symbol}-open" for row in rows]},
            }
        )
    best: list[tuple[float, float]] = []
    for row, value in ended:
        if row.status == "complete" and (not best or value > best[-1][1]):
            best.append((at[row.trial], value))
    if best:
        best.append((at[ended[-1][0].trial], best[-1][1]))
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": "best so far",
                "x": [x for x, _ in best],
                "y": [y for _, y in best],
                "line": {"shape": "hv", "width": 2.5, "color": "@text"},
                "hoverinfo": "skip",
            }
        )
    unit = ("minutes" if long else "seconds") if timed else "trials"
    title = METRIC_TITLES[material.result.objective]
    return Figure(
        "history",
        f"{title} on the selection pictures of {len(ended)} trials in the order in which they ended; "
        f"the best is {max(values.values()):.3f}.",
        data,
        {
            "xaxis": {"title": {"text": f"{unit} of search" if timed else "trials ended"}, "rangemode": "tozero"},
            "yaxis": {"title": {"text": f"{title} (selection)"}},
            "legend": legend(),
        },
        430,
    )


def _costs(material: Material) -> tuple[list[TrialRow], str | None]:
    """Finished trials whose latency is known, and the field that tells memory, if most of them have one."""
    rows = [row for row in material.complete if row.latency_ms is not None]
    for field in ("model_mb", "peak_memory_mb"):
        if rows and sum(getattr(row, field) is not None for row in rows) > len(rows) / 2:
            return [row for row in rows if getattr(row, field) is not None], field
    return rows, None


def pareto_rows(material: Material) -> list[TrialRow]:
    """The finished trials that no other beats in objective, latency and memory at once; fastest first."""
    rows, memory = _costs(material)
    points = np.array(
        [
            (-(material.objective(row) or 0.0), row.latency_ms or 0.0, getattr(row, memory) if memory else 0.0)
            for row in rows
        ]
    ).reshape(-1, 3)
    no_worse = (points[:, None] <= points[None]).all(axis=2)
    better = (points[:, None] < points[None]).any(axis=2)
    beaten = np.asarray((no_worse & better).any(axis=0))
    front = [row for row, is_beaten in zip(rows, beaten, strict=True) if not is_beaten]
    return sorted(front, key=lambda row: (row.latency_ms or 0.0, -(material.objective(row) or 0.0)))


def pareto(material: Material) -> Figure | None:
    """Objective beside latency, memory as the size of the mark; trials on the front are ringed."""
    rows, memory = _costs(material)
    if not rows:
        return None
    front = {row.trial for row in pareto_rows(material)}
    largest = max((getattr(row, memory) for row in rows), default=1.0) if memory else 1.0
    data = []
    for name, its in _by_algorithm(rows).items():
        sizes = [8 + 22 * math.sqrt(getattr(row, memory) / largest) if memory and largest > 0 else 10 for row in its]
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": name,
                "x": [row.latency_ms for row in its],
                "y": [material.objective(row) for row in its],
                "text": [
                    _hover(row, material.objective(row) or 0.0)
                    + ("<br>no other is better in all" if row.trial in front else "")
                    for row in its
                ],
                "hoverinfo": "text",
                "marker": marker(name, size=sizes, sizemode="diameter")
                | {
                    "opacity": [0.95 if row.trial in front else 0.45 for row in its],
                    "line": {
                        "width": [2 if row.trial in front else 0 for row in its],
                        "color": "@text",
                    },
                },
            }
        )
    title = METRIC_TITLES[material.result.objective]
    return Figure(
        "pareto",
        f"{title} beside latency of {len(rows)} finished trials; {len(front)} are on the Pareto front.",
        data,
        {
            "xaxis": {"title": {"text": "ms a picture (logarithmic)"}, "type": "log", "tickvals": _ROUND},
            "yaxis": {"title": {"text": f"{title} (selection)"}},
            "legend": legend() | {"itemsizing": "constant"},
        },
        430,
    )
