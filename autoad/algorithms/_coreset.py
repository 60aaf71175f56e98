"""Greedy k-center selection (a coreset), computing only the distances that can matter.

The greedy 2-approximation of the k-center problem (Gonzalez, 1985) repeats: take the point that lies farthest from
all points taken so far. Done plainly, each step compares every point with the new one and streams the whole array.
Two observations make the same sequence one to two orders of magnitude cheaper:

- A point's distance to the chosen set only ever falls. A stale distance is therefore an upper bound, and a point whose
  bound lies below the current radius need not be looked at until the radius has come down to it.
- Of the farthest few hundred points, many are chosen in succession. Distances among those candidates tell which, up to
  the moment when a point that is no candidate could be the farthest; then all pending distances are one matrix product.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

__all__ = ["COMPARED_CHANNELS", "greedy_coreset", "principal_axes"]

COMPARED_CHANNELS = 256
"""Up to this many points are compared by their exact distances; more are projected to this many."""

_PICKS = 64
"""Points chosen at most from one set of candidates."""

_CANDIDATES = 512
_ROUNDS = 16
"""Sets of candidates between two reviews of which points matter."""

_SHRINKAGE = 0.95
"""Points farther than this times the radius are kept current; the others wait for the radius to fall."""

_ROWS, _COLUMNS = 8192, 512
"""Block of distances computed at a time, so that it stays in cache."""


@dataclasses.dataclass
class _Chosen:
    """The chosen points, in order; ``count`` rows of ``points`` and ``norms`` are filled."""

    points: Tensor
    norms: Tensor
    indices: list[int]

    @property
    def count(self) -> int:
        return len(self.indices)

    def add(self, indices: Tensor, points: Tensor, norms: Tensor) -> None:
        end = self.count + len(indices)
        self.points[self.count : end] = points
        self.norms[self.count : end] = norms
        self.indices += indices.tolist()

    def distance(self, points: Tensor, norms: Tensor, since: int) -> Tensor:
        """Squared distance of each of ``points`` to the nearest chosen one, number ``since`` or later."""
        nearest = torch.full_like(norms, torch.inf)
        for j in range(since, self.count, _COLUMNS):
            k = min(j + _COLUMNS, self.count)
            for i in range(0, len(points), _ROWS):
                rows = slice(i, i + _ROWS)
                block = torch.addmm(self.norms[j:k], points[rows], self.points[j:k].T, alpha=-2)
                torch.minimum(nearest[rows], block.amin(1), out=nearest[rows])
        return nearest.add_(norms).clamp_(min=0)


def principal_axes(sample: Tensor) -> Tensor | None:
    """``[D, 256]`` leading axes of a centred sample ``[n, D]``, or None where points need no projection."""
    if sample.shape[1] <= COMPARED_CHANNELS:
        return None
    axes: Tensor = torch.linalg.eigh(sample.T @ sample).eigenvectors
    return axes[:, -COMPARED_CHANNELS:].contiguous()


def greedy_coreset(points: Tensor, norms: Tensor, size: int, first: int) -> Tensor:
    """Indices of ``size`` points, each the farthest from those before it.

    The first ``n`` of the answer are the answer for size ``n``: one call serves all smaller sizes.

    Args:
        points: ``[N, D]`` float32, near the origin (distances come from inner products).
        norms: ``[N]`` squared norms. Where ``points`` are a projection, the norms before it: a distance is then the
            projection's inner product completed by the true norms, closer to the truth than the projected distance.
        size: number of points to choose.
        first: index of the point to begin with.

    Returns:
        ``[size]`` int64, distinct; shorter when fewer points differ from each other.
    """
    size = min(size, len(points))
    chosen = _Chosen(points.new_empty(size, points.shape[1]), points.new_empty(size), [])
    start = torch.tensor([first], device=points.device)
    chosen.add(start, points[start], norms[start])
    bounds = chosen.distance(points, norms, 0)
    bounds[first] = -1
    seen = torch.ones(len(points), dtype=torch.int64, device=points.device)
    while chosen.count < size and bounds.max() > 0:
        active, floor = _review(points, norms, chosen, bounds, seen)
        kept, kept_norms, distance = points[active], norms[active], bounds[active]
        for _ in range(_ROUNDS):
            new = _farthest(kept, kept_norms, distance, min(_PICKS, size - chosen.count), floor)
            if len(new) == 0:
                break
            before = chosen.count
            chosen.add(active[new], kept[new], kept_norms[new])
            torch.minimum(distance, chosen.distance(kept, kept_norms, before), out=distance)
            distance[new] = -1
        bounds[active], seen[active] = distance, chosen.count
    return torch.tensor(chosen.indices, device=points.device)


def _review(points: Tensor, norms: Tensor, chosen: _Chosen, bounds: Tensor, seen: Tensor) -> tuple[Tensor, float]:
    """Bring up to date (in place) every distance that matters for a while.

    Returns:
        The indices of all points farther than a floor, which is returned too.
    """
    while True:
        floor = _SHRINKAGE**2 * float(bounds.max())
        active = (bounds >= floor).nonzero()[:, 0]
        stale = active[seen[active] < chosen.count]
        if len(stale) == 0:
            return active, floor
        for since in seen[stale].bincount().nonzero()[:, 0].tolist():
            rows = stale[seen[stale] == since]
            bounds[rows] = torch.minimum(bounds[rows], chosen.distance(points[rows], norms[rows], since))
        seen[stale] = chosen.count


def _farthest(points: Tensor, norms: Tensor, distance: Tensor, count: int, floor: float) -> Tensor:
    """Up to ``count`` rows that greedy selection takes next; none when the next may lie below ``floor``."""
    candidates = distance.topk(min(_CANDIDATES, len(points)))
    rows = candidates.indices
    # What is no candidate lies at most this far, whatever is chosen meanwhile.
    limit = max(floor, float(candidates.values[-1])) if len(rows) < len(points) else floor
    among = norms[rows, None] + norms[rows] - 2 * points[rows] @ points[rows].T
    mutual = among.clamp_(min=0).cpu().numpy()
    remaining = candidates.values.cpu().numpy().copy()
    new: list[int] = []
    while len(new) < count:
        row = int(remaining.argmax())
        if remaining[row] <= 0 or remaining[row] < limit:
            break
        new.append(row)
        remaining = remaining.clip(max=mutual[row])
        remaining[row] = -1
    return rows[torch.tensor(new, dtype=torch.int64, device=rows.device)]
