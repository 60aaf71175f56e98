from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest

from autoad.report import trial_figures, verdict_figures
from autoad.report.importances import hyperparameters
from autoad.report.material import Material, gather
from autoad.settings import get_settings
from tests.report.conftest import Made, rows_of


@pytest.fixture
def material(made: Made) -> Material:
    return gather(made(), get_settings())


def coloured(value: Any) -> Any:
    """Plotly's own validators know nothing of the page's colours."""
    if isinstance(value, str):
        return "red" if value.startswith("@") else value
    if isinstance(value, list):
        return [coloured(one) for one in value]
    return {key: coloured(one) for key, one in value.items()} if isinstance(value, dict) else value


def test_plotly_accepts_every_figure(material: Material) -> None:
    drawn = [
        trial_figures.history(material),
        trial_figures.pareto(material),
        verdict_figures.comparison(material),
        verdict_figures.roc(material),
        verdict_figures.score_histogram(material),
        *(told.figure for told in hyperparameters(material)),
    ]
    for figure in drawn:
        assert figure is not None
        go.Figure(coloured(figure.data), coloured(figure.layout))
        assert figure.label


def test_the_best_so_far_is_the_running_maximum(made: Made) -> None:
    rows = [row.model_copy(update={"ended_after": 10.0 * (40 - row.trial)}) for row in rows_of(40)]
    material = gather(made(rows=rows), get_settings())
    figure = trial_figures.history(material)
    assert figure is not None
    line = next(trace for trace in figure.data if trace["name"] == "best so far")
    ended = sorted((row.ended_after or 0, row.validation.image_auroc) for row in rows if row.status == "complete")
    running = np.maximum.accumulate([value for _, value in ended])
    steps = [(at / 60, best) for (at, value), best in zip(ended, running, strict=True) if value == best]
    np.testing.assert_allclose(list(zip(line["x"], line["y"], strict=True))[:-1], steps)
    points = sum(len(trace["x"]) for trace in figure.data if trace["mode"] == "markers")
    assert points == sum(row.status != "failed" for row in rows)


def test_older_rows_without_times_are_drawn_by_number(material: Material) -> None:
    figure = trial_figures.history(material)
    assert figure is not None
    xs = sorted(x for trace in figure.data if trace["mode"] == "markers" for x in trace["x"])
    assert xs == list(range(1, len(xs) + 1))


@pytest.mark.parametrize("memory", [None, "model_mb", "peak_memory_mb"])
def test_the_pareto_front_is_what_nothing_beats(made: Made, memory: str | None) -> None:
    rng = np.random.default_rng(1)
    rows = rows_of(60)
    if memory:
        rows = [row.model_copy(update={memory: float(rng.uniform(1, 9))}) for row in rows]
    material = gather(made(rows=rows), get_settings())

    def cost(row: Any) -> tuple[float, float, float]:
        return -row.validation.image_auroc, row.latency_ms, getattr(row, memory) if memory else 0.0

    finished = [row for row in rows if row.status == "complete"]
    front = {
        row.trial
        for row in finished
        if not any(
            all(a <= b for a, b in zip(cost(other), cost(row), strict=True)) and cost(other) != cost(row)
            for other in finished
        )
    }
    assert {row.trial for row in trial_figures.pareto_rows(material)} == front
    assert 1 < len(front) < len(finished)


def test_curve_and_histogram_are_those_of_the_scores(material: Material) -> None:
    champion = material.result.champion
    assert champion is not None
    roc, histogram = verdict_figures.roc(material), verdict_figures.score_histogram(material)
    assert roc is not None
    assert histogram is not None
    line, mark = roc.data[0], roc.data[1]
    assert np.trapezoid(line["y"], line["x"]) == pytest.approx(champion.test.image_auroc)
    assert mark["x"] == [champion.test.false_positive_rate]
    tested = material.scores_of("champion", "test")
    bars = {trace["name"]: trace for trace in histogram.data if trace["type"] == "bar"}
    assert sum(bars["good (15)"]["y"]) == sum(bars["defective (15)"]["y"]) == 15
    for bar, labels in ((bars["good (15)"], {"good"}), (bars["defective (15)"], {"scratch"})):
        middle = np.average(bar["x"], weights=bar["y"])
        mean = np.mean([score.score for score in tested if score.label in labels])
        assert middle == pytest.approx(mean, abs=bar["width"] / 2)
    assert histogram.layout["shapes"][0]["x0"] == champion.threshold


def test_importances_are_told_of_the_algorithm_alone_and_find_what_decides(material: Material) -> None:
    (told,) = hyperparameters(material)
    assert (told.algorithm, told.trials) == ("padim", 15)
    assert list(told.importances) == ["decides", "idle"]
    assert told.importances["decides"] > 0.8
    assert sum(told.importances.values()) == pytest.approx(1)
