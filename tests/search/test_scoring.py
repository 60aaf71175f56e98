"""Which model a text means."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from autoad.database import Database
from autoad.errors import ArtifactError, UsageError
from autoad.models.registry import Registry
from autoad.schema import Champion, DatasetSummary, Metrics, SearchResult, TestMetrics
from autoad.search.scoring import find_model
from autoad.settings import get_settings
from tests.models.registering import make_artifact

WHY = {"reason": "", "actor": "ann"}


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    monkeypatch.setenv("AUTOAD_DATA_DIR", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    database = Database()
    yield database
    database.close()


@pytest.fixture
def models(database: Database, tmp_path: Path) -> Path:
    """The folder of two versions of ``bottle`` and one of ``tire``."""
    registry = Registry(database)
    for trial, name in enumerate(["bottle", "bottle", "tire"]):
        registry.register(make_artifact(tmp_path / "new", trial=trial), name)
    return get_settings().models_dir


def add_search(
    database: Database,
    search_id: str,
    search: str,
    model: Path | None,
    name: str | None = None,
    version: int | None = None,
) -> None:
    """A search that has made a model, or none."""
    champion = model and Champion.model_validate(
        {
            "trial": 0,
            "algorithm": "dfm",
            "config": {},
            "validation": Metrics(),
            "test": TestMetrics(),
            "default_patchcore": None,
            "difference": None,
            "threshold": 1.5,
            "false_positive_rate": 0.1,
            "speed": None,
            "model": str(model),
            "name": name,
            "version": version,
        }
    )
    result = SearchResult(
        search_id=search_id,
        name=search,
        status="complete" if model else "failed",
        objective="image_auroc",
        seed=0,
        seconds=1.0,
        dataset=DatasetSummary(path="/p", layout="folder", hash="f", counts={}, roles={}),
        evidence="labelled",
        engine="torch float32",
        notes=[],
        champion=champion,
        leaderboard=[],
    )
    database.add_search(search_id, search, "f", {}, result.model_dump(mode="json"))
    database.update_search(search_id, status=result.status)


def test_a_name_is_the_champion_or_else_the_newest_version(database: Database, models: Path) -> None:
    assert find_model("bottle") == models / "bottle" / "2"
    Registry(database).promote("bottle", 1, **WHY)
    assert find_model("bottle") == models / "bottle" / "1"
    for address, version in (("bottle/2", "2"), ("bottle@champion", "1"), ("bottle/1", "1")):
        assert find_model(address) == find_model(f"models:/{address}") == models / "bottle" / version
    assert find_model("models:/tire") == models / "tire" / "1"


def test_a_search_stands_for_what_it_made(database: Database, models: Path, tmp_path: Path) -> None:
    add_search(database, "aaaa", "first", models / "bottle" / "1", "bottle", 1)
    add_search(database, "bbbb", "failed", None)
    old = make_artifact(tmp_path / "old")
    add_search(database, "cccc", "before there were versions", old)
    assert find_model("first") == find_model("aaaa") == models / "bottle" / "1", "though 2 is newer"
    assert find_model("before there were versions") == find_model("cccc") == old
    with pytest.raises(ArtifactError, match="'failed' has no champion"):
        find_model("failed")
    Registry(database).delete("bottle", 1, **WHY)
    with pytest.raises(ArtifactError, match="'first' made bottle/1, which has been deleted"):
        find_model("first")


def test_what_could_mean_two_things(database: Database, models: Path, tmp_path: Path) -> None:
    add_search(database, "aaaa", "bottle", models / "tire" / "1", "tire", 1)
    assert find_model("bottle") == models / "bottle" / "2", "a model before a search"
    assert find_model("aaaa") == models / "tire" / "1"
    add_search(database, "bbbb", "folder", models / "tire" / "1", "tire", 1)
    (tmp_path / "folder").mkdir()
    assert find_model("folder") == models / "tire" / "1", "a search before a folder that is no model"
    make_artifact(tmp_path / "bottle" / "2")
    assert find_model("bottle/2") == Path("bottle/2"), "a model's folder before all"
    assert find_model("models:/bottle/2") == models / "bottle" / "2"
    (tmp_path / "empty").mkdir()
    assert find_model("empty") == Path("empty"), "whose loading says what it lacks"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("bottel", "unknown model 'bottel'. Did you mean 'bottle'"),
        ("bottle/7", "unknown version of 'bottle' '7'. Choices: 1, 2"),
        ("out/3", "unknown model 'out'"),
        ("./x/y", "a model's name must be"),
        ("bottle/x", "a version must be a number"),
        ("bottle@champion", "no version of 'bottle' is champion"),
        ("bottle@champoin", "Did you mean 'champion'"),
    ],
)
def test_what_is_none_of_the_three_is_told_why(database: Database, models: Path, text: str, why: str) -> None:
    with pytest.raises(UsageError) as caught:
        find_model(text)
    for part in (f"{text!r} must be the folder of a saved model", "but it is no folder", why, "there is no search"):
        assert part in str(caught.value)
    with pytest.raises(UsageError) as caught:
        find_model(f"models:/{text}")
    assert "search" not in str(caught.value), "with the prefix it can be nothing else"
