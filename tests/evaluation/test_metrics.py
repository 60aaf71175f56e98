from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn import metrics as sk

from autoad.evaluation import ImageMetrics, image_metrics

BOTH = (
    st.integers(2, 60)
    .flatmap(lambda n: st.tuples(hnp.arrays(np.int64, n, elements=st.integers(0, 12)), hnp.arrays(bool, n)))
    .filter(lambda drawn: drawn[1].any() and not drawn[1].all())
)


@settings(deadline=None)
@given(BOTH)
def test_agrees_with_scikit_learn_with_many_ties(drawn):
    scores, labels = drawn
    ours = image_metrics(scores.astype(np.float64), labels)
    precision, recall, _ = sk.precision_recall_curve(labels, scores)
    best = max(2 * p * r / (p + r) for p, r in zip(precision, recall, strict=True) if p + r > 0)
    assert ours.image_auroc == pytest.approx(sk.roc_auc_score(labels, scores), abs=1e-12)
    assert ours.image_aupr == pytest.approx(sk.average_precision_score(labels, scores), abs=1e-12)
    assert ours.image_f1_max == pytest.approx(best, abs=1e-12)


@settings(deadline=None)
@given(BOTH)
def test_is_unchanged_by_a_monotone_map_of_the_scores(drawn):
    scores, labels = drawn
    assert image_metrics(scores.astype(np.float64), labels) == image_metrics(np.exp(scores) - 3, labels)


@settings(deadline=None)
@given(BOTH, st.randoms(use_true_random=False))
def test_is_unchanged_by_the_order_of_pictures(drawn, random):
    scores, labels = drawn
    order = list(range(len(scores)))
    random.shuffle(order)
    assert image_metrics(scores[order], labels[order]) == image_metrics(scores, labels)


@pytest.mark.parametrize("labels", [[True, True], [False, False], []])
def test_one_kind_of_picture_has_no_metrics(labels):
    assert image_metrics(np.arange(len(labels)), np.array(labels, dtype=bool)) == ImageMetrics(None, None, None)


def test_constant_scores_are_chance():
    ours = image_metrics(np.ones(10), np.arange(10) < 3)
    assert ours == ImageMetrics(image_auroc=0.5, image_aupr=0.3, image_f1_max=pytest.approx(6 / 13))


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([0.0, np.nan], [True, False], "scores must be finite but got nan at index 1"),
        ([np.inf, 0.0], [True, False], "scores must be finite but got inf at index 0"),
        ([[0.0]], [[True]], r"scores must have the shape \[N\]"),
        ([0.0, 1.0], [True], "labels must have the shape"),
        ([0.0, 1.0], [2, 0], "labels must be booleans"),
    ],
)
def test_refuses_what_cannot_be_measured(scores, labels, message):
    with pytest.raises(ValueError, match=message):
        image_metrics(np.array(scores), np.array(labels))
