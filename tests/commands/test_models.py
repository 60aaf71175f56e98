"""``autoad models`` and ``autoad delete``, and how a search names its model."""

from __future__ import annotations

import getpass
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from autoad.database import Database
from autoad.models import read_manifest
from autoad.models.registry import Registry
from autoad.search import load_result
from autoad.settings import Settings
from tests.commands.conftest import Command
from tests.conftest import Run
from tests.models.registering import make_artifact


@pytest.fixture
def models(settings: Settings, tmp_path: Path) -> Iterator[Registry]:
    """Three versions of ``bottle``, of which 1 is the champion, and one of ``tire``."""
    database = Database(settings)
    registry = Registry(database, settings)
    for trial, name in enumerate(["bottle", "bottle", "bottle", "tire"]):
        registry.register(make_artifact(tmp_path / "new", trial=trial), name)
    registry.promote("bottle", 1, reason="finds [all] scratches", actor="ann")
    yield registry
    database.close()


def test_models_are_listed_and_one_is_described(run: Command, models: Registry) -> None:
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
    assert missing.code == 2
    assert "Did you mean 'bottle'" in missing.stderr


def test_a_version_is_deleted_with_its_reason_unless_it_answers(
    run: Command, models: Registry, settings: Settings
) -> None:
    refused = run("delete", "bottle", 1)
    assert refused.code == 2
    assert "version 1 of 'bottle' is champion and cannot be deleted" in refused.stderr
    deleted = json.loads(run("delete", "bottle", 3, "--reason", "a try", "--json").stdout)
    assert deleted == {"name": "bottle", "version": 3}
    assert run("delete", "bottle", 2).stdout == "bottle: version 2 is deleted\n"
    assert [folder.name for folder in (settings.models_dir / "bottle").iterdir()] == ["1"]
    model = models.model("bottle")
    assert [version.version for version in model.versions] == [1]
    told = [(line.action, line.before, line.reason, line.actor) for line in model.history]
    assert told[:2] == [("delete", 2, "", getpass.getuser()), ("delete", 3, "a try", getpass.getuser())]
    again = run("delete", "bottle", 3)
    assert again.code == 2
    assert "unknown version of 'bottle' '3'. Choices: 1" in again.stderr


def test_no_model_yet_says_how_to_make_one(run: Command) -> None:
    listed = run("models")
    assert (listed.code, "autoad search --data" in listed.stdout) == (0, True)
    assert run("models", "--json").stdout == "[]\n"
    missing = run("models", "x")
    assert (missing.code, "There is none yet" in missing.stderr) == (2, True)


def test_a_search_does_not_add_to_a_model_that_it_does_not_name(run: Command, models: Registry, demo: Path) -> None:
    wanted = ("search", "--data", demo, "--algorithms", "dfkde", "--trials", 1)
    taken = run(*wanted, "--name", "bottle")
    assert taken.code == 2
    assert "there is a model named 'bottle' already; choose another --name, and give --model bottle" in taken.stderr
    kept = run("search", "--resume", "bottle", "--model", "tire")
    assert kept.code == 2
    assert "--model cannot be changed" in kept.stderr
    listed = run("searches", "--json")
    assert listed.stdout == "[]\n", "nothing was begun"


def test_a_search_makes_the_next_version_of_the_model_that_it_names(
    autoad: Run, demo: Path, state: Path, tmp_path: Path
) -> None:
    settings = Settings(data_dir=state)
    database = Database(settings)
    registry = Registry(database, settings)
    registry.register(make_artifact(tmp_path / "new"), "pair")
    wanted = ("search", "--data", demo, "--name", "second pair", "--model", "pair")
    done = autoad(*wanted, "--trials", 1, "--algorithms", "dfkde", "--keep-suspicious")
    assert done.returncode == 0, done.stderr
    champion = load_result("second pair", settings).champion
    assert champion is not None
    assert (champion.name, champion.version, champion.address) == ("pair", 2, "pair/2")
    assert champion.model == str(registry.open("pair", 2)) == str(state / "models" / "default" / "pair" / "2")
    manifest = read_manifest(Path(champion.model))
    assert manifest.name == "pair"
    newest = registry.resolve("pair")
    assert (newest.version, newest.search) == (2, load_result("second pair", settings).search_id)
    assert newest.test is not None
    assert newest.test.image_auroc == champion.test.image_auroc
    for told in (
        f"model: pair/2 (models:/pair/2) in {champion.model}\n",
        "autoad score pair/2 PICTURE",
        "autoad serve, and then autoad promote pair --version 2",
    ):
        assert told in done.stdout
    report = (state / "searches" / newest.search / "report.html").read_text()
    assert "autoad score pair/2 PICTURE" in report
    assert not list((state / "models" / "default").glob(".*")), "nothing half made is left"
    database.close()
    taken = autoad(*wanted, "--trials", 1)
    assert taken.returncode == 2
    assert "there is a search named 'second pair' already; choose another --name, and give --model pair" in taken.stderr
