"""What is said of datasets on a server: what is sent, and what has become of it."""

from __future__ import annotations

import datetime
import struct
from typing import Annotated, Literal

from pydantic import Field

from autoad.schema._record import NAME, TEXT, Record

__all__ = [
    "FRAME_HEADER",
    "PACK_BYTES",
    "DatasetEntry",
    "DatasetPage",
    "DatasetPicture",
    "DatasetSplit",
    "DatasetVersions",
    "FileEntry",
    "PicturePage",
    "ReceivedEntry",
    "Sha256",
    "SkippedFile",
    "TableRow",
    "UploadEntry",
    "UploadRequest",
]

DatasetSplit = Literal["", "train", "validation", "test"]
FRAME_HEADER = struct.Struct(">32sQ")
"""Before the bytes of each file in a packed body: their sha256, and how many they are."""
PACK_BYTES = 16 * 2**20
"""Most bytes of a packed body of several files."""
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Path = Annotated[str, Field(min_length=1, max_length=1024, pattern=TEXT)]


class FileEntry(Record):
    """A file of a folder that is to become a dataset.

    Attributes:
        path: relative to the folder, parts separated by ``/``.
        sha256: of its bytes, 64 hexadecimal digits.
        size: in bytes.
    """

    path: _Path
    sha256: Sha256
    size: int = Field(ge=0)


class TableRow(Record):
    """A row of a manifest (CSV or Parquet) that says which files are pictures, and of what.

    Attributes:
        path: of the picture; one of the files.
        label: ``good``, or the name of a defect.
        split: as in a manifest; empty where autoad chooses the role.
        mask: path of its mask; one of the files.
    """

    path: _Path
    label: str = Field(default="good", max_length=200, pattern=TEXT)
    split: DatasetSplit = ""
    mask: _Path | None = None


class UploadRequest(Record):
    """The files of a folder, before any of them is sent.

    Attributes:
        files: every file that belongs to it, masks too.
        table: what a manifest says of them; None for a folder, whose layout says it.
        note: kept with the version.
    """

    files: list[FileEntry] = Field(min_length=1)
    table: list[TableRow] | None = None
    note: str = Field(default="", max_length=1000, pattern=TEXT)


class UploadEntry(Record):
    """An upload; one of the same files to the same dataset is the same upload, so that it can be gone on with.

    Attributes:
        dataset: whose next version it becomes.
        missing: sha256 of each file that this project does not have yet.
        files: how many belong to it.
        bytes: that they have together.
        version: that it has become; None before the commit.
    """

    id: str
    dataset: str
    missing: list[str]
    files: int
    bytes: int
    version: int | None = None


class ReceivedEntry(Record):
    """What came of a packed body: how many files, of how many bytes, are kept now."""

    files: int
    bytes: int


class SkippedFile(Record):
    """A file that is no part of the dataset, and why."""

    path: str
    reason: str


class DatasetEntry(Record):
    """A version of a dataset; it never changes.

    Attributes:
        hash: sha256 over what its pictures are (bytes, label, split, mask), as of the same folder on a local disk.
        layout: ``mvtec``, ``folder`` or ``manifest``.
        counts: of ``good`` and ``defective`` pictures, ``masks``, and files that were ``skipped``.
        size: of its files, in bytes.
        skipped: files that were left out.
        actor: name of the key that made it.
    """

    name: str
    version: int
    hash: str
    layout: str
    counts: dict[str, int]
    size: int
    skipped: list[SkippedFile] = Field(default_factory=list)
    note: str = ""
    actor: str = ""
    created: datetime.datetime

    def __str__(self) -> str:
        return f"{self.name}/{self.version}"


class DatasetPicture(Record):
    """A picture of a dataset's version."""

    path: str
    sha256: str
    label: str
    split: DatasetSplit = ""
    mask: str | None = None
    mask_sha256: str | None = None


class DatasetPage(Record):
    """The newest version of each dataset, by name; ``next`` is the cursor of the next page, None on the last."""

    items: list[DatasetEntry]
    next: str | None = None


class DatasetVersions(Record):
    """All versions of a dataset, newest first."""

    name: str = Field(pattern=NAME)
    versions: list[DatasetEntry]


class PicturePage(Record):
    """Pictures of a version, by path; ``next`` is the cursor of the next page, None on the last."""

    items: list[DatasetPicture]
    next: str | None = None
