"""Good pictures that are unlike the others are set aside before anything is learnt, without a look at the others."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from autoad.data import Picture
from autoad.features import FeatureStore
from autoad.search import aside
from autoad.search.plan import Plan, SearchRequest, make_plan

COLOURS = [(255, 0, 255), (0, 255, 0)]
STAINED = len(COLOURS)


@pytest.fixture(scope="module")
def folder(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 good pictures of the demo dataset, and the first two once more, each with a stain of its own."""
    folder = tmp_path_factory.mktemp("stained") / "data"
    folder.mkdir()
    for number, file in enumerate(sorted((demo / "train/good").iterdir())[:40]):
        shutil.copyfile(file, folder / f"{number:02}.png")
        if number < STAINED:
            image = np.array(Image.open(file).convert("RGB"))
            image[30:90, 30 * number : 30 * number + 60] = COLOURS[number]
            Image.fromarray(image).save(folder / f"stained{number}.png")
    return folder


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore(tmp_path / "features")


def is_stained(picture: Picture) -> bool:
    return picture.path.name.startswith("stained")


def planned(folder: Path, **changes: object) -> Plan:
    """With the stained pictures where they do harm: whoever draws lots by their bytes might calibrate with them."""
    plan = make_plan(SearchRequest(data=folder, algorithms=("padim", "patchcore"), **changes))
    roles, parts = plan.roles, {}
    stained = tuple(p for p in (*roles.train, *roles.selection, *roles.calibration, *roles.test) if is_stained(p))
    for role in ("train", "selection", "calibration", "test"):
        parts[role] = tuple(p for p in getattr(roles, role) if not is_stained(p))
    assert len(stained) == STAINED
    parts["train"] += stained[:1]
    parts["selection"] += stained[1:]
    return dataclasses.replace(plan, roles=dataclasses.replace(roles, **parts))


def test_stained_pictures_are_set_aside_and_named(folder: Path, store: FeatureStore, tmp_path: Path) -> None:
    plan = planned(folder)
    left, note = aside.set_aside(plan, tmp_path, store, threads=1)
    assert {p.path.name for p in left.roles.aside} >= {"stained0.png", "stained1.png"}
    assert len(left.roles.aside) <= STAINED + 1
    before, after = plan.roles, left.roles
    assert (after.test, after.calibration) == (before.test, before.calibration)
    assert {*after.train, *after.selection, *after.aside} == {*before.train, *before.selection}
    assert not any(is_stained(p) for p in (*after.train, *after.selection))
    assert note is not None
    assert all(f"stained{number}.png" in note for number in range(STAINED))
    assert str(folder) not in note, "names are those in the dataset"
    assert "--keep-suspicious" in note
    assert left.roles.role_of[left.roles.aside[0].sha256] == "aside"
    assert left.roles.counts()["aside"]["good"] == len(left.roles.aside)


def test_what_is_like_the_defects_of_selection_is_not_learnt_from(
    demo: Path, store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(SearchRequest(data=demo, algorithms=("padim",)))
    odd, both, like = plan.roles.train[:3]
    monkeypatch.setattr(aside, "suspicious_pictures", lambda *_: [(odd, 9.0), (both, 8.0)])
    monkeypatch.setattr(aside, "lookalikes", lambda roles, *_: [(both, 0.9), (like, 0.8)] * (roles is plan.roles))
    left, note = aside.set_aside(plan, tmp_path, store, threads=1)
    assert sorted(p.sha256 for p in left.roles.aside) == sorted(p.sha256 for p in (odd, both, like))
    assert note is not None
    assert note.startswith("set aside: 3 good pictures that look defective; nothing is learnt from ")
    reasons = {
        odd: "unlike the others",
        both: "unlike the others and like the labelled defects",
        like: "like the labelled defects",
    }
    assert all(f"train/good/{picture.path.name} ({reason})" in note for picture, reason in reasons.items())


def test_neither_test_nor_calibration_pictures_are_looked_at(
    folder: Path, store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned(folder)
    seen: list[Picture] = []
    monkeypatch.setattr(aside, "suspicious_pictures", lambda good, *_: seen.extend(good) or [])
    assert aside.set_aside(plan, tmp_path, store, threads=1) == (plan, None)
    assert set(seen) == {*plan.roles.train, *plan.roles.selection}
    backbone_ran_on = {row for path in tmp_path.rglob("rows.jsonl") for row in path.read_text().split('"')}
    assert {p.sha256 for p in seen} <= backbone_ran_on
    assert not backbone_ran_on & {p.sha256 for p in (*plan.roles.test, *plan.roles.calibration)}


def test_whoever_wants_them_or_has_very_many_keeps_them(
    folder: Path, store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned(folder, keep_suspicious=True)
    assert aside.set_aside(plan, tmp_path, store, threads=1) == (plan, None)
    monkeypatch.setattr(aside, "_MOST_LOOKED_AT", len(plan.roles.train))
    plan = planned(folder)
    assert aside.set_aside(plan, tmp_path, store, threads=1) == (plan, None)
    assert not list(tmp_path.iterdir()), "nothing was computed"


def test_a_resumed_search_sets_the_same_aside(
    folder: Path, store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned(folder)
    one = plan.roles.train[0]
    monkeypatch.setattr(aside, "suspicious_pictures", lambda *_: [(one, 9.0)])
    first, note = aside.set_aside(plan, tmp_path, store, threads=1)
    assert first.roles.aside == (one,)
    monkeypatch.setattr(aside, "suspicious_pictures", lambda *_: pytest.fail("it was decided"))
    assert aside.set_aside(plan, tmp_path, store, threads=1) == (first, note)


def test_something_is_left_to_rank_trials_by(
    folder: Path, store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned(folder)
    doubted = [(picture, 9.0) for picture in (*plan.roles.selection, plan.roles.train[0])]
    monkeypatch.setattr(aside, "suspicious_pictures", lambda *_: doubted)
    left, _ = aside.set_aside(plan, tmp_path, store, threads=1)
    assert left.roles.selection == plan.roles.selection
    assert left.roles.aside == (plan.roles.train[0],)
