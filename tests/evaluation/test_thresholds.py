from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from autoad.errors import CalibrationError
from autoad.evaluation import (
    conformal_rank,
    conformal_threshold,
    measured_threshold,
    normalize_scores,
    score_scale,
    smallest_rate,
)


@pytest.mark.parametrize(("n", "rate"), [(9, 0.1), (19, 0.05), (37, 0.1), (50, 0.2)])
@pytest.mark.parametrize("ties", [False, True])
def test_new_normal_pictures_exceed_it_at_most_at_the_rate(n, rate, ties):
    rng = np.random.default_rng(n)
    repeats = 2000
    scores = rng.lognormal(size=(repeats, n + 1))
    if ties:
        scores = np.round(scores)
    exceeded = np.mean([row[-1] > conformal_threshold(row[:-1], rate).value for row in scores])
    error = 3 * np.sqrt(rate * (1 - rate) / repeats)
    assert exceeded <= rate + error
    if not ties:  # and it is no looser than the next rate that n pictures can tell apart
        assert exceeded >= np.floor(rate * (n + 1) + 1e-9) / (n + 1) - error


REPEATS = 2000
NOISE = {"normal": stats.norm(), "heavy-tailed": stats.cauchy(), "discrete": stats.poisson(3)}


@pytest.mark.parametrize("noise", NOISE)
@pytest.mark.parametrize(("n", "rate"), [(19, 0.05), (45, 0.05), (200, 0.05), (99, 0.01), (250, 0.01)])
def test_the_realised_rate_keeps_the_promise_on_average_and_the_bound_in_nine_of_ten_sets(noise, n, rate):
    """The share of good pictures above each threshold is known, for so is the distribution of their scores."""
    distribution = NOISE[noise]
    sets = distribution.rvs(size=(REPEATS, n), random_state=np.random.default_rng(0))
    thresholds = [conformal_threshold(scores, rate) for scores in sets]
    realised = distribution.sf([threshold.value for threshold in thresholds])
    covered = np.mean(realised <= [threshold.rate_upper for threshold in thresholds])
    standard_error = realised.std() / np.sqrt(REPEATS)
    of_coverage = np.sqrt(0.9 * 0.1 / REPEATS)
    assert realised.mean() <= rate + 2 * standard_error
    assert covered >= 0.9 - 2 * of_coverage
    if noise != "discrete":  # and neither is looser than it must be
        guaranteed = np.floor(rate * (n + 1) + 1e-9) / (n + 1)
        assert realised.mean() >= guaranteed - 3 * standard_error
        assert covered <= 0.9 + 3 * of_coverage


@settings(deadline=None)
@given(st.integers(1, 400), st.floats(0.001, 0.999))
def test_the_bound_is_the_rate_at_which_so_few_scores_above_would_be_one_in_ten(n, rate):
    rank = conformal_rank(n, rate)
    if rank:
        upper = conformal_threshold(np.arange(n), rate).rate_upper
        assert smallest_rate(n) / 10 < upper < 1
        assert stats.binom.cdf(rank - 1, n, upper) == pytest.approx(0.1)
        assert conformal_threshold(np.zeros(n), rate).rate_upper == upper, "whatever the scores"


@settings(deadline=None)
@given(st.integers(1, 200), st.data())
def test_a_threshold_found_otherwise_has_the_share_above_and_its_binomial_bound(n, data):
    above = data.draw(st.integers(0, n))
    threshold = measured_threshold(0.5, np.repeat([1.0, 0.5], [above, n - above]))
    assert (threshold.value, threshold.rate, threshold.n) == (0.5, above / n, n)
    if above == n:
        assert threshold.rate_upper == 1
    else:
        assert stats.binom.cdf(above, n, threshold.rate_upper) == pytest.approx(0.1)
        assert threshold.rate < threshold.rate_upper < 1


def test_a_share_of_no_picture_is_refused():
    with pytest.raises(ValueError, match="must hold at least one score but got none"):
        measured_threshold(0.5, [])
    with pytest.raises(ValueError, match="calibration_scores must be finite"):
        measured_threshold(0.5, [np.nan])


@settings(deadline=None)
@given(st.integers(1, 300), st.floats(0.001, 0.999))
def test_is_the_smallest_threshold_that_holds(n, rate):
    scores = np.random.default_rng(n).permutation(n).astype(np.float64)
    if rate < smallest_rate(n):
        with pytest.raises(CalibrationError):
            conformal_threshold(scores, rate)
        return
    value = conformal_threshold(scores, rate).value
    # The chance that one of n + 1 exchangeable scores is the new one and exceeds the threshold, over all ranks.
    assert (np.sum(scores > value) + 1) / (n + 1) <= rate + 1e-9
    lower = scores[scores < value]
    if len(lower):
        assert (np.sum(scores > lower.max()) + 1) / (n + 1) > rate


def test_the_smallest_rate_can_be_asked_for():
    for n in range(1, 2000):  # 1 / (n + 1) is rarely exact in binary
        threshold = conformal_threshold(np.arange(n, dtype=np.float64), smallest_rate(n))
        assert (threshold.value, threshold.rate, threshold.n) == (n - 1.0, 1 / (n + 1), n)
        assert conformal_rank(n, smallest_rate(n)) == 1


def test_too_small_a_rate_says_how_many_pictures_it_needs():
    with pytest.raises(CalibrationError, match=r"0\.01 needs at least 99 calibration pictures but got 50, .* 0\.0196"):
        conformal_threshold(np.arange(50.0), 0.01)
    assert conformal_threshold(np.arange(99.0), 0.01).value == 98.0
    with pytest.raises(CalibrationError, match="needs at least 9 calibration pictures but got 0"):
        conformal_threshold(np.array([]), 0.1)


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, 5.0, float("nan")])
def test_refuses_what_is_no_rate(rate):
    with pytest.raises(CalibrationError, match="must lie between 0 and 1 but got"):
        conformal_threshold(np.arange(50.0), rate)


def test_refuses_scores_that_are_not_finite():
    with pytest.raises(ValueError, match="calibration_scores must be finite but got nan at index 1"):
        conformal_threshold(np.array([0.0, np.nan]), 0.5)
    with pytest.raises(ValueError, match="calibration_scores must be finite"):
        score_scale(np.array([np.inf]))


@settings(deadline=None)
@given(
    hnp.arrays(np.float64, 30, elements=st.floats(-1e300, 1e300)),
    st.floats(-1e6, 1e6),
    st.floats(1e-9, 1e6),
)
def test_normalized_scores_are_monotone_within_0_and_1(raw, threshold, scale):
    raw = np.sort(raw)
    normalized = normalize_scores(raw, threshold, scale)
    assert normalized.dtype == np.float64
    assert ((normalized >= 0) & (normalized <= 1)).all()
    assert (np.diff(normalized) >= 0).all()
    assert normalize_scores(threshold, threshold, scale) == 0.5
    assert (normalized[raw > threshold] >= 0.5).all()
    assert (normalized[raw < threshold] <= 0.5).all()


def test_normalized_scores_keep_scores_apart_over_a_wide_range():
    z = np.concatenate([-np.geomspace(1e6, 1e-3, 1000), np.geomspace(1e-3, 1e6, 1000)])
    raw = 40 + 3 * np.concatenate([z, z + 1e-3])
    normalized = normalize_scores(raw, 40, 3)
    assert len(np.unique(normalized)) == len(np.unique(raw))
    assert normalize_scores(np.array([43.0, 52.0, 37.0]), 40, 3) == pytest.approx([0.75, 0.9, 0.25])
    assert normalize_scores(np.float64(1), 0, 1).shape == ()


def test_scale_is_the_interquartile_range_with_a_floor():
    scores = np.random.default_rng(0).normal(size=1000)
    assert score_scale(scores) == pytest.approx(np.subtract(*np.percentile(scores, [75, 25])))
    assert score_scale(np.full(5, 300.0)) == pytest.approx(3e-4)
    assert score_scale(np.zeros(5)) == 1.0
    with pytest.raises(ValueError, match="must hold at least one score"):
        score_scale(np.array([]))
    with pytest.raises(ValueError, match="scale must be positive but got 0"):
        normalize_scores(1.0, 0.0, 0.0)
