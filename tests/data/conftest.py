from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

WritePicture = Callable[..., Path]


@pytest.fixture
def write_picture() -> WritePicture:
    """Writes a small picture whose content depends on ``seed`` alone."""

    def write(path: Path, seed: int = 0, size: tuple[int, int] = (12, 16), **options: object) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, size=(*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path, **options)
        return path

    return write


@pytest.fixture
def write_mask() -> WritePicture:
    """Writes a mask with one square defect, or none."""

    def write(path: Path, size: tuple[int, int] = (12, 16), *, empty: bool = False) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        mask = np.zeros(size, dtype=np.uint8)
        if not empty:
            mask[2:5, 3:6] = 255
        Image.fromarray(mask).save(path)
        return path

    return write


@pytest.fixture
def mvtec(tmp_path: Path, write_picture: WritePicture, write_mask: WritePicture) -> Path:
    """20 train/good, 6 test/good, 5 test/crack, 2 test/hole, all defects with masks."""
    root = tmp_path / "bottle"
    for index in range(20):
        write_picture(root / "train/good" / f"{index:03d}.png", index)
    for index in range(6):
        write_picture(root / "test/good" / f"{index:03d}.png", 100 + index)
    for kind, count, seed in (("crack", 5, 200), ("hole", 2, 300)):
        for index in range(count):
            write_picture(root / "test" / kind / f"{index:03d}.png", seed + index)
            write_mask(root / "ground_truth" / kind / f"{index:03d}_mask.png")
    return root
