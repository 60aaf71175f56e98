from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image

from autoad.data import Picture


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every test starts without a weights folder, a hub cache or a hub."""
    monkeypatch.delenv("AUTOAD_WEIGHTS_DIR", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "no-cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def weights_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Path]:
    """Writes random weights of networks into a folder that AUTOAD_WEIGHTS_DIR names."""
    folder = tmp_path / "weights"
    folder.mkdir()
    monkeypatch.setenv("AUTOAD_WEIGHTS_DIR", str(folder))

    def write(*names: str) -> Path:
        for name in names:
            with torch.random.fork_rng():
                torch.manual_seed(7)
                network = timm.create_model(name, pretrained=False)
            safetensors.torch.save_file(network.state_dict(), folder / f"{name}.safetensors")
        return folder

    return write


@pytest.fixture
def pictures(tmp_path: Path) -> Callable[..., list[Picture]]:
    """Writes noise pictures, all different."""
    folder = tmp_path / "pictures"
    folder.mkdir()

    def write(count: int, *, seed: int = 0, size: tuple[int, int] = (64, 96)) -> list[Picture]:
        rng = np.random.default_rng(seed)
        written = []
        for index in range(count):
            path = folder / f"{seed}-{index}.png"
            Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
            written.append(Picture(path, hashlib.sha256(path.read_bytes()).hexdigest()))
        return written

    return write
