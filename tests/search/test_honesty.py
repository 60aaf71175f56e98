"""The search cannot see the test pictures, and the same call gives the same answer."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from autoad.data import assign_roles, read_dataset
from autoad.data._defects import KINDS
from tests.conftest import Run

TIMES = {"seconds", "latency_ms", "feature_seconds", "predicted_seconds", "started_after", "ended_after"}


def write_manifest(demo: Path, target: Path, *, spoil_test: bool) -> Path:
    """The demo dataset with explicit splits; half of its test folder validates, the other half tests.

    With ``spoil_test`` the test pictures have each other's labels, and a third of them is gone.
    """
    rows = [(path, "good", "train") for path in sorted((demo / "train" / "good").iterdir())]
    pool = [(path, path.parent.name) for path in sorted((demo / "test").glob("*/*"))]
    rows += [(path, label, "validation") for path, label in pool[::2]]
    tested = pool[1::2]
    labels = [label for _, label in tested]
    if spoil_test:
        labels = labels[7:] + labels[:7]
    shown = [(path, label, "test") for (path, _), label in zip(tested, labels, strict=True)]
    rows += [row for number, row in enumerate(shown) if not spoil_test or number % 3]
    with target.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split"])
        writer.writerows(rows)
    return target


@pytest.fixture(scope="module")
def pair(autoad: Run, demo: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """A deterministic search, and the same with test labels permuted and test pictures deleted."""
    folder = tmp_path_factory.mktemp("manifests")
    plain = write_manifest(demo, folder / "plain.csv", spoil_test=False)
    spoilt = write_manifest(demo, folder / "spoilt.csv", spoil_test=True)
    results = []
    for name, manifest in (("plain", plain), ("spoilt", spoilt)):
        done = autoad(
            *("search", "--data", manifest, "--name", name, "--deterministic", "--trials", 4, "--json"),
            *("--algorithms", "dfm,padim,stfpm", "--max-epochs", 1, "--seed", 3),
        )
        assert done.returncode == 0, done.stderr
        results.append(json.loads(done.stdout))
    return results


def without_times(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


def test_what_is_done_to_the_test_pictures_changes_nothing_but_the_test_figures(pair: list[dict[str, Any]]) -> None:
    plain, spoilt = pair
    assert plain["dataset"]["hash"] != spoilt["dataset"]["hash"], "something was done to them"
    assert len(plain["leaderboard"]) == 4
    assert without_times(plain["leaderboard"]) == without_times(spoilt["leaderboard"]), "and the search repeats"
    assert plain["champion"]["test"] != spoilt["champion"]["test"]
    folders = [Path(result["champion"]["model"]) for result in (plain, spoilt)]
    one, other = ((folder / "model.safetensors").read_bytes() for folder in folders)
    assert one == other
    manifests = [json.loads((folder / "manifest.json").read_text()) for folder in folders]
    assert manifests[0]["members"] == manifests[1]["members"]
    assert manifests[0]["calibration"] == manifests[1]["calibration"]


def test_no_test_picture_reaches_the_trials(pair: list[dict[str, Any]], state: Path) -> None:
    roles = json.loads((state / "searches" / pair[0]["search_id"] / "roles.json").read_text())["role_of"]
    assert set(roles.values()) == {"train", "selection", "calibration", "test"}
    assert (
        sum(role == "test" for role in roles.values())
        == pair[0]["dataset"]["roles"]["test"]["good"] + (pair[0]["dataset"]["roles"]["test"]["defective"])
    )


def add_stained(folder: Path) -> str:
    """Name of a good picture with a stain in it, whose bytes make it one to learn from."""
    image = np.array(Image.open(sorted(folder.iterdir())[0]).convert("RGB"))
    for blue in range(256):
        image[30:90, 30:90] = (255, 0, blue)
        Image.fromarray(image).save(folder / "stained.png")
        if any(one.path.name == "stained.png" for one in assign_roles(read_dataset(folder)).train):
            return "stained.png"
    raise AssertionError("no stain makes it a train picture")


def test_without_labelled_defects_the_evidence_is_synthetic(autoad: Run, demo: Path, tmp_path: Path) -> None:
    goods = tmp_path / "goods"
    shutil.copytree(demo / "train" / "good", goods)
    stained = add_stained(goods)
    done = autoad(
        *("search", "--data", goods, "--name", "goods", "--trials", 2, "--json"),
        *("--algorithms", "padim,dfm"),
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["evidence"] == "synthetic"
    (note,) = [note for note in result["notes"] if note.startswith("set aside: ")]
    assert stained in note
    assert result["dataset"]["roles"]["aside"]["good"] == int(note.split()[2])
    report = re.search(r"report: (\S+)", done.stderr)
    assert report is not None
    assert "good in name, but unlike the others" in Path(report[1]).read_text()
    for row in result["leaderboard"]:
        assert set(row["by_kind"]) == set(KINDS)
        assert row["objective"] == pytest.approx(sum(row["by_kind"].values()) / len(KINDS))
    champion, choice = result["champion"], result["choice"]
    assert (choice["trial"], choice["labelled_weight"]) == (champion["trial"], 0)
    assert champion["trial"] in choice["tied"]
    assert champion["test"]["image_auroc"] is None, "there is no defect to test on"
    assert champion["difference"] is None
    shown = autoad("leaderboard", "goods").stdout
    assert "evidence: synthetic" in shown
    assert "not computable" in shown
    assert "evidence: synthetic" in (Path(champion["model"]) / "README.md").read_text()


def test_failing_trials_are_rows_and_all_failing_is_exit_code_3(autoad: Run, demo: Path, tmp_path: Path) -> None:
    space = tmp_path / "ganomaly.yaml"
    space.write_text("algorithm: ganomaly\nparameters:\n  lr: {value: 1.0e+30}\n")
    done = autoad(
        *("search", "--data", demo, "--name", "doomed", "--trials", 2, "--max-epochs", 2, "--space", space),
        *("--algorithms", "ganomaly", "--keep-suspicious"),
    )
    assert done.returncode == 3, done.stderr
    assert "no trial succeeded" in done.stderr
    rows = json.loads(autoad("leaderboard", "doomed", "--json").stdout)["leaderboard"]
    assert [row["status"] for row in rows] == ["failed", "failed"]
    assert all(row["reason"] for row in rows)
