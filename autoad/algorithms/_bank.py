"""A bank of vectors, and the exact search for the one that lies nearest."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["Bank", "bank_bytes"]

_BLOCK = (1024, 4096)
"""Vectors and entries compared at a time in float32."""

_CANDIDATES = 32
"""Entries, or twice as many as are wanted if that is more, among which an entry's neighbours are found exactly."""

_SIMILARITIES = 1 << 23
"""Similarities computed at a time in bfloat16."""

_GROUP = 32
"""Entries of which at first only the most similar one is looked at."""

_PROSPECTS = 8
"""Entries for each vector, on average, that may be compared exactly: beyond, float32 is faster."""


class Bank:
    """Vectors in a given order, of which the nearest to others is found by true distances.

    In float32 the nearest entry is the one with the largest inner product (ties within its rounding errors are broken
    by chance), and its distance is the length of the difference. Where the CPU multiplies in bfloat16 that costs a
    quarter, and tells, by bounds on all rounding errors on the way, which entries could be the nearest: on real
    features 1.25 for each vector. Only those are compared by their differences. The answer is the same, three times as
    soon.
    """

    def __init__(self, entries: Tensor, *, bfloat16: bool) -> None:
        """Prepare to search ``[M, C]`` float32 entries, which lie near the origin, in bfloat16 first or not."""
        # With -|m|^2 / 2 as a last column, the largest <(p, 1), m> is the smallest |p - m|: one product, no epilogue.
        norms = torch.linalg.vector_norm(entries, dim=1, keepdim=True).square_()
        self._lookup = torch.cat([entries, norms.mul_(-0.5)], dim=1)
        self._rounded = _Rounded(entries) if bfloat16 else None

    def __len__(self) -> int:
        return len(self._lookup)

    @property
    def entries(self) -> Tensor:
        """``[M, C]``."""
        return self._lookup[:, :-1]

    def first(self, size: int) -> Self:
        """The first ``size`` entries, in the same memory."""
        other = copy.copy(self)
        other._lookup = self._lookup[:size]
        return other

    def nearest(self, vectors: Tensor, sizes: Sequence[int]) -> Iterator[tuple[int, Tensor, Tensor]]:
        """By number of leading entries (ascending ``sizes``), the nearest one to each of ``vectors`` ``[P, C]``.

        Yields:
            The size, the distances ``[P]`` and the entries' numbers ``[P]``.
        """
        if self._rounded is None:
            yield from self._by_products(vectors, sizes)
            return
        distances = vectors.new_full((len(vectors),), torch.inf)
        nearest = torch.zeros(len(vectors), dtype=torch.int64, device=vectors.device)
        done = 0
        for size in sizes:
            step = max(1, _SIMILARITIES // (size - done))
            for i in range(0, len(vectors), step):
                here = slice(i, i + step)
                some, before = vectors[here], distances[here]
                pairs = self._rounded.prospects(some, before, done, size)
                if pairs is None:
                    [(_, found, entries)] = self._by_products(some, [size], done)
                else:
                    found, entries = self._by_differences(some, *pairs)
                nearest[here] = torch.where(found < before, entries, nearest[here])
                distances[here] = torch.minimum(found, before)
            done = size
            yield size, distances.clone(), nearest.clone()

    def around(self, entry: int, size: int, count: int) -> Tensor:
        """Numbers of the ``count`` of the first ``size`` entries that lie nearest to one of them, itself first."""
        lookup = self._lookup[:size]
        centre, count = lookup[entry, :-1], min(count, size)
        likely = min(max(2 * count, _CANDIDATES), size)
        rows = (lookup @ functional.pad(centre, (0, 1), value=1.0)).topk(likely).indices
        distances = torch.linalg.vector_norm(lookup[rows, :-1] - centre, dim=1)
        return rows[distances.topk(count, largest=False).indices]

    def _by_products(
        self, vectors: Tensor, sizes: Sequence[int], done: int = 0
    ) -> Iterator[tuple[int, Tensor, Tensor]]:
        """:meth:`nearest` in float32, among the entries from number ``done`` on."""
        best = vectors.new_full((len(vectors),), -torch.inf)
        nearest = torch.zeros(len(vectors), dtype=torch.int64, device=vectors.device)
        queries = functional.pad(vectors, (0, 1), value=1.0).T
        for size in sizes:
            for i in range(0, len(vectors), _BLOCK[0]):
                here = slice(i, i + _BLOCK[0])
                for start in range(done, size, _BLOCK[1]):
                    similarity = self._lookup[start : min(start + _BLOCK[1], size)] @ queries[:, here]
                    values, entries = _largest(similarity)
                    nearest[here] = torch.where(values > best[here], entries + start, nearest[here])
                    torch.maximum(best[here], values, out=best[here])
            done = size
            # By the difference itself: the inner products above lose the digits of a small distance.
            yield size, torch.linalg.vector_norm(vectors - self.entries[nearest], dim=1), nearest

    def _by_differences(self, vectors: Tensor, rows: Tensor, entries: Tensor) -> tuple[Tensor, Tensor]:
        """Smallest distance ``[P]`` of each vector, and to which entry, among pairs of both; infinite where none is."""
        distance = torch.linalg.vector_norm(vectors[rows] - self.entries[entries], dim=1)
        smallest = vectors.new_full((len(vectors),), torch.inf).scatter_reduce_(0, rows, distance, "amin")
        equal = distance == smallest[rows]
        first = torch.full_like(smallest, len(self), dtype=torch.int64)
        return smallest, first.scatter_reduce_(0, rows[equal], entries[equal], "amin")


def _largest(values: Tensor) -> tuple[Tensor, Tensor]:
    """Largest number of each column of ``[M, P]``, and its row.

    Rows are looked for in the best group of each column alone: torch finds maxima ten times as fast without places.
    """
    rows, columns = values.shape
    whole = rows // _GROUP * _GROUP
    if whole == 0:
        largest = values.max(0)
        return largest.values, largest.indices
    groups = values[:whole].view(-1, _GROUP, columns)
    best = groups.amax(1).max(0)
    inside = groups[best.indices, :, torch.arange(columns, device=values.device)]
    found, row = best.values, inside.argmax(1) + best.indices * _GROUP
    if whole < rows:
        rest = values[whole:].max(0)
        better = rest.values > found
        found, row = torch.where(better, rest.values, found), torch.where(better, rest.indices + whole, row)
    return found, row


class _Rounded:
    """A bank in bfloat16, which tells for certain which entries cannot be the nearest.

    Rounding moves a vector ``p`` and an entry ``m`` by known lengths, so ``|p - m|`` and the distance of what they
    became differ by at most the sum. The product of ``(p, 1, -|p|^2 / 2)`` and ``(m, -|m|^2 / 2, 1)``, norms being
    those after rounding and kept in three numbers each, is minus half the square of the latter; it is off by what
    float32 loses in summing it, and by rounding the result.
    """

    def __init__(self, entries: Tensor) -> None:
        rounded = entries.bfloat16()
        squares = torch.linalg.vector_norm(rounded, dim=1, dtype=torch.float32).square_()
        self._moved = torch.linalg.vector_norm(entries - rounded, dim=1).max()
        self._longest = squares.max()
        width = entries.shape[1]
        self._lookup = rounded.new_zeros(len(entries), _columns(width))
        self._lookup[:, :width] = rounded
        self._lookup[:, width : width + 3] = _split(squares / -2)
        self._lookup[:, width + 3 : width + 6] = 1

    def prospects(self, vectors: Tensor, known: Tensor, start: int, stop: int) -> tuple[Tensor, Tensor] | None:
        """Pairs of vectors ``[P, C]`` and entries ``start`` to ``stop``, among which is the nearest of those to each.

        Args:
            vectors: float32.
            known: ``[P]`` distances to other entries; what is sure to be farther is left out.
            start: first entry.
            stop: entry after the last.

        Returns:
            Numbers of the vectors ``[K]`` and of the entries ``[K]``, or None when they would be too many.
        """
        count, width = vectors.shape
        rounded = vectors.bfloat16()
        moved = torch.linalg.vector_norm(vectors - rounded, dim=1) + self._moved
        squares = torch.linalg.vector_norm(rounded, dim=1, dtype=torch.float32).square_()
        # Terms of the sum are at most this large together; each addition loses 2^-24 of it.
        slack = 2.0**-22 * self._lookup.shape[1] * (squares + self._longest)
        queries = rounded.new_zeros(count, self._lookup.shape[1])
        queries[:, :width] = rounded
        queries[:, width : width + 3] = 1
        queries[:, width + 3 : width + 6] = _split(-squares / 2 - slack)
        similarity = self._lookup[start:stop] @ queries.T
        # The slack made all of them negative, so their bits are ordered like integers, of which minima are quick.
        bits = similarity.view(torch.int16)
        whole = (stop - start) // _GROUP * _GROUP
        best = bits[:whole].view(-1, _GROUP, count).amin(1)
        if whole < stop - start:
            best = torch.cat([best, bits[whole:].amin(0, keepdim=True)])
        best = best.view(torch.bfloat16)
        # The nearest lies no farther than the most similar can, so its similarity is at least the limit.
        farthest = (best.amax(0).float() * -2 * (1 + 2.0**-7)).sqrt() + moved
        limit = ((torch.minimum(farthest, known) + moved).square() + 3 * slack) * (-0.5 * (1 + 2.0**-7))
        limit = limit.bfloat16()
        groups, rows = (best >= limit).nonzero(as_tuple=True)
        if len(groups) > _PROSPECTS * count:
            return None
        entries = groups[:, None] * _GROUP + torch.arange(_GROUP, device=groups.device)
        entries.clamp_(max=stop - start - 1)
        chosen = (similarity[entries, rows[:, None]] >= limit[rows, None]).nonzero(as_tuple=True)
        if len(chosen[0]) > _PROSPECTS * count:
            return None
        return rows[chosen[0]], entries[chosen] + start


def bank_bytes(size: int, width: int, vectors: int, *, bfloat16: bool) -> tuple[int, int]:
    """Bytes of a bank of ``size`` entries of ``width`` numbers, and of a search for that many vectors' nearest."""
    kept, searched = 4 * size * (width + 1), 4 * min(vectors, _BLOCK[0]) * min(size, _BLOCK[1])
    if bfloat16:
        kept += 2 * size * _columns(width)
        searched += 2 * min(vectors * size, max(size, _SIMILARITIES))
    return kept, searched


def _columns(width: int) -> int:
    """Columns of a rounded bank: norms go with the vectors, and kernels like whole registers."""
    return -(-(width + 6) // 32) * 32


def _split(values: Tensor) -> Tensor:
    """``[N]`` float32 as ``[N, 3]`` bfloat16 whose sums are the values, to 24 bits."""
    parts = []
    for _ in range(3):
        parts.append(values.bfloat16())
        values = values - parts[-1].float()
    return torch.stack(parts, dim=1)
