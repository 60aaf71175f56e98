"""A dataset that was read and checked: its pictures, and the files that had to be left out."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa

from autoad.data._picture import Picture

__all__ = ["Dataset", "Skipped", "hash_pictures"]

_SCHEMA = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),
        pa.field("label", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("mask", pa.string()),
        pa.field("mask_sha256", pa.string()),
        pa.field("synthetic", pa.bool_(), nullable=False),
    ]
)


@dataclasses.dataclass(frozen=True)
class Skipped:
    """A file that is no part of the dataset, and why."""

    path: Path
    reason: str


@dataclasses.dataclass(frozen=True)
class Dataset:
    """The pictures that were found in a folder or manifest, each decodable and each there once.

    Attributes:
        name: of the folder or manifest.
        root: the folder that file names are relative to when they are shown.
        layout: ``"mvtec"``, ``"folder"`` or ``"manifest"``.
        pictures: in the order of their paths.
        skipped: files that were left out.
    """

    name: str
    root: Path
    layout: str
    pictures: tuple[Picture, ...]
    skipped: tuple[Skipped, ...] = ()

    @functools.cached_property
    def hash(self) -> str:
        """Hex sha256 over what the pictures are (bytes, label, split, mask), whatever their names and order."""
        return hash_pictures((p.sha256, p.label, p.split, _mask_sha256(p)) for p in self.pictures)

    def counts(self) -> dict[str, int]:
        """How many pictures are ``good`` and ``defective``, have ``masks``, and how many files were ``skipped``."""
        good = sum(p.is_normal for p in self.pictures)
        return {
            "good": good,
            "defective": len(self.pictures) - good,
            "masks": sum(p.mask is not None for p in self.pictures),
            "skipped": len(self.skipped),
        }

    def to_arrow(self) -> pa.Table:
        """One row a picture; name, root, layout and skipped files are in the schema's metadata."""
        rows = [
            {
                "path": str(p.path),
                "sha256": p.sha256,
                "label": p.label,
                "split": p.split,
                "mask": None if p.mask is None else str(p.mask),
                "mask_sha256": _mask_sha256(p),
                "synthetic": p.synthetic,
            }
            for p in self.pictures
        ]
        skipped = json.dumps([[str(s.path), s.reason] for s in self.skipped])
        metadata = {"name": self.name, "root": str(self.root), "layout": self.layout, "skipped": skipped}
        return pa.Table.from_pylist(rows, schema=_SCHEMA.with_metadata(metadata))

    @classmethod
    def from_arrow(cls, table: pa.Table) -> Dataset:
        """The dataset that :meth:`to_arrow` made ``table`` of."""
        metadata = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
        rows = table.to_pylist()
        pictures = tuple(
            Picture(
                path=Path(row["path"]),
                sha256=row["sha256"],
                label=row["label"],
                mask=None if row["mask"] is None else Path(row["mask"]),
                split=row["split"],
                synthetic=row["synthetic"],
                mask_sha256=row["mask_sha256"],
            )
            for row in rows
        )
        return cls(
            name=metadata["name"],
            root=Path(metadata["root"]),
            layout=metadata["layout"],
            pictures=pictures,
            skipped=tuple(Skipped(Path(path), reason) for path, reason in json.loads(metadata["skipped"])),
        )


def hash_pictures(pictures: Iterable[tuple[str, str, str, str | None]]) -> str:
    """Hex sha256 over pictures, each given by the sha256 of its bytes, label, split, and sha256 of its mask."""
    identities = sorted((sha256, label, split, mask or "") for sha256, label, split, mask in pictures)
    return hashlib.sha256(json.dumps(identities).encode()).hexdigest()


def _mask_sha256(picture: Picture) -> str | None:
    data = None if picture.mask_sha256 else picture.read_mask()
    return picture.mask_sha256 if data is None else hashlib.sha256(data).hexdigest()
