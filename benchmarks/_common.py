"""What the benchmarks share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from autoad.data import Dataset, Picture, read_dataset
from autoad.features import EngineChoice, FeatureStore, choose_engine

import torch  # isort: skip - after autoad, which says how torch's threads wait

FROZEN = ("padim", "patchcore", "dfm", "dfkde")


def arguments(description: str) -> argparse.Namespace:
    """``--data`` folders in MVTec layout, ``--store`` for features, ``--threads``."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders in MVTec layout")
    parser.add_argument("--store", type=Path, default=Path("benchmark-features"), help="feature store")
    parser.add_argument("--threads", type=int, default=1)
    parsed = parser.parse_args()
    torch.set_num_threads(parsed.threads)
    return parsed


def folders(path: Path) -> tuple[Dataset, list[Picture], list[Picture]]:
    """A dataset, its ``train/good`` and its whole ``test`` folder."""
    dataset = read_dataset(path)
    train = [p for p in dataset.pictures if p.split == "train"]
    return dataset, train, [p for p in dataset.pictures if p.split != "train"]


def open_store(parsed: argparse.Namespace) -> tuple[FeatureStore, EngineChoice]:
    """The feature store, and the engine that a search would choose."""
    return FeatureStore(parsed.store), choose_engine()


def table(title: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [title, ["---"] * len(title), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
