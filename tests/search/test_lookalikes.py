"""Defects among the good pictures are told by the labelled ones; good pictures are left in peace."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from autoad.data import Picture, Roles, assign_roles, read_dataset
from autoad.features import FeatureStore, choose_engine
from autoad.search.lookalikes import FEWEST_DEFECTS, lookalikes

HIDDEN = 4


@pytest.fixture(scope="module")
def roles(demo: Path) -> Roles:
    return assign_roles(read_dataset(demo))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    return FeatureStore(tmp_path_factory.mktemp("features"))


def selection(roles: Roles) -> tuple[list[Picture], list[Picture]]:
    """Good pictures and defects."""
    normals, defects = ([p for p in roles.selection if p.is_normal is good] for good in (True, False))
    assert len(defects) >= FEWEST_DEFECTS
    return normals, defects


def hidden(roles: Roles) -> list[Picture]:
    """A defect of each of some kinds, called good; none of them is among the labelled ones."""
    first: dict[str, Picture] = {}
    for picture in roles.test:
        if not picture.is_normal:
            first.setdefault(picture.label, picture)
    called_good = [dataclasses.replace(p, label="good", mask=None) for p in list(first.values())[:HIDDEN]]
    assert len(called_good) == HIDDEN
    return called_good


@pytest.mark.parametrize(("masked", "least"), [(True, HIDDEN), (False, HIDDEN // 2)])
def test_hidden_defects_are_found_and_good_pictures_are_not(
    roles: Roles, store: FeatureStore, masked: bool, least: int
) -> None:
    normals, defects = selection(roles)
    if not masked:
        defects = [dataclasses.replace(picture, mask=None) for picture in defects]
    among = hidden(roles)
    found = lookalikes([*roles.train, *among], normals, defects, store, choose_engine(), threads=1)
    probabilities = [probability for _, probability in found]
    assert all(0.5 < probability <= 1 for probability in probabilities)
    assert probabilities == sorted(probabilities, reverse=True)
    right = {picture.sha256 for picture, _ in found} & {picture.sha256 for picture in among}
    assert len(right) >= least
    assert len(found) - len(right) <= 1


def test_where_no_defect_is_hidden_none_is_found(roles: Roles, store: FeatureStore) -> None:
    normals, defects = selection(roles)
    assert len(lookalikes(roles.train, normals, defects, store, choose_engine(), threads=1)) <= 1


def test_of_what_only_selection_holds_nothing_is_said(roles: Roles, store: FeatureStore) -> None:
    normals, defects = selection(roles)
    among = hidden(roles)
    found = lookalikes(roles.train, [*normals, *among], defects, store, choose_engine(), threads=1)
    assert {picture.sha256 for picture, _ in found} <= {picture.sha256 for picture in roles.train}


def test_from_good_pictures_that_are_called_defective_nothing_is_learnt(roles: Roles, store: FeatureStore) -> None:
    normals, _ = selection(roles)
    ordered = sorted(roles.train, key=lambda picture: picture.sha256)
    half = len(ordered) // 2
    wrong = [dataclasses.replace(picture, label="bad") for picture in ordered[half:]]
    assert len(lookalikes(ordered[:half], normals, wrong, store, choose_engine(), threads=1)) <= 1


def test_too_few_defects_or_good_pictures_are_not_even_looked_at(roles: Roles, tmp_path: Path) -> None:
    normals, defects = selection(roles)
    store = FeatureStore(tmp_path / "features")
    few = defects[: FEWEST_DEFECTS - 1]
    assert lookalikes(roles.train, normals, few, store, choose_engine(), threads=1) == []
    assert lookalikes(roles.train[:19], normals, defects, store, choose_engine(), threads=1) == []
    assert not list(tmp_path.rglob("rows.jsonl")), "nothing was computed"
