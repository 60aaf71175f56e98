"""A bank of vectors, and the exact search for the one that lies nearest."""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["Bank", "bank_bytes", "multiplies_int8", "packs_int8"]

_BLOCK = (1024, 4096)
"""Vectors and entries compared at a time in float32."""

_CANDIDATES = 32
"""Entries, or twice as many as are wanted if that is more, among which an entry's neighbours are found exactly."""

_SIMILARITIES = 1 << 23
"""Similarities computed at a time in int8."""

_WORTHWHILE = 2000
"""Entries from which a search in int8 is faster (with AMX from 1,500); float32 has compared fewer before that pays."""

_GROUP = 32
"""Entries of which at first only the most similar one is looked at."""

_PROSPECTS = 16
"""Entries for each vector, on average, that may be compared exactly: beyond, float32 is faster."""

_LARGEST = 127
_EXACT = 2**24
"""Up to it every whole number is a float32."""

_ALIGNED = 32
"""Columns of the rounded bank are a multiple of it: kernels like whole registers."""

_ERROR = 2.0**-20
"""More than what float32 loses in a distance, as a share of it and of the lengths of both vectors."""


@functools.cache
def multiplies_int8() -> bool:
    """Whether torch multiplies int8 numbers faster than float32 ones on this CPU, and without saturation."""
    able = _capabilities()
    if not any(able.get(name) for name in ("avx512_vnni", "avx_vnni")):
        return False
    return packs_int8() if _has_amx() else _is_exact(lambda vectors, entries: torch._int_mm(vectors, entries.T))


@functools.cache
def packs_int8() -> bool:
    """Whether int8 numbers are multiplied faster only if the bank is in oneDNN's order, which is so with AMX.

    Without AMX products with a packed bank are computed by a reference implementation, hundreds of times as slowly.
    """
    try:
        return _has_amx() and _is_exact(lambda vectors, entries: _packed_product(vectors, _pack(entries)))
    except (AttributeError, TypeError, RuntimeError):  # operators of torch's own, which may be otherwise in another one
        return False


def _has_amx() -> bool:
    """Whether the CPU, the kernel and the environment let oneDNN use AMX for int8."""
    allowed = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or "ALL"
    if allowed.upper() not in ("ALL", "DEFAULT") and "AMX" not in allowed.upper():
        return False
    permitted: bool = _capabilities().get("amx_int8", False) and getattr(torch.cpu, "_init_amx", lambda: False)()
    return permitted


def _capabilities() -> dict[str, bool]:
    """What the CPU can, by torch's names; nothing where torch is too old to tell."""
    able: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return able


def _is_exact(multiply: Callable[[Tensor, Tensor], Tensor]) -> bool:
    """Whether products ``[P, M]`` of vectors and entries are exact where sums are largest."""
    extreme = torch.full((_GROUP, 256), _LARGEST, dtype=torch.int8)
    extreme[1::2] *= -1
    return torch.equal(multiply(extreme, extreme).int(), extreme.int() @ extreme.int().T)


def _pack(entries: Tensor) -> Tensor:
    """``[M, C]`` int8 in oneDNN's order."""
    packed: Tensor = torch.ops.onednn.qlinear_prepack(entries, None)
    return packed


def _packed_product(vectors: Tensor, packed: Tensor) -> Tensor:
    """``[P, M]`` float32 of ``[P, C]`` int8 and packed ``[M, C]``: summed in int32, so exact up to ``_EXACT``."""
    scales = torch.ones(packed.shape[1])
    zeros = torch.zeros(packed.shape[1], dtype=torch.int32)
    product: Tensor = torch.ops.onednn.qlinear_pointwise(
        vectors, 1.0, 0, packed, scales, zeros, None, 1.0, 0, torch.float32, "none", [], ""
    )
    return product


class Bank:
    """Vectors in a given order, of which the nearest to others is found by true distances.

    In float32 the nearest entry is the one with the largest inner product (ties within its rounding errors are broken
    by chance), and its distance is the length of the difference. Where int8 numbers are multiplied faster, their
    products tell, by bounds on what rounding to them moves, which entries could be the nearest: on real features 4 to 6
    for each vector. Only those are compared by their differences. That takes three fifths of the time, with AMX two
    thirds to three quarters, and is no less exact.
    """

    def __init__(self, entries: Tensor, *, int8: bool) -> None:
        """Prepare to search ``[M, C]`` float32 entries, which lie near the origin, in int8 first or not."""
        # With -|m|^2 / 2 as a last column, the largest <(p, 1), m> is the smallest |p - m|: one product, no epilogue.
        norms = torch.linalg.vector_norm(entries, dim=1, keepdim=True).square_()
        self._lookup = torch.cat([entries, norms.mul_(-0.5)], dim=1)
        self._rounded = _Rounded(entries) if int8 and len(entries) >= _WORTHWHILE else None

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
                few = size - done < _WORTHWHILE
                pairs = None if few else self._rounded.prospects(some, before, done, size)
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
        # index_select copies whole rows, three times as fast as brackets do.
        apart = vectors.index_select(0, rows).sub_(self._lookup.index_select(0, entries)[:, :-1])
        distance = torch.linalg.vector_norm(apart, dim=1)
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
    """A bank in int8, which tells for certain which entries cannot be the nearest.

    Rounding moves a vector ``p`` and an entry ``m`` by known lengths, so ``|p - m|`` and the distance of what they
    became differ by at most the sum. Those are vectors of whole numbers, of which products and squares are exact: of
    ``p`` and ``m`` the similarity ``<p, m> - floor(|m|^2 / 2)``, in one product with the norms in columns of their own,
    is half of ``|p|^2 - |p - m|^2``, or half of one more.
    """

    def __init__(self, entries: Tensor) -> None:
        self._packed: dict[tuple[int, int], Tensor] = {}
        self._scale = max(float(entries.abs().max()) / _LARGEST, 1e-30)
        # In blocks: torch makes a double copy of what it adds up in float64.
        parts = [self._round(some) for some in torch.split(entries, _BLOCK[1])]
        rounded, moved, squares = (torch.cat(each) for each in zip(*parts, strict=True))
        self._moved = float(moved.max())
        self._largest = float(squares.max())
        # The half is remainder + 127 * (sum of the others), and a query has 1 and then 127s beside them.
        half = squares.long() // 2
        rest = half // _LARGEST
        columns = [half % _LARGEST]
        while bool(rest.any()):
            columns.append(rest.clamp(max=_LARGEST))
            rest = rest - columns[-1]
        self._width = entries.shape[1] + len(columns)
        self._lookup = rounded.new_zeros(len(entries), -(-self._width // _ALIGNED) * _ALIGNED)
        self._lookup[:, : self._width] = torch.cat([rounded, -torch.stack(columns, dim=1).to(torch.int8)], dim=1)

    def __getstate__(self) -> dict[str, object]:
        """All but the packed parts, which torch cannot copy."""
        return self.__dict__ | {"_packed": {}}

    def prospects(self, vectors: Tensor, known: Tensor, start: int, stop: int) -> tuple[Tensor, Tensor] | None:
        """Pairs of vectors ``[P, C]`` and entries ``start`` to ``stop``, among which is the nearest of those to each.

        Args:
            vectors: float32.
            known: ``[P]`` distances to other entries; what is sure to be farther is left out.
            start: first entry.
            stop: entry after the last.

        Returns:
            Numbers of the vectors ``[K]`` and of the entries ``[K]``, or None when they would be too many, or products
            too large.
        """
        count, width = vectors.shape
        rounded, moved, squares = self._round(vectors)
        if packs_int8() and float(squares.max() * self._largest) ** 0.5 + self._largest / 2 >= _EXACT:
            return None
        moved += self._moved
        queries = rounded.new_zeros(count, self._lookup.shape[1])
        queries[:, :width] = rounded
        queries[:, width] = 1
        queries[:, width + 1 : self._width] = _LARGEST
        similarity = self._products(queries, start, stop).view(count, -1, _GROUP)
        best = similarity.amax(2)
        # The nearest lies no farther than the most similar can, and what can lie so near has at least the limit.
        farthest = (squares - 2 * best.amax(1) + 1).sqrt_().mul_(self._scale).add_(moved)
        reach = (torch.minimum(farthest, known.double()) + moved) * ((1 + _ERROR) / self._scale)
        limit = ((squares - reach.square_()) / 2).floor_().clamp_(min=torch.iinfo(torch.int32).min).to(best.dtype)
        rows, groups = (best >= limit[:, None]).nonzero(as_tuple=True)
        if len(groups) > _PROSPECTS * count:
            return None
        likely = similarity.flatten(0, 1).index_select(0, rows * best.shape[1] + groups)
        chosen, places = (likely >= limit[rows, None]).nonzero(as_tuple=True)
        if len(chosen) > _PROSPECTS * count:
            return None
        return rows[chosen], (groups[chosen] * _GROUP + places).add_(start).clamp_(max=stop - 1)

    def _products(self, queries: Tensor, start: int, stop: int) -> Tensor:
        """``[P, N]`` of ``[P, C]`` and entries ``start`` to ``stop``, the last once more until a group is full."""
        part = self._packed.get((start, stop))
        if part is not None:
            return _packed_product(queries, part)
        lookup = self._lookup[start:stop]
        if len(lookup) % _GROUP:
            lookup = torch.cat([lookup, lookup[-1:].expand(-len(lookup) % _GROUP, -1)])
        if not packs_int8():
            return torch._int_mm(queries, lookup.T)
        # Parts that overlap are of another division, so that all of them are no larger than the bank.
        self._packed = {
            (one, end): packed for (one, end), packed in self._packed.items() if end <= start or stop <= one
        }
        part = _pack(lookup)
        self._packed = self._packed | {(start, stop): part}
        return _packed_product(queries, part)

    def _round(self, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Whole numbers ``[P, C]`` int8, by how much at most that moves each vector, and their squared lengths."""
        rounded = (vectors / self._scale).round_().clamp_(-_LARGEST, _LARGEST)
        squares = torch.linalg.vector_norm(rounded, dim=1, dtype=torch.float64).square_().round_()
        moved = torch.linalg.vector_norm(vectors - rounded * self._scale, dim=1).double()
        moved += _ERROR * torch.linalg.vector_norm(vectors, dim=1)
        return rounded.to(torch.int8), moved * (1 + _ERROR), squares


def bank_bytes(size: int, width: int, vectors: int, *, int8: bool) -> tuple[int, int]:
    """Bytes of a bank of ``size`` entries of ``width`` numbers, and of a search for that many vectors' nearest."""
    kept, searched = 4 * size * (width + 1), 4 * min(vectors, _BLOCK[0]) * min(size, _BLOCK[1])
    if int8 and size >= _WORTHWHILE:
        kept += size * (width + _ALIGNED) * (2 if packs_int8() else 1)
        searched += 4 * min(vectors * size, max(size, _SIMILARITIES)) * (_GROUP + 1) // _GROUP
    return kept, searched
