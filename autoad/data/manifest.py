"""CSV and Parquet manifests: one row a picture, with columns ``path``, ``label``, ``split`` and ``mask``."""

from __future__ import annotations

from pathlib import Path

from autoad.data._listing import ListedPicture, Listing
from autoad.folders import read_manifest

__all__ = ["list_manifest"]


def list_manifest(path: Path) -> Listing:
    """The files that a manifest names; relative paths start at the manifest's folder.

    Raises:
        DatasetError: as :func:`autoad.folders.read_manifest`.
    """
    root = path.absolute().parent
    files = tuple(
        ListedPicture(
            path=root / row.path,
            label=row.label,
            split=row.split,
            mask=root / row.mask if row.mask else None,
            row=row.row,
        )
        for row in read_manifest(path)
    )
    return Listing(path.stem, root, "manifest", files)
