from __future__ import annotations

import time

import numpy as np
import pytest
from skimage.measure import label
from sklearn.metrics import roc_auc_score

from autoad.evaluation import PixelMetrics, pixel_metrics


def brute_force_aupro(maps, masks, limit=0.3):
    """The definition, threshold by threshold."""
    regions = []
    for picture, mask in enumerate(masks):
        labelled = label(mask, connectivity=2)
        regions += [maps[picture][labelled == index] for index in range(1, labelled.max() + 1)]
    normal = maps[~masks]
    rates, overlaps = [0.0], [0.0]
    for threshold in np.unique(maps)[::-1]:
        rates.append(float(np.mean(normal >= threshold)))
        overlaps.append(float(np.mean([np.mean(region >= threshold) for region in regions])))
    rates, overlaps = np.array(rates), np.array(overlaps)
    within = rates <= limit
    x, y = list(rates[within]), list(overlaps[within])
    if not within.all():
        after = int(np.argmin(within))
        share = (limit - rates[after - 1]) / (rates[after] - rates[after - 1])
        x.append(limit)
        y.append(overlaps[after - 1] + share * (overlaps[after] - overlaps[after - 1]))
    return np.trapezoid(y, x) / limit


@pytest.mark.parametrize("levels", [None, 40, 4, 1])
@pytest.mark.parametrize("seed", [0, 1])
def test_exact_agrees_with_brute_force_and_scikit_learn(draw_maps, levels, seed):
    maps, masks = draw_maps(8, 24, seed)
    if levels:  # few distinct values, so that many pixels tie
        ranks = maps.ravel().argsort().argsort().reshape(maps.shape)
        maps = (ranks * levels // maps.size).astype(np.float32)
    ours = pixel_metrics(maps, masks, exact=True)
    assert ours.aupro == pytest.approx(brute_force_aupro(maps, masks), abs=1e-9)
    assert ours.pixel_auroc == pytest.approx(roc_auc_score(masks.ravel(), maps.ravel()), abs=1e-9)


@pytest.mark.parametrize(("number", "size"), [(24, 64), (24, 255), (70, 256), (150, 256)])  # lattice steps 1, 1, 2, 3
@pytest.mark.parametrize("shape", ["tail", "flat", "mostly zero", "two levels", "noise", "odd borders"])
def test_histogram_is_within_two_thousandths_of_exact(draw_maps, number, size, shape):
    maps, masks = draw_maps(number, size)
    if shape == "flat":
        maps = np.log(maps)
    elif shape == "mostly zero":
        maps = np.where(maps > np.quantile(maps, 0.8), maps, 0).astype(np.float32)
    elif shape == "two levels":
        maps = (maps > np.quantile(maps, 0.8)).astype(np.float32)
    elif shape == "noise":
        maps = maps * np.random.default_rng(0).gamma(1.0, size=maps.shape).astype(np.float32)
    elif shape == "odd borders":
        maps = np.pad(maps[:, 1:-1, 1:-1], ((0, 0), (1, 1), (1, 1)), constant_values=maps.max())
    exact, quick = pixel_metrics(maps, masks, exact=True), pixel_metrics(maps, masks, exact=False)
    assert quick.aupro == pytest.approx(exact.aupro, abs=0.002)
    assert quick.pixel_auroc == pytest.approx(exact.pixel_auroc, abs=0.002)


def test_histogram_is_quick_and_exact_is_bearable(draw_maps):
    maps, masks = draw_maps(100, 256)
    seconds = {}
    for exact in (False, True):
        times = []
        for _ in range(3):
            started = time.process_time()
            pixel_metrics(maps, masks, exact=exact)
            times.append(time.process_time() - started)
        seconds[exact] = min(times)
    assert seconds[False] < 0.3
    assert seconds[True] < 4.0


def test_perfect_inverted_and_constant_maps(draw_maps):
    _, masks = draw_maps(6, 32)
    assert pixel_metrics(masks.astype(np.float32), masks, exact=True) == PixelMetrics(1.0, pytest.approx(1.0))
    assert pixel_metrics(1 - masks.astype(np.float32), masks, exact=True) == PixelMetrics(0.0, 0.0)
    # Everything ties: the curve is the diagonal, whose area up to .3, divided by .3, is .15.
    constant = np.zeros(masks.shape, dtype=np.float32)
    assert pixel_metrics(constant, masks, exact=True) == PixelMetrics(0.5, pytest.approx(0.15))
    assert pixel_metrics(constant, masks, exact=False) == PixelMetrics(0.5, pytest.approx(0.15))


def test_regions_count_alike_whatever_their_size_and_touch_at_corners():
    masks = np.zeros((3, 40, 40), dtype=bool)
    masks[0, 0:20, 0:20] = True
    masks[0, 20, 20] = True  # touches the large one at a corner: one region
    masks[1, 5, 5] = True
    masks[2, 30, 30] = True  # the same pixels of another picture are another region
    maps = np.zeros(masks.shape, dtype=np.float32)
    maps[1:][masks[1:]] = 1.0
    # Two of three regions are found at once; the third is tied with all normal pixels, as on the diagonal.
    assert pixel_metrics(maps, masks, exact=True).aupro == pytest.approx((2 + 0.15) / 3)


@pytest.mark.parametrize("exact", [True, False])
def test_monotone_maps_of_the_scores_change_nothing(draw_maps, exact):
    maps, masks = draw_maps(6, 32)
    before, after = pixel_metrics(maps, masks, exact=exact), pixel_metrics(np.sqrt(maps), masks, exact=exact)
    assert after.aupro == pytest.approx(before.aupro, abs=1e-3)
    assert after.pixel_auroc == pytest.approx(before.pixel_auroc, abs=1e-3)


@pytest.mark.parametrize("value", [True, False])
@pytest.mark.parametrize("exact", [True, False])
def test_one_kind_of_pixel_has_no_metrics(value, exact):
    masks = np.full((2, 8, 8), value)
    assert pixel_metrics(np.zeros((2, 8, 8), dtype=np.float32), masks, exact=exact) == PixelMetrics(None, None)


def test_refuses_what_cannot_be_measured():
    maps, masks = np.zeros((3, 4, 5), dtype=np.float32), np.zeros((3, 4, 5), dtype=bool)
    maps[1, 2, 3] = np.nan
    with pytest.raises(ValueError, match="the map at index 1 is not"):
        pixel_metrics(maps, masks, exact=True)
    with pytest.raises(ValueError, match=r"masks must have the shape \[3, 4, 5\] of the maps but got \[3, 5, 4\]"):
        pixel_metrics(maps, masks.transpose(0, 2, 1), exact=False)
    with pytest.raises(ValueError, match="masks must be booleans"):
        pixel_metrics(maps, masks.astype(np.uint8), exact=False)
    with pytest.raises(ValueError, match=r"maps must have the shape \[N, H, W\]"):
        pixel_metrics(maps[0], masks[0], exact=False)
