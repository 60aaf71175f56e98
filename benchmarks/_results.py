"""Tables and curves of what ``search_strategies.py`` has simulated."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _common import table
from _curves import Curve, Panel, draw
from numpy.typing import NDArray

from autoad.algorithms import ALGORITHMS

__all__ = ["FULL", "Results", "read_results", "result_key", "show"]

FULL = "full"

_MOMENTS = tuple(0.25 * 2 ** (n / 8) for n in range(51))
_SHOWN = (1, 2, 5, 10, 20)


def result_key(result: dict[str, Any]) -> tuple[Any, ...]:
    return result["dataset"], result["minutes"], result["seed"], result["variant"]


def read_results(results: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in results.read_text().splitlines()]


class Results:
    """Simulated searches by dataset, minutes, variant and seed; only seeds of which there are all.

    Args:
        found: the searches.
        order: of the variants.
    """

    def __init__(self, found: Sequence[dict[str, Any]], order: Sequence[str]) -> None:
        self._by_key = {result_key(result): result for result in found}
        self.datasets = sorted({result["dataset"] for result in found})
        self.minutes = sorted({result["minutes"] for result in found})
        self.variants = [name for name in order if any(result["variant"] == name for result in found)]
        self.seeds = [
            seed
            for seed in sorted({result["seed"] for result in found})
            if all((d, m, seed, v) in self._by_key for d in self.datasets for m in self.minutes for v in self.variants)
        ]

    def each(self, dataset: str, minutes: int, variant: str) -> Iterator[dict[str, Any]]:
        """The searches of all seeds."""
        return (self._by_key[dataset, minutes, seed, variant] for seed in self.seeds)

    def best(self, dataset: str, minutes: int, variant: str, moment: float) -> NDArray[np.float64]:
        """Best objective ``moment`` minutes after the beginning, by seed."""
        values = []
        for result in self.each(dataset, minutes, variant):
            reached = [value for seconds, value in result["curve"] if seconds <= 60 * moment]
            values.append(reached[-1] if reached else math.nan)
        return np.array(values)

    def difference(self, dataset: str, minutes: int, variant: str) -> NDArray[np.float64]:
        """Full minus variant at the end, by seed."""
        return self.best(dataset, minutes, FULL, minutes) - self.best(dataset, minutes, variant, minutes)


def interval(values: NDArray[np.float64]) -> str:
    """The mean and its bootstrap 95 % interval, in thousandths."""
    drawn = np.random.default_rng(0).choice(values, (5000, len(values))).mean(axis=1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return f"{1000 * values.mean():+.1f} [{1000 * low:+.1f}, {1000 * high:+.1f}]"


def show(results: Results, plot: Path | None) -> None:
    """Print the tables, draw the curves."""
    longest = max(results.minutes)
    print(f"{len(results.seeds)} seeds. Best selection AUROC after ... of {longest} min, median and quartiles:\n")
    rows = []
    for dataset, variant in itertools.product(results.datasets, results.variants):
        cells = []
        for moment in _SHOWN:
            each = results.best(dataset, longest, variant, moment)
            low, middle, high = (f"{value:.3f}".lstrip("0") for value in np.nanquantile(each, [0.25, 0.5, 0.75]))
            cells.append(f"{middle} [{low}, {high}]")
        rows.append([dataset, variant, *cells])
    print(table(["", "", *(f"{moment} min" for moment in _SHOWN)], rows))
    print("\nFull minus variant at the end, mean over seeds in thousandths of AUROC, with 95 % interval:\n")
    rows = []
    for minutes, variant in itertools.product(results.minutes, results.variants):
        if variant != FULL:
            differences = [results.difference(dataset, minutes, variant) for dataset in results.datasets]
            rows.append(
                [f"{minutes} min", variant, *map(interval, differences), interval(np.mean(differences, axis=0))]
            )
    print(table(["", "", *results.datasets, "all"], rows))
    print(
        "\nTrials complete and pruned, proposals refused for their time, idle time (means); fewest trials of "
        "any algorithm in any search:\n"
    )
    rows = []
    for dataset, minutes, variant in itertools.product(results.datasets, results.minutes, results.variants):
        found = list(results.each(dataset, minutes, variant))
        complete, pruned = (
            np.mean([one["status"].get(status, 0) for one in found]) for status in ("complete", "pruned")
        )
        fewest = {name: min(one["trials"].get(name, 0) for one in found) for name in ALGORITHMS}
        scarcest = min(fewest, key=lambda name: fewest[name])
        rows.append(
            [
                dataset,
                f"{minutes} min",
                variant,
                f"{complete:.0f} + {pruned:.0f}",
                f"{np.mean([one['refused'] for one in found]):.1f}",
                f"{np.mean([one['idle'] for one in found]):.1%}",
                f"{fewest[scarcest]} ({scarcest})",
            ]
        )
    print(table(["", "", "", "trials", "refused", "idle", "fewest"], rows))
    if plot is not None:
        plot.write_text(draw([_panel(results, dataset) for dataset in results.datasets], "best selection AUROC"))


def _panel(results: Results, dataset: str) -> Panel:
    curves = []
    longest = max(results.minutes)
    moments = [*(moment for moment in _MOMENTS if moment < longest), longest]
    for variant in results.variants:
        if variant == "without costs":
            continue  # the same line as the full search's
        each = np.array([results.best(dataset, longest, variant, moment) for moment in moments])
        known = ~np.isnan(each).all(axis=1)
        quartiles = np.full((3, len(moments)), math.nan)
        quartiles[:, known] = np.nanquantile(each[known], [0.25, 0.5, 0.75], axis=1)
        curves.append(Curve(variant, quartiles[1].tolist(), quartiles[0].tolist(), quartiles[2].tolist()))
    return Panel(dataset.replace("_", " "), moments, curves)
