"""What defects among the good pictures cost, and what setting suspicious ones aside brings back.

Of each folder's defective pictures as many as a twentieth of the good ones are taken away; in two of three arms they
come back as good pictures to learn from. Each arm chooses among the defaults of what does not train and some random
configurations as a search does, fits the chosen one again on train and selection normals, and tests it; the test
pictures are the same in all arms. Means over draws, with 95 % intervals of the paired differences.

    python benchmarks/contamination.py --data FOLDER... [--draws 5]
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from _common import table
from scipy import stats

from autoad.algorithms import get_algorithm
from autoad.data import Dataset, Picture, Roles, assign_roles, draw_defects, read_dataset
from autoad.errors import AutoADError
from autoad.evaluation import compare_trials, drawn_per_kind, image_metrics, labelled_weight
from autoad.features import DEFAULT_BACKBONE, EngineChoice, FeatureStore, choose_engine
from autoad.search.inspection import suspicious_pictures
from autoad.search.space import load_spaces
from autoad.search.trial import load_inputs

ALGORITHMS = ("patchcore", "padim", "dfm", "dfkde")
RANDOM = 2
ARMS = ("clean", "contaminated, all kept", "contaminated, suspicious set aside")


def main() -> None:
    """Print a line for each draw and a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders in MVTec layout")
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--first", type=int, default=0, help="number of the first draw: goes on with a run cut off")
    parser.add_argument("--store", type=Path, default=Path("benchmark-features"), help="feature store")
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    store, engine = FeatureStore(asked.store), choose_engine()
    rows = []
    for folder in asked.data:
        dataset = read_dataset(folder)
        found = [
            _one_draw(dataset, seed, store, engine, asked.threads)
            for seed in range(asked.first, asked.first + asked.draws)
        ]
        aurocs = np.array([draw[0] for draw in found])
        rows.append(
            [
                folder.name,
                *(f"{mean:.3f}" for mean in aurocs.mean(axis=0)),
                _difference(aurocs[:, 1] - aurocs[:, 0]),
                _difference(aurocs[:, 2] - aurocs[:, 0]),
                f"{np.mean([draw[1] for draw in found]):.1f} of {np.mean([draw[2] for draw in found]):.0f}",
                f"{np.mean([draw[3] for draw in found]):.1f}",
            ]
        )
    title = ["data", *ARMS, "kept minus clean", "set aside minus clean", "found", "good ones set aside"]
    print(table(title, rows))


def _difference(values: np.ndarray[Any, Any]) -> str:
    half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)) if len(values) > 1 else float("nan")
    return f"{values.mean():+.3f} ± {half:.3f}"


def _one_draw(
    dataset: Dataset, seed: int, store: FeatureStore, engine: EngineChoice, threads: int
) -> tuple[list[float], int, int, int]:
    """Test AUROC of each arm; defects found, how many there were, and good pictures set aside."""
    chance = random.Random(seed)
    good = [picture for picture in dataset.pictures if picture.is_normal and picture.split == "train"]
    bad = [picture for picture in dataset.pictures if not picture.is_normal]
    hidden = {picture.sha256 for picture in chance.sample(bad, max(1, len(good) // 20))}
    roles = assign_roles(
        dataclasses.replace(dataset, pictures=tuple(p for p in dataset.pictures if p.sha256 not in hidden))
    )
    mixed = dataclasses.replace(
        roles,
        train=_sorted(
            [
                *roles.train,
                *(dataclasses.replace(p, label="good", mask=None, split="train") for p in bad if p.sha256 in hidden),
            ]
        ),
    )
    learnt = [picture for picture in (*mixed.train, *mixed.selection) if picture.is_normal]
    suspicious = [picture for picture, _ in suspicious_pictures(learnt, store, engine, threads)]
    found = sum(picture.sha256 in hidden for picture in suspicious)
    aurocs = []
    for name, arm in zip(ARMS, (roles, mixed, mixed.set_aside(suspicious)), strict=True):
        aurocs.append(_champion(arm, store, engine, threads))
        print(f"{dataset.name}, draw {seed}, {name}: {aurocs[-1]:.3f}", file=sys.stderr, flush=True)
    return aurocs, found, len(hidden), len(suspicious) - found


def _sorted(pictures: Sequence[Picture]) -> tuple[Picture, ...]:
    return tuple(sorted(pictures, key=lambda picture: picture.sha256))


def _configurations() -> list[tuple[str, dict[str, Any]]]:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    drawn = []
    for name, space in load_spaces(ALGORITHMS).items():
        bundled = space.without_backbones(space.backbones() - {DEFAULT_BACKBONE})
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        drawn += [(name, bundled.defaults()), *((name, bundled.suggest(study.ask())) for _ in range(RANDOM))]
    return drawn


def _champion(roles: Roles, store: FeatureStore, engine: EngineChoice, threads: int) -> float:
    """Image AUROC of the chosen configuration, fitted again, on the test pictures."""
    normals = [picture for picture in roles.selection if picture.is_normal]
    weight = labelled_weight(len(roles.selection) - len(normals), len(normals))
    with tempfile.TemporaryDirectory() as scratch:
        drawn = draw_defects(normals, Path(scratch), per_kind=drawn_per_kind(weight))
        selection = (*roles.selection, *drawn)
        tried, scores = [], []
        for name, config in _configurations():
            try:
                scores.append(_scores(name, config, roles.train, selection, store, engine, threads))
            except AutoADError:
                continue
            tried.append((name, config))
    compared = compare_trials(
        np.stack(scores),
        [picture.label for picture in selection],
        np.array([picture.synthetic for picture in selection]),
        weight,
    )
    name, config = tried[compared.best]
    tested = _scores(name, config, _sorted([*roles.train, *normals]), roles.test, store, engine, threads)
    value = image_metrics(tested, np.array([not picture.is_normal for picture in roles.test])).image_auroc
    if value is None:
        raise SystemExit("there must be good and defective pictures to test on")
    return value


def _scores(
    name: str,
    config: dict[str, Any],
    train: Sequence[Picture],
    pictures: Sequence[Picture],
    store: FeatureStore,
    engine: EngineChoice,
    threads: int,
) -> np.ndarray[Any, Any]:
    kind = get_algorithm(name)
    detector = kind(kind.Config(**config), seed=0)
    for _ in detector.fit(load_inputs(store, train, detector.needs, engine, threads)):
        pass
    inputs = load_inputs(store, pictures, detector.needs, engine, threads)
    with torch.no_grad():
        return np.concatenate([detector.predict(part).scores.float().numpy() for part in inputs.batches(16)])


if __name__ == "__main__":
    main()
