from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from autoad.data import GOOD, Dataset, decoding, read_dataset
from autoad.errors import DatasetError


def labels(dataset: Dataset) -> Counter[tuple[str, str]]:
    return Counter((p.label, p.split) for p in dataset.pictures)


def names(dataset: Dataset) -> list[str]:
    return [p.path.relative_to(dataset.root).as_posix() for p in dataset.pictures]


def test_mvtec(mvtec: Path) -> None:
    dataset = read_dataset(mvtec)
    assert (dataset.name, dataset.root, dataset.layout) == ("bottle", mvtec, "mvtec")
    assert labels(dataset) == {(GOOD, "train"): 20, (GOOD, ""): 6, ("crack", ""): 5, ("hole", ""): 2}
    assert dataset.counts() == {"good": 26, "defective": 7, "masks": 7, "skipped": 0}
    for picture in dataset.pictures:
        kind = picture.path.parent.name
        expected = None if picture.is_normal else mvtec / "ground_truth" / kind / f"{picture.path.stem}_mask.png"
        assert picture.mask == expected


def test_the_root_may_be_relative(mvtec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(mvtec)
    dataset = read_dataset(Path())
    assert dataset.name == "bottle"
    assert dataset.pictures == read_dataset(mvtec).pictures


def test_mvtec_masks_may_be_called_as_their_pictures(mvtec: Path) -> None:
    for mask in (mvtec / "ground_truth").rglob("*.png"):
        mask.rename(mask.with_name(mask.name.replace("_mask", "")))
    assert read_dataset(mvtec).counts()["masks"] == 7


def test_mvtec_validation_folder(mvtec: Path, write_picture) -> None:
    write_picture(mvtec / "validation/good/0.png", 1000)
    assert labels(read_dataset(mvtec))[(GOOD, "validation")] == 1


def test_folders_next_to_train_are_not_ignored(mvtec: Path, write_picture) -> None:
    write_picture(mvtec / "val/good/0.png", 1000)
    with pytest.raises(DatasetError, match="val must be named train, validation, test or ground_truth"):
        read_dataset(mvtec)


def test_unlabelled_test_pictures_are_refused(mvtec: Path, write_picture) -> None:
    write_picture(mvtec / "test/x.png", 1000)
    with pytest.raises(DatasetError, match=r"x\.png must lie in a folder that says what it shows"):
        read_dataset(mvtec)


def test_pictures_directly_in_a_folder_are_good(tmp_path: Path, write_picture) -> None:
    for index in range(9):
        write_picture(tmp_path / f"{index}.png", index)
    dataset = read_dataset(tmp_path)
    assert dataset.layout == "folder"
    assert labels(dataset) == {(GOOD, ""): 9}


@pytest.mark.parametrize("good", ["good", "OK", "normal"])
@pytest.mark.parametrize("bad", ["bad", "defect", "defects", "anomalous", "NG"])
def test_good_and_bad_sub_folders(tmp_path: Path, write_picture, good: str, bad: str) -> None:
    for index in range(8):
        write_picture(tmp_path / good / f"{index}.png", index)
    write_picture(tmp_path / bad / "a.png", 100)
    write_picture(tmp_path / bad / "dent" / "a.png", 101)
    assert labels(read_dataset(tmp_path)) == {(GOOD, ""): 8, (bad, ""): 1, ("dent", ""): 1}


def test_plain_folders_may_have_masks(tmp_path: Path, write_picture, write_mask) -> None:
    for index in range(8):
        write_picture(tmp_path / f"{index}.png", index)
    for seed, where in enumerate(("bad", "bad/dent")):
        write_picture(tmp_path / where / "a.png", 100 + seed)
        write_mask(tmp_path / "ground_truth" / Path(where).name / "a_mask.png")
    assert read_dataset(tmp_path).counts() == {"good": 8, "defective": 2, "masks": 2, "skipped": 0}


def test_unknown_sub_folders_are_refused(tmp_path: Path, write_picture) -> None:
    for index in range(8):
        write_picture(tmp_path / "good" / f"{index}.png", index)
    write_picture(tmp_path / "dents" / "a.png", 100)
    with pytest.raises(DatasetError, match=r"dents must be named good .* rename it, for example to .*bad/dents"):
        read_dataset(tmp_path)


def test_a_defect_called_good_is_refused(tmp_path: Path, write_picture) -> None:
    write_picture(tmp_path / "bad" / "ok" / "a.png", 100)
    with pytest.raises(DatasetError, match="must name a defect but its name says good"):
        read_dataset(tmp_path)


def test_files_are_recognised_by_content(tmp_path: Path, write_picture) -> None:
    formats = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")
    for index in range(9):
        write_picture(tmp_path / f"{index}.dat", index, format=formats[index % 5])
    write_picture(tmp_path / "license_plate.png", 9)
    (tmp_path / ".DS_Store").write_bytes(b"hidden")
    for name in ("README.md", "LICENSE", "Thumbs.db"):
        (tmp_path / name).write_text("no picture, and not meant to be one")
    assert read_dataset(tmp_path).counts() == {"good": 10, "defective": 0, "masks": 0, "skipped": 0}


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n\0\0"])
def test_unreadable_files_are_skipped_by_name_up_to_a_tenth(tmp_path: Path, write_picture, content: bytes) -> None:
    for index in range(18):
        write_picture(tmp_path / f"{index:02d}.png", index)
    (tmp_path / "x.png").write_bytes(content)
    (tmp_path / "y.png").write_bytes(content)
    dataset = read_dataset(tmp_path)
    assert [skipped.path.name for skipped in dataset.skipped] == ["x.png", "y.png"]
    assert all(skipped.reason.startswith("is ") for skipped in dataset.skipped)
    assert dataset.counts() == {"good": 18, "defective": 0, "masks": 0, "skipped": 2}
    (tmp_path / "00.png").write_bytes(content)
    with pytest.raises(DatasetError, match=r"3 of 20 in .*00\.png is .*x\.png is .*y\.png is .*repair or remove"):
        read_dataset(tmp_path)


def test_a_truncated_picture_is_skipped(tmp_path: Path, write_picture) -> None:
    for index in range(10):
        path = write_picture(tmp_path / f"{index}.jpg", index, size=(64, 64))
    path.write_bytes(path.read_bytes()[:-400])
    (skipped,) = read_dataset(tmp_path).skipped
    assert skipped.path == path
    assert "truncated" in skipped.reason


def test_a_bomb_is_skipped(tmp_path: Path, write_picture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "MAX_PIXELS", 1000)
    for index in range(9):
        write_picture(tmp_path / f"{index}.png", index)
    bomb = write_picture(tmp_path / "bomb.png", 9, size=(32, 32))
    (skipped,) = read_dataset(tmp_path).skipped
    assert (skipped.path, skipped.reason) == (bomb, "holds 32 x 32 pixels but at most 1,000 are decoded")


@pytest.mark.parametrize("count", [0, 7])
def test_fewer_than_eight_good_pictures_are_refused(tmp_path: Path, write_picture, count: int) -> None:
    for index in range(count):
        write_picture(tmp_path / f"{index}.png", index)
        write_picture(tmp_path / "bad" / f"{index}.png", 50 + index)
    with pytest.raises(DatasetError, match=f"at least 8 different good pictures but holds {count}"):
        read_dataset(tmp_path)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="nowhere must be an existing folder or manifest"):
        read_dataset(tmp_path / "nowhere")


def test_errors_are_usage_errors_of_one_line(tmp_path: Path) -> None:
    with pytest.raises(DatasetError) as caught:
        read_dataset(tmp_path)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


def test_the_same_picture_in_two_splits_is_refused(mvtec: Path) -> None:
    shutil.copy(mvtec / "train/good/003.png", mvtec / "test/good/leak.png")
    with pytest.raises(DatasetError, match=r"two splits") as caught:
        read_dataset(mvtec)
    assert str(mvtec / "train/good/003.png") in str(caught.value)
    assert str(mvtec / "test/good/leak.png") in str(caught.value)


def test_the_same_picture_under_two_labels_is_refused(mvtec: Path) -> None:
    shutil.copy(mvtec / "test/good/003.png", mvtec / "test/crack/again.png")
    with pytest.raises(DatasetError, match=r"two labels \('crack' and 'good'\).*again\.png.*003\.png"):
        read_dataset(mvtec)


def test_a_plain_duplicate_is_skipped(mvtec: Path) -> None:
    shutil.copy(mvtec / "train/good/003.png", mvtec / "train/good/zzz.png")
    shutil.copy(mvtec / "test/crack/003.png", mvtec / "test/crack/000a.png")  # sorts first, but has no mask
    dataset = read_dataset(mvtec)
    assert {s.path.name: s.reason for s in dataset.skipped} == {
        "zzz.png": f"duplicate of {mvtec / 'train/good/003.png'}",
        "000a.png": f"duplicate of {mvtec / 'test/crack/003.png'}",
    }
    assert dataset.counts() == {"good": 26, "defective": 7, "masks": 7, "skipped": 2}


def test_a_mask_of_another_size_is_refused(mvtec: Path, write_mask) -> None:
    write_mask(mvtec / "ground_truth/crack/001_mask.png", (12, 15))
    with pytest.raises(DatasetError, match=r"001_mask\.png must have the size of .*001\.png, 16 x 12, but has 15 x 12"):
        read_dataset(mvtec)


@pytest.mark.parametrize("where", ["crack/777_mask.png", "dent/000_mask.png", "000_mask.png"])
def test_a_mask_without_its_picture_is_refused(mvtec: Path, write_mask, where: str) -> None:
    write_mask(mvtec / "ground_truth" / where)
    with pytest.raises(DatasetError, match=f"{where} must belong to a picture but there is none"):
        read_dataset(mvtec)


def test_two_masks_for_one_picture_are_refused(mvtec: Path, write_mask) -> None:
    write_mask(mvtec / "ground_truth/crack/001.png")
    with pytest.raises(DatasetError, match=r"must have one mask but got .*001\.png and .*001_mask\.png"):
        read_dataset(mvtec)


def test_one_mask_for_two_pictures_is_refused(mvtec: Path, write_picture) -> None:
    write_picture(mvtec / "test/crack/001.bmp", 1000)
    with pytest.raises(DatasetError, match=r"001_mask\.png must belong to one picture"):
        read_dataset(mvtec)


def test_a_mask_on_a_good_picture_must_be_empty(mvtec: Path, write_mask) -> None:
    write_mask(mvtec / "ground_truth/good/000_mask.png", empty=True)
    dataset = read_dataset(mvtec)
    assert dataset.counts()["masks"] == 7
    assert all(p.mask is None for p in dataset.pictures if p.is_normal)
    write_mask(mvtec / "ground_truth/good/000_mask.png")
    with pytest.raises(DatasetError, match=r"000\.png must not be good while its mask .*000_mask\.png marks a defect"):
        read_dataset(mvtec)


def test_an_unreadable_mask_is_skipped(mvtec: Path) -> None:
    (mvtec / "ground_truth/crack/001_mask.png").write_bytes(b"")
    dataset = read_dataset(mvtec)
    assert [s.path.name for s in dataset.skipped] == ["001_mask.png"]
    assert dataset.counts() == {"good": 26, "defective": 7, "masks": 6, "skipped": 1}


def test_a_rotated_picture_is_as_large_as_its_upright_mask(mvtec: Path, write_picture, write_mask) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    write_picture(mvtec / "test/crack/turned.jpg", 1000, size=(20, 30), exif=exif)
    write_mask(mvtec / "ground_truth/crack/turned_mask.png", (30, 20))
    assert read_dataset(mvtec).counts()["masks"] == 8


def test_each_file_is_read_once(mvtec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: Counter[Path] = Counter()
    original = Path.read_bytes

    def counting(path: Path) -> bytes:
        read[path] += 1
        return original(path)

    monkeypatch.setattr(Path, "read_bytes", counting)
    dataset = read_dataset(mvtec)
    assert dataset.hash
    assert set(read.values()) == {1}
    assert len(read) == 33 + 7


def test_hash_depends_on_content_not_on_names(mvtec: Path, write_mask) -> None:
    before = read_dataset(mvtec)
    moved = mvtec.rename(mvtec.with_name("elsewhere"))
    for index, path in enumerate(sorted((moved / "train/good").iterdir(), reverse=True)):
        path.rename(path.with_name(f"renamed{index}.png"))
    renamed = read_dataset(moved)
    assert renamed.hash == before.hash
    assert names(renamed) != names(before)
    write_mask(moved / "ground_truth/crack/001_mask.png", empty=True)
    assert read_dataset(moved).hash != before.hash


@pytest.mark.parametrize("change", ["added", "removed", "label", "split", "mask"])
def test_hash_changes_with(mvtec: Path, write_picture, change: str) -> None:
    before = read_dataset(mvtec).hash
    if change == "added":
        write_picture(mvtec / "train/good/new.png", 1000)
    elif change == "removed":
        (mvtec / "train/good/000.png").unlink()
    elif change == "label":
        os.rename(mvtec / "test/hole", mvtec / "test/dent")
        os.rename(mvtec / "ground_truth/hole", mvtec / "ground_truth/dent")
    elif change == "split":
        os.rename(mvtec / "test/good/000.png", mvtec / "train/good/from_test.png")
    else:
        (mvtec / "ground_truth/crack/001_mask.png").unlink()
    assert read_dataset(mvtec).hash != before


def test_arrow_round_trip(mvtec: Path) -> None:
    shutil.copy(mvtec / "train/good/003.png", mvtec / "train/good/zzz.png")
    dataset = read_dataset(mvtec)
    table = dataset.to_arrow()
    assert table.num_rows == 33
    restored = Dataset.from_arrow(table)
    assert restored == dataset
    shutil.rmtree(mvtec)  # the table stands alone
    assert restored.hash == dataset.hash


def test_pictures_are_hashed_by_their_bytes(mvtec: Path) -> None:
    picture = read_dataset(mvtec).pictures[0]
    copy = mvtec / "copy.png"
    copy.write_bytes(picture.read())
    with Image.open(copy) as one, Image.open(picture.path) as other:
        assert np.array_equal(np.asarray(one), np.asarray(other))
    assert len({p.sha256 for p in read_dataset(mvtec).pictures}) == 33
