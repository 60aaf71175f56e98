"""CSV and Parquet manifests: one row a picture, with columns ``path``, ``label``, ``split`` and ``mask``."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from autoad.data._listing import ListedPicture, Listing
from autoad.folders import ManifestRow, check_row, read_manifest

__all__ = ["list_manifest", "list_rows"]


def list_manifest(path: Path) -> Listing:
    """The files that a manifest names; relative paths start at the manifest's folder.

    Raises:
        DatasetError: as :func:`autoad.folders.read_manifest`.
    """
    root = path.absolute().parent
    return Listing(path.stem, root, "manifest", tuple(_listed(root, row) for row in read_manifest(path)))


def list_rows(rows: Iterable[Mapping[str, Any]], paths: Collection[str], name: str) -> Listing:
    """The files that the rows of a manifest name, of which only the names are known.

    Args:
        rows: as those of a manifest.
        paths: of all files, relative to the manifest's folder.
        name: of the dataset.

    Raises:
        DatasetError: as :func:`list_manifest`.
    """
    known = set(map(Path, paths))
    files = tuple(
        _listed(Path(), check_row(Path(name), f"row {number}", row, lambda file: Path(file) in known))
        for number, row in enumerate(rows, start=1)
    )
    return Listing(name, Path(), "manifest", files)


def _listed(root: Path, row: ManifestRow) -> ListedPicture:
    return ListedPicture(
        path=root / row.path,
        label=row.label,
        split=row.split,
        mask=root / row.mask if row.mask else None,
        row=row.row,
    )
