"""What a folder or a manifest says of its files, before any of them is opened."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from autoad.data._picture import GOOD, Split

__all__ = ["ListedPicture", "Listing"]


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

    def absolute(self) -> Listing:
        """The same, whatever becomes of the working folder."""
        files = (
            dataclasses.replace(one, path=one.path.absolute(), mask=None if one.mask is None else one.mask.absolute())
            for one in self.files
        )
        return dataclasses.replace(self, root=self.root.absolute(), files=tuple(files))
