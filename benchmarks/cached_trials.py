"""How long a trial takes once the features are in the store.

Runs whole trials (load features, fit on ``train/good``, score and measure the test folder's pictures) through the same
``TrialWorker`` as a search does, and reports the median of 20 after one to warm up.

    python benchmarks/cached_trials.py --data FOLDER
"""

from __future__ import annotations

import statistics
import time

from _common import arguments, folders, open_store, table

from autoad.features import head_precision
from autoad.search.trial import TrialTask, TrialWorker

TRIALS = [
    ("dfm", {}),
    ("dfkde", {}),
    ("padim", {}),
    ("patchcore", {"coreset_sampling_ratio": 0.01}),
    ("patchcore", {}),
]
REPEATS = 20


def main() -> None:
    """Print one table."""
    parsed = arguments(__doc__ or "")
    _, engine = open_store(parsed)
    rows = []
    for path in parsed.data:
        _, train, test = folders(path)
        selection = test[:200]
        task = TrialTask(
            train=tuple(train[:200]),
            selection=tuple(selection),
            synthetic=False,
            features_dir=parsed.store,
            engine=engine,
            precision=head_precision(engine),
            objective="image_auroc",
            epochs={},
            seed=0,
            timed=True,
        )
        worker = TrialWorker(task)
        for name, config in TRIALS:
            repeats = REPEATS if config or name != "patchcore" else 3
            times = []
            for _ in range(repeats + 1):
                started = time.perf_counter()
                for _report in worker.run(name, config, exact_above=2.0):
                    pass
                times.append(time.perf_counter() - started)
            times = times[1:]
            what = name + "".join(f" {key} {value}" for key, value in config.items())
            sizes = f"{len(task.train)} + {len(task.selection)}"
            rows.append(
                [
                    path.name,
                    sizes,
                    what,
                    repeats,
                    f"{statistics.median(times):.2f}",
                    f"{min(times):.2f}-{max(times):.2f}",
                ]
            )
            print(rows[-1], flush=True)
    print(table(["data", "pictures", "trial", "runs", "median s", "range s"], rows))


if __name__ == "__main__":
    main()
