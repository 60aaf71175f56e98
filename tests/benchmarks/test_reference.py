"""The comparison with anomalib says what was measured, and says so where a goal is missed."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from autoad.data.demo import write_demo_dataset

FOLDER = Path(__file__).parents[2] / "benchmarks/reference"


Load = Callable[[str], ModuleType]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Load:
    """Import a module of the benchmark by name, for one test."""
    monkeypatch.syspath_prepend(FOLDER)

    def load(name: str) -> ModuleType:
        monkeypatch.delitem(sys.modules, name, raising=False)
        module = importlib.import_module(name)
        monkeypatch.setitem(sys.modules, name, module)
        return module

    return load


@pytest.fixture
def tables(load: Load) -> ModuleType:
    return load("tables")


def timing(task: str, ours: float, theirs: float) -> dict[str, Any]:
    names = ("fit", "predict 1", "predict 16", "fit + predict")
    return {
        "key": {"phase": "time", "data": "d", "task": task},
        "seconds": {side: {name: [t, t, 2 * t] for name in names} for side, t in (("ours", ours), ("theirs", theirs))},
        "peak": {"ours": 500.0, "theirs": 1000.0},
        "failed": {},
        "pictures": [60, 40],
        "versions": {"anomalib": "1"},
    }


def judged(task: str, side: str, seed: int, auroc: float, **others: Any) -> dict[str, Any]:
    key = {"phase": "judge", "data": "d", "task": task, "side": side, "seed": seed}
    return {"key": key, "metrics": {"image_auroc": auroc, "aupro": auroc}, "epochs": None, **others}


MACHINE = {"key": {"phase": "machine"}, "cpu": "C", "threads": 2, "python": "3"}


def test_a_missed_goal_is_called_missed(tables: ModuleType, tmp_path: Path) -> None:
    rows = [MACHINE, timing("PaDiM", 1.0, 4.0), timing("PatchCore 10 %", 1.0, 21.0)]
    tables.write_report(rows, tmp_path)
    lines = (tmp_path / "reference.md").read_text().splitlines()
    (padim,) = [line for line in lines if line.startswith("| PaDiM, d: fit |")]
    (patchcore,) = [line for line in lines if line.startswith("| PatchCore 10 %, d: fit |")]
    assert padim.endswith("| >= 5x | **4** [4, 4] | **no** |")
    assert patchcore.endswith("| >= 20x | **21** [21, 21] | yes |")
    assert "| PaDiM, d: peak memory | <= .6x | 0.50 | yes |" in lines


def test_what_was_timed_with_other_pictures_says_so(tables: ModuleType, tmp_path: Path) -> None:
    odd = timing("PatchCore 10 %", 1.0, 21.0) | {"pictures": [40, 10]}
    tables.write_report([MACHINE, odd, timing("PaDiM", 1.0, 4.0), timing("DFM", 1.0, 4.0)], tmp_path)
    text = (tmp_path / "reference.md").read_text()
    assert "## Time and memory: d, 60 training and 40 test pictures" in text
    cells = {name: row for name, *row in (line.strip("| ").split(" | ") for line in text.splitlines())}
    assert cells["PatchCore 10 %, 40 training pictures"][5] == "100", "a second for ten pictures"
    assert cells["PaDiM"][5] == "25", "a second for forty"


def test_accuracy_goals_take_the_worst_dataset_and_the_lower_bound(tables: ModuleType, tmp_path: Path) -> None:
    rows = [MACHINE]
    for seed in range(5):
        rows += [judged("STFPM", "ours", seed, 0.8 + 0.05 * seed), judged("STFPM", "theirs", seed, 0.8)]
        rows += [judged("CFlow", "ours", seed, 0.8), judged("CFlow", "theirs", seed, 0.9 - 0.04 * seed)]
    agreed = {"by anomalib": {"image_auroc": 0.902}}
    rows += [judged("PaDiM", "ours", 0, 0.9, **agreed), judged("PaDiM", "theirs", 0, 0.906)]
    tables.write_report(rows, tmp_path)
    text = (tmp_path / "reference.md").read_text()
    # five differences 0, .05, .1, .15, .2: mean .1, sd .0791, t(.95, 4) 2.132
    seen = "mean +0.100, lower 95 % bound +0.025, 5 pairs"
    assert f"| STFPM: image AUROC | lower bound >= -.02 | {seen} | yes |" in text
    # five differences -.1, -.06, -.02, .02, .06
    assert (
        "| CFlow: image AUROC | lower bound >= -.02 | mean -0.020, lower 95 % bound -0.080, 5 pairs | **no** |" in text
    )
    assert "| PaDiM: worst difference | >= -.005 | image_auroc -0.006, aupro -0.006 | **no** |" in text
    assert "| both metric codes | <= 1e-3 | 2e-03 | **no** |" in text


def test_what_anomalib_cannot_do_is_said(tables: ModuleType, tmp_path: Path) -> None:
    row = timing("DFM", 1.0, 2.0)
    del row["seconds"]["theirs"]
    del row["peak"]["theirs"]
    row["failed"]["theirs"] = "TypeError: it crashed"
    tables.write_report([MACHINE, row], tmp_path)
    assert "| DFM | anomalib: TypeError: it crashed |" in (tmp_path / "reference.md").read_text()


def test_many_configurations_count_where_both_have_fitted_them(tables: ModuleType, tmp_path: Path) -> None:
    rows = [MACHINE]
    for number, name in enumerate(("padim", "dfm", "padim")):
        key = {"phase": "many", "data": "d", "count": 3, "number": number}
        row = {"key": key, "algorithm": name, "pictures": [24, 20]}
        failed = {"failed": "it was not done after 300 s", "seconds": {}}
        rows.append(row | (failed if number == 2 else {"seconds": {"theirs": 30, "ours": 1, "ours, no store": 5}}))
    tables.write_report(rows, tmp_path)
    lines = (tmp_path / "reference.md").read_text().splitlines()
    assert "| 2 configurations, d | >= 20x | 30 | yes |" in lines
    assert "| 2 configurations, d: store off / on | >= 4x | 5 | yes |" in lines
    assert "## 3 configurations: d, 24 training and 20 test pictures" in lines
    assert any("1 failed in anomalib, or took it more than five minutes" in line for line in lines)


def test_both_sides_get_the_same_files(load: Load, tmp_path: Path) -> None:
    write_demo_dataset(tmp_path / "demo")
    folder = load("pictures").prepare(tmp_path / "demo", tmp_path / "out", 64, 10, 8)
    names = (folder.path / "test.txt").read_text().splitlines()
    truth = np.load(folder.truth)
    assert (folder.train, folder.test) == (10, 8)
    assert len(list((folder.path / "train/good").iterdir())) == 10
    assert [not name.startswith("test/good/") for name in names] == truth["labels"].tolist()
    assert truth["labels"].sum() == 4
    assert truth["masks"].any(axis=(1, 2)).tolist() == truth["labels"][truth["known"]].tolist()


def test_both_sides_try_the_same_configurations(load: Load) -> None:
    tasks = load("tasks")
    drawn = tasks.draw_configs(60, seed=0)
    assert drawn == tasks.draw_configs(60, seed=0)
    assert {name for name, _ in drawn} == {"patchcore", "padim", "dfm", "dfkde"}
    assert len({json.dumps(one) for one in drawn}) == 60
    for name, config in drawn:
        changed = {key for key, value in tasks.for_anomalib(name, config).items() if value != config[key]}
        assert changed <= {"n_features", "pooling_kernel_size"}


def test_an_answer_and_an_error_cross_the_pipe(load: Load, tmp_path: Path) -> None:
    loop = load("loop")
    script = tmp_path / "side.py"
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(FOLDER)!r})\nfrom loop import serve\n"
        "class Side:\n    def double(self, of):\n        print('noise')\n        return 2 * of\n"
        "    def fail(self):\n        raise ValueError('no good\\nreally')\n"
        "    def sleep(self):\n        import time\n        time.sleep(60)\n"
        "serve(Side())\n"
    )
    with loop.Worker(Path(sys.executable), script, 1, tmp_path / "log", {}) as worker:
        assert worker.ask("double", of=21) == 42
        with pytest.raises(loop.WorkerError, match=r"^ValueError: no good$"):
            worker.ask("fail")
        assert worker.ask("double", of=1, limit=30) == 2
        with pytest.raises(loop.WorkerError, match=r"^it was not done after 1 s$"):
            worker.ask("sleep", limit=1)
        assert not worker.alive
    assert "noise" in (tmp_path / "log").read_text()
