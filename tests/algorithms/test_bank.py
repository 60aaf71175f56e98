from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from torch import Tensor
from torch.nn import functional

from autoad.algorithms._bank import (
    Bank,
    _largest,
    _pack,
    _packed_product,
    bank_bytes,
    multiplies_int8,
    packs_int8,
)
from autoad.algorithms._base import Runtime
from autoad.algorithms.patchcore import PatchCore

able = pytest.mark.skipif(not multiplies_int8(), reason="the CPU has no instructions for int8, so nothing uses it")
amx = pytest.mark.skipif(not packs_int8(), reason="the CPU has no AMX, so nothing is packed")
either = pytest.mark.parametrize("int8", [False, pytest.param(True, marks=able)])


def in_int8(test: Callable[..., None]) -> Callable[..., None]:
    """Decorates what searches in int8, with packed banks and without."""
    return able(pytest.mark.usefixtures("packed")(test))


@pytest.fixture(params=[False, pytest.param(True, marks=amx)])
def packed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr("autoad.algorithms._bank.packs_int8", lambda: request.param)
    return request.param


@pytest.fixture(scope="module")
def lite0(pictures, given) -> Tensor:
    """Real features, averaged over neighbours: 5,120 of 152 channels, around their mean."""
    features = given(pictures(20, 0, size=(128, 128)), needs()).features
    pooled = [functional.avg_pool2d(maps.float(), 3, 1, 1) for maps in features.values()]
    pooled[1] = functional.interpolate(pooled[1], size=pooled[0].shape[-2:], mode="bilinear")
    points = torch.cat(pooled, 1).permute(0, 2, 3, 1).flatten(0, 2)
    return points - points.mean(0)


@pytest.fixture(autouse=True)
def small_banks_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autoad.algorithms._bank._WORTHWHILE", 1)


def needs() -> object:
    return PatchCore().needs


def only(bank: Bank, vectors: Tensor, size: int | None = None) -> tuple[Tensor, Tensor]:
    [(found, distances, entries)] = bank.nearest(vectors, [len(bank) if size is None else size])
    assert found == (len(bank) if size is None else size)
    return distances, entries


def check(bank: Bank, vectors: Tensor, distances: Tensor, entries: Tensor, size: int | None = None) -> None:
    """The distances are those of float64 to the nearest entry, and to the entry that is named."""
    exact = cdist(vectors.double().numpy(), bank.entries[:size].double().numpy())
    scale = exact.min(1) * 1e-5 + 1e-6 * float(bank.entries.abs().max())
    assert (np.abs(distances.numpy() - exact.min(1)) <= scale).all()
    assert (np.abs(exact[np.arange(len(exact)), entries.numpy()] - exact.min(1)) <= scale).all()


@either
def test_the_nearest_of_real_features(lite0: Tensor, int8: bool) -> None:
    bank, vectors = Bank(lite0[1::3], int8=int8), lite0[::3]
    check(bank, vectors, *only(bank, vectors))


@pytest.fixture
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@in_int8
@pytest.mark.parametrize("threads", [1, 2], indirect=True)
@pytest.mark.usefixtures("threads")
def test_both_ways_find_the_nearest(lite0: Tensor) -> None:
    order = torch.randperm(len(lite0), generator=torch.Generator().manual_seed(0))
    vectors, entries = lite0[order[:700]], lite0[order[700:3001]]
    plain, rounded = (Bank(entries, int8=way) for way in (False, True))
    for bank in (plain, rounded):  # not always the same entry: of two that are as near, either may be found
        sizes = [3, 900, 2301]
        for (size, *found), wanted in zip(bank.nearest(vectors, sizes), sizes, strict=True):
            assert size == wanted
            check(bank, vectors, *found, size)


@in_int8
def test_parts_of_another_division_are_not_kept(lite0: Tensor, packed: bool) -> None:
    """Packed, all parts together are as large as the bank; unpacked, none is kept."""
    bank, vectors = Bank(lite0[1::4], int8=True), lite0[:50]
    for sizes, parts in (
        ([500, 1280], [(0, 500), (500, 1280)]),
        ([700], [(0, 700)]),
        ([300, 800], [(0, 300), (300, 800)]),
    ):
        for (size, *found), wanted in zip(bank.nearest(vectors, sizes), sizes, strict=True):
            assert size == wanted
            check(bank, vectors, *found, size)
        assert sorted(bank._rounded._packed) == (parts if packed else [])


@amx
@pytest.mark.parametrize("width", [704, 1040])
def test_packed_products_are_exact_up_to_the_largest(width: int) -> None:
    vectors = torch.full((64, width), 127, dtype=torch.int8)
    vectors[1::2, ::2] = 126
    assert 2**23 < width * 127**2 < 2**24
    assert torch.equal(_packed_product(vectors, _pack(vectors)).double(), vectors.double() @ vectors.double().T)


@in_int8
def test_memory_is_that_of_its_tensors(lite0: Tensor, packed: bool) -> None:
    bank = Bank(lite0[:5000], int8=True)
    only(bank, lite0[:50])
    tensors = [bank._lookup, bank._rounded._lookup]
    taken = sum(tensor.nbytes for tensor in tensors) + (tensors[1].nbytes if packed else 0)
    assert taken <= bank_bytes(5000, 152, 50, int8=True)[0] <= 1.1 * taken
    assert [part.numel() for part in bank._rounded._packed.values()] == ([5024 * 160] if packed else [])


@in_int8
def test_a_copy_of_what_has_searched_searches(lite0: Tensor) -> None:
    bank, vectors = Bank(lite0[1::4], int8=True), lite0[:50]
    expected = only(bank, vectors)
    copied = copy.deepcopy(bank)
    assert all(torch.equal(*pair) for pair in zip(only(copied, vectors), expected, strict=True))


@in_int8
def test_products_too_large_for_float32_are_left_to_it(
    lite0: Tensor, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autoad.algorithms._bank._EXACT", 100)
    bank, vectors = Bank(lite0[1::4], int8=True), lite0[:50]
    pairs = bank._rounded.prospects(vectors, torch.full((50,), torch.inf), 0, len(bank))
    assert (pairs is None) is packed
    check(bank, vectors, *only(bank, vectors))


@in_int8
def test_few_are_compared_exactly(lite0: Tensor) -> None:
    bank, vectors = Bank(lite0[1::3], int8=True), lite0[::3]
    known = torch.full((len(vectors),), torch.inf)
    pairs = bank._rounded.prospects(vectors, known, 0, len(bank))
    assert len(vectors) <= len(pairs[0]) < 5 * len(vectors)


@in_int8
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("shift", [0.0, 1.0, 100.0])
@pytest.mark.parametrize("width", [1, 7, 300])
def test_no_rounding_error_hides_the_nearest(
    width: int, shift: float, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Near and far, at any scale; entries that differ from each other by less than int8 can tell."""
    monkeypatch.setattr("autoad.algorithms._bank._PROSPECTS", 1000)
    g = torch.Generator().manual_seed(width)
    entries = torch.randn(150, width, generator=g)
    entries = torch.cat([entries, entries + 1e-4 * torch.randn(150, width, generator=g)]) * scale
    vectors = (torch.randn(90, width, generator=g) + shift) * scale
    vectors[::9] = entries[::30]
    bank = Bank(entries, int8=True)
    check(bank, vectors, *only(bank, vectors))


@in_int8
def test_far_from_everything_float32_takes_over(lite0: Tensor) -> None:
    bank, plain = (Bank(lite0[:1000], int8=way) for way in (True, False))
    vectors = lite0[1000:1100] + 500.0
    assert bank._rounded.prospects(vectors, torch.full((100,), torch.inf), 0, 1000) is None
    assert all(torch.equal(*pair) for pair in zip(only(bank, vectors), only(plain, vectors), strict=True))


@in_int8
@pytest.mark.parametrize("size", [1, 31, 32, 33, 1000])
def test_an_outlier_makes_rounding_coarse_but_not_wrong(
    lite0: Tensor, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autoad.algorithms._bank._PROSPECTS", 2000)
    entries, vectors = lite0[:size].clone(), lite0[1000:1200].clone()
    entries[size // 2, 7] = 1e4
    vectors[:3, 9] = -1e5
    bank = Bank(entries, int8=True)
    check(bank, vectors, *only(bank, vectors))


@in_int8
def test_small_banks_are_searched_in_float32(lite0: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autoad.algorithms._bank._WORTHWHILE", 400)
    bank, vectors = Bank(lite0[1::4], int8=True), lite0[::7]
    asked: list[tuple[int, int]] = []
    prospects = bank._rounded.prospects
    bank._rounded.prospects = lambda some, before, *part: asked.append(part) or prospects(some, before, *part)
    for size, *found in bank.nearest(vectors, [100, 399, 1000, 1280]):
        check(bank, vectors, *found, size)
    assert asked == [(399, 1000)]
    only(bank, vectors, 399)
    assert len(asked) == 1
    assert Bank(lite0[:399], int8=True)._rounded is None


def capable(monkeypatch: pytest.MonkeyPatch, *names: str, permitted: bool = True) -> tuple[bool, bool]:
    """Whether a CPU with some instructions multiplies int8 numbers, and whether packed ones."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(names, True), raising=False)
    monkeypatch.setattr(torch.cpu, "_init_amx", lambda: permitted, raising=False)
    packs = packs_int8.__wrapped__
    monkeypatch.setattr("autoad.algorithms._bank.packs_int8", packs)
    return multiplies_int8.__wrapped__(), packs()


def allow_all(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)


def products(monkeypatch: pytest.MonkeyPatch, multiply: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Both kinds of products are computed by something else."""
    monkeypatch.setattr(torch, "_int_mm", multiply)
    monkeypatch.setattr("autoad.algorithms._bank._pack", lambda entries: entries)
    monkeypatch.setattr("autoad.algorithms._bank._packed_product", lambda a, b: multiply(a, b.T).float())


def exact(a: Tensor, b: Tensor) -> Tensor:
    return a.int() @ b.int()


def saturating(a: Tensor, b: Tensor) -> Tensor:
    """As by instructions that add two products, of unsigned with signed numbers, in 16 bits."""
    products = (a.int()[:, None] + 128) * b.int().T
    pairs = products.unflatten(2, (-1, 2)).sum(3).clamp(-(2**15), 2**15 - 1)
    return pairs.sum(2) - 128 * b.int().sum(0)


def missing(a: Tensor, b: Tensor) -> Tensor:
    raise AttributeError("'_OpNamespace' 'onednn' object has no attribute 'qlinear_pointwise'")


AMX = ("avx512_vnni", "amx_int8")


def test_only_a_cpu_that_sums_int8_exactly_is_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    allow_all(monkeypatch)
    products(monkeypatch, exact)
    assert capable(monkeypatch, "avx2", "avx512_bf16") == (False, False)
    assert capable(monkeypatch, "avx_vnni") == (True, False)
    assert capable(monkeypatch, *AMX) == (True, True)
    products(monkeypatch, saturating)
    assert capable(monkeypatch, "avx512_vnni") == (False, False)
    assert capable(monkeypatch, *AMX) == (False, False)


def test_with_another_torch_that_packs_nothing_float32_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    allow_all(monkeypatch)
    products(monkeypatch, missing)
    assert capable(monkeypatch, *AMX) == (False, False)
    products(monkeypatch, exact)
    monkeypatch.delattr(torch.cpu, "_init_amx")
    assert (multiplies_int8.__wrapped__(), packs_int8.__wrapped__()) == (True, False)
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert (multiplies_int8.__wrapped__(), packs_int8.__wrapped__()) == (False, False)


def test_nothing_is_packed_where_onednn_cannot_use_amx(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its reference implementation would take seconds for a picture."""
    products(monkeypatch, exact)
    allow_all(monkeypatch)
    assert capable(monkeypatch, *AMX, permitted=False) == (True, False)
    for limit, packs in (
        ("avx512_core_vnni", False),
        ("AVX512_CORE_AMX", True),
        ("default", True),
        ("AVX2", False),
        ("", True),
    ):
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
        assert capable(monkeypatch, *AMX) == (True, packs)


def test_patchcore_searches_in_int8_on_such_a_cpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for able in (True, False):
        monkeypatch.setattr("autoad.algorithms.patchcore.multiplies_int8", lambda able=able: able)
        assert PatchCore(runtime=Runtime())._int8 is able
        assert not PatchCore(runtime=Runtime(device="cuda"))._int8


def test_blocks_of_vectors_and_entries_answer_as_one(lite0: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    bank, vectors = Bank(lite0[1::3], int8=False), lite0[::3]
    expected = only(bank, vectors)
    monkeypatch.setattr("autoad.algorithms._bank._BLOCK", (64, 97))
    for one, other in zip(only(bank, vectors), expected, strict=True):
        torch.testing.assert_close(one, other)


@either
def test_leading_entries_answer_as_a_bank_of_their_own(lite0: Tensor, int8: bool) -> None:
    bank, vectors, sizes = Bank(lite0[1::4], int8=int8), lite0[::7], [1, 33, 40, 640, 1280]
    for (size, *found), expected in zip(bank.nearest(vectors, sizes), sizes, strict=True):
        assert size == expected
        check(bank, vectors, *found, size)
        for part in (bank.first(size), Bank(lite0[1::4][:size], int8=int8)):
            assert len(part) == size
            assert all(torch.equal(*pair) for pair in zip(found, only(part, vectors), strict=True))


@in_int8
def test_large_banks_are_compared_with_a_few_vectors_at_a_time(lite0: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    bank, vectors = Bank(lite0[1::3], int8=True), lite0[:300]
    expected = only(bank, vectors)
    monkeypatch.setattr("autoad.algorithms._bank._SIMILARITIES", 7 * len(bank))
    assert all(torch.equal(*pair) for pair in zip(expected, only(bank, vectors), strict=True))


@pytest.mark.parametrize("rows", [1, 31, 32, 33, 64, 100])
def test_the_largest_of_each_column(rows: int) -> None:
    values = torch.randn(rows, 50, generator=torch.Generator().manual_seed(rows))
    largest, found = _largest(values)
    assert torch.equal(largest, values.amax(0))
    assert torch.equal(values[found, torch.arange(50)], largest)


@in_int8
def test_nothing_but_zeros() -> None:
    bank = Bank(torch.zeros(1, 5), int8=True)
    distances, entries = only(bank, torch.zeros(4, 5))
    assert torch.equal(distances, torch.zeros(4))
    assert torch.equal(entries, torch.zeros(4, dtype=torch.int64))


def test_neighbours_of_an_entry(lite0: Tensor) -> None:
    bank = Bank(lite0[::5], int8=False)
    exact = cdist(lite0[::5].double().numpy(), lite0[::5].double().numpy())
    for entry in (0, 77, 500):
        for size, count in ((501, 9), (1024, 40), (501, 2000)):
            found = bank.around(entry, size, count).numpy()
            assert found[0] == entry
            assert len(set(found)) == min(count, size)
            np.testing.assert_allclose(exact[entry, found], np.sort(exact[entry, :size])[:count], atol=1e-4)
