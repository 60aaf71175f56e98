from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from autoad.data import GOOD, Picture, read_dataset
from autoad.errors import DatasetError


@pytest.fixture
def pictures(tmp_path: Path, write_picture, write_mask) -> Path:
    for index in range(12):
        write_picture(tmp_path / "pictures" / f"{index}.png", index)
    write_mask(tmp_path / "masks/11.png")
    return tmp_path


ROWS = [
    *({"path": f"pictures/{i}.png", "label": GOOD, "split": "train", "mask": ""} for i in range(8)),
    {"path": "pictures/8.png", "label": "", "split": "validation", "mask": ""},
    {"path": "pictures/9.png", "label": "dent", "split": "validation", "mask": ""},
    {"path": "pictures/10.png", "label": "OK", "split": "test", "mask": ""},
    {"path": "pictures/11.png", "label": "dent", "split": "", "mask": "masks/11.png"},
]


def write_csv(folder: Path, rows: list[dict[str, str]], delimiter: str = ",", name: str = "parts.csv") -> Path:
    lines = [delimiter.join(rows[0]), *(delimiter.join(row.values()) for row in rows)]
    path = folder / name
    path.write_text("\r\n".join(lines) + "\r\n", encoding="utf-8-sig")
    return path


def changed(index: int, **values: str) -> list[dict[str, str]]:
    return [row | values if i == index else row for i, row in enumerate(ROWS)]


def summary(picture: Picture) -> tuple[str, str, str, str | None]:
    return picture.path.name, picture.label, picture.split, picture.mask and picture.mask.name


EXPECTED = {
    *((f"{i}.png", GOOD, "train", None) for i in range(8)),
    ("8.png", GOOD, "validation", None),
    ("9.png", "dent", "validation", None),
    ("10.png", GOOD, "test", None),
    ("11.png", "dent", "", "11.png"),
}


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv(pictures: Path, delimiter: str) -> None:
    dataset = read_dataset(write_csv(pictures, ROWS, delimiter))
    assert (dataset.name, dataset.root, dataset.layout) == ("parts", pictures, "manifest")
    assert {summary(p) for p in dataset.pictures} == EXPECTED


def test_parquet_gives_the_same(pictures: Path) -> None:
    table = pa.Table.from_pylist([{k: v or None for k, v in row.items()} for row in ROWS])
    pq.write_table(table, pictures / "parts.parquet")
    dataset = read_dataset(pictures / "parts.parquet")
    assert {summary(p) for p in dataset.pictures} == EXPECTED
    assert dataset.hash == read_dataset(write_csv(pictures, ROWS)).hash


def test_relative_paths_start_at_the_manifest(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_csv(pictures, ROWS)
    monkeypatch.chdir(pictures / "pictures")
    dataset = read_dataset(Path("..", "parts.csv"))
    assert all(p.path.is_file() for p in dataset.pictures)


def test_absolute_paths(pictures: Path, tmp_path: Path) -> None:
    rows = [{"path": str(pictures / row["path"])} for row in ROWS]
    (tmp_path / "other").mkdir()
    assert len(read_dataset(write_csv(tmp_path / "other", rows)).pictures) == 12


def test_only_the_path_is_required(pictures: Path) -> None:
    dataset = read_dataset(write_csv(pictures, [{"Path ": row["path"], "camera": "3"} for row in ROWS]))
    assert {(p.label, p.split, p.mask) for p in dataset.pictures} == {(GOOD, "", None)}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"file": "x"}], "must have a column 'path' but has only file"),
        ([{"path": "x", "lable": "dent"}], "has a column 'lable': rename it to 'label'"),
        (changed(3, split="holdout"), "line 5: split must be train, validation, test or empty but got 'holdout'"),
        (changed(3, path=""), "line 5: path must name a picture but is empty"),
        (changed(3, path="pictures/no.png"), "line 5: path must name an existing file but got pictures/no.png"),
        (changed(9, mask="masks/no.png"), "line 11: mask must name an existing file but got masks/no.png"),
        (changed(3, split="train,,,,"), "line 5: must have 4 values but got 8"),
        (changed(0, mask="masks/11.png"), r"0\.png \(line 2\) must not be good while its mask"),
        (changed(8, path="pictures/2.png"), r"two splits.*2\.png \(line 4\).*2\.png \(line 10\) are identical"),
    ],
)
def test_wrong_manifests_name_the_row(pictures: Path, rows: list[dict[str, str]], message: str) -> None:
    with pytest.raises(DatasetError, match=message) as caught:
        read_dataset(write_csv(pictures, rows))
    assert "\n" not in str(caught.value)


def test_parquet_rows_are_numbered_from_one(pictures: Path) -> None:
    pq.write_table(pa.Table.from_pylist(changed(3, split="holdout")), pictures / "parts.parquet")
    with pytest.raises(DatasetError, match=r"parts\.parquet, row 4: split"):
        read_dataset(pictures / "parts.parquet")


def test_a_mask_of_another_size_names_the_row(pictures: Path, write_mask) -> None:
    write_mask(pictures / "masks/11.png", (3, 3))
    with pytest.raises(DatasetError, match=r"11\.png \(line 13\), 16 x 12, but has 3 x 3"):
        read_dataset(write_csv(pictures, ROWS))


@pytest.mark.parametrize("content", [b"path\n\xff\xfe", b'path,label\n"unclosed', b"PAR1 no more"])
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_damaged_manifests_are_refused(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"parts{suffix}"
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=r"manifest .*parts"):
        read_dataset(path)


def test_an_empty_manifest_has_no_columns(tmp_path: Path) -> None:
    (tmp_path / "parts.csv").touch()
    with pytest.raises(DatasetError, match="must have a column 'path' but has only none"):
        read_dataset(tmp_path / "parts.csv")


def test_other_files_are_no_manifests(tmp_path: Path) -> None:
    (tmp_path / "parts.xlsx").touch()
    with pytest.raises(DatasetError, match=r"must be a folder or a \.csv or \.parquet manifest but got .*parts\.xlsx"):
        read_dataset(tmp_path / "parts.xlsx")
