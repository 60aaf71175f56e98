from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from autoad.data._foreground import find_part


def place_part(
    shape: tuple[int, int] = (240, 320), *, colour: int = 150, ground: int = 40, noise: float = 3, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """A textured ellipse, darker on one side, on a ground whose light falls off to one side; and its mask."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[0], : shape[1]] / np.reshape(shape, (2, 1, 1)) - 0.5
    mask = (y / 0.35) ** 2 + (x / 0.25) ** 2 < 1
    pixels = ground + 15 * x
    pixels = np.where(mask, colour + 60 * x + 10 * np.sin(60 * y), pixels)
    noisy = pixels[..., None] + rng.normal(0, noise, size=(*shape, 3))
    return noisy.clip(0, 255).astype(np.uint8), mask


def union(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / (one | other).sum())


@pytest.mark.parametrize("shape", [(48, 64), (240, 320), (512, 384)])
@pytest.mark.parametrize(("colour", "ground"), [(150, 40), (60, 200), (75, 30)])
def test_a_part_on_a_plain_ground_is_found(shape: tuple[int, int], colour: int, ground: int) -> None:
    image, mask = place_part(shape, colour=colour, ground=ground)
    part = find_part(image)
    assert union(part.mask, mask) > 0.9
    assert part.scale == pytest.approx(np.sqrt(mask.sum()), rel=0.05)


def test_its_background_is_what_the_picture_would_be_without_it() -> None:
    image, mask = place_part(noise=4)
    part = find_part(image)
    window = (slice(60, 180), slice(100, 220))
    assert mask[window].mean() > 0.9
    background = part.background(window, np.random.default_rng(0))
    slope = 40 + 15 * ((np.arange(320) / 320 - 0.5)[None, 100:220, None])
    assert np.abs((background - slope).mean()) < 1
    assert 2.5 < (background - slope).std() < 5.5


def test_holes_belong_to_the_part_and_crumbs_do_not() -> None:
    image, mask = place_part()
    image[110:125, 150:170] = 40
    image[10:16, 10:16] = 150
    found = find_part(image).mask
    assert found[110:125, 150:170].all()
    assert not found[8:18, 8:18].any()
    assert union(found, mask) > 0.9


def textures() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    fine = rng.integers(60, 200, size=(200, 240, 3), dtype=np.uint8)
    clouds = ndimage.gaussian_filter(rng.normal(size=(200, 240)), 8)
    y, x = np.mgrid[:200, :240]
    grown = np.stack([(120 + 900 * clouds).clip(0, 255)] * 3, axis=2)
    return {
        "faint": place_part(colour=60, ground=40, noise=8)[0],
        "flat": np.full((200, 240, 3), 90, dtype=np.uint8),
        "noise": fine,
        "clouds": grown.astype(np.uint8),
        "stripes": np.repeat(((np.sin(x / 5) > 0) * 200)[..., None], 3, axis=2).astype(np.uint8),
        "checks": np.repeat((((x // 20 + y // 20) % 2) * 200)[..., None], 3, axis=2).astype(np.uint8),
        "slope": np.repeat((x * 0.8 + 20)[..., None], 3, axis=2).astype(np.uint8),
        "speck": np.where(((y - 100) ** 2 + (x - 90) ** 2 < 100)[..., None], 220, fine // 8).astype(np.uint8),
        "tiny": fine[:5, :7],
        "one pixel": fine[:1, :1],
        "line": fine[:1],
    }


@pytest.mark.parametrize("name", sorted(textures()))
def test_without_a_part_before_a_background_all_is_part(name: str) -> None:
    part = find_part(textures()[name])
    assert part.mask.all()
    with pytest.raises(ValueError, match="must stand before a background"):
        part.background((slice(0, 1), slice(0, 1)), np.random.default_rng(0))


def test_the_same_again() -> None:
    image, _ = place_part()
    one, other = find_part(image), find_part(image.copy())
    np.testing.assert_array_equal(one.mask, other.mask)
    np.testing.assert_array_equal(one.plane, other.plane)
    assert one.noise == other.noise
