from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoad.data import GOOD, Dataset, Picture, Roles, Split, assign_roles
from autoad.errors import DatasetError

ROLES = ("train", "selection", "calibration", "test")


def pictures(label: str, split: Split, count: int, name: str = "") -> list[Picture]:
    made = []
    for index in range(count):
        path = Path(f"{name}{split}-{label}-{index}.png")
        made.append(Picture(path, hashlib.sha256(str(path).encode()).hexdigest(), label, None, split))
    return made


def dataset(*groups: list[Picture], layout: str = "mvtec") -> Dataset:
    return Dataset("parts", Path("parts"), layout, tuple(p for group in groups for p in group))


def mvtec(train: int, good: int, **defects: int) -> Dataset:
    return dataset(
        pictures(GOOD, "train", train), pictures(GOOD, "", good), *(pictures(k, "", n) for k, n in defects.items())
    )


def sizes(roles: Roles, *labels: str) -> tuple[int, ...]:
    return tuple(sum(not labels or p.label in labels for p in getattr(roles, role)) for role in ROLES)


def labels_of(roles: Roles, role: str) -> Counter[str]:
    return Counter(p.label for p in getattr(roles, role))


groups = st.lists(
    st.tuples(st.sampled_from([GOOD, "dent", "hole"]), st.sampled_from(["", "train", "validation", "test"])),
    min_size=0,
    max_size=60,
)


def from_groups(pairs: list[tuple[str, Split]], free: int) -> Dataset:
    made = [pictures(label, split, 1, f"{index}/")[0] for index, (label, split) in enumerate(pairs)]
    # Enough good pictures to learn from, whichever splits were drawn.
    return dataset(made, pictures(GOOD, "train", free))


@settings(max_examples=100, deadline=None)
@given(pairs=groups, free=st.integers(8, 60))
def test_each_picture_has_one_role(pairs: list[tuple[str, Split]], free: int) -> None:
    data = from_groups(pairs, free)
    roles = assign_roles(data)
    assigned = [p for role in ROLES for p in getattr(roles, role)]
    assert sorted(assigned, key=lambda p: p.sha256) == sorted(data.pictures, key=lambda p: p.sha256)
    assert roles.role_of.keys() == {p.sha256 for p in data.pictures}
    assert all(p.is_normal for p in roles.train + roles.calibration)
    assert not {p.split for p in roles.train + roles.calibration} & {"validation", "test"}
    assert all(p.split != "test" for p in roles.selection)
    assert all(p.split != "validation" for p in roles.test)
    for role in ROLES:
        assert getattr(roles, role), f"no picture for {role}"
        if role != "test" or not any(p.split == "test" for p in data.pictures):
            assert any(p.is_normal for p in getattr(roles, role)), f"no normal for {role}"


@settings(max_examples=50, deadline=None)
@given(pairs=groups, free=st.integers(8, 40), random=st.randoms(use_true_random=False))
def test_names_and_order_do_not_matter(pairs: list[tuple[str, Split]], free: int, random) -> None:
    data = from_groups(pairs, free)
    renamed = [dataclasses.replace(p, path=Path(f"{random.random()}.png")) for p in data.pictures]
    random.shuffle(renamed)
    assert assign_roles(dataset(renamed)).role_of == assign_roles(data).role_of


@settings(max_examples=50, deadline=None)
@given(pairs=groups, free=st.integers(8, 40), data=st.data())
def test_the_test_labels_change_no_role(pairs: list[tuple[str, Split]], free: int, data: st.DataObject) -> None:
    before = from_groups(pairs, free)
    tested = [p.label for p in before.pictures if p.split == "test"]
    drawn = st.permutations(tested) | st.lists(
        st.sampled_from([GOOD, "dent"]), min_size=len(tested), max_size=len(tested)
    )
    labels = list(data.draw(drawn))
    after = dataset([dataclasses.replace(p, label=labels.pop()) if p.split == "test" else p for p in before.pictures])
    roles, relabelled = assign_roles(before), assign_roles(after)
    assert relabelled.role_of == roles.role_of
    for role in ("train", "selection", "calibration"):
        assert getattr(relabelled, role) == getattr(roles, role)


def test_mvtec_halves_the_pool_by_label() -> None:
    roles = assign_roles(mvtec(200, 54, dent=28, hole=27, combined=5))
    assert labels_of(roles, "train") == {GOOD: 150}
    assert labels_of(roles, "calibration") == {GOOD: 30}
    selected, tested = labels_of(roles, "selection"), labels_of(roles, "test")
    assert (selected[GOOD], tested[GOOD]) == (20 + 27, 27)
    assert (selected["dent"], tested["dent"]) == (14, 14)
    # Two labels are odd: one of the two pictures left over goes to each side.
    assert {selected["hole"], tested["hole"]} == {13, 14}
    assert selected["hole"] + selected["combined"] == tested["hole"] + tested["combined"] == 16


def test_the_halves_are_taken_in_the_order_of_sha256() -> None:
    roles = assign_roles(mvtec(20, 10, dent=10))
    for label in (GOOD, "dent"):
        pool = sorted(p.sha256 for p in pictures(label, "", 10))
        assert [roles.role_of[sha256] for sha256 in pool] == ["selection"] * 5 + ["test"] * 5


@pytest.mark.parametrize(
    ("defects", "selected", "tested"),
    [
        ({}, 0, 0),
        ({"a": 1}, 0, 1),
        ({"a": 2}, 1, 1),
        ({"a": 3}, 1, 2),
        ({"a": 1, "b": 1}, 1, 1),
        ({"a": 1, "b": 1, "c": 1}, 1, 2),
        ({"a": 1, "b": 1, "c": 1, "d": 1}, 2, 2),
        ({"a": 3, "b": 1}, 2, 2),
    ],
)
def test_few_defects(defects: dict[str, int], selected: int, tested: int) -> None:
    roles = assign_roles(mvtec(20, 10, **defects))
    assert sizes(roles, *defects or ["none"]) == (0, selected, 0, tested)


@pytest.mark.parametrize(
    ("count", "expected"),
    [(8, (4, 2, 1, 1)), (10, (5, 2, 2, 1)), (20, (10, 3, 4, 3)), (100, (51, 15, 19, 15)), (400, (220, 60, 60, 60))],
)
def test_a_plain_folder_of_good_pictures(count: int, expected: tuple[int, ...]) -> None:
    roles = assign_roles(dataset(pictures(GOOD, "", count), layout="folder"))
    assert sizes(roles) == expected


def test_a_plain_folder_with_bad_pictures() -> None:
    roles = assign_roles(dataset(pictures(GOOD, "", 100), pictures("bad", "", 5), layout="folder"))
    assert sizes(roles, GOOD) == (51, 15, 19, 15)
    assert sizes(roles, "bad") == (0, 2, 0, 3)


@pytest.mark.parametrize("train", [*range(4, 30), 59, 60, 94, 95, 99, 100, 101, 126, 127, 200, 399])
def test_shares_of_the_training_pictures(train: int) -> None:
    roles = assign_roles(mvtec(train, 10, dent=4))
    calibration = len(roles.calibration)
    assert len(roles.train) * 2 >= train
    assert calibration >= (19 if train >= 100 else 1)
    assert calibration <= max(1, train / 5)
    assert train < 127 or calibration == int(0.15 * train)
    from_train = sum(p.split == "train" for p in roles.selection)
    assert max(1, int(0.1 * train)) <= from_train <= max(2, 0.1 * train)


def test_a_manifest_that_decides_everything() -> None:
    data = dataset(
        pictures(GOOD, "train", 100),
        *(pictures(label, split, 10) for label in (GOOD, "dent") for split in ("validation", "test")),
        layout="manifest",
    )
    roles = assign_roles(data)
    assert sizes(roles) == (81, 20, 19, 20)
    assert {p.split for p in roles.selection} == {"validation"}
    assert {p.split for p in roles.test} == {"test"}


def test_a_manifest_without_validation_selects_on_part_of_train() -> None:
    data = dataset(pictures(GOOD, "train", 100), pictures(GOOD, "test", 9), pictures("dent", "test", 9))
    roles = assign_roles(data)
    assert sizes(roles) == (71, 10, 19, 18)


def test_undecided_rows_fill_the_role_that_the_manifest_left_open() -> None:
    train, free = pictures(GOOD, "train", 40), [*pictures(GOOD, "", 6), *pictures("dent", "", 6)]
    tested = assign_roles(dataset(train, free, pictures("dent", "test", 5)))
    assert {tested.role_of[p.sha256] for p in free} == {"selection"}
    validated = assign_roles(dataset(train, free, pictures("dent", "validation", 5)))
    assert {validated.role_of[p.sha256] for p in free} == {"test"}
    # Validation normals alone rank nothing, so the pool still gives selection its defects.
    neither = assign_roles(dataset(train, free, pictures(GOOD, "validation", 5)))
    assert sizes(neither, "dent") == (0, 3, 0, 3)


def test_defective_training_rows_become_evidence() -> None:
    roles = assign_roles(dataset(pictures(GOOD, "train", 40), pictures("dent", "train", 3), pictures(GOOD, "test", 5)))
    assert sizes(roles, "dent") == (0, 3, 0, 0)


def test_too_little_to_learn_from_is_refused() -> None:
    data = dataset(pictures(GOOD, "train", 3), pictures(GOOD, "test", 20))
    with pytest.raises(DatasetError, match=r"at least 4 good pictures to learn from.* but leaves 3"):
        assign_roles(data)


def test_roles_are_stored_and_restored() -> None:
    data = mvtec(20, 10, dent=7)
    roles = assign_roles(data)
    record = json.loads(json.dumps(roles.to_dict()))
    assert Roles.from_dict(record, data) == roles
    with pytest.raises(DatasetError, match="1 were added and 0 removed: start a new search"):
        Roles.from_dict(record, mvtec(21, 10, dent=7))
