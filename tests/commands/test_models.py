"""``autoad models`` and ``autoad delete``."""

from __future__ import annotations

import getpass
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autoad.database import Database
from autoad.models.registry import Registry
from autoad.settings import Settings
from tests.conftest import Run
from tests.models.registering import make_artifact


@pytest.fixture
def run(autoad: Run, tmp_path: Path) -> Callable[..., Any]:
    """Runs the command line over three versions of ``bottle``, of which 1 is the champion, and one of ``tire``."""
    settings = Settings(data_dir=tmp_path / "state")
    database = Database(settings)
    registry = Registry(database, settings)
    for trial, name in enumerate(["bottle", "bottle", "bottle", "tire"]):
        registry.register(make_artifact(tmp_path / "new", trial=trial), name)
    registry.promote("bottle", 1, reason="finds [all] scratches", actor="ann")
    database.close()
    return lambda *arguments: autoad(*arguments, AUTOAD_DATA_DIR=str(tmp_path / "state"))


def test_models_are_listed_and_one_is_described(run: Callable[..., Any]) -> None:
    entries = json.loads(run("models", "--json").stdout)
    assert [(e["name"], len(e["versions"]), e["route"]["champion"]) for e in entries] == [
        ("bottle", 3, 1),
        ("tire", 1, None),
    ]
    one = json.loads(run("models", "bottle", "--json").stdout)
    assert one == entries[0]
    assert [(v["version"], v["aliases"]) for v in one["versions"]] == [(3, []), (2, []), (1, ["champion"])]
    assert one["versions"][0]["created"].endswith("Z"), "with a time zone"
    listed = run("models").stdout.splitlines()
    assert [line.split() for line in listed[1:]] == [
        ["bottle", "3", "3", "1", "-", "-", "-"],
        ["tire", "1", "1", "-", "-", "-", "-"],
    ]
    shown = run("models", "bottle").stdout
    for told in ("models:/bottle/VERSION", "champion", "dfm", "0.625", "5ea4c4", "none -> 1", "ann"):
        assert told in shown
    assert "finds [all] scratches" in shown, "brackets are no markup"
    assert "autoad promote tire" in run("models", "tire").stdout
    missing = run("models", "bottel")
    assert missing.returncode == 2
    assert "Did you mean 'bottle'" in missing.stderr


def test_a_version_is_deleted_with_its_reason_unless_it_answers(run: Callable[..., Any], tmp_path: Path) -> None:
    refused = run("delete", "bottle", 1)
    assert refused.returncode == 2
    assert "version 1 of 'bottle' is champion and cannot be deleted" in refused.stderr
    assert json.loads(run("delete", "bottle", 3, "--reason", "a try", "--json").stdout) == {
        "name": "bottle",
        "version": 3,
    }
    assert run("delete", "bottle", 2).stdout == "bottle: version 2 is deleted\n"
    assert [folder.name for folder in (tmp_path / "state/models/default/bottle").iterdir()] == ["1"]
    model = json.loads(run("models", "bottle", "--json").stdout)
    assert [version["version"] for version in model["versions"]] == [1]
    told = [(line["action"], line["before"], line["reason"], line["actor"]) for line in model["history"]]
    assert told[:2] == [("delete", 2, "", getpass.getuser()), ("delete", 3, "a try", getpass.getuser())]
    again = run("delete", "bottle", 3)
    assert again.returncode == 2
    assert "unknown version of 'bottle' '3'. Choices: 1" in again.stderr


def test_no_model_yet_says_how_to_make_one(autoad: Run, tmp_path: Path) -> None:
    done = autoad("models", AUTOAD_DATA_DIR=str(tmp_path))
    assert done.returncode == 0
    assert "autoad search --data" in done.stdout
    assert autoad("models", "--json", AUTOAD_DATA_DIR=str(tmp_path)).stdout == "[]\n"
    missing = autoad("models", "x", AUTOAD_DATA_DIR=str(tmp_path))
    assert (missing.returncode, "There is none yet" in missing.stderr) == (2, True)


def test_a_second_search_makes_the_next_version(autoad: Run, demo: Path, state: Path) -> None:
    def search(name: str, *more: object) -> Any:
        return autoad(
            *("search", "--data", demo, "--name", name, "--trials", 1, "--algorithms", "dfkde", "--json", *more)
        )

    results = []
    for name in ("first pair", "second pair"):
        done = search(name, "--model", "pair")
        assert done.returncode == 0, done.stderr
        results.append(json.loads(done.stdout))
    for version, result in enumerate(results, start=1):
        champion = result["champion"]
        assert (champion["name"], champion["version"]) == ("pair", version)
        assert champion["model"] == str(state / "models" / "default" / "pair" / str(version))
    versions = json.loads(autoad("models", "pair", "--json").stdout)["versions"]
    assert [version["search"] for version in versions] == [result["search_id"] for result in results[::-1]]
    shown = autoad("leaderboard", "first pair").stdout
    assert "model: pair/1 (models:/pair/1) in " in shown
    assert "autoad score pair/1 PICTURE" in shown
    assert "autoad serve, and then autoad promote pair --version 1" in shown
    picture = sorted((demo / "test" / "good").iterdir())[0]
    for model, version in (("first pair", "1"), ("pair/1", "1"), ("pair", "2"), ("models:/pair/2", "2")):
        scored = json.loads(autoad("score", model, picture, "--no-heatmaps", "--json").stdout)
        assert Path(scored[0]["model"]).name == version
    taken = search("pair")
    assert taken.returncode == 2
    assert "there is a model named 'pair' already; choose another --name, and give --model pair" in taken.stderr
    taken = search("second pair", "--model", "pair")
    assert taken.returncode == 2
    assert "there is a search named 'second pair' already; choose another --name, and give --model pair" in taken.stderr
    kept = autoad("search", "--resume", "second pair", "--model", "other")
    assert kept.returncode == 2
    assert "--model cannot be changed" in kept.stderr
