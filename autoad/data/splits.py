"""Which picture is used for what: train, selection, calibration or test, each picture for one of them.

The assignment follows from the pictures' bytes and labels alone. Within each group pictures are ordered by their
sha256, which is as good as drawing lots, but needs no seed and does not change when files are renamed.

Three groups are divided:

**Good pictures to learn from**: those of a ``train`` split; where there is none, all good ones without a split.
Calibration gets 15 % of them, but up to 19 as long as that is no more than a fifth: with ``n`` calibration normals the
smallest false-positive rate that can be promised is ``1 / (n + 1)``, so 19 are what 5 % takes. Selection gets 10 %
(none where the dataset has a validation split with good pictures). Where there are no other good pictures to test on,
selection and test get 15 % each. Train keeps the rest, always at least half.

**The labelled pool**: defective pictures without a split, and good ones without a split next to a ``train`` split (an
MVTec AD folder's ``test``). Half of each label goes to selection, half to test. Of labels with an odd number the
picture left over goes, in turns over the labels of defects, to test first and to selection next: three defect types
with one picture each still give selection one of them. A single defective picture goes to test, because selecting on
one picture is worse than selecting on many synthetic ones. Where the dataset says itself which pictures test (or, with
defects among them, validate), the whole pool goes to the other role, and to selection where both are given.

**What the dataset decided**: ``validation`` becomes selection and ``test`` becomes test, whatever the labels. A
defective picture of a ``train`` split becomes selection evidence, since training is on normals only.

No decision looks at the label of a picture with split ``test``.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

from autoad.data._picture import Picture
from autoad.data.dataset import Dataset
from autoad.errors import DatasetError

__all__ = ["Role", "Roles", "assign_roles"]

Role = Literal["train", "selection", "calibration", "test", "aside"]

_FEWEST_LEARNT = 4
_CALIBRATED_FOR = 19  # 1 / (19 + 1) = 5 % false positives


@dataclasses.dataclass(frozen=True)
class Roles:
    """The pictures of a dataset by what they are used for.

    Attributes:
        train: normals to learn from.
        selection: normals and, where there are any, defective pictures that rank the trials.
        calibration: normals that set the threshold.
        test: normals and defective pictures that nothing but the final report may see.
        aside: normals that a search did not believe to be normal: nothing is learnt from them.
    """

    train: tuple[Picture, ...]
    selection: tuple[Picture, ...]
    calibration: tuple[Picture, ...]
    test: tuple[Picture, ...]
    aside: tuple[Picture, ...] = ()

    def set_aside(self, pictures: Iterable[Picture]) -> Roles:
        """The same roles without these pictures among the train and selection ones."""
        left_out = {picture.sha256 for picture in pictures}
        parts = {
            role: tuple(picture for picture in getattr(self, role) if picture.sha256 not in left_out)
            for role in ("train", "selection")
        }
        gone = tuple(p for p in (*self.train, *self.selection) if p.sha256 in left_out)
        return dataclasses.replace(self, **parts, aside=(*self.aside, *gone))

    @property
    def role_of(self) -> dict[str, Role]:
        """The role of each picture, by its sha256."""
        return {picture.sha256: role for role in get_args(Role) for picture in getattr(self, role)}

    def counts(self) -> dict[str, dict[str, int]]:
        """How many good and defective pictures each role has."""
        return {
            role: {"good": sum(p.is_normal for p in pictures), "defective": sum(not p.is_normal for p in pictures)}
            for role in get_args(Role)
            for pictures in [getattr(self, role)]
        }

    def to_dict(self) -> dict[str, Any]:
        """A JSON record of the assignment, without the pictures themselves."""
        return {"role_of": self.role_of}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any], dataset: Dataset) -> Roles:
        """The stored assignment of this very dataset's pictures.

        Raises:
            DatasetError: a picture was added to or removed from the dataset since.
        """
        role_of: Mapping[str, Role] = record["role_of"]
        known = {picture.sha256 for picture in dataset.pictures}
        if known != role_of.keys():
            added, removed = len(known - role_of.keys()), len(role_of.keys() - known)
            raise DatasetError(
                f"dataset {dataset.name} must hold the pictures whose roles were stored but {added} were added and "
                f"{removed} removed: start a new search"
            )
        return cls(**_by_role(dataset.pictures, role_of))


def assign_roles(dataset: Dataset) -> Roles:
    """Give each picture of a dataset its role; the module's docstring has the rules.

    Raises:
        DatasetError: fewer than 4 good pictures are left to learn from.
    """
    role_of: dict[str, Role] = {}
    free: list[Picture] = []
    for picture in dataset.pictures:
        if picture.split == "test":
            role_of[picture.sha256] = "test"
        elif picture.split == "validation" or (picture.split == "train" and not picture.is_normal):
            role_of[picture.sha256] = "selection"
        else:
            free.append(picture)
    has_train = any(p.split == "train" and p.is_normal for p in free)
    has_test = "test" in role_of.values()
    validation = [p for p in dataset.pictures if p.split == "validation"]
    learnt = [p for p in free if p.is_normal and (p.split == "train" or not has_train)]
    if len(learnt) < _FEWEST_LEARNT:
        raise DatasetError(
            f"dataset {dataset.root} must leave at least {_FEWEST_LEARNT} good pictures to learn from, outside of "
            f"validation and test, but leaves {len(learnt)}"
        )

    pool = [p for p in free if not p.is_normal or (has_train and p.split == "")]
    if has_test:
        role_of |= {p.sha256: "selection" for p in pool}
    elif any(not p.is_normal for p in validation):
        role_of |= {p.sha256: "test" for p in pool}
    else:
        role_of |= _halve(pool)

    select_normals = not any(p.is_normal for p in validation)
    test_normals = not has_test and not any(p.is_normal for p in pool)
    role_of |= _divide(learnt, select_normals=select_normals, test_normals=test_normals)
    return Roles(**_by_role(dataset.pictures, role_of))


def _divide(normals: list[Picture], *, select_normals: bool, test_normals: bool) -> dict[str, Role]:
    count = len(normals)
    share = 0.15 if test_normals else 0.10
    sizes: dict[Role, int] = {
        "test": max(1, int(0.15 * count)) if test_normals else 0,
        "selection": max(2 if count >= 8 else 1, int(share * count)) if select_normals else 0,
        "calibration": max(1, int(0.15 * count), min(_CALIBRATED_FOR, count // 5)),
    }
    roles: list[Role] = [role for role, size in sizes.items() for _ in range(size)]
    roles += ["train"] * (count - len(roles))
    return dict(zip(_ordered(normals), roles, strict=True))


def _halve(pool: list[Picture]) -> dict[str, Role]:
    by_label: dict[str, list[Picture]] = defaultdict(list)
    for picture in pool:
        by_label[picture.label].append(picture)
    role_of: dict[str, Role] = {}
    left_over: list[Picture] = []
    for pictures in by_label.values():
        ordered = _ordered(pictures)
        half = len(ordered) // 2
        role_of |= dict.fromkeys(ordered[:half], "selection")
        role_of |= dict.fromkeys(ordered[half:], "test")
        if len(ordered) % 2 and not pictures[0].is_normal:
            left_over += [p for p in pictures if p.sha256 == ordered[-1]]
    role_of |= dict.fromkeys(_ordered(left_over)[1::2], "selection")
    return role_of


def _ordered(pictures: Iterable[Picture]) -> list[str]:
    return sorted(picture.sha256 for picture in pictures)


def _by_role(pictures: Iterable[Picture], role_of: Mapping[str, Role]) -> dict[str, tuple[Picture, ...]]:
    """Pictures of each role in the order of their sha256."""
    ordered = sorted(pictures, key=lambda picture: picture.sha256)
    return {role: tuple(p for p in ordered if role_of[p.sha256] == role) for role in get_args(Role)}
