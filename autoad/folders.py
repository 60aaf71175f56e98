"""What lies in a folder of pictures and what a manifest says of it, before any picture is opened.

The SDK sends a dataset by the same rules by which :mod:`autoad.data` reads one, so they are here, where both can reach
them without PyArrow: a Parquet manifest alone imports it.
"""

from __future__ import annotations

import csv
import dataclasses
import difflib
import io
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast, get_args

from autoad.errors import DatasetError
from autoad.schema import DatasetSplit

__all__ = [
    "GOOD",
    "GOOD_NAMES",
    "ManifestRow",
    "check_row",
    "files_below",
    "is_data",
    "label_named",
    "read_manifest",
]

GOOD = "good"
GOOD_NAMES = frozenset({"good", "normal", "ok"})
# What explains or decorates a folder; a picture may well be called license_plate.png.
_NOT_DATA = re.compile(r"(readme|licen[cs]e)(\.(txt|md|rst|html|pdf))?|thumbs\.db|desktop\.ini", re.IGNORECASE)
_COLUMNS = ("path", "label", "split", "mask")
_SPLITS: tuple[str, ...] = get_args(DatasetSplit)
_Rows = Iterable[tuple[str, Mapping[str, Any]]]


@dataclasses.dataclass(frozen=True)
class ManifestRow:
    """A row of a manifest.

    Attributes:
        row: where it stands, such as ``"line 7"``.
        path: of the picture, as it is written; relative to the manifest's folder, or absolute.
        label: ``good`` or the name of the defect.
        split: empty where autoad chooses the role.
        mask: path of the mask; None where there is none.
    """

    row: str
    path: str
    label: str
    split: DatasetSplit
    mask: str | None


def label_named(name: str) -> str:
    """The label of a folder or manifest entry: ``good``, ``normal`` and ``ok`` in any case are all ``good``.

    White space around it does not count, for a manifest could not say it.

    Raises:
        DatasetError: there is nothing else.
    """
    label = name.strip()
    if not label:
        raise DatasetError(f"a label must say what a picture shows but got {name!r}: rename the folder")
    return GOOD if label.casefold() in GOOD_NAMES else label


def is_data(name: str) -> bool:
    """Whether a file of that name may be a picture: it is neither hidden, nor what explains or decorates a folder."""
    return not name.startswith(".") and not _NOT_DATA.fullmatch(name)


def files_below(folder: Path, *, recursive: bool = True) -> Iterator[Path]:
    """The files in a folder, in the order of their names; not hidden files nor what explains or decorates a folder.

    Raises:
        OSError: a folder cannot be listed.
    """

    def refuse(error: OSError) -> None:
        raise error

    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith(".")) if recursive else []
        yield from (Path(parent, name) for name in sorted(names) if is_data(name))


def read_manifest(path: Path) -> list[ManifestRow]:
    """The rows of a CSV or Parquet manifest, with columns ``path``, ``label``, ``split`` and ``mask``.

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
        return [check_row(path, row, values, lambda name: (root / name).is_file()) for row, values in rows]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _unreadable(path, error) from error


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
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise DatasetError(
            f"the Parquet manifest {path} must be read by PyArrow, which is not installed: "
            "pip install pyarrow, or write the manifest as CSV"
        ) from error
    try:
        table = pq.ParquetFile(path).read()
        columns = [name.strip().casefold() for name in table.column_names]
        # Two columns of one name are refused before their rows are asked for.
        known = table.rename_columns(columns).select([place for place, n in enumerate(columns) if n in _COLUMNS])
        values = known.to_pylist()
    except pa.ArrowException as error:
        raise _unreadable(path, error) from error
    return columns, ((f"row {number}", row) for number, row in enumerate(values, start=1))


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


def check_row(manifest: Path, row: str, values: Mapping[str, Any], is_file: Callable[[str], bool]) -> ManifestRow:
    """A row of a manifest by its values.

    Args:
        manifest: for messages.
        row: where it stands.
        values: by column.
        is_file: whether there is a file of that path.

    Raises:
        DatasetError: the row has an unknown split, no path, or names a file that is not there.
    """
    path, label, split, mask = (_text(values.get(name)) for name in _COLUMNS)
    if not path:
        raise DatasetError(f"manifest {manifest}, {row}: path must name a picture but is empty")
    if split not in _SPLITS:
        raise DatasetError(
            f"manifest {manifest}, {row}: split must be train, validation, test or empty but got {split!r}"
        )
    for kind, name in (("path", path), ("mask", mask)):
        if name and not is_file(name):
            raise DatasetError(f"manifest {manifest}, {row}: {kind} must name an existing file but got {name}")
    return ManifestRow(row, path, label_named(label) if label else GOOD, cast(DatasetSplit, split), mask or None)


def _text(value: object) -> str:
    return "" if value is None or value != value else str(value).strip()  # NaN is how pandas leaves a cell empty


def _unreadable(path: Path, error: Exception) -> DatasetError:
    return DatasetError(f"manifest {path} must be a readable {path.suffix.casefold()[1:]} file but {error}")
