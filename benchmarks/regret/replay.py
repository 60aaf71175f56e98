"""Replays the choice of a model over a fitted grid: how much worse is it than the best that there was?

    python benchmarks/regret/replay.py benchmarks/results/regret/*.npz      # NAME.split-1.npz goes with NAME.npz

In each of 20 draws the test folder is divided, within each label, into a pool and two halves; 0, 1, 5, 10 or 20 defects
of the pool are labelled for the choice. The oracle is the configuration that is best on one half; regret is by how much
its image AUROC exceeds the chosen one's on the other, both ways round, averaged. Intervals are of the mean over
datasets (t distribution): the draws of one dataset share its pictures and count as one.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from autoad.evaluation import (
    Comparison,
    compare_trials,
    conformal_threshold,
    image_metrics,
    labelled_weight,
    many_labelled,
)
from autoad.search.ensemble import join_scores

sys.path.insert(0, str(Path(__file__).parent.parent))
from _common import table

LABELLED = (0, 1, 5, 10, 20)
DRAWS = 20
RESAMPLINGS = 100
RATES = (0.05, 0.01)

_Array = npt.NDArray[Any]


class OneSplitError(Exception):
    """A rule needs grids of several splits."""


@dataclasses.dataclass(frozen=True)
class Grid:
    """A dataset's configurations ``[C]`` and their scores ``[C, N]`` of its pictures.

    ``others`` are grids of some of the configurations, with other selection normals.
    """

    name: str
    configurations: list[dict[str, Any]]
    groups: _Array
    labels: _Array
    scores: _Array
    others: tuple[Grid, ...] = ()

    @classmethod
    def read_all(cls, files: Sequence[Path]) -> list[Grid]:
        """What ``grid.py`` wrote, the other splits of a dataset with its first."""
        grids = {file.stem: cls.read(file) for file in sorted(files)}
        first = {name: grid for name, grid in grids.items() if ".split-" not in name}
        return [
            dataclasses.replace(
                grid, others=tuple(one for name, one in grids.items() if name.startswith(f"{own}.split-"))
            )
            for own, grid in first.items()
        ]

    @classmethod
    def read(cls, file: Path) -> Grid:
        """One file."""
        with np.load(file) as kept:
            meta = json.loads(str(kept["meta"]))
            pictures = meta["pictures"]
            groups = np.array([picture["group"] for picture in pictures])
            labels = np.array([picture["label"] for picture in pictures])
            return cls(file.stem, meta["configurations"], groups, labels, kept["scores"])

    def default(self, algorithm: str) -> int:
        """The row of an algorithm's default: its first."""
        return next(i for i, row in enumerate(self.configurations) if row["algorithm"] == algorithm)

    def aurocs(self, columns: _Array) -> _Array:
        """``[C]`` image AUROC on some pictures."""
        anomalous = self.labels[columns] != "good"
        return np.array([image_metrics(row[columns], anomalous).image_auroc for row in self.scores], dtype=np.float64)


@dataclasses.dataclass(frozen=True)
class Draw:
    """One division of a test folder; columns of the grid."""

    pool: _Array
    halves: tuple[_Array, _Array]


def divide(grid: Grid, seed: int) -> Draw:
    """Half of each label's pictures to the pool, a quarter to each half."""
    rng = np.random.default_rng(seed)
    parts: list[list[int]] = [[], [], []]
    test = np.flatnonzero(grid.groups == "test")
    for label in sorted(set(grid.labels[test].tolist())):
        shuffled = rng.permutation(test[grid.labels[test] == label])
        pool = len(shuffled) // 2
        middle = pool + (len(shuffled) - pool) // 2
        for part, columns in zip(parts, np.split(shuffled, [pool, middle]), strict=True):
            part += columns.tolist()
    pooled, first, second = (np.array(part) for part in parts)
    return Draw(rng.permutation(pooled), (first, second))


Rule = Callable[[Grid, _Array, int], _Array]
"""From a grid, the columns of the labelled defects and a seed to the chance ``[C]`` with which each is chosen, or to
the scores ``[1, N]`` of a combination."""


def _chosen(count: int, row: int) -> _Array:
    return np.eye(count)[row]


def _compare(
    grid: Grid, labelled: _Array, seed: int, *, blend: bool = True, scores: _Array | None = None
) -> Comparison:
    """How configurations, or what has other ``scores`` of the same pictures, compare on the selection."""
    columns = np.concatenate([np.flatnonzero(np.isin(grid.groups, ("selection", "synthetic"))), labelled])
    weight = labelled_weight(len(labelled), int((grid.groups == "selection").sum()))
    return compare_trials(
        (grid.scores if scores is None else scores)[:, columns],
        grid.labels[columns].tolist(),
        grid.groups[columns] == "synthetic",
        weight if blend else float(weight > 0),
        seed=seed,
    )


def by_evidence(
    *, blend: bool = True, ties: bool = True, margin: float = 0.01, ensembles: bool = False, incumbent: bool = True
) -> Rule:
    """The product's choice.

    Without ``blend`` by labelled defects alone where there are any; without ``ties`` the best, whatever its speed; with
    them the fastest of those that are no worse by more than a standard error and by ``margin``. With ``ensembles`` the
    better mean of the best of two and of three algorithms, where it beats the best by more than a standard error. With
    ``incumbent``, while labelled defects weigh less than .8, the default PatchCore wherever no trial beats it by more.
    """

    def rule(grid: Grid, labelled: _Array, seed: int) -> _Array:
        found = _compare(grid, labelled, seed, blend=blend)
        default = grid.default("patchcore")
        if ensembles:
            won: list[tuple[float, _Array]] = []
            for count in (2, 3):
                mixed = _mean_of(grid, _best(grid, found, count, distinct=True))
                pair = _compare(grid, labelled, seed, scores=np.concatenate([grid.scores[[found.best]], mixed]))
                if pair.behind[0] > pair.error[0]:
                    won.append((float(pair.quality[1]), mixed))
            if won:
                return max(won, key=lambda one: one[0])[1]
        weight = labelled_weight(len(labelled), int((grid.groups == "selection").sum()))
        if incumbent and not many_labelled(weight) and found.tied[default]:
            return _chosen(len(grid.scores), default)
        if not ties:
            return _chosen(len(grid.scores), found.best)
        latency = np.array([row["latency_ms"] for row in grid.configurations])
        tied = found.tied & (found.behind <= margin)
        fast = tied & (latency <= 1.2 * latency[tied].min())
        return _chosen(len(grid.scores), int(np.argmax(np.where(fast, found.quality, -np.inf))))

    return rule


def _best(grid: Grid, found: Comparison, count: int, *, distinct: bool) -> list[int]:
    """The best rows, with ``distinct`` of one algorithm each."""
    members: list[int] = []
    for row in np.argsort(-found.quality, kind="stable").tolist():
        others = {grid.configurations[member]["algorithm"] for member in members}
        if len(members) < count and not (distinct and grid.configurations[row]["algorithm"] in others):
            members.append(row)
    return members


def _mean_of(grid: Grid, members: Sequence[int]) -> _Array:
    """``[1, N]`` scores of an ensemble."""
    joined = join_scores([grid.scores[member] for member in members], grid.groups == "selection")
    if joined is None:
        raise SystemExit(f"{grid.name} has configurations that say the same of all good pictures; fit the grid again")
    return joined[None]


def ensemble(*, distinct: bool) -> Rule:
    """The mean of the three best, each in standard deviations of the selection normals; ``distinct``: of algorithms."""
    return lambda grid, labelled, seed: _mean_of(
        grid, _best(grid, _compare(grid, labelled, seed), 3, distinct=distinct)
    )


def by_splits(count: int) -> Rule:
    """The best in the mean over ``count`` splits, among what was fitted on all of them."""

    def rule(grid: Grid, labelled: _Array, seed: int) -> _Array:
        if len(grid.others) < 2:
            raise OneSplitError(f"{grid.name} was fitted on one split alone")
        total = np.zeros(len(grid.scores))
        for number, one in enumerate((grid, *grid.others)):
            places = {_key(row): place for place, row in enumerate(one.configurations)}
            known = [_key(row) in places for row in grid.configurations]
            total[np.logical_not(known)] = -np.inf
            if number < count:
                quality = _compare(one, _same_pictures(one, grid, labelled), seed).quality
                total[known] += quality[[places[_key(row)] for row in grid.configurations if _key(row) in places]]
        return _chosen(len(grid.scores), int(np.argmax(total)))

    return rule


def _key(row: dict[str, Any]) -> str:
    return json.dumps([row["algorithm"], row["config"]], sort_keys=True)


def _same_pictures(one: Grid, grid: Grid, columns: _Array) -> _Array:
    """Columns of another split; the test folder comes last in each, in one order."""
    return columns + one.scores.shape[1] - grid.scores.shape[1]


def by_ranks(grid: Grid, labelled: _Array, seed: int) -> _Array:
    """The best average rank over the kinds of synthetic defects, each ranked by itself."""
    normal, kinds = _kinds(grid)
    ranks = np.mean(
        [stats.rankdata(-grid.aurocs(np.concatenate([normal, kind])), method="average") for kind in kinds], axis=0
    )
    return _chosen(len(grid.scores), int(np.argmin(ranks)))


def _kinds(grid: Grid) -> tuple[_Array, list[_Array]]:
    drawn = grid.groups == "synthetic"
    kinds = sorted(set(grid.labels[drawn].tolist()))
    return np.flatnonzero(grid.groups == "selection"), [np.flatnonzero(drawn & (grid.labels == kind)) for kind in kinds]


def always(algorithm: str) -> Rule:
    """An algorithm's default, whatever the evidence."""
    return lambda grid, labelled, seed: _chosen(len(grid.scores), grid.default(algorithm))


def at_random(grid: Grid, labelled: _Array, seed: int) -> _Array:
    """Any configuration."""
    return np.full(len(grid.scores), 1 / len(grid.scores))


RULES: dict[str, Rule] = {
    "autoad": by_evidence(ensembles=True),
    "autoad without ensembles": by_evidence(),
    "autoad with no burden of proof": by_evidence(ensembles=True, incumbent=False),
    "that, without ensembles": by_evidence(incumbent=False),
    "that, whatever its speed": by_evidence(ties=False, incumbent=False),
    "that, by labelled defects alone where there are any": by_evidence(blend=False, ties=False, incumbent=False),
    "no burden of proof, ties as wide as one standard error": by_evidence(margin=1.0, incumbent=False),
    "average rank over synthetic kinds": by_ranks,
    "ensemble of the three best, always": ensemble(distinct=False),
    "ensemble of the best of three algorithms, always": ensemble(distinct=True),
    "the best of what does not train, by one split": by_splits(1),
    "the same by three splits": by_splits(3),
    "default PatchCore": always("patchcore"),
    "default PaDiM": always("padim"),
    "at random": at_random,
}


def regret(grid: Grid, rule: Rule, labelled: int) -> list[float]:
    """Regret of each draw."""
    found = []
    for seed in range(DRAWS):
        draw = divide(grid, seed)
        defects = draw.pool[grid.labels[draw.pool] != "good"][:labelled]
        chosen = rule(grid, defects, seed)
        first, second = (grid.aurocs(half) for half in draw.halves)
        if chosen.ndim == 1:
            own = [float(chosen @ half) for half in (first, second)]
        else:
            combined = dataclasses.replace(grid, scores=chosen)
            own = [float(combined.aurocs(half)[0]) for half in draw.halves]
        for oracle, judged, value in ((first, second, own[1]), (second, first, own[0])):
            found.append(float(judged[int(np.argmax(oracle))]) - value)
    return found


def spearman(grid: Grid) -> tuple[float, float]:
    """Of the synthetic ranking with the true one, and of one half of the truth with the other; means over draws."""
    normal, kinds = _kinds(grid)
    quality = np.mean([grid.aurocs(np.concatenate([normal, kind])) for kind in kinds], axis=0)
    truth = grid.aurocs(np.flatnonzero(grid.groups == "test"))
    halves = []
    for seed in range(DRAWS):
        draw = divide(grid, seed)
        first, second = (grid.aurocs(half) for half in draw.halves)
        halves.append(float(stats.spearmanr(first, second).statistic))
    return float(stats.spearmanr(quality, truth).statistic), float(np.mean(halves))


def coverage(grid: Grid, row: int, rate: float) -> tuple[float, float] | None:
    """Realised false-positive rate and its standard error where calibration and test normals are mixed and divided."""
    normals = np.flatnonzero((grid.groups == "calibration") | ((grid.groups == "test") & (grid.labels == "good")))
    count = int((grid.groups == "calibration").sum())
    if rate * (count + 1) < 1:
        return None
    realised = []
    for seed in range(RESAMPLINGS):
        mixed = grid.scores[row, np.random.default_rng(seed).permutation(normals)]
        realised.append(float((mixed[count:] > conformal_threshold(mixed[:count], rate).value).mean()))
    return float(np.mean(realised)), float(np.std(realised) / np.sqrt(RESAMPLINGS))


def _mean(values: Sequence[float]) -> str:
    """Mean over datasets with its 95 % interval."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return f"{mean:.3f}"
    half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    return f"**{mean:.3f}** [{mean - half:.3f}, {mean + half:.3f}]"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("grids", type=Path, nargs="+", help="files of grid.py")
    grids = Grid.read_all(parser.parse_args().grids)
    for labelled in LABELLED:
        rows = []
        for name, rule in RULES.items():
            by_dataset: dict[str, float] = {}
            for grid in grids:
                with contextlib.suppress(OneSplitError):
                    by_dataset[grid.name] = float(np.mean(regret(grid, rule, labelled)))
            if by_dataset:
                cells = (f"{by_dataset[grid.name]:.3f}" if grid.name in by_dataset else "-" for grid in grids)
                rows.append([name, *cells, _mean(list(by_dataset.values()))])
        print(f"\nRegret in image AUROC, {labelled} labelled defects\n")
        print(table(["choice", *(grid.name for grid in grids), "mean"], rows), flush=True)
    print("\nSpearman of the synthetic ranking with the true one\n")
    found = [spearman(grid) for grid in grids]
    print(
        table(
            ["", *(grid.name for grid in grids), "mean"],
            [
                ["synthetic with true", *(f"{one:.2f}" for one, _ in found), _mean([one for one, _ in found])],
                ["true with true, halves", *(f"{two:.2f}" for _, two in found), _mean([two for _, two in found])],
            ],
        )
    )
    print("\nRealised false-positive rate of the default PatchCore\n")
    rows = []
    for rate in RATES:
        cells = [coverage(grid, grid.default("patchcore"), rate) for grid in grids]
        rows.append(
            [f"{rate:.0%}", *("too few" if cell is None else f"{cell[0]:.3f} ± {cell[1]:.3f}" for cell in cells)]
        )
    print(table(["promised", *(grid.name for grid in grids)], rows))


if __name__ == "__main__":
    main()
