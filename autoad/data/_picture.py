"""What a dataset is made of."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

__all__ = ["GOOD", "Picture", "Split"]

GOOD = "good"
Split = Literal["", "train", "validation", "test"]


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
    """

    path: Path
    sha256: str
    label: str = GOOD
    mask: Path | None = None
    split: Split = ""
    synthetic: bool = False

    @property
    def is_normal(self) -> bool:
        """Whether the picture shows a good part."""
        return self.label == GOOD

    def read(self) -> bytes:
        """The file's bytes."""
        return self.path.read_bytes()
