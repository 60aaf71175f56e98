"""What defects among the good pictures cost, and what setting doubtful ones aside brings back.

Of each folder's defective pictures as many as a twentieth of the good ones are taken away; in two of four arms they
come back as good pictures to learn from. Each arm chooses as a search does among the defaults of what does not train
and some random configurations, fits the chosen one again on train and selection normals, and tests it; the test
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
from autoad.models import load_inputs
from autoad.schema import TrialRow
from autoad.search.aside import doubtful_pictures
from autoad.search.choice import Limits, choose_trial
from autoad.search.selection_scores import SelectionScores
from autoad.search.space import load_spaces

ALGORITHMS = ("patchcore", "padim", "dfm", "dfkde")
RANDOM = 2
ARMS = ("clean", "clean, doubtful set aside", "contaminated, all kept", "contaminated, doubtful set aside")


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
        aurocs = np.array([draw.aurocs for draw in found])
        rows.append(
            [
                folder.name,
                *(f"{mean:.3f}" for mean in aurocs.mean(axis=0)),
                *(_difference(aurocs[:, arm] - aurocs[:, 0]) for arm in range(1, len(ARMS))),
                f"{np.mean([draw.found for draw in found]):.1f} of {np.mean([draw.hidden for draw in found]):.0f}",
                f"{np.mean([draw.wrong for draw in found]):.1f}",
                f"{np.mean([draw.wrong_when_clean for draw in found]):.1f}",
            ]
        )
    differences = [f"{arm}: minus clean" for arm in ARMS[1:]]
    print(table(["data", *ARMS, *differences, "found", "good ones set aside", "of clean ones"], rows))


@dataclasses.dataclass(frozen=True)
class _Draw:
    """Test AUROC of each arm; hidden defects, how many of them were set aside, and how many good pictures."""

    aurocs: list[float]
    hidden: int
    found: int
    wrong: int
    wrong_when_clean: int


def _difference(values: np.ndarray[Any, Any]) -> str:
    half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)) if len(values) > 1 else float("nan")
    return f"{values.mean():+.3f} ± {half:.3f}"


def _one_draw(dataset: Dataset, seed: int, store: FeatureStore, engine: EngineChoice, threads: int) -> _Draw:
    chance = random.Random(seed)
    good = [picture for picture in dataset.pictures if picture.is_normal and picture.split == "train"]
    bad = [picture for picture in dataset.pictures if not picture.is_normal]
    hidden = {picture.sha256 for picture in chance.sample(bad, max(1, len(good) // 20))}
    clean = assign_roles(
        dataclasses.replace(dataset, pictures=tuple(p for p in dataset.pictures if p.sha256 not in hidden))
    )
    called_good = [dataclasses.replace(p, label="good", mask=None, split="train") for p in bad if p.sha256 in hidden]
    mixed = dataclasses.replace(clean, train=_sorted([*clean.train, *called_good]))
    aurocs, doubted = [], []
    for kept in (clean, mixed):
        aurocs.append(_champion(kept, store, engine, threads))
        doubtful = doubtful_pictures(kept, store, engine, threads)
        doubted.append([picture.sha256 in hidden for picture in doubtful])
        aurocs.append(_champion(kept.set_aside(doubtful), store, engine, threads) if doubtful else aurocs[-1])
    told = ", ".join(f"{name} {auroc:.3f}" for name, auroc in zip(ARMS, aurocs, strict=True))
    print(
        f"{dataset.name}, draw {seed}: {told}; set aside {sum(doubted[1])} of {len(hidden)} defects, "
        f"{len(doubted[1]) - sum(doubted[1])} good ones, {len(doubted[0])} of the clean ones",
        file=sys.stderr,
        flush=True,
    )
    return _Draw(aurocs, len(hidden), sum(doubted[1]), len(doubted[1]) - sum(doubted[1]), len(doubted[0]))


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
    """Image AUROC of what is chosen, fitted again, on the test pictures."""
    normals = [picture for picture in roles.selection if picture.is_normal]
    weight = labelled_weight(len(roles.selection) - len(normals), len(normals))
    with tempfile.TemporaryDirectory() as scratch:
        drawn = draw_defects(normals, Path(scratch), per_kind=drawn_per_kind(weight))
        selection = (*roles.selection, *drawn)
        tried, scores = [], []
        for number, (name, config) in enumerate(_configurations()):
            try:
                scores.append(_scores(name, config, roles.train, selection, store, engine, threads))
            except AutoADError:
                continue
            origin = "sampler" if number % (1 + RANDOM) else "default"
            row = TrialRow(trial=len(tried), algorithm=name, config=config, status="complete", origin=origin)
            tried.append(row)
        kept = SelectionScores(Path(scratch))
        for row, values in zip(tried, scores, strict=True):
            kept.keep(row.trial, values)
        quality = compare_trials(
            np.stack(scores),
            [picture.label for picture in selection],
            np.array([picture.synthetic for picture in selection]),
            weight,
        ).quality
        best_first = sorted(tried, key=lambda row: -quality[row.trial])
        candidates, _ = choose_trial(best_first, selection, kept, "image_auroc", weight, Limits(), seed=0)
    normal = np.array([picture.is_normal for picture in selection])
    members = []
    for row in candidates[0].rows:
        refitted = _sorted([*roles.train, *normals])
        tested = _scores(row.algorithm, row.config, refitted, roles.test, store, engine, threads)
        units = scores[row.trial][normal]
        members.append((tested - units.mean()) / units.std())
    anomalous = np.array([not picture.is_normal for picture in roles.test])
    value = image_metrics(np.mean(members, axis=0), anomalous).image_auroc
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
