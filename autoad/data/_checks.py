"""Opening every file of a listing: what is there, what must be skipped, and what cannot be searched."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from autoad.data._listing import ListedPicture, Listing
from autoad.data._picture import GOOD, Picture
from autoad.data.dataset import Dataset, Skipped
from autoad.data.decoding import Inspection, inspect_image
from autoad.errors import DatasetError

__all__ = ["FileFacts", "Look", "check", "check_mask", "refuse_few_good"]

FEWEST_GOOD = 8
_MOST_UNREADABLE = 0.1
_NAMED = 3


@dataclasses.dataclass(frozen=True)
class FileFacts:
    """What a file holds.

    Attributes:
        sha256: of its bytes; empty if it cannot be read.
        inspection: what they are.
    """

    sha256: str
    inspection: Inspection


Look = Callable[[Path], FileFacts]
"""Tells of a listed file what it holds."""


@dataclasses.dataclass(frozen=True)
class _Opened:
    listed: ListedPicture
    sha256: str = ""
    mask: Path | None = None
    mask_sha256: str = ""
    skipped: tuple[Skipped, ...] = ()


def check(listing: Listing, look: Look | None = None) -> Dataset:
    """Make a dataset of those files that are pictures.

    Args:
        listing: the files.
        look: tells what they hold; by default each is read once, decoded and hashed, several at a time.

    Raises:
        DatasetError: as :func:`read_dataset`.
    """
    files = listing.files
    if look is None:
        with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
            opened = list(pool.map(lambda listed: _open(listed, _read), files))
    else:
        opened = [_open(listed, look) for listed in files]
    unreadable = [skipped for one in opened for skipped in one.skipped]
    if len(unreadable) > _MOST_UNREADABLE * len(files):
        named = _some(f"{s.path} {s.reason}" for s in unreadable)
        raise DatasetError(
            f"at most 10 % of a dataset's files may be unreadable but {len(unreadable)} of {len(files)} in "
            f"{listing.root} are: {named}; repair or remove them"
        )
    kept, duplicates = _without_duplicates([one for one in opened if one.sha256])
    refuse_few_good(listing.root, sum(one.listed.label == GOOD for one in kept))
    pictures = tuple(
        Picture(
            one.listed.path,
            one.sha256,
            one.listed.label,
            one.mask,
            one.listed.split,
            mask_sha256=one.mask_sha256 if one.mask else None,
        )
        for one in sorted(kept, key=lambda one: one.listed.path.parts)
    )
    return Dataset(
        name=listing.name,
        root=listing.root,
        layout=listing.layout,
        pictures=pictures,
        skipped=tuple(sorted(unreadable + duplicates, key=lambda skipped: skipped.path.parts)),
    )


def refuse_few_good(name: object, good: int) -> None:
    """Complain of a dataset with fewer good pictures than a search takes.

    Raises:
        DatasetError: there are fewer.
    """
    if good < FEWEST_GOOD:
        raise DatasetError(
            f"dataset {name} must hold at least {FEWEST_GOOD} different good pictures but holds {good}"
            " (PNG, JPEG, BMP, TIFF or WebP, in train/good, in good, or in the folder itself)"
        )


def _read(path: Path) -> FileFacts:
    try:
        data = path.read_bytes()
    except OSError as error:
        return FileFacts("", Inspection(None, f"cannot be read: {error.strerror}", None))
    return FileFacts(hashlib.sha256(data).hexdigest(), inspect_image(data))


def _open(listed: ListedPicture, look: Look) -> _Opened:
    picture = look(listed.path)
    if picture.inspection.fault is not None:
        return _Opened(listed, skipped=(Skipped(listed.path, picture.inspection.fault),))
    if listed.mask is None:
        return _Opened(listed, picture.sha256)
    mask = look(listed.mask)
    if mask.inspection.marks is None:
        return _Opened(listed, picture.sha256, skipped=(Skipped(listed.mask, str(mask.inspection.fault)),))
    check_mask(listed.label, listed, picture.inspection, listed.mask, mask.inspection)
    if listed.label == GOOD:
        return _Opened(listed, picture.sha256)
    return _Opened(listed, picture.sha256, listed.mask, mask.sha256)


def check_mask(label: str, picture: object, of: Inspection, mask: object, by: Inspection) -> None:
    """Complain of a mask that contradicts its picture.

    Args:
        label: of the picture.
        picture: what the picture is called.
        of: what it is.
        mask: what the mask is called.
        by: what it is.

    Raises:
        DatasetError: it has another size, or marks something on a good picture.
    """
    if of.size is not None and by.size is not None and of.size != by.size:
        raise DatasetError(
            f"mask {mask} must have the size of its picture {picture}, {of.size[1]} x {of.size[0]}, "
            f"but has {by.size[1]} x {by.size[0]}"
        )
    if label == GOOD and by.marks:
        raise DatasetError(f"picture {picture} must not be good while its mask {mask} marks a defect")


def _without_duplicates(opened: list[_Opened]) -> tuple[list[_Opened], list[Skipped]]:
    """One of each picture, and the others as skipped; the one with a mask is kept, else the first by path."""
    groups: dict[str, list[_Opened]] = defaultdict(list)
    for one in sorted(opened, key=lambda one: (one.mask is None, one.mask_sha256, one.listed.path.parts)):
        groups[one.sha256].append(one)
    kept, duplicates = [], []
    for first, *others in groups.values():
        kept.append(first)
        for other in others:
            _refuse_contradiction(first.listed, other.listed)
            if other.listed.path != first.listed.path:
                duplicates.append(Skipped(other.listed.path, f"duplicate of {first.listed.path}"))
    return kept, duplicates


def _refuse_contradiction(one: ListedPicture, other: ListedPicture) -> None:
    for kind, of_one, of_other in (("label", one.label, other.label), ("split", one.split, other.split)):
        if of_one != of_other:
            # In an MVTec folder the pool has no split of its own: the folders say enough.
            says = f" ({of_one!r} and {of_other!r})" if of_one and of_other else ""
            raise DatasetError(
                f"the same picture must not stand under two {kind}s{says} but {one} and {other} are identical: "
                "remove one of them"
            )


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - _NAMED} more" if len(listed) > _NAMED else ""
    return ", ".join(listed[:_NAMED]) + more
