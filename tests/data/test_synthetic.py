from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from autoad.data import Picture, decode_image, draw_defects, load_mask
from autoad.data.synthetic import KINDS, _defect, _generator, _perlin_noise
from autoad.errors import DatasetError


def save(folder: Path, pixels: np.ndarray, name: str) -> Picture:
    path = folder / f"{name}.png"
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return Picture(path, hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.fixture
def normals(tmp_path: Path) -> list[Picture]:
    rng = np.random.default_rng(0)
    noise = rng.integers(60, 200, size=(4, 48, 64, 3), dtype=np.uint8)
    return [save(tmp_path / "normal", pixels, str(index)) for index, pixels in enumerate(noise)]


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_one_of_each_kind_with_its_mask(normals: list[Picture], tmp_path: Path) -> None:
    drawn = draw_defects(normals, tmp_path / "out")
    assert [p.label for p in drawn] == ["cutpaste"] * 4 + ["perlin"] * 4 + ["scratch"] * 4
    by_sha = {p.sha256: p for p in normals}
    for picture in drawn:
        original = by_sha[picture.path.stem]
        assert picture.synthetic
        assert picture.path == tmp_path / "out" / picture.label / f"{original.sha256}.png"
        assert picture.sha256 == hashlib.sha256(picture.path.read_bytes()).hexdigest()
        before, after = decode_image(original.read()), decode_image(picture.read())
        mask = load_mask(picture, before.shape[:2])
        assert mask is not None
        difference = np.abs(after.astype(int) - before).max(axis=2)
        assert mask.any()
        assert not difference[~mask].any()
        assert (difference[mask] > 0).mean() > 0.9
        assert difference[mask].max() >= 8
        assert mask.mean() < 0.5


def test_the_same_again_and_whatever_the_order(normals: list[Picture], tmp_path: Path) -> None:
    first = draw_defects(normals, tmp_path / "a", seed=3)
    second = draw_defects(normals[::-1], tmp_path / "b", seed=3)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert [p.sha256 for p in first] == [p.sha256 for p in second]
    other = draw_defects(normals, tmp_path / "c", seed=4)
    assert not {p.sha256 for p in first} & {p.sha256 for p in other}


def test_running_again_rewrites_nothing(normals: list[Picture], tmp_path: Path) -> None:
    first = draw_defects(normals, tmp_path / "out")
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*.png")}
    damaged = first[0].path
    damaged.write_bytes(b"half-writ")
    assert draw_defects(normals, tmp_path / "out") == first
    assert hashlib.sha256(damaged.read_bytes()).hexdigest() == first[0].sha256
    after = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert after.keys() == times.keys()
    assert [p for p in times if after[p] != times[p]] == [damaged]


@settings(max_examples=60, deadline=None)
@given(
    level=st.integers(0, 255),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    seed=st.integers(0, 1000),
    kind=st.sampled_from(sorted(KINDS)),
)
def test_every_picture_gets_a_visible_defect(level: int, height: int, width: int, seed: int, kind: str) -> None:
    flat = np.full((height, width, 3), level, dtype=np.uint8)
    defective, mask = _defect(flat, flat, KINDS[kind], _generator(seed, "0", kind))
    difference = np.abs(defective.astype(int) - flat).max(axis=2)
    assert mask.any()
    assert difference[mask].max() >= 8
    assert not difference[~mask].any()


def test_subtle_and_plain_defects_are_mixed() -> None:
    image = np.random.default_rng(0).integers(100, 140, size=(64, 64, 3), dtype=np.uint8)
    for kind, draw in KINDS.items():
        strengths = []
        for seed in range(40):
            defective, mask = _defect(image, image, draw, _generator(seed, "0", kind))
            strengths.append(np.abs(defective.astype(int) - image).max(axis=2)[mask].sum())
        assert np.quantile(strengths, 0.9) > 3 * np.quantile(strengths, 0.1), kind


def test_long_pictures_are_reduced(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, size=(300, 1200, 3), dtype=np.uint8)
    for picture in draw_defects([save(tmp_path, pixels, "long")], tmp_path / "out"):
        assert decode_image(picture.read()).shape == (128, 512, 3)
        assert load_mask(picture, (128, 512)) is not None


def test_perlin_noise_is_smooth_and_vanishes_on_its_lattice() -> None:
    noise = _perlin_noise((201, 201), 4, np.random.default_rng(0))
    fine = np.abs(np.diff(noise, axis=0)).max()
    assert fine < 0.1 * (noise.max() - noise.min())
    # Lattice points lie between pixels at multiples of 201 / 4; gradient noise is zero there.
    around = [noise[round(i * 201 / 4) - 1, round(j * 201 / 4) - 1] for i in (1, 2, 3) for j in (1, 2, 3)]
    assert np.abs(around).max() < 0.05 < np.abs(noise).max()


def test_nothing_to_draw_on(tmp_path: Path) -> None:
    assert draw_defects([], tmp_path / "out") == ()


def test_defective_pictures_are_refused(normals: list[Picture], tmp_path: Path) -> None:
    bad = Picture(normals[0].path, normals[0].sha256, "dent")
    with pytest.raises(ValueError, match=r"must be good but .* is 'dent'"):
        draw_defects([bad], tmp_path / "out")


def test_an_unwritable_folder_is_a_clear_error(normals: list[Picture], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DatasetError, match="synthetic defects need"):
        draw_defects(normals, tmp_path / "file")
