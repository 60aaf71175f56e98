from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pyarrow.parquet
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from autoad.algorithms import ALGORITHMS
from autoad.data import Dataset, Picture, read_dataset
from autoad.database import Database
from autoad.schema import Champion, DatasetSummary, Difference, Metrics, SearchResult, Speed, TestMetrics, TrialRow
from autoad.search import SearchRequest
from autoad.search.final_scores import FinalScore, write_final_scores
from autoad.settings import get_settings

HOSTILE = "<img src=x onerror=alert(1)></script><b>\"'&{{ 7 * 7 }}"
"""As a label or name, this must reach the reader as it stands."""

Made = Callable[..., SearchResult]


def rows_of(count: int, seed: int = 0) -> list[TrialRow]:
    """Trials of all algorithms in turns, with random figures; some pruned, some failed."""
    rng = np.random.default_rng(seed)
    rows = []
    for trial in range(count):
        status = "failed" if trial % 17 == 16 else "pruned" if trial % 13 == 12 else "complete"
        failed = status == "failed"
        value = float(rng.uniform(0.4, 1.0))
        rows.append(
            TrialRow(
                trial=trial,
                algorithm=ALGORITHMS[trial % len(ALGORITHMS)],
                config={"backbone": "some_backbone", "num_neighbors": int(rng.integers(1, 15)), "stages": [2, 3]},
                status=status,
                reason="RuntimeError: no memory" if failed else None,
                seconds=float(rng.uniform(1, 20)),
                validation=Metrics() if failed else Metrics(image_auroc=value, aupro=value / 2),
                latency_ms=None if failed else float(rng.uniform(5, 80)),
            )
        )
    return rows


def scores_of(pictures: list[Picture], model: Any, threshold: float, seed: int) -> list[FinalScore]:
    rng = np.random.default_rng(seed)
    scores = []
    for role, its in (("calibration", pictures[:12]), ("test", pictures[12:])):
        for picture in its:
            value = float(rng.normal(0 if picture.is_normal else 2))
            score = FinalScore(model, role, str(picture.path), picture.sha256, picture.label, value, value > threshold)
            scores.append(score)
    return scores


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    """Makes a search as it lies in the data folder, without searching; its champion's model is gone."""
    monkeypatch.setenv("AUTOAD_DATA_DIR", str(tmp_path / "state"))
    rng = np.random.default_rng(0)

    def make(
        *,
        rows: list[TrialRow] | None = None,
        champion: bool = True,
        label: str = "scratch",
        name: str = "made",
        **changes: Any,
    ) -> SearchResult:
        folder = tmp_path / "pictures"
        for kind, count in (("train/good", 12), ("test/good", 15), ("test/bad", 15)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            for place in range(count):
                pixels = rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / kind / f"{place}&<i>.png")
        dataset = read_dataset(folder)
        pictures = [p if p.is_normal else dataclasses.replace(p, label=label) for p in dataset.pictures]
        pictures.sort(key=lambda picture: (picture.split != "train", picture.sha256))
        settings = get_settings()
        (settings.searches_dir / "5ea4c4").mkdir(parents=True)
        table = Dataset(dataset.name, dataset.root, dataset.layout, tuple(pictures)).to_arrow()
        pyarrow.parquet.write_table(table, settings.searches_dir / "5ea4c4" / "dataset.parquet")
        threshold = 1.5
        scores = scores_of(pictures, "champion", threshold, 1)
        scores += scores_of(pictures, "default_patchcore", threshold, 2)
        rows = rows_of(40) if rows is None else rows
        found = None
        if champion:
            write_final_scores(settings.searches_dir / "5ea4c4" / "scores.parquet", scores)
            found = champion_of(scores, rows[0], threshold, settings.models_dir / "made", label)
        result = SearchResult(
            search_id="5ea4c4",
            name=name,
            status="complete",
            objective="image_auroc",
            seed=3,
            seconds=100.0,
            dataset=DatasetSummary(
                path=str(folder),
                layout="mvtec",
                hash=dataset.hash,
                counts={"good": 27, "defective": 15, "masks": 0, "skipped": 0},
                roles={
                    "train": {"good": 30, "defective": 0},
                    "selection": {"good": 20, "defective": 20},
                    "calibration": {"good": 12, "defective": 0},
                    "test": {"good": 15, "defective": 15},
                },
            ),
            evidence="labelled",
            engine="torch float32",
            notes=[],
            champion=found,
            leaderboard=sorted(rows, key=lambda row: -(row.validation.image_auroc or 0)),
        ).model_copy(update=changes)
        request = dataclasses.asdict(SearchRequest(data=folder, seconds=90.0, algorithms=("padim", "stfpm")))
        database = Database()
        summary = result.model_copy(update={"leaderboard": []}).model_dump(mode="json")
        database.add_search("5ea4c4", name, dataset.hash, request | {"data": str(folder)}, summary)
        database.close()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(
            storage=f"sqlite:///{settings.data_dir / 'optuna.db'}", study_name="5ea4c4", direction="maximize"
        )
        space = optuna.distributions.IntDistribution(1, 15)
        study.add_trials(
            [
                optuna.trial.create_trial(
                    params={"algorithm": "padim", "padim.decides": k, "padim.idle": (7 * k) % 13 + 1},
                    distributions={
                        "algorithm": optuna.distributions.CategoricalDistribution(list(ALGORITHMS)),
                        "padim.decides": space,
                        "padim.idle": space,
                    },
                    value=k / 20,
                )
                for k in range(1, 16)
            ]
        )
        return result

    return make


def champion_of(scores: list[FinalScore], row: TrialRow, threshold: float, model: Path, label: str) -> Champion:
    tested = {m: [s for s in scores if s.model == m and s.role == "test"] for m in ("champion", "default_patchcore")}
    aurocs = {
        m: float(roc_auc_score([s.label != "good" for s in its], [s.score for s in its])) for m, its in tested.items()
    }
    good = [s.is_anomalous for s in tested["champion"] if s.label == "good"]
    auroc = aurocs["champion"]
    return Champion(
        trial=row.trial,
        algorithm=row.algorithm,
        config=row.config,
        validation=row.validation,
        test=TestMetrics(
            image_auroc=auroc,
            image_auroc_low=auroc - 0.05,
            image_auroc_high=min(1.0, auroc + 0.05),
            false_positive_rate=float(np.mean(good)),
            by_defect={label: Metrics(image_auroc=auroc)},
        ),
        default_patchcore=TestMetrics(image_auroc=aurocs["default_patchcore"]),
        difference=Difference(image_auroc=auroc - aurocs["default_patchcore"], low=-0.1, high=0.1),
        threshold=threshold,
        false_positive_rate=1 / 13,
        speed=Speed(latency_ms=10, pictures_per_second=100, peak_memory_mb=500),
        model=str(model),
    )
