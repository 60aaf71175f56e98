"""From what a search left to one HTML file."""

from __future__ import annotations

import dataclasses
import json
import platform
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
import markupsafe
import plotly.offline

from autoad.algorithms import ALGORITHMS
from autoad.errors import UsageError
from autoad.models.artifact import write_atomically
from autoad.report import figures, words
from autoad.report.gallery import gallery
from autoad.report.importances import ENOUGH, hyperparameters
from autoad.report.material import Material, gather
from autoad.schema import Metrics, SearchResult, TestMetrics, TrialRow, TrialStatus
from autoad.settings import get_settings

__all__ = ["write_report"]

_PACKAGES = ("autoad", "optuna", "ray", "timm", "torch")
_STATUSES: tuple[TrialStatus, ...] = ("complete", "pruned", "stopped", "failed", "running")


def write_report(result: SearchResult, output: Path | None = None) -> Path:
    """Write a search's report: one HTML file that needs no network.

    A search that was interrupted or has no champion gets a report of what there is.

    Args:
        result: the search with its leaderboard.
        output: the file; ``report.html`` in the search's folder by default.

    Returns:
        The file.

    Raises:
        UsageError: the file cannot be written.
    """
    settings = get_settings()
    file = output or settings.searches_dir / result.search_id / "report.html"
    page = _render(gather(result, settings))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, page.encode())
    except OSError as error:
        raise UsageError(
            f"cannot write the report to {str(file)!r} ({error.strerror}); choose another --output"
        ) from error
    return file


def _render(material: Material) -> str:
    result, champion = material.result, material.result.champion
    groups, heatmap_problem = gallery(material)
    told = hyperparameters(material)
    drawn = [
        figure
        for figure in (
            figures.history(material),
            figures.pareto(material),
            figures.comparison(material),
            figures.roc(material),
            figures.score_histogram(material),
            *(one.figure for one in told),
        )
        if figure is not None
    ]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("autoad.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": words.number,
        "percent": words.percent,
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
        statuses=_statuses(result.leaderboard),
        algorithms=_algorithms(material),
        measured={
            field: any(getattr(row, field) is not None for row in result.leaderboard)
            for field in ("model_mb", "peak_memory_mb")
        },
        metrics=_test_metrics(result),
        defects=_defects(material),
        front=figures.pareto_rows(material),
        groups=groups,
        heatmap_problem=heatmap_problem,
        hyperparameters=told,
        enough=ENOUGH,
        place={name: place for place, name in enumerate(ALGORITHMS)},
        config=_config,
        command=words.repeat_command(material.request, result.seed),
        versions={"Python": platform.python_version()} | {name: version(name) for name in _PACKAGES},
        missing=material.missing,
        figures={figure.name: figure for figure in drawn},
        figures_json=_script_json({figure.name: dataclasses.asdict(figure) for figure in drawn}),
        plotly=_script(plotly.offline.get_plotlyjs()),
        style=_packaged("report.css"),
        script=_packaged("report.js"),
    )


def _packaged(name: str) -> markupsafe.Markup:
    """A style sheet or script of ours, as it is."""
    return markupsafe.Markup((Path(__file__).parent / "templates" / name).read_text())  # noqa: S704 - our own file


def _script(source: str) -> markupsafe.Markup:
    """A library's script; nothing in it may end the element that holds it."""
    return markupsafe.Markup(source.replace("</script", "<\\/script"))  # noqa: S704 - the installed package's file


def _script_json(value: Any) -> markupsafe.Markup:
    """JSON that can stand in a script element, whatever its strings hold."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return markupsafe.Markup(text)  # noqa: S704 - no character of it is markup


def _statuses(rows: Sequence[TrialRow]) -> list[tuple[str, int]]:
    counts = Counter(row.status for row in rows)
    return [(status, counts[status]) for status in _STATUSES if counts[status]]


@dataclasses.dataclass(frozen=True)
class _Algorithm:
    """One row of the table of algorithms; figures are those of its best finished trial."""

    name: str
    statuses: list[tuple[str, int]]
    seconds: float
    best: TrialRow | None
    objective: float | None


def _algorithms(material: Material) -> list[_Algorithm]:
    table = []
    for name in ALGORITHMS:
        rows = [row for row in material.result.leaderboard if row.algorithm == name]
        if rows:
            best = next((row for row in material.complete if row.algorithm == name), None)
            spent = sum(row.seconds or 0.0 for row in rows)
            objective = None if best is None else material.objective(best)
            table.append(_Algorithm(name, _statuses(rows), spent, best, objective))
    return sorted(table, key=lambda row: -1.0 if row.objective is None else row.objective, reverse=True)


def _test_metrics(result: SearchResult) -> list[tuple[str, list[tuple[str, str]]]]:
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
class _Defect:
    """One row of the table of defects: found, of how many, by the champion and by the default."""

    label: str
    found: int | None
    total: int | None
    metrics: Metrics
    default_found: int | None
    default: Metrics | None


def _defects(material: Material) -> list[_Defect]:
    champion = material.result.champion
    if champion is None:
        return []
    its, others = words.found(material), words.found(material, "default_patchcore")
    default = champion.default_patchcore
    table = []
    for label, metrics in champion.test.by_defect.items():
        found, total = its.get(label, (None, None))
        table.append(
            _Defect(
                label,
                found,
                total,
                metrics,
                others.get(label, (None, None))[0],
                None if default is None else default.by_defect.get(label),
            )
        )
    return sorted(table, key=lambda row: (row.metrics.image_auroc or 0.0, row.label))


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
