"""The coreset beside plain exact greedy selection and random choice: seconds, and covering radius.

The points are PatchCore's patches of at most 60 pictures of ``train/good`` at 256 px, of stages 2 and 3 (152 channels)
and of stages 2 to 4 (472, which the coreset compares in a projection). Plain greedy selection compares, for each pick,
all points with it. The covering radius, the largest distance of a point to the nearest chosen one, is divided by that
of plain greedy selection.

    python benchmarks/coreset.py --data FOLDER...
"""

from __future__ import annotations

import statistics
import time

from _common import arguments, folders, open_store, table

from autoad.algorithms._bank import Bank
from autoad.algorithms._coreset import greedy_coreset, principal_axes
from autoad.algorithms.patchcore import PatchCore, PatchCoreConfig, embed
from autoad.models import load_inputs

import torch  # isort: skip - after autoad, which says how torch's threads wait
from torch import Tensor  # isort: skip

PICTURES = 60
REPEATS = 3
RATIOS = (0.1, 0.01)
STAGES = ((2, 3), (2, 3, 4))


def main() -> None:
    """Print one table."""
    parsed = arguments(__doc__ or "")
    store, engine = open_store(parsed)
    rows = []
    for path in parsed.data:
        pictures = folders(path)[1][:PICTURES]
        for stages in STAGES:
            config = PatchCoreConfig(stages=stages)
            inputs = load_inputs(store, pictures, PatchCore(config).needs, engine, parsed.threads)
            points = embed(inputs, config).flatten(0, 1)
            points -= points.mean(0)
            size = int(max(RATIOS) * len(points))
            started = time.perf_counter()
            plain = plain_greedy(points, size)
            seconds = time.perf_counter() - started
            for ratio in RATIOS:
                size = int(ratio * len(points))
                chosen, ours = ours_timed(points, size)
                drawn = torch.randperm(len(points), generator=torch.Generator().manual_seed(0))[:size]
                exact = covering_radius(points, plain[:size])
                rows.append(
                    [
                        path.name,
                        f"{len(points)} x {points.shape[1]}",
                        size,
                        f"{ours:.2f}",
                        f"{seconds * size / len(plain):.1f}",
                        f"{covering_radius(points, chosen) / exact:.4f}",
                        f"{covering_radius(points, drawn) / exact:.2f}",
                    ]
                )
                print(rows[-1], flush=True)
    print(
        table(["data", "points", "chosen", "coreset, s", "plain greedy, s", "radius of it", "radius of random"], rows)
    )


def ours_timed(points: Tensor, size: int) -> tuple[Tensor, float]:
    """The coreset from the first point on, and seconds to choose it, projection included."""
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        axes = principal_axes(points[:: max(1, len(points) // 16384)])
        norms = torch.linalg.vector_norm(points, dim=1).square_()
        chosen = greedy_coreset(points if axes is None else points @ axes, norms, size, first=0)
        seconds.append(time.perf_counter() - started)
    return chosen, statistics.median(seconds)


def plain_greedy(points: Tensor, size: int) -> Tensor:
    """Each time the point farthest from all before it, by comparing every point with every pick."""
    norms = torch.linalg.vector_norm(points, dim=1).square_()
    chosen, nearest = [0], torch.full_like(norms, torch.inf)
    while len(chosen) < size:
        pick = chosen[-1]
        torch.minimum(nearest, norms + norms[pick] - 2 * (points @ points[pick]), out=nearest)
        nearest[pick] = -torch.inf
        chosen.append(int(nearest.argmax()))
    return torch.tensor(chosen)


def covering_radius(points: Tensor, chosen: Tensor) -> float:
    """Largest distance of a point to the nearest of some."""
    bank = Bank(points[chosen], int8=False)
    return max(
        float(distances.max()) for part in points.split(8192) for _, distances, _ in bank.nearest(part, [len(bank)])
    )


if __name__ == "__main__":
    main()
