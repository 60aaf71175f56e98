"""What people see: tables on stdout, the progress of a search on stderr."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from autoad.schema import ScoredPicture, SearchResult, TrialRow

if TYPE_CHECKING:
    from autoad.search import Budget

__all__ = ["ConsoleListener", "err", "leaderboard_table", "out", "print_result", "print_scores", "short_config"]

_PIPE_WIDTH = 200

out = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)
err = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


def short_config(row: TrialRow) -> str:
    """A configuration in one line."""
    parts = []
    for key, value in row.config.items():
        shown = (
            f"{value:.4g}"
            if isinstance(value, float)
            else "+".join(map(str, value))
            if isinstance(value, list)
            else value
        )
        parts.append(f"{key}={shown}")
    return " ".join(str(part) for part in parts)


def leaderboard_table(rows: Sequence[TrialRow], top: int | None = None) -> Table:
    """The leaderboard, best first."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("", "trial", "algorithm", "image AUROC", "pixel AUROC", "AUPRO", "ms", "s", "epochs", "config"):
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
            _number(row.validation.image_auroc),
            _number(row.validation.pixel_auroc),
            _number(row.validation.aupro),
            _number(row.latency_ms, 0),
            _number(row.seconds, 1),
            epochs,
            what,
            style=None if row.status == "complete" else "dim",
        )
    return table


def _interval(value: float | None, low: float | None, high: float | None) -> str:
    if value is None:
        return "not computable"
    return f"{value:.3f}" if low is None or high is None else f"{value:.3f} [{low:.3f}, {high:.3f}]"


def print_result(result: SearchResult, *, top: int = 15) -> None:
    """A search's leaderboard and champion."""
    dataset = result.dataset
    counts = ", ".join(f"{count} {name}" for name, count in dataset.counts.items())
    out.print(f"{result.name}  {dataset.path} ({counts}), {_duration(result.seconds)}, {result.engine}")
    out.print(f"evidence: {result.evidence}; ranked by {result.objective} on {_roles(dataset.roles['selection'])}")
    for note in result.notes:
        out.print(f"note: {note}", style="yellow")
    out.print()
    out.print(leaderboard_table(result.leaderboard, top))
    if len(result.leaderboard) > top:
        out.print(
            f"... and {len(result.leaderboard) - top} more: autoad leaderboard {result.name} --top 0", style="dim"
        )
    champion = result.champion
    if champion is None:
        out.print(f"\nno champion (search {result.status})")
        return
    test, default = champion.test, champion.default_patchcore
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in (f"test: {_roles(dataset.roles['test'])}", "image AUROC", "pixel AUROC", "AUPRO"):
        table.add_column(title, no_wrap=True)
    for title, metrics in (
        (f"champion ({champion.algorithm}, trial {champion.trial})", test),
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
        table.add_row(f"  {defect}", *(_number(value) for value in (its.image_auroc, its.pixel_auroc, its.aupro)))
    out.print()
    out.print(table)
    if champion.difference is not None:
        d = champion.difference
        out.print(f"difference in image AUROC: {d.image_auroc:+.3f} [{d.low:+.3f}, {d.high:+.3f}] (paired, 95 %)")
    realised = "" if test.false_positive_rate is None else f"; on the test pictures {test.false_positive_rate:.1%}"
    promised = f"at most {champion.false_positive_rate:.1%} of good pictures above"
    out.print(f"threshold {champion.threshold:.4g}: {promised}{realised}")
    if (speed := champion.speed) is not None:
        out.print(
            f"speed: {speed.latency_ms:.0f} ms a picture, {speed.pictures_per_second:.0f} pictures/s, "
            f"{speed.peak_memory_mb:.0f} MB"
        )
    out.print(f"model: {champion.model}")
    out.print(f"score pictures with: autoad score {result.name} PICTURE...", style="bold")


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


class ConsoleListener:
    """The progress of a search: a line for each finished trial, and on a terminal a status line below."""

    def __init__(self, objective: str) -> None:
        self._objective = objective
        self._best: TrialRow | None = None
        self._done: Counter[str] = Counter()
        self._failed = 0
        self._running: dict[int, str] = {}
        self._budget: Budget | None = None
        self._live: Live | None = None

    def say(self, text: str) -> None:
        """A line of its own."""
        err.print(text, style="dim")

    def begin(self, budget: Budget) -> None:
        """Trials begin."""
        self._budget = budget
        if err.is_terminal:
            self._live = Live(console=err, get_renderable=self._status, refresh_per_second=2, transient=True)
            self._live.start()

    def end(self) -> None:
        """Trials have ended."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def started(self, row: TrialRow) -> None:
        """A trial begins."""
        self._running[row.trial] = row.algorithm

    def reported(self, row: TrialRow) -> None:
        """A trial was evaluated on its way."""

    def finished(self, row: TrialRow) -> None:
        """A trial has ended."""
        self._running.pop(row.trial, None)
        self._done[row.algorithm] += 1
        if row.status in {"complete", "pruned"}:
            value = self._value(row)
            if row.status == "complete" and value > (self._value(self._best) if self._best else -1.0):
                self._best = row
            verdict = f"{self._objective} {value:.4f}" + (" (pruned)" if row.status == "pruned" else "")
        else:
            self._failed += row.status == "failed"
            verdict = f"{row.status}: {row.reason}"
        err.print(f"trial {row.trial:3d}  {row.algorithm:20s}  {verdict}  ({row.seconds:.1f} s)")
        if self._live is None:
            err.print(self._status(), style="dim")

    def _value(self, row: TrialRow) -> float:
        value = getattr(row.validation, self._objective)
        return -1.0 if value is None else float(value)

    def _status(self) -> Text:
        budget = self._budget
        elapsed = budget.elapsed if budget else 0.0
        finished = sum(self._done.values())
        parts = [
            f"best {self._value(self._best):.4f} ({self._best.algorithm}, trial {self._best.trial})"
            if self._best
            else "no result yet",
            ", ".join(f"{name} {count}" for name, count in sorted(self._done.items())) or "0 trials",
            f"{60 * finished / elapsed:.1f} trials/min" if finished and elapsed > 1 else "",
            f"{self._failed} failed" if self._failed else "",
            f"running {', '.join(sorted(self._running.values()))}" if self._running else "",
            self._left(budget, elapsed, finished),
        ]
        return Text("  " + " | ".join(part for part in parts if part))

    @staticmethod
    def _left(budget: Budget | None, elapsed: float, finished: int) -> str:
        if budget is None:
            return ""
        ends = []
        if budget.seconds is not None:
            ends.append(budget.seconds - elapsed)
        if budget.trials is not None and finished:
            ends.append((budget.trials - finished) * elapsed / finished)
        return f"{_duration(min(ends))} left" if ends else ""
