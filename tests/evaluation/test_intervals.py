from __future__ import annotations

import time

import numpy as np
import pytest

from autoad.evaluation import (
    PixelIntervals,
    bootstrap_interval,
    bootstrap_pixel_interval,
    image_metrics,
    paired_difference,
    pixel_metrics,
)


def drawn(n=200, shift=1.0, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) < n // 4
    return np.round(rng.normal(size=n) + shift * labels, 1), labels  # rounded: ties


def auroc(scores, labels):
    return image_metrics(scores, labels).image_auroc  # compared with scikit-learn in its own test


def resample(rng, labels):
    """One stratified draw, picture by picture."""
    return np.concatenate(
        [rng.choice(np.flatnonzero(labels == kind), np.sum(labels == kind)) for kind in (True, False)]
    )


def test_agrees_with_a_loop_over_draws():
    scores, labels = drawn()
    rng = np.random.default_rng(7)
    draws = [resample(rng, labels) for _ in range(2000)]
    loop = np.quantile([auroc(scores[draw], labels[draw]) for draw in draws], [0.025, 0.975])
    assert bootstrap_interval(scores, labels, repeats=4000) == pytest.approx(loop, abs=0.008)


def test_paired_difference_agrees_with_a_loop_over_draws():
    scores, labels = drawn()
    other = scores + np.random.default_rng(3).normal(size=len(scores)) / 2
    rng = np.random.default_rng(7)
    draws = [resample(rng, labels) for _ in range(2000)]
    loop = [auroc(scores[draw], labels[draw]) - auroc(other[draw], labels[draw]) for draw in draws]
    difference, low, high = paired_difference(scores, other, labels, repeats=4000)
    assert difference == pytest.approx(auroc(scores, labels) - auroc(other, labels), abs=1e-12)
    assert (low, high) == pytest.approx(np.quantile(loop, [0.025, 0.975]), abs=0.008)


def test_paired_difference_is_narrower_than_two_separate_intervals():
    scores, labels = drawn()
    other = scores + np.random.default_rng(3).normal(size=len(scores)) / 20
    _, low, high = paired_difference(scores, other, labels)
    alone = bootstrap_interval(scores, labels)
    assert high - low < (alone[1] - alone[0]) / 2
    assert paired_difference(scores, scores, labels) == (0.0, 0.0, 0.0)


def test_pixel_interval_agrees_with_exact_metrics_of_drawn_pictures(draw_maps):
    maps, masks = draw_maps(20, 32, 1)
    rng = np.random.default_rng(7)
    defective = masks.any(axis=(1, 2))
    results = []
    for _ in range(400):
        draw = resample(rng, defective)
        metrics = pixel_metrics(maps[draw], masks[draw], exact=True)
        results.append((metrics.pixel_auroc, metrics.aupro))
    auroc, aupro = np.quantile(results, [0.025, 0.975], axis=0).T
    ours = bootstrap_pixel_interval(maps, masks, repeats=2000)
    assert ours.pixel_auroc == pytest.approx(auroc, abs=0.01)
    assert ours.aupro == pytest.approx(aupro, abs=0.025)


def test_same_seed_same_interval_and_wider_level_wider_interval(draw_maps):
    scores, labels = drawn()
    maps, masks = draw_maps(10, 32, 2)
    assert bootstrap_interval(scores, labels, seed=5) == bootstrap_interval(scores, labels, seed=5)
    assert bootstrap_interval(scores, labels, seed=5) != bootstrap_interval(scores, labels, seed=6)
    assert bootstrap_pixel_interval(maps, masks, seed=5) == bootstrap_pixel_interval(maps, masks, seed=5)
    narrow, wide = (bootstrap_interval(scores, labels, level=level) for level in (0.5, 0.99))
    assert wide[0] < narrow[0] < image_metrics(scores, labels).image_auroc < narrow[1] < wide[1]


def test_covers_the_truth_about_as_often_as_promised():
    # Two unit normals one apart: the true AUROC is Phi(1 / sqrt 2).
    covered = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        labels = np.arange(120) < 60
        low, high = bootstrap_interval(rng.normal(size=120) + labels, labels, repeats=500, seed=seed)
        covered += low <= 0.7602499 <= high
    assert 180 <= covered <= 199


def test_is_quick(draw_maps):
    scores, labels = drawn()
    started = time.process_time()
    bootstrap_interval(scores, labels)
    assert time.process_time() - started < 1.0
    maps, masks = draw_maps(100, 256)
    started = time.process_time()
    bootstrap_pixel_interval(maps, masks)
    assert time.process_time() - started < 5.0


def test_none_where_not_computable_and_errors_name_the_argument():
    scores, labels = drawn(10)
    normal = np.zeros(10, dtype=bool)
    assert bootstrap_interval(scores, normal) is None
    assert paired_difference(scores, scores, normal) is None
    maps = np.zeros((2, 4, 4), dtype=np.float32)
    assert bootstrap_pixel_interval(maps, np.zeros((2, 4, 4), dtype=bool)) == PixelIntervals(None, None)
    with pytest.raises(ValueError, match="scores_b must be finite but got nan at index 2"):
        paired_difference(scores, np.where(np.arange(10) == 2, np.nan, scores), labels)
    with pytest.raises(ValueError, match="scores_b must have the shape"):
        paired_difference(scores, scores[:-1], labels)
    with pytest.raises(ValueError, match="level must lie between 0 and 1 but got 95"):
        bootstrap_interval(scores, labels, level=95)
    with pytest.raises(ValueError, match="repeats must be at least 1 but got 0"):
        bootstrap_interval(scores, labels, repeats=0)
