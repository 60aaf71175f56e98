"""Opening every file of a listing: what is there, what must be skipped, and what cannot be searched."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from autoad.data._listing import ListedPicture, Listing
from autoad.data._picture import GOOD, Picture
from autoad.data.dataset import Dataset, Skipped
from autoad.data.decoding import decode_mask, image_size
from autoad.errors import DatasetError, UnreadableImageError

__all__ = ["check"]

FEWEST_GOOD = 8
_MOST_UNREADABLE = 0.1
_NAMED = 3


@dataclasses.dataclass(frozen=True)
class _Opened:
    listed: ListedPicture
    sha256: str = ""
    mask: Path | None = None
    mask_sha256: str = ""
    skipped: tuple[Skipped, ...] = ()


def check(listing: Listing) -> Dataset:
    """Decode and hash every file, each read once, and make a dataset of those that are pictures.

    Raises:
        DatasetError: as :func:`read_dataset`.
    """
    files = listing.files
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        opened = list(pool.map(_open, files))
    unreadable = [skipped for one in opened for skipped in one.skipped]
    if len(unreadable) > _MOST_UNREADABLE * len(files):
        named = _some(f"{s.path} {s.reason}" for s in unreadable)
        raise DatasetError(
            f"at most 10 % of a dataset's files may be unreadable but {len(unreadable)} of {len(files)} in "
            f"{listing.root} are: {named}; repair or remove them"
        )
    kept, duplicates = _without_duplicates([one for one in opened if one.sha256])
    good = sum(one.listed.label == GOOD for one in kept)
    if good < FEWEST_GOOD:
        raise DatasetError(
            f"dataset {listing.root} must hold at least {FEWEST_GOOD} different good pictures but holds {good}"
            " (PNG, JPEG, BMP, TIFF or WebP, in train/good, in good, or in the folder itself)"
        )
    pictures = tuple(
        Picture(
            one.listed.path,
            one.sha256,
            one.listed.label,
            one.mask,
            one.listed.split,
            mask_sha256=one.mask_sha256 if one.mask else None,
        )
        for one in sorted(kept, key=lambda one: one.listed.path)
    )
    return Dataset(
        name=listing.name,
        root=listing.root,
        layout=listing.layout,
        pictures=pictures,
        skipped=tuple(sorted(unreadable + duplicates, key=lambda skipped: skipped.path)),
    )


def _open(listed: ListedPicture) -> _Opened:
    try:
        data = listed.path.read_bytes()
        size = image_size(data)
    except (OSError, UnreadableImageError) as error:
        return _Opened(listed, skipped=(Skipped(listed.path, _reason(error)),))
    sha256 = hashlib.sha256(data).hexdigest()
    if listed.mask is None:
        return _Opened(listed, sha256)
    try:
        mask_data = listed.mask.read_bytes()
        mask = decode_mask(mask_data)
    except (OSError, UnreadableImageError) as error:
        return _Opened(listed, sha256, skipped=(Skipped(listed.mask, _reason(error)),))
    if mask.shape != size:
        raise DatasetError(
            f"mask {listed.mask} must have the size of its picture {listed}, {size[1]} x {size[0]}, "
            f"but has {mask.shape[1]} x {mask.shape[0]}"
        )
    if listed.label == GOOD:
        if mask.any():
            raise DatasetError(f"picture {listed} must not be good while its mask {listed.mask} marks a defect")
        return _Opened(listed, sha256)
    return _Opened(listed, sha256, listed.mask, hashlib.sha256(mask_data).hexdigest())


def _reason(error: Exception) -> str:
    return f"cannot be read: {error.strerror}" if isinstance(error, OSError) else str(error)


def _without_duplicates(opened: list[_Opened]) -> tuple[list[_Opened], list[Skipped]]:
    """One of each picture, and the others as skipped; the one with a mask is kept, else the first by path."""
    groups: dict[str, list[_Opened]] = defaultdict(list)
    for one in sorted(opened, key=lambda one: (one.mask is None, one.mask_sha256, one.listed.path)):
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
