"""Results as tables on stdout."""

from __future__ import annotations

import datetime
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from autoad.console._streams import out
from autoad.console._text import duration, number, short_config
from autoad.schema import Champion, Choice, ScoredPicture, SearchEntry, SearchResult, TrialRow, describe_rate

__all__ = ["leaderboard_table", "print_records", "print_result", "print_scores", "searches_table"]


def leaderboard_table(rows: Sequence[TrialRow], top: int | None = None) -> Table:
    """The leaderboard, best first; what ranked it has a column where that is no metric of labelled defects alone."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    blended = any(row.objective not in (None, row.validation.image_auroc) for row in rows if row.by_kind)
    titles = ["", "trial", "algorithm", *(["objective"] if blended else []), "image AUROC", "pixel AUROC", "AUPRO"]
    for title in (*titles, "ms", "s", "epochs", "config"):
        text = title in {"algorithm", "config"}
        width = {"algorithm": 20, "epochs": 9, "": 3}.get(title, max(5, len(title)))
        table.add_column(title, justify="left" if text else "right", no_wrap=True, min_width=width)
    for place, row in enumerate(rows[:top], start=1):
        epochs = "" if row.epochs_done is None else f"{row.epochs_done}{' (time)' if row.budget_limited else ''}"
        what = (
            short_config(row) if row.status == "complete" else f"{row.status}: {row.reason or 'beside better trials'}"
        )
        table.add_row(
            str(place),
            str(row.trial),
            row.algorithm,
            *([number(row.objective)] if blended else []),
            number(row.validation.image_auroc),
            number(row.validation.pixel_auroc),
            number(row.validation.aupro),
            number(row.latency_ms, 0),
            number(row.seconds, 1),
            epochs,
            what,
            style=None if row.status == "complete" else "dim",
        )
    return table


def _interval(value: float | None, low: float | None, high: float | None) -> str:
    if value is None:
        return "not computable"
    return f"{value:.3f}" if low is None or high is None else f"{value:.3f} [{low:.3f}, {high:.3f}]"


def print_result(result: SearchResult, *, top: int = 15, there: str | None = None) -> None:
    """A search's leaderboard and champion.

    Args:
        result: of the search.
        top: rows to show.
        there: for a search on a server, the option by which commands ask that server, if they need one.
    """
    again = there or ""
    dataset = result.dataset
    counts = ", ".join(f"{count} {name}" for name, count in dataset.counts.items())
    out.print(f"{result.name}  {dataset.path} ({counts}), {duration(result.seconds)}, {result.engine}")
    out.print(f"evidence: {result.evidence}; ranked by {result.objective} on {_roles(dataset.roles['selection'])}")
    if result.choice is not None:
        out.print(_chosen(result.choice))
    for note in result.notes:
        out.print(f"note: {note}", style="yellow")
    out.print()
    out.print(leaderboard_table(result.leaderboard, top))
    if len(result.leaderboard) > top:
        out.print(
            f"... and {len(result.leaderboard) - top} more: autoad leaderboard {result.name} --top 0{again}",
            style="dim",
        )
    champion = result.champion
    if champion is None:
        hint = (
            f"; go on with: autoad search --resume {result.search_id}"
            if result.status == "interrupted" and there is None
            else ""
        )
        out.print(f"\nno champion (search {result.status}){hint}", soft_wrap=True)
        return
    test, default = champion.test, champion.default_patchcore
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(f"test: {_roles(dataset.roles['test'])}")
    for title in ("image AUROC", "pixel AUROC", "AUPRO"):
        table.add_column(title, no_wrap=True)
    for title, metrics in (
        (f"champion ({champion.algorithm}, {champion.origin})", test),
        ("default PatchCore", default),
    ):
        if metrics is None:
            continue
        table.add_row(
            title,
            _interval(metrics.image_auroc, metrics.image_auroc_low, metrics.image_auroc_high),
            _interval(metrics.pixel_auroc, metrics.pixel_auroc_low, metrics.pixel_auroc_high),
            _interval(metrics.aupro, metrics.aupro_low, metrics.aupro_high),
        )
    for defect, its in test.by_defect.items():
        table.add_row(f"  {defect}", *(number(value) for value in (its.image_auroc, its.pixel_auroc, its.aupro)))
    out.print()
    out.print(table)
    if champion.difference is not None:
        d = champion.difference
        out.print(f"difference in image AUROC: {d.image_auroc:+.3f} [{d.low:+.3f}, {d.high:+.3f}] (paired, 95 %)")
    _print_thresholds(champion)
    if (speed := champion.speed) is not None:
        out.print(
            f"speed: {speed.latency_ms:.0f} ms a picture, {speed.pictures_per_second:.0f} pictures/s, "
            f"{speed.peak_memory_mb:.0f} MB"
        )
    out.print(f"model: {_address(champion)}", soft_wrap=True)
    out.print(f"score pictures with: autoad score {shlex.quote(champion.address)} PICTURE...{again}", style="bold")
    if champion.name is not None:
        serve = "autoad serve, and then " if there is None else ""
        out.print(
            f"let it answer over HTTP: {serve}autoad promote {champion.name} --version {champion.version}{again}",
            style="bold",
            soft_wrap=True,
        )


def _chosen(choice: Choice) -> str:
    """Why the champion is the champion, and how sure that is."""
    how = f"chosen: trial {choice.trial}"
    sure = f"best in {choice.wins:.0%} of resamplings"
    if choice.members:
        how = (
            f"chosen: the mean of trials {', '.join(map(str, choice.members))}, which is better than the best alone, "
            f"trial {choice.best} ({-choice.behind:.3f} ± {choice.error:.3f} ahead)"
        )
    elif choice.kept_default:
        how += (
            f", PatchCore's default fit, which the best, trial {choice.best}, does not beat by more than chance "
            f"({choice.behind:.3f} ± {choice.error:.3f} behind)"
        )
    elif choice.trial != choice.best:
        how += (
            f", which is faster than the best, trial {choice.best}, and ties with it "
            f"({choice.behind:.3f} ± {choice.error:.3f} behind)"
        )
    elif len(choice.tied) > 1:
        how += f", the best; {len(choice.tied) - 1} more tie with it but are no faster"
    if choice.divisions > 1:
        how += f" (close trials were judged on {choice.divisions} divisions of the good pictures)"
    if not choice.members:
        sure += f", its algorithm in {choice.algorithm_wins:.0%}"
    return f"{how}; {sure}"


def _print_thresholds(champion: Champion) -> None:
    """What the champion's thresholds promise, and what came of it in the test."""
    method, realised = champion.threshold_method, champion.test.false_positive_rate
    told = describe_rate(method, champion.false_positive_rate, champion.false_positive_rate_upper)
    tested = "" if realised is None else f"; on the test pictures {realised:.1%}"
    out.print(f"threshold {champion.threshold:.4g} ({method}): {told}{tested}")
    if champion.pixel_threshold_method is not None and champion.pixel_false_positive_rate is not None:
        method, rate = champion.pixel_threshold_method, champion.pixel_false_positive_rate
        told = describe_rate(method, rate, champion.pixel_false_positive_rate_upper, "with any region")
        out.print(f"threshold of pixels ({method}): {told}")
    if (smallest := champion.smallest_false_positive_rate) is not None:
        out.print(f"smallest rate that so many calibration pictures can guarantee: {smallest:.1%}")


def _address(champion: Champion) -> str:
    """By what others find it, and where it lies."""
    if champion.name is None:
        return champion.model
    return f"{champion.address} (models:/{champion.address}) in {champion.model}"


def _roles(counts: dict[str, int]) -> str:
    return f"{counts['good']} good and {counts['defective']} defective pictures"


def print_scores(scored: Sequence[ScoredPicture]) -> None:
    """Verdicts, one picture a line."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("picture", "verdict", "normalised", "raw score", "regions (x, y, width, height)", "heatmap"):
        table.add_column(title, justify="right" if title in {"normalised", "raw score"} else "left", overflow="fold")
    for picture in scored:
        regions = (
            ""
            if picture.regions is None
            else "; ".join(f"{r.x}, {r.y}, {r.width}, {r.height}" for r in picture.regions[:3])
        )
        table.add_row(
            picture.picture,
            Text("ANOMALOUS", "bold red") if picture.is_anomalous else Text("good", "green"),
            f"{picture.normalized_score:.3f}",
            f"{picture.score:.5g}",
            regions,
            picture.heatmap or "",
        )
    out.print(table)


def print_records(records: Sequence[Mapping[str, str]], as_json: bool) -> None:
    """Records of the same fields, one a line, or as JSON."""
    if as_json:
        out.out(json.dumps(records, indent=2), highlight=False)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in records[0]:
        table.add_column(title, overflow="fold")
    for record in records:
        table.add_row(*record.values())
    out.print(table)


def searches_table(entries: Sequence[SearchEntry]) -> Table:
    """Searches, one a line, in the order given; of the dataset's path only the end."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for title in ("name", "id", "status", "trials", "best", "champion", "started", "time", "dataset"):
        right = title in {"trials", "best", "time"}
        width = 8 if title in {"name", "dataset"} else None
        table.add_column(title, justify="right" if right else "left", no_wrap=True, min_width=width)
    this_year = datetime.datetime.now().astimezone().year
    for entry in entries:
        style = {"lost": "red", "failed": "red", "running": "green"}.get(entry.status, "")
        started, dataset = entry.started.astimezone(), Path(entry.dataset)
        table.add_row(
            entry.name,
            entry.search_id,
            Text(entry.status, style),
            str(entry.trials),
            number(entry.best),
            entry.champion or "-",
            started.strftime("%d %b %H:%M" if started.year == this_year else "%d %b %Y"),
            duration(entry.seconds),
            dataset.name if not dataset.suffix else f"{dataset.parent.name}/{dataset.name}",
        )
    return table
