"""The replay of a choice over a grid, on a grid whose answer is known."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

FILE = Path(__file__).parents[2] / "benchmarks" / "regret" / "replay.py"
ALGORITHMS = ("patchcore", "padim", "dfm", "dfkde")


@pytest.fixture
def replay(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(FILE.parent)
    monkeypatch.delitem(sys.modules, "replay", raising=False)
    return importlib.import_module("replay")


@pytest.fixture
def grid(replay: Any, tmp_path: Path) -> Any:
    """Configuration 2 tells all defects perfectly; 0 tells real ones the wrong way round; the others tell nothing."""
    rng = np.random.default_rng(0)
    pictures = [("selection", "good")] * 20 + [("calibration", "good")] * 19
    pictures += [("synthetic", kind) for kind in ("cutpaste", "scar") for _ in range(24)]
    pictures += [("test", "good")] * 40 + [("test", "dent")] * 24 + [("test", "hole")] * 16
    groups, labels = (np.array(column) for column in zip(*pictures, strict=True))
    defective, drawn = (labels != "good"), groups == "synthetic"
    scores = rng.standard_normal((4, len(pictures)))
    scores[2] += 20 * defective
    scores[0] -= 20 * (defective & ~drawn)
    meta = {
        "configurations": [
            {"algorithm": name, "config": {}, "latency_ms": float(5 - i)} for i, name in enumerate(ALGORITHMS)
        ],
        "pictures": [{"group": group, "label": label} for group, label in pictures],
    }
    np.savez(tmp_path / "made.npz", meta=np.array(json.dumps(meta)), scores=scores.astype(np.float32))
    return replay.Grid.read(tmp_path / "made.npz")


@pytest.mark.parametrize("labelled", [0, 1, 10])
def test_the_right_choice_has_no_regret_and_the_wrong_one_has_all(replay: Any, grid: Any, labelled: int) -> None:
    assert replay.regret(grid, replay.by_evidence(), labelled) == [0.0] * (2 * replay.DRAWS)
    assert replay.regret(grid, replay.always("patchcore"), labelled) == [1.0] * (2 * replay.DRAWS)
    others = np.mean(replay.regret(grid, replay.always("padim"), labelled))
    assert others == pytest.approx(0.5, abs=0.2)
    assert np.mean(replay.regret(grid, replay.at_random, labelled)) == pytest.approx((0 + 1 + 2 * 0.5) / 4, abs=0.1)


def test_a_draw_uses_each_test_picture_once(replay: Any, grid: Any) -> None:
    draw = replay.divide(grid, 3)
    used = np.concatenate([draw.pool, *draw.halves])
    assert sorted(used.tolist()) == np.flatnonzero(grid.groups == "test").tolist()
    assert [int((grid.labels[half] == "hole").sum()) for half in draw.halves] == [4, 4]
    assert not np.array_equal(draw.pool, replay.divide(grid, 4).pool)


def test_labelled_defects_overrule_drawn_ones_the_more_there_are(replay: Any, grid: Any) -> None:
    """Configuration 1 tells drawn ones, 3 real ones."""
    drawn = grid.groups == "synthetic"
    real = (grid.labels != "good") & ~drawn
    scores = np.random.default_rng(1).standard_normal(grid.scores.shape).astype(np.float32)
    scores[1] += 3 * drawn
    scores[3] += 3 * real
    other = replay.Grid(grid.name, grid.configurations, grid.groups, grid.labels, scores)
    regrets = [np.mean(replay.regret(other, replay.by_evidence(ties=False), count)) for count in (0, 1, 10)]
    assert regrets[0] > 0.3
    assert regrets[2] == pytest.approx(0, abs=0.02)


def test_coverage_keeps_the_promise_where_pictures_are_exchangeable(replay: Any, grid: Any) -> None:
    mean, error = replay.coverage(grid, 1, 0.05)
    assert mean <= 0.05 + 2 * error + 0.01
    assert replay.coverage(grid, 1, 0.01) is None, "19 calibration pictures cannot promise that"


def test_several_splits_choose_what_is_best_in_their_mean(replay: Any, grid: Any) -> None:
    """By the first split 1 is better than 2, in the mean of both 2 is; 0 was fitted on the first alone."""
    rng = np.random.default_rng(2)
    defective = grid.labels != "good"

    def told(*lifts: float) -> Any:
        scores = rng.standard_normal(grid.scores.shape).astype(np.float32)
        scores += np.array(lifts, np.float32)[:, None] * defective
        return replay.Grid(grid.name, grid.configurations, grid.groups, grid.labels, scores)

    first, second = told(9, 1.5, 1, -1), told(9, 0, 9, -1)
    fewer = replay.Grid("b", second.configurations[1:], second.groups, second.labels, second.scores[1:])
    both = replay.Grid("a", first.configurations, first.groups, first.labels, first.scores, (fewer, fewer))
    none = np.array([], dtype=int)
    assert replay.by_evidence(ties=False)(both, none, 0).argmax() == 0
    assert replay.by_splits(1)(both, none, 0).argmax() == 1
    assert replay.by_splits(3)(both, none, 0).argmax() == 2
    with pytest.raises(replay.OneSplitError, match="one split alone"):
        replay.by_splits(3)(first, none, 0)


def test_an_ensemble_is_taken_where_it_must_or_wins(replay: Any, grid: Any) -> None:
    """Three that see different defects, in units of their own, see all of them together."""
    rng = np.random.default_rng(3)
    scores = rng.standard_normal(grid.scores.shape)
    defective = np.flatnonzero(grid.labels != "good")
    for row in range(3):
        scores[row, defective[row::3]] += 6
        scores[row] *= 10.0**row
    grid = replay.Grid(grid.name, grid.configurations, grid.groups, grid.labels, scores.astype(np.float32))
    alone = np.mean(replay.regret(grid, replay.by_evidence(ties=False), 10))
    for rule in (replay.ensemble(distinct=True), replay.by_evidence(ensembles=True)):
        assert np.mean(replay.regret(grid, rule, 10)) < alone - 0.1
    same = replay.Grid(grid.name, grid.configurations, grid.groups, grid.labels, np.repeat(grid.scores[:1], 4, axis=0))
    assert replay.by_evidence(ensembles=True)(same, defective[-10:], 0).ndim == 1, "it is no better"
