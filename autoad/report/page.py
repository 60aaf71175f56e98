"""From what a search left to one HTML file."""

from __future__ import annotations

import dataclasses
import json
import platform
import shlex
from importlib.metadata import version
from pathlib import Path
from typing import Any

import markupsafe
import plotly.offline

from autoad.algorithms import ALGORITHMS
from autoad.report import tables, trial_figures, verdict_figures, words
from autoad.report._html import packaged, templates, write_page
from autoad.report.gallery import gallery
from autoad.report.importances import ENOUGH, hyperparameters
from autoad.report.material import Material, gather
from autoad.schema import SearchResult
from autoad.settings import get_settings

__all__ = ["write_report"]

_PACKAGES = ("autoad", "optuna", "ray", "timm", "torch")


def write_report(result: SearchResult, output: Path | None = None, *, dataset: str = "") -> Path:
    """Write a search's report: one HTML file that needs no network.

    A search that was interrupted or has no champion gets a report of what there is.

    Args:
        result: the search with its leaderboard.
        output: the file; ``report.html`` in the search's folder by default.
        dataset: how the dataset is called for readers who are not to see where anything lies on this machine.

    Returns:
        The file.

    Raises:
        UsageError: the file cannot be written.
    """
    settings = get_settings()
    file = output or settings.searches_dir / result.search_id / "report.html"
    material = gather(result, settings)
    page = _render(material.for_others(dataset) if dataset else material)
    write_page(file, page, "report")
    return file


def _render(material: Material) -> str:
    result, champion = material.result, material.result.champion
    groups, heatmap_problem = gallery(material)
    told = hyperparameters(material)
    drawn = [
        figure
        for figure in (
            trial_figures.history(material),
            trial_figures.pareto(material),
            verdict_figures.comparison(material),
            verdict_figures.roc(material),
            verdict_figures.score_histogram(material),
            *(one.figure for one in told),
        )
        if figure is not None
    ]
    environment = templates()
    environment.filters |= {
        "number": words.number,
        "percent": words.percent,
        "quoted": shlex.quote,
        "raw_score": words.raw_score,
        "signed": words.signed,
        "duration": words.duration,
    }
    return environment.get_template("report.html.j2").render(
        result=result,
        champion=champion,
        manifest=material.manifest,
        answer=words.answer(material),
        caveats=words.caveats(material),
        is_default=champion is not None and words.is_default(champion),
        objective_title=words.METRIC_TITLES[result.objective],
        statuses=tables.statuses(result.leaderboard),
        origins=tables.origins(result.leaderboard),
        budget=words.budget(material.request),
        columns=tables.leaderboard_columns(result.leaderboard),
        algorithms=tables.algorithm_rows(material),
        measured={
            field: any(getattr(row, field) is not None for row in result.leaderboard)
            for field in ("model_mb", "peak_memory_mb")
        },
        metrics=tables.test_metrics(result),
        defects=tables.defect_rows(material),
        front=trial_figures.pareto_rows(material),
        groups=groups,
        heatmap_problem=heatmap_problem,
        hyperparameters=told,
        enough=ENOUGH,
        place={name: place for place, name in enumerate(ALGORITHMS)},
        command=words.repeat_command(material.request, result.seed),
        versions={"Python": platform.python_version()} | {name: version(name) for name in _PACKAGES},
        missing=material.missing,
        figures={figure.name: figure for figure in drawn},
        figures_json=_script_json({figure.name: dataclasses.asdict(figure) for figure in drawn}),
        plotly=_script(plotly.offline.get_plotlyjs()),
        style=packaged("report.css"),
        script=packaged("report.js"),
    )


def _script(source: str) -> markupsafe.Markup:
    """A library's script; nothing in it may end the element that holds it."""
    return markupsafe.Markup(source.replace("</script", "<\\/script"))  # noqa: S704 - the installed package's file


def _script_json(value: Any) -> markupsafe.Markup:
    """JSON that can stand in a script element, whatever its strings hold."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return markupsafe.Markup(text)  # noqa: S704 - no character of it is markup
