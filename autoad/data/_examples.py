"""A picture that somebody has labelled by hand: what it does to a dataset."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Sequence
from typing import Self

from autoad.data._checks import check_mask, refuse_few_good
from autoad.data._picture import GOOD
from autoad.data.decoding import inspect_image
from autoad.errors import DatasetError, UnreadableImageError
from autoad.folders import label_named
from autoad.schema import DatasetPicture

__all__ = ["Example"]

_FOLDER = "examples"
_SUFFIXES = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"BM": ".bmp", b"II": ".tif", b"MM": ".tif", b"RIFF": ".webp"}


@dataclasses.dataclass(frozen=True)
class Example:
    """A picture, perhaps its mask, and what it shows.

    Attributes:
        label: ``good``, or the name of a defect.
        sha256: of the picture.
        mask_sha256: of the mask; None where none was given, or it marks nothing on a good picture.
        files: the bytes of both by their sha256.
    """

    label: str
    sha256: str
    mask_sha256: str | None
    files: dict[str, bytes]

    @classmethod
    def read(cls, picture: bytes, mask: bytes | None, label: str) -> Self:
        """Look at what was sent.

        Raises:
            UnreadableImageError: the picture or the mask is none.
            DatasetError: the mask has another size, or marks something on a good picture, or the label is none.
        """
        if not label.isprintable():
            raise DatasetError(f"a label must have no control characters but got {label!r}")
        label = label_named(label)
        of = inspect_image(picture)
        if of.fault is not None:
            raise UnreadableImageError(f"the picture {of.fault}")
        sha256 = hashlib.sha256(picture).hexdigest()
        if mask is None:
            return cls(label, sha256, None, {sha256: picture})
        by = inspect_image(mask)
        if by.marks is None:
            raise UnreadableImageError(f"the mask {by.fault}")
        check_mask(label, "that was sent", of, "that was sent", by)
        if label == GOOD:
            return cls(label, sha256, None, {sha256: picture})
        mask_sha256 = hashlib.sha256(mask).hexdigest()
        return cls(label, sha256, mask_sha256, {sha256: picture, mask_sha256: mask})

    def placed(self, pictures: Sequence[DatasetPicture], name: str) -> list[DatasetPicture]:
        """The pictures of a dataset with this one among them.

        One that is there already keeps its path, its split and, as long as it shows a defect, its mask.

        Args:
            pictures: as they are.
            name: of the dataset.

        Raises:
            DatasetError: too few good pictures would be left.
        """
        others = [one for one in pictures if one.sha256 != self.sha256]
        old = next((one for one in pictures if one.sha256 == self.sha256), None)
        taken = {path for one in others for path in (one.path, one.mask) if path}
        mask, mask_sha256 = (None, None) if old is None or self.label == GOOD else (old.mask, old.mask_sha256)
        if self.mask_sha256 not in (None, mask_sha256):
            mask_sha256 = self.mask_sha256
            mask = _free_path(f"{self.sha256}_mask", self.files[str(mask_sha256)], taken)
        path = _free_path(self.sha256, self.files[self.sha256], taken) if old is None else old.path
        split = "" if old is None else old.split
        mine = DatasetPicture(
            path=path, sha256=self.sha256, label=self.label, split=split, mask=mask, mask_sha256=mask_sha256
        )
        refuse_few_good(name, sum(one.label == GOOD for one in (*others, mine)))
        return sorted((*others, mine), key=lambda one: one.path)


def _free_path(stem: str, data: bytes, taken: set[str]) -> str:
    """A path that no file or folder of the dataset has."""
    suffix = next((suffix for magic, suffix in _SUFFIXES.items() if data.startswith(magic)), "")
    for number in itertools.count(1):
        folder = _FOLDER if number == 1 else f"{_FOLDER}-{number}"
        path = f"{folder}/{stem}{suffix}"
        if folder not in taken and path not in taken and not any(one.startswith(f"{path}/") for one in taken):
            return path
    raise AssertionError("there is always another number")
