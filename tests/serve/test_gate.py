from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from autoad.models.parity import MAP_STEP, ParityPicture
from autoad.serve.gate import Answer, Ruler, find_discrepancies

RULER = Ruler(tolerance=1e-4, score_unit=2.0, map_unit=4.0, threshold=10.0)


def picture(score: float, *, role: str = "calibration", peak: float | None = 5.0) -> ParityPicture:
    anomaly_map = None if peak is None else np.linspace(0, peak, 64, dtype=np.float32).reshape(8, 8)
    return ParityPicture(
        sha256=f"{int(1000 * score):064x}",
        role=role,
        label="good",
        data=b"",
        score=score,
        is_anomalous=score > RULER.threshold,
        anomaly_map=anomaly_map,
    )


def answer(index: int, of: ParityPicture, *, score: float | None = None, shift: float = 0.0) -> Answer:
    whole = None
    if of.anomaly_map is not None:
        whole = np.kron(of.anomaly_map, np.ones((MAP_STEP, MAP_STEP), np.float32))
        whole[4, 4] += np.float32(shift)
    said = of.score if score is None else score
    return Answer(index, said, said > RULER.threshold, whole, "r1", 1)


def test_equal_answers_pass() -> None:
    pictures = [picture(1.0), picture(12.0, role="selection"), picture(3.0, peak=None)]
    assert find_discrepancies(RULER, pictures, [answer(i, one) for i, one in enumerate(pictures)]) == []


@pytest.mark.parametrize(("shift", "refused"), [(1.9e-4, False), (-1.9e-4, False), (2.1e-4, True), (-2.1e-4, True)])
def test_a_score_may_move_by_the_tolerance_in_units(shift: float, refused: bool) -> None:
    one = picture(5.0)
    found = find_discrepancies(RULER, [one], [answer(0, one, score=5.0 + shift)])
    assert [item.what for item in found] == (["score"] if refused else [])
    if refused:
        assert found[0].difference == pytest.approx(abs(shift) / 2)
        assert one.sha256[:12] in str(found[0])
        assert "replica r1" in str(found[0])


def test_a_score_that_is_no_number_differs_infinitely() -> None:
    one = picture(5.0)
    assert find_discrepancies(RULER, [one], [answer(0, one, score=math.nan)])[0].difference == math.inf


@pytest.mark.parametrize(("shift", "refused"), [(3.9e-4, False), (4.1e-4, True)])
def test_a_map_may_move_by_the_tolerance_in_its_own_units(shift: float, refused: bool) -> None:
    one = picture(5.0)
    found = find_discrepancies(RULER, [one], [answer(0, one, shift=shift)])
    assert [item.what for item in found] == (["map"] if refused else [])


def test_a_map_that_is_missing_or_of_another_size_is_refused() -> None:
    one = picture(5.0)
    without = dataclasses.replace(answer(0, one), anomaly_map=None)
    small = dataclasses.replace(answer(0, one), anomaly_map=np.zeros((8, 8), np.float32))
    found = find_discrepancies(RULER, [one], [without, small])
    assert [(item.what, item.difference) for item in found] == [("map", math.inf)] * 2


def test_a_verdict_may_differ_only_at_the_threshold() -> None:
    near, far = picture(10.0 + 1e-4), picture(10.1)
    said = [dataclasses.replace(answer(i, one), is_anomalous=False) for i, one in enumerate([near, far])]
    found = find_discrepancies(RULER, [near, far], said)
    assert [(item.what, item.sha256) for item in found] == [("verdict", far.sha256)]


def test_the_largest_difference_comes_first() -> None:
    pictures = [picture(1.0), picture(2.0)]
    said = [answer(0, pictures[0], score=1.01), answer(1, pictures[1], score=2.5)]
    assert [item.sha256 for item in find_discrepancies(RULER, pictures, said)] == [
        pictures[1].sha256,
        pictures[0].sha256,
    ]


def test_where_all_calibration_scores_are_equal_only_equality_will_do() -> None:
    ruler = dataclasses.replace(RULER, score_unit=0.0)
    one = picture(5.0)
    assert find_discrepancies(ruler, [one], [answer(0, one)]) == []
    assert find_discrepancies(ruler, [one], [answer(0, one, score=5.000001)])
