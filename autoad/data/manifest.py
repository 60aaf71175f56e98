"""CSV and Parquet manifests: one row a picture, with columns ``path``, ``label``, ``split`` and ``mask``."""

from __future__ import annotations

import csv
import difflib
import io
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, cast, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from autoad.data._listing import ListedPicture, Listing, label_named
from autoad.data._picture import GOOD, Split
from autoad.errors import DatasetError

__all__ = ["list_manifest", "list_rows"]

_COLUMNS = ("path", "label", "split", "mask")
_SPLITS: tuple[str, ...] = get_args(Split)
_Rows = Iterable[tuple[str, Mapping[str, Any]]]


def list_manifest(path: Path) -> Listing:
    """The files that a manifest names; relative paths start at the manifest's folder.

    Only ``path`` is required; without a label a picture is good, without a split autoad chooses its role. Further
    columns are ignored, except for one that looks like a misspelt name.

    Raises:
        DatasetError: the manifest cannot be read, lacks the column, or a row has an unknown split, no path, or names
            a file that is not there; the message names the row.
    """
    suffix = path.suffix.casefold()
    if suffix not in (".csv", ".parquet"):
        raise DatasetError(f"dataset must be a folder or a .csv or .parquet manifest but got {path}")
    try:
        columns, rows = _read_csv(path) if suffix == ".csv" else _read_parquet(path)
        _check_columns(path, columns)
        root = path.absolute().parent
        files = tuple(_listed(path, root, row, values, Path.is_file) for row, values in rows)
    except (OSError, UnicodeDecodeError, csv.Error, pa.ArrowException) as error:
        raise DatasetError(f"manifest {path} must be a readable {suffix[1:]} file but {error}") from error
    return Listing(path.stem, root, "manifest", files)


def _read_csv(path: Path) -> tuple[list[str], _Rows]:
    text = path.read_text(encoding="utf-8-sig")
    header = text.partition("\n")[0]
    delimiter = max(",;\t", key=header.count)  # spreadsheets of half the world write semicolons
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    columns = [name.strip().casefold() for name in next(reader, [])]

    def rows() -> _Rows:
        for values in reader:
            if len(values) > len(columns):
                raise DatasetError(
                    f"manifest {path}, line {reader.line_num}: must have {len(columns)} values but got {len(values)}"
                )
            if any(value.strip() for value in values):
                yield f"line {reader.line_num}", dict(zip(columns, values, strict=False))

    return columns, rows()


def _read_parquet(path: Path) -> tuple[list[str], _Rows]:
    table = pq.ParquetFile(path).read()
    columns = [name.strip().casefold() for name in table.column_names]

    def rows() -> _Rows:
        known = table.rename_columns(columns).select([name for name in columns if name in _COLUMNS])
        for number, values in enumerate(known.to_pylist(), start=1):
            yield f"row {number}", values

    return columns, rows()


def _check_columns(path: Path, columns: list[str]) -> None:
    for name in _COLUMNS:
        if columns.count(name) > 1:
            raise DatasetError(f"manifest {path} must have one column {name!r} but got {columns.count(name)}")
    missing = [name for name in _COLUMNS if name not in columns]
    for name in columns:
        near = difflib.get_close_matches(name, missing, n=1, cutoff=0.75)
        if name not in _COLUMNS and near:
            raise DatasetError(f"manifest {path} has a column {name!r}: rename it to {near[0]!r}")
    if "path" in missing:
        raise DatasetError(f"manifest {path} must have a column 'path' but has only {', '.join(columns) or 'none'}")


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
        _listed(Path(name), Path(), f"row {number}", row, known.__contains__)
        for number, row in enumerate(rows, start=1)
    )
    return Listing(name, Path(), "manifest", files)


def _listed(
    manifest: Path, root: Path, row: str, values: Mapping[str, Any], is_file: Callable[[Path], bool]
) -> ListedPicture:
    path, label, split, mask = (_text(values.get(name)) for name in _COLUMNS)
    if not path:
        raise DatasetError(f"manifest {manifest}, {row}: path must name a picture but is empty")
    if split not in _SPLITS:
        raise DatasetError(
            f"manifest {manifest}, {row}: split must be train, validation, test or empty but got {split!r}"
        )
    for kind, name in (("path", path), ("mask", mask)):
        if name and not is_file(root / name):
            raise DatasetError(f"manifest {manifest}, {row}: {kind} must name an existing file but got {name}")
    return ListedPicture(
        path=root / path,
        label=label_named(label) if label else GOOD,
        split=cast(Split, split),
        mask=root / mask if mask else None,
        row=row,
    )


def _text(value: object) -> str:
    return "" if value is None or value != value else str(value).strip()  # NaN is how pandas leaves a cell empty
