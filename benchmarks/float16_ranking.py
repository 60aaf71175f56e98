"""What storing features as float16 changes.

Fits each frozen-backbone algorithm twice with its defaults, on float32 features and on the same rounded to float16, and
compares the scores of the whole test folder: image AUROC of both, and the Spearman correlation of the two rankings.

    python benchmarks/float16_ranking.py --data FOLDER...
"""

from __future__ import annotations

import numpy as np
import torch
from _common import FROZEN, arguments, folders, open_store, table
from scipy.stats import spearmanr

from autoad.algorithms import Inputs, get_algorithm
from autoad.evaluation import image_metrics
from autoad.features import as_tensors, create_engine


def main() -> None:
    """Print one table."""
    parsed = arguments(__doc__ or "")
    store, choice = open_store(parsed)
    rows = []
    for path in parsed.data:
        _, train, test = folders(path)
        labels = np.array([not picture.is_normal for picture in test])
        for name in FROZEN:
            algorithm = get_algorithm(name)
            needs = algorithm(algorithm.Config()).needs
            engine = create_engine(
                needs.backbone or "",
                needs.stages,
                needs.image_size,
                engine=choice.name,
                precision=choice.precision,
                threads=parsed.threads,
            )
            single = {
                role: as_tensors(engine(store.images(pictures, needs.image_size)))
                for role, pictures in (("train", train), ("test", test))
            }
            scores = []
            for dtype in (torch.float32, torch.float16):
                detector = algorithm(algorithm.Config())
                given = {
                    role: Inputs(needs.image_size, {stage: one.to(dtype) for stage, one in features.items()})
                    for role, features in single.items()
                }
                for _ in detector.fit(given["train"]):
                    pass
                parts = [detector.predict(batch).scores for batch in given["test"].batches(16)]
                scores.append(torch.cat(parts).numpy())
            aurocs = [image_metrics(one, labels).image_auroc or 0.0 for one in scores]
            rows.append(
                [
                    path.name,
                    name,
                    f"{aurocs[0]:.4f}",
                    f"{aurocs[1]:.4f}",
                    f"{aurocs[1] - aurocs[0]:+.4f}",
                    f"{spearmanr(*scores).statistic:.5f}",
                ]
            )
            print(rows[-1], flush=True)
    print(table(["data", "algorithm", "float32", "float16", "difference", "Spearman of scores"], rows))


if __name__ == "__main__":
    main()
