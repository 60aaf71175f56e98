"""Figures of the finished models: champion and default on the test pictures."""

from __future__ import annotations

import html
from typing import Any

import numpy as np
from sklearn.metrics import roc_curve

from autoad.report.figure import Figure, legend
from autoad.report.material import Material
from autoad.report.words import is_default, number, raw_score
from autoad.schema import TestMetrics

__all__ = ["comparison", "roc", "score_histogram"]

_BINS = 30
_LONGEST_LABEL = 22


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
            "legend": legend(),
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
            "legend": legend(),
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
        f"{raw_score(champion.threshold)}; below, each picture in a row for its label.",
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
            "legend": legend() | {"y": 1.07},
        },
        height,
    )
