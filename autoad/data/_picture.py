"""What a dataset is made of."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from autoad.files import read_file
from autoad.folders import GOOD
from autoad.schema import DatasetSplit as Split

__all__ = ["GOOD", "Picture", "Split"]


@dataclasses.dataclass(frozen=True)
class Picture:
    """One picture of a dataset.

    Attributes:
        path: the file it is read from.
        sha256: of the file's bytes: the picture's identity, whatever its name.
        label: ``"good"`` or the name of the defect.
        mask: file of the defect's mask, None where there is none.
        split: what the layout or manifest says of it; empty when the dataset leaves the choice to autoad.
        synthetic: whether the defect was drawn by autoad.
        mask_sha256: of the mask file's bytes, where it is known.
    """

    path: Path
    sha256: str
    label: str = GOOD
    mask: Path | None = None
    split: Split = ""
    synthetic: bool = False
    mask_sha256: str | None = dataclasses.field(default=None, compare=False)

    @property
    def is_normal(self) -> bool:
        """Whether the picture shows a good part."""
        return self.label == GOOD

    def read(self) -> bytes:
        """The file's bytes, wherever this process runs.

        Raises:
            OSError: there is no such file.
            FileStoreError: it is not the file that it was, or cannot be fetched.
        """
        return read_file(self.path, self.sha256)

    def read_mask(self) -> bytes | None:
        """The bytes of the mask's file, None where there is none.

        Raises:
            OSError: there is no such file.
            FileStoreError: it is not the file that it was, or cannot be fetched.
        """
        return None if self.mask is None else read_file(self.mask, self.mask_sha256)
