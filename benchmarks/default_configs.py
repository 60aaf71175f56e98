"""Accuracy of the frozen-backbone algorithms with their default configurations.

Fits on ``train/good`` and measures on the whole test folder, as the reference's figures are made; nothing is chosen.

    python benchmarks/default_configs.py --data FOLDER...
"""

from __future__ import annotations

import time

import numpy as np
import torch
from _common import FROZEN, arguments, folders, open_store, table

from autoad.algorithms import Prediction, get_algorithm
from autoad.data import load_mask
from autoad.evaluation import compute_metrics
from autoad.models import load_inputs
from autoad.search.sweep import EVALUATION_SIZE, evaluation_maps

CONFIGS = [(name, {}) for name in FROZEN] + [("patchcore", {"coreset_sampling_ratio": 0.01})]


def main() -> None:
    """Print one table."""
    parsed = arguments(__doc__ or "")
    store, engine = open_store(parsed)
    rows = []
    for path in parsed.data:
        _, train, test = folders(path)
        labels = np.array([not picture.is_normal for picture in test])
        masks = [load_mask(picture, EVALUATION_SIZE) for picture in test]
        for name, changes in CONFIGS:
            algorithm = get_algorithm(name)
            detector = algorithm(algorithm.Config(**changes))
            fitted, tested = (load_inputs(store, p, detector.needs, engine, parsed.threads) for p in (train, test))
            started = time.perf_counter()
            for _ in detector.fit(fitted):
                pass
            between = time.perf_counter()
            parts = [detector.predict(batch) for batch in tested.batches(16)]
            ended = time.perf_counter()
            scores = torch.cat([part.scores for part in parts])
            maps = None if parts[0].maps is None else torch.cat([part.maps for part in parts if part.maps is not None])
            metrics = compute_metrics(
                scores.numpy(), labels, evaluation_maps(Prediction(scores, maps)), masks, exact=True
            )
            shown = [
                "-" if value is None else f"{value:.3f}"
                for value in (metrics.image_auroc, metrics.pixel_auroc, metrics.aupro)
            ]
            what = name + "".join(f" {key} {value}" for key, value in changes.items())
            rows.append([path.name, what, *shown, f"{between - started:.2f}", f"{ended - between:.2f}"])
            print(rows[-1], flush=True)
    print(table(["data", "algorithm", "image AUROC", "pixel AUROC", "AUPRO", "fit s", "predict s"], rows))


if __name__ == "__main__":
    main()
