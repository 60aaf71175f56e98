from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from autoad.data import Dataset, Picture, assign_roles, read_dataset
from autoad.database import Database
from autoad.models import Model
from autoad.models.registry import Registry
from autoad.schema import PromotionVerdict
from autoad.search import challenge as module
from autoad.search.challenge import challenge
from autoad.search.final_scores import FinalScore, write_final_scores
from autoad.settings import Settings
from tests.serve.factory import add_model, make_state


@pytest.fixture(scope="module")
def dataset(demo: Path) -> Dataset:
    return read_dataset(demo)


@pytest.fixture(scope="module")
def pictures(dataset: Dataset) -> tuple[Picture, ...]:
    """Pictures that neither version was fitted or calibrated on."""
    roles = assign_roles(dataset)
    return (*roles.selection, *roles.test)


@pytest.fixture(scope="module")
def made(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``belt`` 1 is fair, 2 is good at what it does."""
    settings = make_state(tmp_path_factory.mktemp("challenge"))
    add_model(settings, dataset, "belt", "dfkde", image_size=32)
    add_model(settings, dataset, "belt", "dfm")
    return settings.data_dir


@pytest.fixture
def settings(made: Path, tmp_path: Path) -> Settings:
    """A copy for one test."""
    shutil.copytree(made, tmp_path / "state", ignore=shutil.ignore_patterns("features", "autoad.lock"))
    return Settings(data_dir=tmp_path / "state")


@pytest.fixture
def registry(settings: Settings) -> Iterator[Registry]:
    database = Database(settings)
    yield Registry(database, settings)
    database.close()


def ask(registry: Registry, settings: Settings, version: int, pictures: Sequence[Picture]) -> PromotionVerdict:
    return challenge(registry, settings, "belt", version, search="new", test=pictures, seed=0, threads=2)


def serve(registry: Registry, version: int) -> None:
    registry.promote("belt", version, reason="", actor="test")


def remember(settings: Settings, search: str, role_of: dict[str, str]) -> None:
    """As a search does."""
    folder = settings.searches_dir / search
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "roles.json").write_text(json.dumps({"evidence": "labelled", "role_of": role_of}))


def test_the_first_is_promoted_whatever_it_is(
    registry: Registry, settings: Settings, pictures: Sequence[Picture]
) -> None:
    verdict = ask(registry, settings, 1, pictures)
    assert verdict == PromotionVerdict(state="pending", reason="no version of 'belt' serves yet")


def test_what_is_better_by_more_than_chance_is_promoted(
    registry: Registry, settings: Settings, pictures: Sequence[Picture]
) -> None:
    serve(registry, 1)
    verdict = ask(registry, settings, 2, pictures)
    assert (verdict.state, verdict.compared_with, verdict.pictures) == ("pending", 1, len(pictures))
    assert verdict.difference is not None
    assert 0 < verdict.difference.low <= verdict.difference.image_auroc <= verdict.difference.high
    assert verdict.reason.startswith(f"better: +{verdict.difference.image_auroc:.4f} image AUROC")
    assert verdict.reason.endswith("which of them version 1 was made with could not be known")


def test_what_is_worse_is_not(registry: Registry, settings: Settings, pictures: Sequence[Picture]) -> None:
    serve(registry, 2)
    verdict = ask(registry, settings, 1, pictures)
    assert verdict.state == "kept"
    assert verdict.reason.startswith("not better by more than chance: -")
    assert verdict.difference is not None
    assert verdict.difference.high < 0


def test_what_serves_already_stays(registry: Registry, settings: Settings, pictures: Sequence[Picture]) -> None:
    serve(registry, 2)
    assert ask(registry, settings, 2, pictures).state == "pending"


def test_pictures_that_the_serving_version_knows_do_not_count(
    registry: Registry, settings: Settings, pictures: Sequence[Picture], monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(registry, 1)
    known = {
        picture.sha256: role for picture, role in zip(pictures[:3], ("train", "selection", "calibration"), strict=True)
    }
    known |= {picture.sha256: "test" for picture in pictures[3:6]}
    remember(settings, registry.resolve("belt/1").search or "", known)
    asked: list[str] = []
    score = module._score

    def watched(folder: Path, pictures: Sequence[Picture], threads: int | None) -> list[float]:
        asked.extend(picture.sha256 for picture in pictures)
        return score(folder, pictures, threads)

    monkeypatch.setattr(module, "_score", watched)
    verdict = ask(registry, settings, 2, pictures)
    assert verdict.pictures == len(pictures) - 3
    assert verdict.reason.endswith("3 that version 1 was made with were left out")
    assert set(asked) == {picture.sha256 for picture in pictures[3:]}


def test_where_one_class_is_left_nothing_is_promoted(
    registry: Registry, settings: Settings, pictures: Sequence[Picture]
) -> None:
    serve(registry, 1)
    good = [picture for picture in pictures if picture.is_normal]
    remember(settings, registry.resolve("belt/1").search or "", {picture.sha256: "train" for picture in good})
    verdict = ask(registry, settings, 2, pictures)
    assert (verdict.state, verdict.difference) == ("kept", None)
    assert f"there are 0 good and {len(pictures) - len(good)} defective" in verdict.reason
    assert f"{len(good)} that version 1 was made with were left out" in verdict.reason


def test_a_damaged_record_is_none(registry: Registry, settings: Settings, pictures: Sequence[Picture]) -> None:
    serve(registry, 1)
    remember(settings, registry.resolve("belt/1").search or "", {})
    (settings.searches_dir / (registry.resolve("belt/1").search or "") / "roles.json").write_text("{")
    verdict = ask(registry, settings, 2, pictures)
    assert "could not be known" in verdict.reason


def test_the_new_versions_scores_are_those_that_its_search_has_kept(
    registry: Registry, settings: Settings, pictures: Sequence[Picture], monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(registry, 2)
    scores = [
        FinalScore("champion", "test", "", picture.sha256, picture.label, float(not picture.is_normal), True)
        for picture in pictures
    ]
    (settings.searches_dir / "new").mkdir(parents=True, exist_ok=True)
    write_final_scores(settings.searches_dir / "new" / "scores.parquet", scores)
    loaded: list[Path] = []
    load = Model.load

    def watched(folder: Path, **options: object) -> Model:
        loaded.append(folder)
        return load(folder, threads=2)

    monkeypatch.setattr(Model, "load", watched)
    verdict = ask(registry, settings, 1, pictures)
    assert verdict.state in {"pending", "kept"}
    assert [folder.name for folder in loaded] == ["2"]
