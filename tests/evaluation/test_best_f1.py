from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import f1_score

from autoad.errors import CalibrationError
from autoad.evaluation import BestF1, measured_threshold

ANY = st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False)
SCORES = st.one_of(st.integers(-3, 3).map(float), ANY)


def best(anomalous, *normal):
    found = BestF1(anomalous)
    for part in normal:
        found.add(part)
    return found.threshold


def f1_and_alarms(threshold, anomalous, normal):
    """F1, and minus the number of false alarms."""
    called = np.concatenate([anomalous, normal]) > threshold
    labels = np.repeat([True, False], [len(anomalous), len(normal)])
    return round(f1_score(labels, called, zero_division=0), 12), -int((normal > threshold).sum())


@settings(deadline=None)
@given(st.lists(SCORES, min_size=1, max_size=12), st.lists(SCORES, max_size=20), st.randoms())
def test_no_threshold_has_a_better_f1_or_the_same_with_fewer_false_alarms(anomalous, normal, random):
    found = best(anomalous, normal)
    ours, theirs = np.array(anomalous), np.array(normal)
    every = np.unique(np.concatenate([ours, theirs]))
    candidates = [*every, *(every[1:] / 2 + every[:-1] / 2), np.nextafter(every[0], -np.inf)]
    assert f1_and_alarms(found, ours, theirs) == max(f1_and_alarms(one, ours, theirs) for one in candidates)
    # Maps are compared in float32.
    assert ((every.astype(np.float32) > np.float32(found)) == (every > found)).all()
    cut = random.randint(0, len(normal))
    random.shuffle(anomalous)
    assert best(anomalous, normal[cut:], normal[:cut]) == found, "in whatever order and parts"


def test_it_lies_midway_between_the_scores_that_it_parts():
    assert best([4.0, 5.0], [1.0, 2.0]) == 3.0
    assert best([4.0, 1.0, 5.0], [2.0, 0.0]) == 0.5, "finding all three is worth a false alarm"
    assert best([2.0, 2.0], [2.0, 1.0]) == 1.5, "what ties is called the same"
    assert best([4.0, 1.0], [2.0, 2.0, 3.0, 3.0]) == 3.5
    neighbours = np.nextafter(np.float32(1), np.float32(2)), np.float32(1)
    assert best(neighbours[:1], neighbours[1:]) == 1.0, "where nothing lies between, at the lower one"


def test_of_equal_f1_it_is_the_one_with_fewer_false_alarms():
    # Above 8.5: one of two found, no alarm, F1 2/3. Above 0.5: both found, two alarms, F1 2/3.
    assert best([9.0, 1.0], [8.0, 7.0]) == 8.5


def test_where_all_are_best_called_anomalous_it_lies_just_below_the_lowest():
    assert best([1.0]) == np.nextafter(np.float32(1), np.float32(0))
    assert best([1.0], [5.0]) == np.nextafter(np.float32(1), np.float32(0))


def test_without_anything_to_find_there_is_no_f1():
    with pytest.raises(CalibrationError, match="needs at least one labelled defect but got none"):
        BestF1([])
    with pytest.raises(ValueError, match="anomalous must be finite"):
        BestF1([np.inf])
    with pytest.raises(ValueError, match="normal must be finite"):
        BestF1([1.0]).add([np.nan])


@pytest.mark.parametrize(
    ("normal", "defects", "apart"), [(19, 5, 2), (19, 19, 1), (50, 20, 2), (50, 5, 1), (100, 10, 3)]
)
def test_the_bound_covers_nearly_as_often_as_that_of_a_threshold_that_was_given(normal, defects, apart):
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(2000):
        scores = rng.normal(size=normal)
        threshold = measured_threshold(best(rng.normal(apart, size=defects), scores), scores)
        covered.append(stats.norm.sf(threshold.value) <= threshold.rate_upper)
    assert np.mean(covered) >= 0.83
