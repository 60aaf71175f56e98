from __future__ import annotations

import json
import resource
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from autoad.errors import UsageError
from autoad.search import SearchRequest
from tests.conftest import Run


def test_help_is_quick(autoad: Run) -> None:
    """Processor time, because these machines share their cores."""
    times = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = autoad("--help")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert "search" in done.stdout
    assert min(times) < 0.5


def test_search_json_has_the_promised_shape(searched: dict[str, Any], state: Path) -> None:
    assert {"search_id", "dataset", "evidence", "champion", "leaderboard"} <= set(searched)
    assert searched["evidence"] == "both"
    assert len(searched["dataset"]["hash"]) == 64
    rows = searched["leaderboard"]
    assert sorted(row["trial"] for row in rows) == [0, 1, 2, 3, 4]
    assert {row["algorithm"] for row in rows[:5]} >= {"dfkde", "padim", "patchcore", "ganomaly"}
    names = {"image_auroc", "image_aupr", "image_f1_max", "pixel_auroc", "aupro"}
    for row in rows:
        assert row["status"] == "complete", row
        assert set(row["validation"]) == names
        assert row["seconds"] > 0
        has_map = row["algorithm"] in {"padim", "patchcore"}
        assert (row["validation"]["aupro"] is not None) == has_map
        assert row["exact"] == has_map, "all five are among the first five"
    trained = next(row for row in rows if row["algorithm"] == "ganomaly")
    assert (trained["epochs_done"], trained["budget_limited"]) == (1, False)
    objectives = [row["validation"]["image_auroc"] for row in rows]
    assert objectives == sorted(objectives, reverse=True)

    champion = searched["champion"]
    assert champion["trial"] == rows[0]["trial"]
    for tested in (champion["test"], champion["default_patchcore"]):
        assert tested["image_auroc_low"] <= tested["image_auroc"] <= tested["image_auroc_high"]
    assert champion["test"]["image_auroc"] > 0.8
    assert set(champion["test"]["by_defect"]) == {p.name for p in _tests(searched) if p.name != "good"}
    assert Path(champion["model"]) == state / "models" / "default" / "small" / "1"
    assert (champion["name"], champion["version"]) == ("small", 1)
    assert champion["speed"]["latency_ms"] > 0


def _tests(searched: dict[str, Any]) -> list[Path]:
    return [path for path in (Path(searched["dataset"]["path"]) / "test").iterdir() if path.is_dir()]


def test_leaderboard_shows_the_stored_search(autoad: Run, searched: dict[str, Any]) -> None:
    done = autoad("leaderboard", "small", "--json")
    assert json.loads(done.stdout) == searched
    shown = autoad("leaderboard", searched["search_id"])
    assert searched["champion"]["algorithm"] in shown.stdout
    assert "evidence: both" in shown.stdout
    missing = autoad("leaderboard", "smal")
    assert missing.returncode == 2
    assert "no search 'smal'" in missing.stderr


def test_score_gives_verdicts_regions_and_heatmaps(
    autoad: Run, searched: dict[str, Any], demo: Path, tmp_path: Path
) -> None:
    good = sorted((demo / "test" / "good").iterdir())[:4]
    bad = [sorted(folder.iterdir())[0] for folder in _tests(searched) if folder.name != "good"]
    done = autoad("score", "small", *good, *bad, "--heatmaps", tmp_path / "maps", "--json")
    assert done.returncode == 0, done.stderr
    scored = json.loads(done.stdout)
    assert [entry["picture"] for entry in scored] == [str(path) for path in (*good, *bad)]
    values = [entry["score"] for entry in scored]
    assert np.mean(values[len(good) :]) > np.mean(values[: len(good)])
    threshold = searched["champion"]["threshold"]
    for entry in scored:
        assert entry["is_anomalous"] == (entry["score"] > threshold) == (entry["normalized_score"] > 0.5)
        if entry["regions"] is not None:
            with Image.open(entry["heatmap"]) as heatmap, Image.open(entry["picture"]) as picture:
                assert heatmap.size == picture.size
            for region in entry["regions"]:
                assert region["x"] >= 0
                assert region["x"] + region["width"] <= 256
    again = autoad("score", searched["champion"]["model"], bad[0], "--no-heatmaps", "--json")
    assert json.loads(again.stdout)[0]["score"] == scored[len(good)]["score"], "alone as among others"


def test_score_names_what_it_cannot_read_and_scores_the_rest(
    autoad: Run, searched: dict[str, Any], demo: Path, tmp_path: Path
) -> None:
    good = sorted((demo / "test" / "good").iterdir())[0]
    (tmp_path / "text.png").write_text("no picture")
    done = autoad("score", "small", tmp_path / "text.png", tmp_path / "absent.png", good, "--no-heatmaps", "--json")
    assert done.returncode == 1
    assert [entry["picture"] for entry in json.loads(done.stdout)] == [str(good)]
    assert "text.png" in done.stderr
    assert "absent.png" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x"), "is damaged: its sha256"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no readable model.safetensors"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "manifest.json' is damaged"),
        (lambda folder: (folder / "manifest.json").unlink(), "is not a saved model"),
    ],
)
def test_a_damaged_artifact_is_refused(
    autoad_here: Run, searched: dict[str, Any], demo: Path, tmp_path: Path, damage: Any, message: str
) -> None:
    copy = tmp_path / "model"
    shutil.copytree(searched["champion"]["model"], copy)
    damage(copy)
    done = autoad_here("score", copy, sorted((demo / "test" / "good").iterdir())[0])
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--algorithms", "patchcor"), "Did you mean 'patchcore'"),
        (("--objective", "auroc"), "unknown objective"),
        (("--space", "absent.yaml"), "absent.yaml"),
        (("--false-positive-rate", "0.001"), "cannot be guaranteed with"),
        (("--threshold", "f1"), "unknown threshold 'f1'"),
        (("--threshold", "f1-max", "--false-positive-rate", "0.1"), "the threshold f1-max keeps to no rate"),
        (("--engine", "tpu"), "tpu"),
        (("--name", "../up"), "usable as a folder name"),
        (("--name", "n" * 300), "usable as a folder name"),
        (("--name", "my bottle"), "name the model with --model"),
        (("--name", "my bottle", "--model", "a/b"), "a model's name must be at most 100 letters"),
        (("--deterministic", "--time", "5m"), "give --trials instead of --time"),
    ],
)
def test_a_wrong_request_is_refused_before_anything_is_written(
    autoad_here: Run, demo: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    done = autoad_here("search", "--data", demo, *arguments, AUTOAD_DATA_DIR=str(tmp_path / "state"))
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "state").exists()


def test_the_best_f1_of_no_defect_is_refused_before_anything_is_written(
    autoad_here: Run, demo: Path, tmp_path: Path
) -> None:
    arguments = ("search", "--data", demo / "train" / "good", "--threshold", "f1-max")
    done = autoad_here(*arguments, AUTOAD_DATA_DIR=str(tmp_path / "state"))
    assert done.returncode == 2
    assert "needs a labelled defect among the selection pictures but there is none" in done.stderr
    assert not (tmp_path / "state").exists()
    done = autoad_here("search", "--resume", "small", "--threshold", "f1-max")
    assert (done.returncode, "--threshold cannot be changed" in done.stderr) == (2, True)


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        ("resnt18", "Did you mean 'resnet18'"),
        ("resnet18", "resnet18"),
        ("vit_tiny_patch16_224", "vit_tiny_patch16_224"),
    ],
)
def test_a_backbone_that_cannot_be_is_refused_by_name(
    autoad: Run, demo: Path, tmp_path: Path, backbone: str, message: str
) -> None:
    space = tmp_path / "space.yaml"
    space.write_text(f"algorithm: padim\nparameters:\n  backbone: {{value: {backbone}}}\n")
    done = autoad(
        *("search", "--data", demo, "--space", space, "--algorithms", "padim"),
        AUTOAD_DATA_DIR=str(tmp_path / "state"),
        HF_HUB_OFFLINE="1",
        HF_HOME=str(tmp_path / "hub"),
    )
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    written = {path.name for path in (tmp_path / "state").glob("*")}
    assert written <= {"kept"}  # what timm knows of the backbone, for the next process


def test_an_objective_that_needs_a_map_refuses_algorithms_without(autoad_here: Run, demo: Path) -> None:
    done = autoad_here("search", "--data", demo, "--objective", "aupro", "--algorithms", "dfkde,ganomaly")
    assert done.returncode == 2
    assert "needs a map" in done.stderr


def test_a_missing_folder_and_a_read_only_state_are_named(autoad_here: Run, demo: Path, tmp_path: Path) -> None:
    done = autoad_here("search", "--data", tmp_path / "absent")
    assert done.stderr.startswith(f"reading {tmp_path / 'absent'}\n"), "said before anything that takes time"
    assert done.returncode == 2
    assert "absent" in done.stderr
    (tmp_path / "file").write_bytes(b"")
    done = autoad_here("search", "--data", demo, "--trials", 1, AUTOAD_DATA_DIR=str(tmp_path / "file" / "below"))
    assert done.returncode == 2
    assert "AUTOAD_DATA_DIR" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_name_with_brackets_and_one_shared_with_a_folder_are_found(
    autoad: Run, searched: dict[str, Any], demo: Path, tmp_path: Path
) -> None:
    """Square brackets are no markup; a search's name wins over a folder that is no model."""
    bad = sorted((demo / "test" / "stain").iterdir())[0]
    paths = [tmp_path / "a" / "[x]" / "p.png", tmp_path / "b" / "[x]" / "p.png"]
    for path in paths:
        path.parent.mkdir(parents=True)
        shutil.copy(bad, path)
    done = autoad("score", "small", *paths, tmp_path / "[/gone].png", "--heatmaps", tmp_path / "maps")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "[/gone].png" in done.stderr
    assert "[x]" in done.stdout
    if searched["champion"]["test"]["pixel_auroc"] is not None:
        assert len(list((tmp_path / "maps").iterdir())) == 2


def test_a_taken_name_is_refused(autoad: Run, searched: dict[str, Any], demo: Path) -> None:
    done = autoad("search", "--data", demo, "--name", "small", "--trials", 1)
    assert done.returncode == 2
    assert "named 'small' already" in done.stderr
    assert "--model small to make the next version" in done.stderr


def test_algorithms_and_doctor(autoad: Run) -> None:
    algorithms = json.loads(autoad("algorithms", "--json").stdout)
    assert [entry["algorithm"] for entry in algorithms][:1] != []
    assert {entry["kind"] for entry in algorithms} == {"classification", "segmentation"}
    assert len(algorithms) == 8
    lines = {entry["what"]: entry["state"] for entry in json.loads(autoad("doctor", "--json").stdout)}
    assert "bundled" in lines["backbone tf_efficientnet_lite0"]
    assert "writable" in lines["data folder"]


def test_whoever_keeps_suspicious_pictures_says_so_to_the_search(
    autoad_here: Run, demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    def refuse(request: SearchRequest, *_: object) -> None:
        asked.append(request.keep_suspicious)
        raise UsageError("not now")

    monkeypatch.setattr("autoad.search.run_search", refuse)
    for options in ((), ("--keep-suspicious",)):
        assert "not now" in autoad_here("search", "--data", demo, *options).stderr
    assert asked == [False, True]
