import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoad.evaluation import compare_trials, drawn_per_kind, image_metrics, labelled_weight

LABELS = ["good"] * 30 + ["cutpaste"] * 12 + ["scratch"] * 24 + ["dent"] * 6
SYNTHETIC = np.array([label in ("cutpaste", "scratch") for label in LABELS])


def draw(trials: int, gaps: dict[str, float], seed: int = 0) -> np.ndarray:
    """Scores ``[T, N]`` of defects that lie ``gaps`` above the normals."""
    noise = np.random.default_rng(seed).standard_normal((trials, len(LABELS)))
    return noise + np.array([gaps.get(label, 0.0) for label in LABELS])


def auroc(scores: np.ndarray, label: str) -> float:
    chosen = np.isin(LABELS, ("good", label))
    value = image_metrics(scores[chosen], np.array(LABELS)[chosen] != "good").image_auroc
    assert value is not None
    return value


@given(st.integers(1, 200), st.integers(2, 200))
def test_more_labelled_defects_weigh_more(defects: int, normals: int) -> None:
    weight, more = labelled_weight(defects, normals), labelled_weight(defects + 1, normals)
    assert 0 < weight <= more <= 1
    assert weight == 1 or weight < 0.95


def test_the_ends_of_the_scale() -> None:
    assert labelled_weight(0, 20) == 0
    assert labelled_weight(5, 0) == 0
    assert labelled_weight(1, 20) < 0.35
    assert labelled_weight(20, 20) < 0.9, "not so many that what is drawn has nothing left to say"
    assert labelled_weight(100, 100) == 1
    assert [drawn_per_kind(labelled_weight(defects, 100)) for defects in (0, 5, 20, 100)] == [24, 24, 8, 0]


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_quality_blends_the_aurocs_of_kinds_and_labelled_defects(weight: float) -> None:
    scores = np.round(draw(5, {"cutpaste": 0.5, "scratch": 1.0, "dent": 2.0}), 1)  # with ties
    found = compare_trials(scores, LABELS, SYNTHETIC, weight, repeats=3)
    expected = [
        weight * auroc(row, "dent") + (1 - weight) * (auroc(row, "cutpaste") + auroc(row, "scratch")) / 2
        for row in scores
    ]
    assert found.quality == pytest.approx(expected, abs=1e-12)
    assert found.best == int(np.argmax(expected))
    assert found.behind[found.best] == found.error[found.best] == 0
    assert found.wins.sum() == pytest.approx(1)


def test_the_error_of_a_difference_is_that_of_new_pictures() -> None:
    """Beside the spread of the difference over 400 fresh sets of pictures of the same kind."""
    gaps = {"dent": 1.0}

    def pair(seed: int) -> np.ndarray:
        scores = draw(2, gaps, seed)
        scores[1] = 0.6 * scores[0] + 0.8 * scores[1]  # of the same pictures: what is hard for one is hard for both
        return scores

    fresh = []
    for seed in range(400):
        first, second = pair(seed)
        fresh.append(auroc(first, "dent") - auroc(second, "dent"))
    errors = [max(compare_trials(pair(seed), LABELS, SYNTHETIC, 1.0, seed=seed).error) for seed in range(20)]
    assert np.mean(errors) == pytest.approx(np.std(fresh), rel=0.25)


def test_equal_trials_tie_and_a_much_worse_one_does_not() -> None:
    good, poor = draw(1, {"dent": 3.0}), draw(1, {})
    found = compare_trials(np.concatenate([poor, good, good]), LABELS, SYNTHETIC, 1.0)
    assert found.best == 1, "the first of equals"
    assert found.tied.tolist() == [False, True, True]
    assert found.wins.tolist() == [0, 0.5, 0.5]


def test_what_cannot_be_compared_is_refused() -> None:
    scores = draw(2, {})
    with pytest.raises(ValueError, match="must be good and defective"):
        compare_trials(scores[:, :30], LABELS[:30], SYNTHETIC[:30], 0.0)
    with pytest.raises(ValueError, match="must be good and defective"):
        compare_trials(scores[:, :66], LABELS[:66], SYNTHETIC[:66], 0.5)
    with pytest.raises(ValueError, match="must be good and defective"):
        compare_trials(scores[:, 30:], LABELS[30:], SYNTHETIC[30:], 0.5)


def test_auroc_is_within_a_division_and_labelled_defects_are_drawn_together() -> None:
    """One division's scores lie far above the other's; compared across them nothing would be told apart."""
    rng = np.random.default_rng(0)
    labels = ["good"] * 12 + ["dent"] * 8
    first = rng.standard_normal((3, 20)) + np.array([0.5, 1.5, 2.5])[:, None] * (np.array(labels) != "good")
    both = np.concatenate([first, first + 1000], axis=1)
    none = np.zeros(20, dtype=bool)
    alone = compare_trials(first, labels, none, 1.0)
    found = compare_trials(both, labels * 2, np.tile(none, 2), 1.0, divisions=np.repeat([0, 1], 20))
    np.testing.assert_allclose(found.quality, alone.quality)
    # Normals are drawn anew in each division, defects are not: the error falls, but by less than a square root of two.
    worse = [row for row in range(3) if row != alone.best]
    assert (found.error[worse] < 0.98 * alone.error[worse]).all()
    assert (found.error[worse] > 0.75 * alone.error[worse]).all()
    uneven = [*labels, *labels[:-1], "good"]
    with pytest.raises(ValueError, match="same in all divisions"):
        compare_trials(both, uneven, np.tile(none, 2), 1.0, divisions=np.repeat([0, 1], 20))
