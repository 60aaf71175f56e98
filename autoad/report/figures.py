"""The report's figures as Plotly's JSON; the page draws them.

A colour is the name of one of the page's CSS variables (``@text`` for ``--text``), so that a figure follows the
reader's light or dark theme. Text that comes from the dataset is escaped, because Plotly reads HTML tags in labels.
"""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.metrics import roc_curve

from autoad.algorithms import ALGORITHMS
from autoad.report.material import Material
from autoad.report.words import METRIC_TITLES, is_default, number
from autoad.schema import TestMetrics, TrialRow

__all__ = ["Figure", "comparison", "history", "pareto", "pareto_rows", "roc", "score_histogram"]

_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "hexagon")
_ROUND = [digit * 10.0**power for power in range(-3, 6) for digit in (1, 2, 5)]
_BINS = 30
_LONGEST_LABEL = 22


@dataclasses.dataclass(frozen=True)
class Figure:
    """One figure.

    Attributes:
        name: its id on the page.
        label: what it shows, for those who cannot see it.
        data: Plotly's traces.
        layout: Plotly's layout, without colours and fonts that the page sets.
        height: in pixels.
        narrowest: width below which it scrolls rather than shrinks, in pixels; 0 for none.
    """

    name: str
    label: str
    data: list[dict[str, Any]]
    layout: dict[str, Any]
    height: int
    narrowest: int = 0


def _marker(algorithm: str, **more: Any) -> dict[str, Any]:
    """Colour and shape of an algorithm: the same in all figures, and told apart without colours."""
    place = ALGORITHMS.index(algorithm) if algorithm in ALGORITHMS else len(ALGORITHMS)
    return {"color": f"@algorithm-{place % 8}", "symbol": _SYMBOLS[place % len(_SYMBOLS)]} | more


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


def _legend() -> dict[str, Any]:
    return {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom", "title": {"text": ""}}


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
        symbol = _marker(name)["symbol"]
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": name,
                "x": [at[row.trial] for row in rows],
                "y": [values[row.trial] for row in rows],
                "text": [_hover(row, values[row.trial]) + (" (pruned)" * (row.status == "pruned")) for row in rows],
                "hoverinfo": "text",
                "marker": _marker(name, size=9, line={"width": 1.5, "color": _marker(name)["color"]})
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
            "legend": _legend(),
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
                "marker": _marker(name, size=sizes, sizemode="diameter")
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
            "legend": _legend() | {"itemsizing": "constant"},
        },
        430,
    )


def comparison(material: Material) -> Figure | None:
    """Champion and default on the test pictures, with intervals."""
    champion = material.result.champion
    if champion is None or champion.test.image_auroc is None:
        return None
    compared: list[tuple[str, TestMetrics, dict[str, Any]]] = [
        ("champion", champion.test, {"color": "@accent", "symbol": "circle"})
    ]
    if champion.default_patchcore is not None and not is_default(champion):
        compared.append(("default PatchCore", champion.default_patchcore, {"color": "@muted", "symbol": "square"}))
    data = []
    for place, (name, metrics, marker) in enumerate(compared):
        shown = [
            (field, value)
            for field in ("image_auroc", "pixel_auroc", "aupro")
            if (value := getattr(metrics, field)) is not None
        ]
        ends = [
            (getattr(metrics, f"{field}_low") or value, getattr(metrics, f"{field}_high") or value)
            for field, value in shown
        ]
        shift = 0.14 if len(compared) > 1 else 0.0
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": name,
                "x": [value for _, value in shown],
                "y": [
                    -("image_auroc", "pixel_auroc", "aupro").index(field) + (shift if place == 0 else -shift)
                    for field, _ in shown
                ],
                "text": [
                    f"{name}<br>{value:.3f} [{low:.3f}, {high:.3f}]"
                    for (_, value), (low, high) in zip(shown, ends, strict=True)
                ],
                "hoverinfo": "text",
                "error_x": {
                    "type": "data",
                    "symmetric": False,
                    "array": [high - value for (_, value), (_, high) in zip(shown, ends, strict=True)],
                    "arrayminus": [value - low for (_, value), (low, _) in zip(shown, ends, strict=True)],
                    "color": marker["color"],
                    "thickness": 2,
                    "width": 5,
                },
                "marker": marker | {"size": 11},
            }
        )
    used = sorted({round(y) for trace in data for y in trace["y"]})
    titles = ["image AUROC", "pixel AUROC", "AUPRO"]
    return Figure(
        "comparison",
        "Test metrics with 95 % intervals: "
        + "; ".join(f"{name} image AUROC {number(metrics.image_auroc)}" for name, metrics, _ in compared),
        data,
        {
            "xaxis": {"title": {"text": "test metric with 95 % interval"}},
            "yaxis": {
                "tickvals": used,
                "ticktext": [titles[-place] for place in used],
                "zeroline": False,
                "showgrid": False,
                "range": [min(used) - 0.5, 0.5],
                "automargin": True,
            },
            "legend": _legend(),
        },
        120 + 62 * len(used),
    )


def roc(material: Material) -> Figure | None:
    """ROC curves on the test pictures, with the point at which the threshold works."""
    models = [("champion", "@accent", "solid")]
    champion = material.result.champion
    if champion is not None and not is_default(champion):
        models.append(("default_patchcore", "@muted", "dash"))
    data: list[dict[str, Any]] = []
    points: list[str] = []
    for model, colour, dash in models:
        scores = material.scores_of(model, "test")
        defective = np.array([score.label != "good" for score in scores], dtype=bool)
        if defective.all() or not defective.any():
            continue
        false, true, _ = roc_curve(defective, [score.score for score in scores], drop_intermediate=False)
        flagged = np.array([score.is_anomalous for score in scores])
        name = model.replace("_patchcore", " PatchCore")
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": name,
                "x": false.tolist(),
                "y": true.tolist(),
                "line": {"color": colour, "width": 2.5, "dash": dash},
                "hovertemplate": "false alarms %{x:.1%}<br>found %{y:.1%}<extra></extra>",
            }
        )
        at = float(flagged[~defective].mean()), float(flagged[defective].mean())
        points.append(f"{name} finds {at[1]:.1%} with {at[0]:.1%} false alarms at its threshold")
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": f"{name} at its threshold",
                "showlegend": model == "champion",
                "x": [at[0]],
                "y": [at[1]],
                "marker": {"color": colour, "size": 12, "symbol": "diamond", "line": {"width": 2, "color": "@surface"}},
                "hovertemplate": "threshold<br>false alarms %{x:.1%}<br>found %{y:.1%}<extra></extra>",
            }
        )
    if not data:
        return None
    share = {"range": [-0.02, 1.02], "tickformat": ".0%", "dtick": 0.25}
    return Figure(
        "roc",
        "ROC curve on the test pictures: " + "; ".join(points),
        data,
        {
            "xaxis": {"title": {"text": "good pictures flagged"}} | share,
            "yaxis": {"title": {"text": "defective pictures found"}} | share,
            "legend": _legend(),
        },
        400,
    )


def _shortened(label: str) -> str:
    short = label if len(label) <= _LONGEST_LABEL else f"{label[: _LONGEST_LABEL - 1]}…"
    return html.escape(short)


def score_histogram(material: Material) -> Figure | None:
    """How the champion scores good and defective test pictures, and below each picture in the row of its label."""
    champion, tested = material.result.champion, material.scores_of("champion", "test")
    if champion is None or not tested:
        return None
    calibration = material.scores_of("champion", "calibration")
    groups: list[tuple[str, list[float], str]] = [
        ("good", [score.score for score in tested if score.label == "good"], "@good"),
        ("defective", [score.score for score in tested if score.label != "good"], "@bad"),
    ]
    all_scores = [score.score for score in (*tested, *calibration)]
    edges = np.linspace(min(all_scores), max(all_scores) or 1.0, _BINS + 1)
    if edges[0] == edges[-1]:
        edges = np.linspace(edges[0] - 0.5, edges[0] + 0.5, _BINS + 1)
    middles, width = ((edges[1:] + edges[:-1]) / 2).tolist(), float(edges[1] - edges[0])
    data: list[dict[str, Any]] = [
        {
            "type": "bar",
            "name": f"{name} ({len(values)})",
            "x": middles,
            "y": np.histogram(values, edges)[0].tolist(),
            "width": width,
            "marker": {"color": colour, "line": {"width": 0}},
            "opacity": 0.75,
            "hovertemplate": f"{name}: %{{y}} around %{{x:.4g}}<extra></extra>",
        }
        for name, values, colour in groups
        if values
    ]
    labels = sorted({score.label for score in tested} - {"good"})
    rows = [("calibration", calibration, "@muted"), ("good", [s for s in tested if s.label == "good"], "@good")]
    rows += [(label, [s for s in tested if s.label == label], "@bad") for label in labels]
    rows = [row for row in rows if row[1]]
    for place, (name, its, colour) in enumerate(rows):
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": _shortened(name),
                "showlegend": False,
                "x": [score.score for score in its],
                "y": [-place] * len(its),
                "yaxis": "y2",
                "text": [html.escape(score.path.replace("\\", "/").rsplit("/", 1)[-1]) for score in its],
                "hovertemplate": "%{text}<br>score %{x:.5g}<extra></extra>",
                "marker": {"color": colour, "size": 13, "symbol": "line-ns", "line": {"width": 2, "color": colour}},
            }
        )
    below = 24 * len(rows)
    height = 300 + below
    share = below / (height - 110)
    return Figure(
        "scores",
        f"Histogram of the champion's scores of {len(tested)} test pictures with the threshold "
        f"{champion.threshold:.4g}; below, each picture in a row for its label.",
        data,
        {
            "barmode": "overlay",
            "xaxis": {"title": {"text": "score of a picture"}, "anchor": "y2"},
            "yaxis": {"title": {"text": "pictures"}, "domain": [share + 0.05, 1], "rangemode": "tozero"},
            "yaxis2": {
                "domain": [0, share],
                "tickvals": [-place for place in range(len(rows))],
                "ticktext": [_shortened(name) for name, _, _ in rows],
                "range": [-len(rows) + 0.4, 0.6],
                "zeroline": False,
                "automargin": True,
            },
            "shapes": [
                {
                    "type": "line",
                    "x0": champion.threshold,
                    "x1": champion.threshold,
                    "y0": 0,
                    "y1": 1,
                    "yref": "paper",
                    "line": {"color": "@text", "width": 2, "dash": "dot"},
                }
            ],
            "annotations": [
                {
                    "x": champion.threshold,
                    "y": 1,
                    "yref": "paper",
                    "yanchor": "bottom",
                    "text": "threshold",
                    "showarrow": False,
                }
            ],
            "legend": _legend() | {"y": 1.07},
        },
        height,
    )
