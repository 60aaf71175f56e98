"""Defects among the good pictures are told by the labelled ones; good pictures are left in peace."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest

from autoad.data import Picture, Roles, assign_roles, read_dataset
from autoad.features import EngineChoice, FeatureStore
from autoad.search import lookalikes as module
from autoad.search.lookalikes import lookalikes

HIDDEN = 4
ENGINE = EngineChoice("torch", "float32")

Draw = Callable[[np.random.Generator, int], np.ndarray]


@pytest.fixture(scope="module")
def roles(demo: Path) -> Roles:
    return assign_roles(read_dataset(demo))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    return FeatureStore(tmp_path_factory.mktemp("features"))


@pytest.fixture
def without_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that good pictures could be named, too."""
    monkeypatch.setattr(module, "_MOST", 1.0)


def hidden(roles: Roles, split: str = "train") -> list[Picture]:
    """A defect of each of some kinds, called good; none of them is among the labelled ones."""
    first: dict[str, Picture] = {}
    for picture in roles.test:
        if not picture.is_normal:
            first.setdefault(picture.label, picture)
    some = list(first.values())[:HIDDEN]
    assert len(some) == HIDDEN
    return [dataclasses.replace(picture, label="good", mask=None, split=split) for picture in some]


def with_train(roles: Roles, train: Iterable[Picture]) -> Roles:
    return dataclasses.replace(roles, train=tuple(train))


def with_defects(roles: Roles, defects: Iterable[Picture]) -> Roles:
    normals = (picture for picture in roles.selection if picture.is_normal)
    return dataclasses.replace(roles, selection=(*normals, *defects))


def keys(pictures: Iterable[Picture]) -> set[str]:
    return {picture.sha256 for picture in pictures}


@pytest.mark.usefixtures("without_limit")
@pytest.mark.parametrize("masked", [True, False])
def test_hidden_defects_are_found_and_good_pictures_are_not(roles: Roles, store: FeatureStore, masked: bool) -> None:
    if not masked:
        roles = with_defects(
            roles, [dataclasses.replace(one, mask=None) for one in roles.selection if not one.is_normal]
        )
    among = hidden(roles)
    found = lookalikes(with_train(roles, [*roles.train, *among]), store, ENGINE)
    likely = [each for _, each in found]
    assert all(0.3 < each <= 1 for each in likely)
    assert likely == sorted(likely, reverse=True)
    named = keys(picture for picture, _ in found)
    assert len(named & keys(among)) >= (HIDDEN - 1 if masked else 1), "without masks few are told"
    assert len(named - keys(among)) <= 2


@pytest.mark.usefixtures("without_limit")
def test_where_no_defect_is_hidden_none_is_found(roles: Roles, store: FeatureStore) -> None:
    assert len(lookalikes(roles, store, ENGINE)) <= 1


def test_good_pictures_of_a_split_of_their_own_are_only_compared_with(roles: Roles, store: FeatureStore) -> None:
    among, apart = hidden(roles)[:2], hidden(roles, split="")[2:]
    both = dataclasses.replace(roles, train=(*roles.train, among[0]), selection=(*roles.selection, among[1], *apart))
    found = keys(picture for picture, _ in lookalikes(both, store, ENGINE))
    assert keys(among) & found
    assert not keys(apart) & found
    by_role = [keys(p for p in role if p.is_normal and p.split != "train") for role in (both.train, both.selection)]
    assert not by_role[0]
    assert by_role[1] > keys(apart), "the demo has good pictures in its test folder"


def test_more_than_a_few_are_a_kind_of_good(roles: Roles, store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    mixed = with_train(roles, [*roles.train, *hidden(roles)])
    assert lookalikes(mixed, store, ENGINE)
    monkeypatch.setattr(module, "_MOST", 0.01)
    assert lookalikes(mixed, store, ENGINE) == []


def test_too_few_defects_or_good_pictures_are_not_even_looked_at(roles: Roles, tmp_path: Path) -> None:
    store = FeatureStore(tmp_path / "features")
    defects = [picture for picture in roles.selection if not picture.is_normal]
    assert lookalikes(with_defects(roles, defects[:15]), store, ENGINE) == []
    few = [picture for picture in roles.selection if picture.split != "train"]
    assert lookalikes(dataclasses.replace(roles, train=roles.train[:19], selection=tuple(few)), store, ENGINE) == []
    assert not list(tmp_path.rglob("rows.jsonl")), "nothing was computed"


def standardised(scores: np.ndarray, by: np.ndarray) -> np.ndarray:
    middle = np.median(by)
    return np.asarray((scores - middle) / (1.4826 * np.median(np.abs(by - middle))))


@pytest.mark.parametrize(
    "good",
    [
        lambda rng, count: rng.normal(size=count),
        lambda rng, count: rng.standard_t(5, count),
        lambda rng, count: np.exp(0.4 * rng.normal(size=count)),
    ],
    ids=["normal", "outliers", "skewed"],
)
def test_odd_good_pictures_are_not_taken_for_defects(good: Draw) -> None:
    """Half of the defects look good, half lie eight deviations away; of 200 good ones none is like these, or ten."""
    rng = np.random.default_rng(0)
    wrong, right = [], []
    for _ in range(40):
        scores = good(rng, 200)
        plain = standardised(scores, scores)
        defects = np.concatenate([rng.normal(size=10), 8 + rng.normal(size=10)])
        wrong.append(int((module._likelihoods(module._Evidence(plain, defects)) > 0.3).sum()))
        mixed = np.concatenate([plain, 8 + rng.normal(size=10)])
        right.append(float((module._likelihoods(module._Evidence(mixed, defects))[200:] > 0.3).mean()))
    assert np.mean(wrong) < 1
    assert np.mean(right) > 0.95


def test_defects_that_look_better_than_good_ones_say_nothing() -> None:
    rng = np.random.default_rng(0)
    assert not module._likelihoods(module._Evidence(rng.standard_t(4, 300), rng.normal(-1, 3, 20))).any()
