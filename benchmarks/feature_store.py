"""How long the feature store takes to give what it holds.

For each folder, stages 2 and 3 of up to 400 pictures at 256 px: the first time in a process (open, check and map),
later (map), and reading every value of that. The store is filled before, and its files are in the disk's cache.

    python benchmarks/feature_store.py --data FOLDER
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from _common import arguments, folders, open_store, table

from autoad.features import DEFAULT_BACKBONE, FeatureStore

REPEATS = 15


def main() -> None:
    """Print one table."""
    parsed = arguments(__doc__ or "")
    store, engine = open_store(parsed)
    rows = []
    for path in parsed.data:
        pictures = [picture for part in folders(path)[1:] for picture in part][:400]

        def take(store: FeatureStore, pictures: list = pictures) -> dict:
            return store.features(
                pictures, backbone=DEFAULT_BACKBONE, stages=(2, 3), image_size=(256, 256), engine=engine
            )

        def read(store: FeatureStore, take: Callable[[FeatureStore], dict] = take) -> int:
            return sum(int(array.view("u8").sum()) for array in take(store).values())

        size = sum(array.nbytes for array in take(store).values())
        read(store)
        rows.append(
            [
                path.name,
                len(pictures),
                f"{size / 1e6:.0f}",
                _milliseconds(lambda take=take: take(FeatureStore(parsed.store))),
                _milliseconds(lambda take=take: take(store)),
                _milliseconds(lambda read=read: read(FeatureStore(parsed.store))),
                _milliseconds(lambda read=read: read(store)),
            ]
        )
    print(table(["data", "pictures", "MB", "first take, ms", "later take", "first take and read", "later"], rows))


def _milliseconds(call: Callable[[], object]) -> str:
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        call()
        times.append(1000 * (time.perf_counter() - started))
    return f"{statistics.median(times):.1f} ({min(times):.1f})"


if __name__ == "__main__":
    main()
