"""Fits a fixed grid of configurations once and writes down what each says of every picture.

    python benchmarks/regret/grid.py --data FOLDER... [--output FOLDER] [--seconds 30] [--splits 3] [--count dfm=250]

For each folder in MVTec layout: the default of all eight algorithms and random configurations from the packaged search
spaces (bundled backbone), 64 in all or as ``--count`` says, fitted on the train role that a search would have. What is
written, as ``OUTPUT/NAME.npz``, are raw scores of the selection and calibration normals, of synthetic defects drawn on
the former, and of the test folder; ``replay.py`` needs nothing else. With ``--splits`` what does not train is fitted
again with other selection normals, into ``OUTPUT/NAME.split-1.npz`` and so on. A run that was cut off goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import optuna
import torch

from autoad.algorithms import ALGORITHMS, Detector, Inputs, Runtime, get_algorithm
from autoad.data import Picture, Roles, assign_roles, draw_defects, read_dataset
from autoad.errors import AutoADError
from autoad.evaluation import drawn_per_kind
from autoad.features import DEFAULT_BACKBONE, EngineChoice, FeatureStore, choose_engine, head_precision
from autoad.files import write_atomically
from autoad.models import load_inputs
from autoad.search.space import Space, load_spaces

COUNTS = {
    "patchcore": 13,
    "padim": 12,
    "dfm": 12,
    "dfkde": 9,
    "stfpm": 6,
    "reverse_distillation": 4,
    "cflow": 4,
    "ganomaly": 4,
}
"""Configurations of each algorithm, its default among them."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """A picture of the grid; ``group`` is selection, calibration, synthetic or test."""

    group: str
    label: str
    sha256: str


def main() -> None:
    """Fit the grid on each folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders in MVTec layout")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent.parent / "results" / "regret")
    parser.add_argument("--store", type=Path, default=Path("benchmark-features"), help="feature store")
    parser.add_argument("--seconds", type=float, default=30.0, help="of a fit, for algorithms that train")
    parser.add_argument("--splits", type=int, default=1, help="divisions of the good pictures, for what does not train")
    parser.add_argument(
        "--count", action="append", default=[], metavar="ALGORITHM=N", help="other configurations of it"
    )
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    for name, number in (one.split("=") for one in asked.count):
        if name not in COUNTS:
            parser.error(f"--count is of {', '.join(COUNTS)} but got {name!r}")
        COUNTS[name] = int(number)
    asked.output.mkdir(parents=True, exist_ok=True)
    for folder in asked.data:
        for split in range(asked.splits):
            with tempfile.TemporaryDirectory() as scratch:
                fit_grid(
                    folder, split, asked.output, FeatureStore(asked.store), Path(scratch), asked.seconds, asked.threads
                )


def draw_grid() -> list[tuple[str, dict[str, Any]]]:
    """Each algorithm's default and random others, always the same."""
    drawn: list[tuple[str, dict[str, Any]]] = []
    for name, space in _spaces().items():
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        rng = np.random.default_rng(0)
        drawn.append((name, space.defaults()))
        for _ in range(COUNTS[name] - 1):
            config = space.suggest(study.ask())
            swept = {key: values[rng.integers(len(values))] for key, values in space.sweep(config).items()}
            drawn.append((name, config | swept))
    return drawn


def _spaces() -> dict[str, Space]:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    spaces = load_spaces(ALGORITHMS)
    return {name: space.without_backbones(space.backbones() - {DEFAULT_BACKBONE}) for name, space in spaces.items()}


def _rotated(roles: Roles, split: int) -> Roles:
    """The roles with other pictures of train in the place of the selection normals; as they are for split 0."""
    if not split:
        return roles
    size = len(roles.selection)
    chosen = roles.train[(split - 1) * size : split * size]
    left = [picture for picture in roles.train if picture not in chosen]
    return dataclasses.replace(roles, train=(*left, *roles.selection), selection=chosen)


def fit_grid(
    folder: Path, split: int, output: Path, store: FeatureStore, scratch: Path, seconds: float, threads: int
) -> None:
    """Fit and score what the file of this folder and split does not hold yet."""
    dataset = read_dataset(folder)
    held_back = [picture for picture in dataset.pictures if picture.split != "train"]
    # As a search would divide a folder of good pictures, with the whole of ``test`` kept out of it.
    roles = assign_roles(
        dataclasses.replace(
            dataset,
            pictures=tuple(
                picture if picture.split == "train" else dataclasses.replace(picture, split="test")
                for picture in dataset.pictures
            ),
        )
    )
    roles = _rotated(roles, split)
    synthetic = draw_defects(roles.selection, scratch / "synthetic", per_kind=drawn_per_kind(0))
    pictures = [*roles.selection, *roles.calibration, *synthetic, *held_back]
    groups = ["selection"] * len(roles.selection) + ["calibration"] * len(roles.calibration)
    groups += ["synthetic"] * len(synthetic) + ["test"] * len(held_back)
    entries = [Entry(group, one.label, one.sha256) for group, one in zip(groups, pictures, strict=True)]
    file = output / (f"{folder.name}.split-{split}.npz" if split else f"{folder.name}.npz")
    done, scores = _read(file, entries)
    choice = choose_engine()
    known = {(row["algorithm"], json.dumps(row["config"], sort_keys=True)) for row in done}
    for name, config in draw_grid():
        if split and get_algorithm(name).iterative:
            continue
        config = json.loads(json.dumps(config))
        if (name, json.dumps(config, sort_keys=True)) in known:
            continue
        try:
            row, found = _try_out(name, config, roles.train, pictures, store, choice, seconds, threads)
        except AutoADError as error:
            print(f"{folder.name}: {name} {config}: {error}", file=sys.stderr)
            continue
        done.append(row)
        scores.append(found)
        _write(file, done, entries, scores)
        print(f"{file.stem} {len(done)}: {row}", flush=True)


def _try_out(
    name: str,
    config: dict[str, Any],
    train: Sequence[Picture],
    pictures: Sequence[Picture],
    store: FeatureStore,
    choice: EngineChoice,
    seconds: float,
    threads: int,
) -> tuple[dict[str, Any], npt.NDArray[np.float32]]:
    kind = get_algorithm(name)
    epochs = {"epochs": _spaces()[name].epochs} if kind.iterative else {}
    detector = kind(
        kind.Config(**config | epochs), seed=0, runtime=Runtime("cpu", head_precision(choice), memory=8 << 30)
    )
    learnt = load_inputs(store, train, detector.needs, choice, threads)
    started = time.perf_counter()
    reached = 0
    for progress in detector.fit(learnt):
        reached = progress.epoch
        if time.perf_counter() - started > seconds:
            break
    fitted = time.perf_counter() - started
    inputs = load_inputs(store, pictures, detector.needs, choice, threads)
    scores = np.concatenate([_score(detector, part) for part in inputs.batches(32)])
    row = {
        "algorithm": name,
        "config": config,
        "epochs": reached if kind.iterative else None,
        "fit_seconds": round(fitted, 3),
        "latency_ms": round(_latency_ms(detector, inputs[:1]), 3),
        "model_mb": round(sum(tensor.nbytes for tensor in detector.tensors().values()) / 2**20, 3),
    }
    return row, scores


@torch.no_grad()
def _score(detector: Detector, part: Inputs) -> npt.NDArray[np.float32]:
    measured = detector.measure(part, (detector.config,))
    return detector.finish(measured, detector.config, maps=False).scores.float().numpy()


def _latency_ms(detector: Detector, one: Inputs) -> float:
    """Of a picture's features, without the backbone."""
    times = []
    for _ in range(5):
        started = time.perf_counter()
        detector.predict(one)
        times.append(time.perf_counter() - started)
    return 1000 * sorted(times)[2]


def _read(file: Path, entries: Sequence[Entry]) -> tuple[list[dict[str, Any]], list[npt.NDArray[np.float32]]]:
    if not file.exists():
        return [], []
    with np.load(file) as kept:
        meta = json.loads(str(kept["meta"]))
        if meta["pictures"] != [dataclasses.asdict(entry) for entry in entries]:
            raise SystemExit(f"{file} is of other pictures or other synthetic defects: remove it to begin anew")
        return meta["configurations"], list(kept["scores"])


def _write(
    file: Path, done: list[dict[str, Any]], entries: Sequence[Entry], scores: list[npt.NDArray[np.float32]]
) -> None:
    buffer = io.BytesIO()
    meta = {"configurations": done, "pictures": [dataclasses.asdict(entry) for entry in entries]}
    np.savez_compressed(buffer, meta=np.array(json.dumps(meta)), scores=np.stack(scores))
    write_atomically(file, buffer.getvalue())


if __name__ == "__main__":
    main()
