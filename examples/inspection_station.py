"""What a camera's computer runs: scores a folder of pictures, many at once, in their order.

It needs neither PyTorch nor Ray, and goes on where it was when the network or the server was away for a moment.

python examples/inspection_station.py MODEL FOLDER
"""

from __future__ import annotations

import sys

import autoad
from autoad.client import Score


def main(model: str, folder: str) -> None:
    """Print one line a picture, and where the defects are."""
    anomalous = 0
    with autoad.Client() as client:
        for result in client.score_many(model, folder, concurrency=8, errors="return"):
            if not isinstance(result, Score):  # no picture, or a damaged one
                print(f"{result.picture}: {result.error}")
                continue
            anomalous += result.is_anomalous
            where = [f"{r.width}x{r.height} at {r.x},{r.y}" for r in result.regions or []]
            verdict = f"ANOMALOUS {'; '.join(where)}" if result.is_anomalous else "good"
            print(f"{result.picture}: {verdict} (version {result.version})")
    print(f"{anomalous} anomalous")


if __name__ == "__main__":
    main(*sys.argv[1:])
