"""What a folder or a manifest says of its files, before any of them is opened."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator
from pathlib import Path

from autoad.data._picture import GOOD, Split

__all__ = ["GOOD_NAMES", "ListedPicture", "Listing", "files_below", "label_named"]

GOOD_NAMES = frozenset({"good", "normal", "ok"})
# What explains or decorates a folder; a picture may well be called license_plate.png.
_NOT_DATA = re.compile(r"(readme|licen[cs]e)(\.(txt|md|rst|html|pdf))?|thumbs\.db|desktop\.ini", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class ListedPicture:
    """A file that should be a picture.

    Attributes:
        path: the file.
        label: ``"good"`` or the name of the defect.
        split: as in :class:`Picture`.
        mask: its mask's file, None where there is none.
        row: where a manifest says so, such as ``"line 7"``; empty for a folder.
    """

    path: Path
    label: str = GOOD
    split: Split = ""
    mask: Path | None = None
    row: str = ""

    def __str__(self) -> str:
        return f"{self.path} ({self.row})" if self.row else str(self.path)


@dataclasses.dataclass(frozen=True)
class Listing:
    """All files of a dataset; the attributes are those of :class:`Dataset`."""

    name: str
    root: Path
    layout: str
    files: tuple[ListedPicture, ...]


def label_named(name: str) -> str:
    """The label of a folder or manifest entry: ``good``, ``normal`` and ``ok`` in any case are all ``good``."""
    return GOOD if name.casefold() in GOOD_NAMES else name


def files_below(folder: Path, *, recursive: bool = True) -> Iterator[Path]:
    """The files in a folder, in the order of their names; not hidden files nor what explains or decorates a folder.

    Raises:
        OSError: a folder cannot be listed.
    """

    def refuse(error: OSError) -> None:
        raise error

    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith(".")) if recursive else []
        for name in sorted(names):
            if not name.startswith(".") and not _NOT_DATA.fullmatch(name):
                yield Path(parent, name)
