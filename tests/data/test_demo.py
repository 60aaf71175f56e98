from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from autoad.data import GOOD, assign_roles, decode_image, demo, load_mask, read_dataset, write_demo_dataset
from autoad.errors import DatasetError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_demo_dataset(tmp_path_factory.mktemp("demo") / "new" / "stones")


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_it_is_a_dataset(folder: Path) -> None:
    dataset = read_dataset(folder)
    assert dataset.layout == "mvtec"
    assert dataset.counts() == {"good": 80, "defective": 40, "masks": 40, "skipped": 0}
    assert Counter(p.label for p in dataset.pictures if p.split != "train") == {
        GOOD: 20, "contamination": 8, "dust": 8, "fibre": 8, "hole": 8, "stain": 8
    }  # fmt: skip
    roles = assign_roles(dataset)
    assert sum(not p.is_normal for p in roles.selection) == 20
    assert {len(roles.train), len(roles.calibration)} == {42, 12}
    assert "CC0" in (folder / "README.txt").read_text()


def test_it_is_the_same_twice(folder: Path, tmp_path: Path) -> None:
    again = write_demo_dataset(tmp_path)  # an empty folder will do
    assert contents(again) == contents(folder)
    assert sorted(p.name for p in again.iterdir()) == ["README.txt", "ground_truth", "test", "train"]


def test_writing_it_again_in_place_changes_nothing(folder: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    assert write_demo_dataset(folder) == folder
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before


def test_no_two_pictures_share_a_pixel_of_the_photograph() -> None:
    seen = np.zeros((512, 512), dtype=int)
    for split, count in {"train/good": 60, "test/good": 20, "test/defective": 40}.items():
        for index in range(count):
            left, top, right, bottom = demo.crop_box(split, index)
            assert right - left == bottom - top == 46
            seen[top:bottom, left:right] += 1
    assert seen.max() == 1
    assert seen.sum() == 120 * 46 * 46


def test_defects_are_where_their_masks_are(folder: Path) -> None:
    photograph = demo._read_photograph()
    defective = [p for p in read_dataset(folder).pictures if not p.is_normal]
    for index, picture in enumerate(defective):
        good = demo._photographed(photograph, "test/defective", index)
        mask = load_mask(picture, good.shape[:2])
        assert mask is not None
        difference = np.abs(decode_image(picture.read()) - good.clip(0, 255)).max(axis=2)
        assert 0.002 < mask.mean() < 0.2, picture.path
        assert difference[mask].mean() > 15, picture.path  # visible
        assert difference[~mask].mean() < 3, picture.path  # shadows and soft edges only


def test_pictures_differ(folder: Path) -> None:
    images = sorted(path.read_bytes() for path in (folder / "train/good").iterdir())
    assert all(one != other for one, other in pairwise(images))


def test_a_folder_with_other_content_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(DatasetError, match="must be new or empty but holds something else"):
        write_demo_dataset(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_a_changed_demo_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    copy = write_demo_dataset(tmp_path / "copy")
    (copy / "train/good/000.png").write_bytes(b"edited")
    with pytest.raises(DatasetError, match="holds something else"):
        write_demo_dataset(copy)


def test_an_unwritable_place_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DatasetError, match=r"demo data cannot be written: .*name another folder"):
        write_demo_dataset(tmp_path / "file" / "demo")


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        if path.name == "007.png":
            raise OSError(28, "No space left on device", str(path))
        return original(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(DatasetError, match="No space left on device"):
        write_demo_dataset(tmp_path)
    assert list(tmp_path.iterdir()) == []
