"""What the end of a search says."""

from __future__ import annotations

from typing import Any

import pytest

from autoad.console import leaderboard_table, out, print_result, tables
from autoad.schema import Champion, Choice, DatasetSummary, Metrics, SearchResult, TestMetrics, TrialRow
from tests.choices import ENSEMBLE, KEPT_DEFAULT

BOUND = {"false_positive_rate_upper": 0.174, "smallest_false_positive_rate": 1 / 13}
PIXELS = {"pixel_false_positive_rate": 0.08, "pixel_false_positive_rate_upper": 0.2}


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(out, "width", 200)


def shown(capsys: pytest.CaptureFixture[str], **changes: Any) -> list[str]:
    """The lines about the thresholds of a champion that was calibrated so."""
    champion: dict[str, Any] = {
        "trial": 0, "algorithm": "dfm", "config": {}, "validation": Metrics(), "threshold": 1.5, "model": "",
        "false_positive_rate": 0.08, "test": TestMetrics(false_positive_rate=0.125), "default_patchcore": None,
        "difference": None, "speed": None,
    }  # fmt: skip
    counts = {"good": 12, "defective": 8}
    roles = dict.fromkeys(("train", "selection", "calibration", "test"), counts)
    result = SearchResult(
        search_id="5ea4c4", name="made", status="complete", objective="image_auroc", seed=0, seconds=1.0,
        dataset=DatasetSummary(path="x", layout="mvtec", hash="h", counts=counts, roles=roles), evidence="labelled",
        engine="torch float32", notes=[], champion=Champion(**champion | changes), leaderboard=[],
    )  # fmt: skip
    print_result(result)
    return [line for line in capsys.readouterr().out.splitlines() if "rate" in line or "threshold" in line]


def test_a_conformal_threshold_is_told_with_its_bound_and_the_smallest_rate(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(capsys, **BOUND, **PIXELS, pixel_threshold_method="conformal") == [
        "threshold 1.5 (conformal): at most 8.0% of good pictures above it on average; by this calibration at most "
        "17.4% of good ones (90 % bound); on the test pictures 12.5%",
        "threshold of pixels (conformal): at most 8.0% of good pictures with any region on average; by this "
        "calibration at most 20.0% of good ones (90 % bound)",
        "smallest rate that so many calibration pictures can guarantee: 7.7%",
    ]


def test_the_best_f1_is_told_with_the_share_of_calibration_pictures(capsys: pytest.CaptureFixture[str]) -> None:
    told = shown(capsys, **BOUND, **PIXELS, threshold_method="f1-max", pixel_threshold_method="f1-max")
    assert told[:2] == [
        "threshold 1.5 (f1-max): 8.0% of the calibration pictures above it; by this calibration at most 17.4% of good "
        "ones (nearly a 90 % bound: they chose it, too); on the test pictures 12.5%",
        "threshold of pixels (f1-max): 8.0% of the calibration pictures with any region; by this calibration at most "
        "20.0% of good ones (nearly a 90 % bound: they chose it, too)",
    ]


def test_of_a_champion_from_before_the_bound_was_known_nothing_is_invented(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(capsys) == [
        "threshold 1.5 (conformal): at most 8.0% of good pictures above it on average; on the test pictures 12.5%"
    ]


def test_the_leaderboard_shows_what_ranked_it_where_that_is_more_than_labelled_defects() -> None:
    plain = TrialRow(trial=0, algorithm="dfm", config={}, status="complete", validation=Metrics(image_auroc=0.75))
    plain = plain.model_copy(update={"objective": 0.75})
    both = plain.model_copy(update={"objective": 0.5, "by_kind": {"scratch": 0.25}})
    assert "objective" not in [column.header for column in leaderboard_table([plain]).columns]
    table = leaderboard_table([plain, both])
    shown = next(column for column in table.columns if column.header == "objective")
    assert list(shown.cells) == ["0.750", "0.500"]


def test_several_divisions_are_told() -> None:
    choice = Choice(
        trial=1, labelled_weight=0, best=1, behind=0, error=0.01, tied=[1], wins=0.5, algorithm_wins=0.75, divisions=3
    )
    assert "close trials were judged on 3 divisions of the good pictures" in tables._chosen(choice)
    assert "divisions" not in tables._chosen(choice.model_copy(update={"divisions": 1}))


def test_a_default_that_was_kept_is_told() -> None:
    assert tables._chosen(KEPT_DEFAULT) == (
        "chosen: trial 1, PatchCore's default fit, which the best, trial 7, does not beat by more than chance (0.020 ± "
        "0.030 behind); best in 25% of resamplings, its algorithm in 50%"
    )


def test_an_ensemble_is_told() -> None:
    assert tables._chosen(ENSEMBLE) == (
        "chosen: the mean of trials 7, 2, which is better than the best alone, trial 7 (0.030 ± 0.010 ahead); best in "
        "50% of resamplings"
    )
