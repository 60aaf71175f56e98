"""How long a trial takes once the features are in the store, what sweeping adds to it and what it gains.

Runs whole trials (load features, fit on ``train/good``, score and measure the test folder's pictures) through the same
``TrialWorker`` as a search does, in turn without and with the packaged search space's sweep, and reports medians after
one of each to warm up. Memory is what the trial added to its process, beside what was predicted.

    python benchmarks/cached_trials.py --data FOLDER
"""

from __future__ import annotations

import statistics
import time
from typing import Any

from _common import arguments, folders, open_store, table

from autoad.features import head_precision
from autoad.search.memory import predict_memory
from autoad.search.space import load_spaces
from autoad.search.trial import TrialReport, TrialTask, TrialWorker

TRIALS: list[tuple[str, dict[str, Any], int]] = [
    ("dfm", {}, 10),
    ("dfkde", {}, 10),
    ("padim", {}, 10),
    ("patchcore", {"coreset_sampling_ratio": 0.01}, 10),
    ("patchcore", {}, 3),
    ("stfpm", {}, 1),
]
"""Algorithm, changes to its defaults, how often."""

EPOCHS = {"stfpm": 3}
TITLE = ["data", "pictures", "trial", "runs", "median s", "swept", "compared", "AUROC", "AUPRO", "MiB", "predicted"]


def run(worker: TrialWorker, name: str, config: dict[str, Any], sweep: dict[str, Any]) -> tuple[float, TrialReport]:
    """Seconds, and the last report."""
    started = time.perf_counter()
    *_, report = worker.run(name, config, sweep=sweep, exact_above=2.0)
    return time.perf_counter() - started, report


def main() -> None:
    """Print one table."""
    parsed = arguments(__doc__ or "")
    _, engine = open_store(parsed)
    rows = []
    for path in parsed.data:
        _, train, test = folders(path)
        task = TrialTask(
            train=tuple(train[:200]),
            selection=tuple(test[:200]),
            labelled_weight=1.0,
            features_dir=parsed.store,
            engine=engine,
            precision=head_precision(engine),
            objective="image_auroc",
            epochs=EPOCHS,
            seed=0,
            timed=True,
        )
        worker = TrialWorker(task)
        counts = {"train": len(task.train), "selection": len(task.selection)}
        for name, changes, repeats in TRIALS:
            space = load_spaces([name])[name]
            config = space.defaults() | changes
            sweep = space.sweep(config)
            plain, swept = [], []
            for _ in range(repeats + (repeats > 1)):
                plain.append(run(worker, name, config, {}))
                swept.append(run(worker, name, config, sweep))
            predicted = predict_memory(name, config, **counts, runtime=task.runtime) / 2**20
            for done in (plain, swept):
                report = done[-1][1]
                rows.append(
                    [
                        path.name,
                        " + ".join(map(str, counts.values())),
                        name + "".join(f" {key} {value}" for key, value in changes.items()),
                        repeats,
                        f"{statistics.median(seconds for seconds, _ in done[repeats > 1 :]):.2f}",
                        ", ".join(f"{key} {value}" for key, value in report.swept.items()) or "-",
                        report.variants,
                        f"{report.validation.image_auroc:.4f}",
                        "-" if report.validation.aupro is None else f"{report.validation.aupro:.4f}",
                        f"{report.peak_memory_mb:.0f}",
                        f"{predicted:.0f}",
                    ]
                )
                print(rows[-1], flush=True)
    print(table(TITLE, rows))


if __name__ == "__main__":
    main()
