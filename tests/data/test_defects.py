from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoad.data._defects import _VISIBLE, KINDS, Canvas, draw_defect
from autoad.data._foreground import Part, find_part

EVERY_KIND = pytest.mark.parametrize("kind", sorted(KINDS))


def whole(image: np.ndarray) -> Part:
    return Part(np.ones(image.shape[:2], dtype=bool))


def draw(image: np.ndarray, kind: str, seed: int, part: Part | None = None) -> tuple[np.ndarray, np.ndarray]:
    return draw_defect(image, part or whole(image), image[::-1], kind, np.random.default_rng([seed, len(kind)]))


def check(image: np.ndarray, defective: np.ndarray, mask: np.ndarray) -> None:
    """What holds for every defect on every picture."""
    assert defective.shape == image.shape
    assert defective.dtype == np.uint8
    difference = np.abs(defective.astype(int) - image).max(axis=2)
    assert mask.any()
    assert difference[mask].max() >= _VISIBLE
    assert not difference[~mask].any()
    assert difference[mask].all(), "a mask holds what changed only"


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(60, 200, size=(height, width, 3), dtype=np.uint8)


def checks(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.repeat((((x // 9 + y // 7) % 2) * 180 + 30)[..., None], 3, axis=2).astype(np.uint8)


def mounted(height: int = 256, width: int = 256) -> np.ndarray:
    """A checked part, with colours, before a plain ground."""
    image = np.random.default_rng(1).normal(25, 2, size=(height, width, 3)).clip(0, 255).astype(np.uint8)
    inner = slice(height // 5, -height // 5), slice(width // 4, -width // 4)
    image[inner] = checks(height, width)[inner] // np.array([1, 2, 1]) + 40
    return image


@settings(max_examples=120, deadline=None)
@given(
    level=st.integers(0, 255),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    seed=st.integers(0, 1000),
    kind=st.sampled_from(sorted(KINDS)),
)
def test_flat_and_tiny_pictures_get_visible_defects(level: int, height: int, width: int, seed: int, kind: str) -> None:
    flat = np.full((height, width, 3), level, dtype=np.uint8)
    check(flat, *draw(flat, kind, seed))


@EVERY_KIND
@pytest.mark.parametrize("ground", ["noise", "checks", "mounted", "large"])
def test_a_defect_is_visible_in_its_mask_and_nowhere_else(kind: str, ground: str) -> None:
    images = {"noise": noise(90, 70), "checks": checks(64, 200), "mounted": mounted(), "large": noise(512, 512)}
    image = images[ground]
    part = find_part(image)
    assert (part.plane is not None) == (ground == "mounted")
    for seed in range(2 if ground == "large" else 8):
        defective, mask = draw(image, kind, seed, part)
        check(image, defective, mask)
        assert mask.sum() < 0.45 * part.mask.sum(), "a defect, not another part"


@EVERY_KIND
def test_a_defect_lies_on_the_part(kind: str) -> None:
    image = mounted()
    part = find_part(image)
    shares = []
    for seed in range(30):
        _, mask = draw(image, kind, seed, part)
        shares.append((mask & part.mask).sum() / mask.sum())
    # What bends or moves the part also changes what is behind it; all else must not.
    assert min(shares) >= (0.8 if kind in {"deformation", "displaced"} else 1)
    assert np.mean(shares) >= 0.9


@EVERY_KIND
def test_defects_go_from_subtle_to_plain(kind: str) -> None:
    image = mounted()
    part = find_part(image)
    strengths, sizes = [], []
    for seed in range(40):
        defective, mask = draw(image, kind, seed, part)
        strengths.append(np.abs(defective.astype(int) - image).max(axis=2)[mask].sum())
        sizes.append(mask.sum())
    low, high = np.quantile(strengths, [0.1, 0.9])
    assert high > 5 * low
    # Not two groups: a third of them lie between a third and two thirds of the way, where a logarithm says so.
    ways = np.log(strengths / low) / np.log(high / low)
    assert ((ways > 1 / 4) & (ways < 3 / 4)).mean() > 0.2
    assert np.quantile(sizes, 0.9) > 2 * np.quantile(sizes, 0.1)


@EVERY_KIND
def test_the_kind_is_what_was_drawn(kind: str) -> None:
    """The last resort, a square half the range away, is for pictures on which nothing shows."""
    image = mounted()
    part = find_part(image)
    for seed in range(20):
        defective, mask = draw(image, kind, seed, part)
        assert not (defective[mask] == image[mask] + np.uint8(128)).all()


@EVERY_KIND
def test_a_picture_without_colour_stays_one(kind: str) -> None:
    for seed in range(6):
        defective, _ = draw(checks(80, 80), kind, seed)
        assert (defective == defective[..., :1]).all()


def labelled(side: int = 128) -> np.ndarray:
    """Each pixel has a colour of its own, which tells where it came from."""
    y, x = np.mgrid[:side, :side]
    return np.stack([2 * y, 2 * x, (37 * y + 91 * x) % 251], axis=2).astype(np.uint8)


def test_a_displaced_piece_keeps_its_colours() -> None:
    image = labelled()
    origin = {tuple(colour): divmod(place, 128) for place, colour in enumerate(image.reshape(-1, 3).tolist())}
    straight = 0
    for seed in range(40):
        defective, mask = draw(image, "displaced", seed)
        shifts: Counter[tuple[int, int]] = Counter()
        for place in np.argwhere(mask):
            if (source := origin.get(tuple(defective[tuple(place)].tolist()))) is not None:
                shifts[(int(place[0]) - source[0], int(place[1]) - source[1])] += 1
        (shift, count), *_ = shifts.most_common(1) or [((0, 0), 0)]
        if shift != (0, 0) and count > 0.35 * mask.sum():
            straight += 1
            assert 1 <= np.hypot(*shift) <= 0.15 * 128 + 1
    # Half of the pieces are turned as well, whose colours are interpolated.
    assert straight >= 10


def test_cutpaste_and_scar_bring_nothing_but_the_parts_own_texture() -> None:
    image = np.zeros((96, 96, 3), dtype=np.uint8)
    image[:, :48], image[:, 48:] = (200, 40, 40), (40, 200, 40)
    for kind in ("cutpaste", "scar"):
        for seed in range(20):
            defective, mask = draw(image, kind, seed)
            for colour in np.unique(defective[mask], axis=0).astype(float):
                # Colours are scaled by up to .3 a channel.
                ratios = [colour / original for original in ((200, 40, 40), (40, 200, 40))]
                assert any(((ratio > 0.68) & (ratio < 1.32)).all() for ratio in ratios), (kind, seed, colour)


def test_where_a_piece_is_missing_the_background_shows_or_the_surroundings_close() -> None:
    image = mounted()
    part = find_part(image)
    levels = []
    for seed in range(40):
        defective, mask = draw(image, "missing", seed, part)
        levels.append(np.median(defective[mask]))
    background = np.mean([20 < level < 30 for level in levels])
    assert 0.2 < background < 0.8


def test_a_deformation_moves_but_does_not_fold() -> None:
    ramp = np.repeat(np.arange(200, dtype=np.uint8)[None, :, None], 200, axis=0).repeat(3, axis=2)
    for seed in range(30):
        window, pixels = KINDS["deformation"](Canvas(ramp, whole(ramp), ramp), np.random.default_rng(seed))
        assert (np.diff(pixels[..., 0], axis=1) >= -1e-3).all(), "what lay to the right still does"
        if min(part.start for part in window) > 0 and max(part.stop for part in window) < 200:
            moved = np.abs(pixels - ramp[window])
            rim = np.concatenate([moved[0], moved[-1], moved[:, 0], moved[:, -1]])
            assert rim.max() < 0.5, "it fades out"
            assert moved.max() > 0.1
