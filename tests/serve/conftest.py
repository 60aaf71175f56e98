from __future__ import annotations

import dataclasses
import importlib.util
import shutil
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from autoad.data import assign_roles, read_dataset
from autoad.database import Database
from autoad.models.registry import Registry
from autoad.settings import Settings


def _load(name: str) -> Any:
    """A module beside this one; tests are no package."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclasses.dataclass(frozen=True)
class Plant:
    """Three models of the demonstration dataset: ``gravel`` 1 and 2 (PatchCore), ``belt`` 1 (DFM).

    Attributes:
        settings: of the data folder that they are registered in; to be copied, not changed.
        pictures: encoded test pictures, normal and defective in turn.
    """

    settings: Settings
    pictures: list[bytes]

    def folder(self, name: str, version: int) -> Path:
        return self.settings.models_dir / name / str(version)

    def copy(self, target: Path) -> Settings:
        """The same models in a data folder of their own, without the features."""
        shutil.copytree(self.settings.data_dir, target, ignore=shutil.ignore_patterns("features", "autoad.lock"))
        return Settings(data_dir=target)


@pytest.fixture(scope="session")
def plant(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Plant:
    """Made once; takes some seconds."""
    factory = _load("factory")
    settings = factory.make_state(tmp_path_factory.mktemp("plant"))
    dataset = read_dataset(demo)
    factory.add_model(settings, dataset, "gravel", "patchcore", image_size=128, coreset_sampling_ratio=0.01)
    factory.add_model(settings, dataset, "gravel", "patchcore", image_size=128, coreset_sampling_ratio=0.02)
    factory.add_model(settings, dataset, "belt", "dfm", image_size=128)
    test = assign_roles(dataset).test
    normal = [picture.read() for picture in test if picture.is_normal]
    defective = [picture.read() for picture in test if not picture.is_normal]
    pictures = [one for pair in zip(normal, defective, strict=False) for one in pair]
    assert len(pictures) >= 8
    return Plant(settings, pictures)


@pytest.fixture
def registry(plant: Plant, tmp_path: Path) -> Iterator[Registry]:
    """The plant's models, of which ``gravel`` 1 and ``belt`` 1 are champions."""
    settings = plant.copy(tmp_path / "data")
    database = Database(settings)
    made = Registry(database, settings)
    for name in ("gravel", "belt"):
        made.promote(name, 1, reason="first", actor="test")
    yield made
    database.close()


@pytest.fixture
def bomb() -> bytes:
    """A few bytes that say that they are a PNG of 6000 x 6000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 6000, 6000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """A batcher sets torch's threads for the whole process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
