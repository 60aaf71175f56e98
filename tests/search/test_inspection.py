"""What ``autoad inspect`` finds in a folder into which each kind of trouble was put, and in one without."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from autoad.data import Picture, Roles, assign_roles, read_dataset
from autoad.features import FeatureStore, choose_engine
from autoad.schema import Finding, FindingKind, Inspection
from autoad.search import inspection
from autoad.search.inspection import inspect_dataset

Run = Callable[..., subprocess.CompletedProcess[str]]


def pixels(file: Path) -> np.ndarray:
    return np.asarray(Image.open(file).convert("RGB"))


def save(image: np.ndarray, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(file, quality=80)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    return FeatureStore(tmp_path_factory.mktemp("features"))


@pytest.fixture(scope="module")
def clean(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clean") / "data"
    for number, file in enumerate(sorted((demo / "train/good").iterdir())[:40]):
        save(pixels(file), folder / f"train/good/{number:02}.png")
    for number, file in enumerate(sorted((demo / "test/good").iterdir())[:8]):
        save(pixels(file), folder / f"test/good/{number:02}.png")
    return folder


@pytest.fixture(scope="module")
def troubled(clean: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("troubled") / "data"
    shutil.copytree(clean, folder)
    first, second, third, fourth = (pixels(folder / f"train/good/{number:02}.png") for number in range(4))
    save(first[1:, :-1], folder / "test/good/copy.jpg")
    save(second, folder / "test/bad/copy.jpg")
    third = third.copy()
    third[30:90, 30:90] = (255, 0, 255)
    save(third, folder / "train/good/stained.png")
    save((0.3 * fourth[::-1]).astype(np.uint8), folder / "train/good/dark.png")
    return folder


def inspect(folder: Path, store: FeatureStore) -> Inspection:
    return inspect_dataset(read_dataset(folder), path=str(folder), store=store, engine=choose_engine())


def of(found: Inspection, kind: FindingKind) -> list[Finding]:
    return [finding for finding in found.findings if finding.kind == kind]


def names(finding: Finding) -> set[str]:
    return {"/".join(Path(picture).parts[-3:]) for picture in finding.pictures}


def test_a_clean_folder_has_no_copies_odd_light_or_groups(clean: Path, store: FeatureStore) -> None:
    found = inspect(clean, store)
    assert not of(found, "near_duplicates")
    assert not of(found, "brightness")
    assert not of(found, "variants")
    assert len(of(found, "suspicious_good")) <= 2
    assert found.counts["good"] == 48


def test_each_trouble_is_found_with_its_pictures(troubled: Path, store: FeatureStore) -> None:
    found = inspect(troubled, store)
    unequal, across = of(found, "near_duplicates")
    assert names(unequal) == {"train/good/01.png", "test/bad/copy.jpg"}
    assert "labelled" in unequal.text
    assert names(across) == {"train/good/00.png", "test/good/copy.jpg"}
    assert "'train'" in across.text
    assert "'selection or test'" in across.text
    assert names(of(found, "suspicious_good")[0]) == {"train/good/stained.png"}
    (dark,) = of(found, "brightness")
    assert names(dark) == {"train/good/dark.png"}
    assert "darker" in dark.text


def test_what_is_like_the_defects_is_told_by_those_that_a_search_may_see(
    demo: Path, store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    roles = assign_roles(read_dataset(demo))
    asked: list[Roles] = []

    def like(given: Roles, *_: object) -> list[tuple[Picture, float]]:
        asked.append(given)
        return [(given.train[0], 0.83)]

    monkeypatch.setattr(inspection, "lookalikes", like)
    (found,) = of(inspect(demo, store), "like_defects")
    assert found.pictures == [str(roles.train[0].path)]
    assert found.value == 0.83
    assert "like the labelled defects (0.83 of 1" in found.text
    assert asked == [roles]


def test_two_products_in_one_folder_are_told_apart(clean: Path, store: FeatureStore, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    shutil.copytree(clean, folder)
    second = {f"train/good/{number:02}.png" for number in range(0, 40, 2)}
    for name in second:
        image = pixels(folder / name).copy()
        image[::16], image[:, ::16] = 255, 0  # behind a grid
        save(image, folder / name)
    groups = of(inspect(folder, store), "variants")
    assert [names(group) & second == second for group in groups].count(True) == 1
    assert all(names(group) <= second or not names(group) & second for group in groups)
    assert sum(len(group.pictures) for group in groups) == 48


def test_few_pictures_are_no_error(clean: Path, store: FeatureStore, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    for number in range(8):
        save(pixels(clean / f"train/good/{number:02}.png"), folder / f"{number}.png")
    assert inspect(folder, store).findings == []


def test_a_second_look_computes_no_features(clean: Path, store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    first = inspect(clean, store)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("features were computed again")

    monkeypatch.setattr("autoad.features.store.create_engine", refuse)
    assert inspect(clean, store) == first


def test_the_command_prints_and_writes_a_page(troubled: Path, tmp_path: Path, autoad_here: Run) -> None:
    page = tmp_path / "page.html"
    told = autoad_here("inspect", "--data", troubled, "--output", page, "--json")
    assert told.returncode == 0, told.stderr
    found = Inspection.model_validate_json(told.stdout)
    assert {finding.kind for finding in found.findings} == {"near_duplicates", "suspicious_good", "brightness"}
    text = page.read_text()
    assert "train/good/stained.png" in text
    assert text.count("data:image/webp") == sum(len(finding.pictures) for finding in found.findings)
    assert "http" not in text.replace("http-equiv", "")
    plain = autoad_here("inspect", "--data", troubled, "--output", page)
    assert f"{len(found.findings)} to look at; nothing was changed" in plain.stdout
    assert "train/good/stained.png" in plain.stdout
