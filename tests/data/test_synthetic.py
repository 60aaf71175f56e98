from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from autoad.data import Picture, decode_image, draw_defects, load_mask
from autoad.data._defects import KINDS
from autoad.errors import DatasetError

PER_KIND = 24


def save(folder: Path, pixels: np.ndarray, name: str) -> Picture:
    path = folder / f"{name}.png"
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return Picture(path, hashlib.sha256(path.read_bytes()).hexdigest())


def draw(pictures: Sequence[Picture], folder: Path, seed: int = 0) -> tuple[Picture, ...]:
    return draw_defects(pictures, folder, per_kind=PER_KIND, seed=seed)


@pytest.fixture
def normals(tmp_path: Path) -> list[Picture]:
    rng = np.random.default_rng(0)
    noise = rng.integers(60, 200, size=(4, 48, 64, 3), dtype=np.uint8)
    return [save(tmp_path / "normal", pixels, str(index)) for index, pixels in enumerate(noise)]


def contents_of(drawn: tuple[Picture, ...]) -> dict[str, bytes]:
    return {f"{p.label}/{p.path.name}": p.path.read_bytes() for p in drawn}


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_as_many_of_each_kind_with_their_masks(normals: list[Picture], tmp_path: Path) -> None:
    drawn = draw(normals, tmp_path / "out")
    assert [p.label for p in drawn] == [kind for kind in sorted(KINDS) for _ in range(PER_KIND)]
    by_sha = {p.sha256: p for p in normals}
    for picture in drawn:
        original = by_sha[picture.path.stem[:64]]
        turn = int(picture.path.stem[65:])
        assert picture.synthetic
        assert picture.path == tmp_path / "out" / picture.label / f"{original.sha256}-{turn}.png"
        assert picture.sha256 == hashlib.sha256(picture.path.read_bytes()).hexdigest()
        assert picture.mask is not None
        assert picture.mask_sha256 == hashlib.sha256(picture.mask.read_bytes()).hexdigest()
        before, after = decode_image(original.read()), decode_image(picture.read())
        mask = load_mask(picture, before.shape[:2])
        assert mask is not None
        difference = np.abs(after.astype(int) - before).max(axis=2)
        np.testing.assert_array_equal(difference > 0, mask)
        assert difference[mask].max() >= 8


@pytest.mark.parametrize("count", [1, 5, PER_KIND, PER_KIND + 6])
def test_the_number_does_not_depend_on_how_many_normals_there_are(count: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    pictures = [
        save(tmp_path / "normal", rng.integers(0, 256, size=(12, 16, 3), dtype=np.uint8), str(index))
        for index in range(count)
    ]
    drawn = draw(pictures, tmp_path / "out")
    assert Counter(p.label for p in drawn) == dict.fromkeys(KINDS, PER_KIND)
    assert len({p.sha256 for p in drawn}) == len({p.path for p in drawn}) == len(drawn)
    # Every picture has its turn: the numbers of their draws differ by one at most.
    for kind in KINDS:
        turns = Counter(p.path.stem[:64] for p in drawn if p.label == kind)
        assert set(turns) == set(sorted(p.sha256 for p in pictures)[:PER_KIND])
        assert max(turns.values()) - min(turns.values()) <= 1


def test_draws_on_one_picture_differ(normals: list[Picture], tmp_path: Path) -> None:
    drawn = draw(normals[:1], tmp_path / "out")
    for kind in KINDS:
        pixels = {decode_image(p.read()).tobytes() for p in drawn if p.label == kind}
        assert len(pixels) == PER_KIND, kind


def test_what_was_drawn_before_does_not_change_with_more_normals(normals: list[Picture], tmp_path: Path) -> None:
    few = contents_of(draw(normals[:2], tmp_path / "few"))
    many = contents_of(draw(normals, tmp_path / "many"))
    shared = {name for name in few.keys() & many.keys() if not name.startswith("perlin/")}
    assert len(shared) > PER_KIND
    assert all(few[name] == many[name] for name in shared)


def test_pictures_that_come_out_alike_are_still_told_apart(tmp_path: Path) -> None:
    dots = [save(tmp_path / "normal", np.full((1, 1, 3), level, dtype=np.uint8), str(level)) for level in (10, 20)]
    drawn = draw(dots, tmp_path / "out")
    assert len({p.sha256 for p in drawn}) == len(drawn) == len(KINDS) * PER_KIND


def test_defects_lie_on_the_part(tmp_path: Path) -> None:
    y, x = np.mgrid[:160, :120]
    part = np.hypot(y - 80, x - 60) < 40
    pixels = np.random.default_rng(0).normal(30, 2, size=(160, 120, 3))
    pixels[part] += np.random.default_rng(1).normal(120, 25, size=(160, 120, 3))[part]
    drawn = draw([save(tmp_path, pixels.clip(0, 255).astype(np.uint8), "part")], tmp_path / "out")
    shares = []
    for picture in drawn:
        mask = load_mask(picture, (160, 120))
        assert mask is not None
        shares.append((mask & part).sum() / mask.sum())
    assert np.mean(shares) > 0.9
    assert min(shares) > 0.5


def test_the_same_again_and_whatever_the_order(normals: list[Picture], tmp_path: Path) -> None:
    first = draw(normals, tmp_path / "a", seed=3)
    second = draw(normals[::-1], tmp_path / "b", seed=3)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert [p.sha256 for p in first] == [p.sha256 for p in second]
    other = draw(normals, tmp_path / "c", seed=4)
    assert not {p.sha256 for p in first} & {p.sha256 for p in other}


def test_running_again_rewrites_nothing(normals: list[Picture], tmp_path: Path) -> None:
    first = draw(normals, tmp_path / "out")
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*.png")}
    damaged = first[0].path
    damaged.write_bytes(b"half-writ")
    assert draw(normals, tmp_path / "out") == first
    assert hashlib.sha256(damaged.read_bytes()).hexdigest() == first[0].sha256
    after = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert after.keys() == times.keys()
    assert [p for p in times if after[p] != times[p]] == [damaged]


def test_long_pictures_are_reduced(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, size=(300, 1200, 3), dtype=np.uint8)
    for picture in draw([save(tmp_path, pixels, "long")], tmp_path / "out"):
        assert decode_image(picture.read()).shape == (128, 512, 3)
        assert load_mask(picture, (128, 512)) is not None


def test_nothing_to_draw_on(tmp_path: Path) -> None:
    assert draw([], tmp_path / "out") == ()


def test_defective_pictures_are_refused(normals: list[Picture], tmp_path: Path) -> None:
    bad = Picture(normals[0].path, normals[0].sha256, "dent")
    with pytest.raises(ValueError, match=r"must be good but .* is 'dent'"):
        draw([bad], tmp_path / "out")


def test_an_unwritable_folder_is_a_clear_error(normals: list[Picture], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DatasetError, match="synthetic defects need"):
        draw(normals, tmp_path / "file")
