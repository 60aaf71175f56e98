from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

import autoad.search
from autoad.cli import app
from autoad.evaluation import conformal_threshold
from autoad.report.material import gather
from autoad.report.words import alarm_chance, answer, caveats, duration, percent, raw_score, repeat_command, signed
from autoad.schema import Champion, ChampionMember, Choice, Difference, SearchResult
from autoad.search import SearchRequest
from autoad.settings import get_settings
from tests.choices import ENSEMBLE, KEPT_DEFAULT
from tests.report.conftest import Made, rows_of


def titles(result: SearchResult) -> list[str]:
    return [caveat.title for caveat in caveats(gather(result, get_settings()))]


def changed(result: SearchResult, **changes: Any) -> SearchResult:
    assert result.champion is not None
    return result.model_copy(update={"champion": result.champion.model_copy(update=changes)})


def test_numbers_read_as_people_say_them() -> None:
    assert [raw_score(value) for value in (0.98321, 12361.4, -7948.6, 1.5)] == ["0.9832", "12361", "-7949", "1.5"]
    assert [signed(value) for value in (0.1, -0.0512)] == ["+0.100", "−0.051"]
    shares = [percent(value).replace("\N{NO-BREAK SPACE}", " ") for value in (0.05, 1 / 13, 1.0, 0)]
    assert shares == ["5 %", "7.7 %", "100 %", "0 %"]
    assert [duration(value) for value in (0.2, 59, 60, 61, 1200, 3725)] == [
        *("0 s", "59 s", "1 min", "1 min 1 s", "20 min", "1 h 2 min")
    ]


def test_the_answer_says_what_was_measured(made: Made) -> None:
    result = made()
    champion = result.champion
    assert champion is not None
    which, beside, threshold = answer(gather(result, get_settings()))
    assert f"image AUROC of {champion.test.image_auroc:.3f}" in which
    assert "15 good and 15 defective" in which
    assert "not clearly different from the untuned default PatchCore" in beside
    scores = [s for s in gather(result, get_settings()).scores if s.model == "champion" and s.role == "test"]
    caught = sum(s.score > 1.5 for s in scores if s.label == "scratch")
    alarms = sum(s.score > 1.5 for s in scores if s.label == "good")
    assert f"found {caught} of 15 defects with {alarms} of 15 good" in threshold
    better = changed(result, difference=Difference(image_auroc=0.1, low=0.02, high=0.2))
    assert "better than the untuned" in answer(gather(better, get_settings()))[1]


@pytest.mark.parametrize(
    ("change", "title"),
    [
        ({"difference": Difference(image_auroc=0.01, low=-0.1, high=0.1)}, "No clear gain over the default"),
        ({"difference": Difference(image_auroc=-0.3, low=-0.4, high=-0.2)}, "The default PatchCore tested better"),
        ({"false_positive_rate": 0.001}, "More false alarms than promised"),
        ({"threshold": 1e9}, "Most defects are missed at this threshold"),
    ],
)
def test_each_limit_of_the_champion_is_told_only_where_it_holds(made: Made, change: Any, title: str) -> None:
    sound = {
        "difference": Difference(image_auroc=0.1, low=0.02, high=0.2),
        "false_positive_rate": 0.99,
    }
    result = changed(made(), **sound)
    assert title not in titles(result)
    limited = changed(result, **change)
    if "threshold" in change:
        material = gather(limited, get_settings())
        object.__setattr__(
            material, "scores", tuple(s.__class__(**vars(s) | {"is_anomalous": False}) for s in material.scores)
        )
        assert title in [caveat.title for caveat in caveats(material)]
    else:
        assert title in titles(limited)


def test_what_the_threshold_promises_is_told_by_its_method(made: Made) -> None:
    result = made()

    def told(**changes: Any) -> str:
        text = answer(gather(changed(result, **changes), get_settings()))[2]
        return text.replace("\N{NO-BREAK SPACE}", " ")

    assert "on average at most 7.7 % of good pictures do, and on the test" in told(), "saved before the bound was known"
    bound = {"false_positive_rate_upper": 0.174}
    assert "(at most 17.4 % by a 90 % bound on what this calibration realises), and" in told(**bound)
    best = bound | {"threshold_method": "f1-max"}
    assert "best F1 on labelled defects and calibration pictures, of which 7.7 % do (at most 17.4 %" in told(**best)
    unsure, many = "The threshold promises no rate of false alarms", "More false alarms than expected"
    assert unsure not in titles(changed(result, **bound))
    assert unsure in titles(changed(result, **best))
    assert many not in titles(changed(result, **best | {"false_positive_rate_upper": 0.99}))
    exceeded = titles(changed(result, **best | {"false_positive_rate_upper": 0.001}))
    assert many in exceeded
    assert "More false alarms than promised" not in exceeded


def test_luck_in_selection_few_pictures_and_perfection_are_told(made: Made) -> None:
    result = made()
    champion = result.champion
    assert champion is not None
    assert champion.test.image_auroc is not None
    test = champion.test.model_copy(update={"image_auroc": 0.9, "image_auroc_low": 0.85, "image_auroc_high": 0.95})

    def selected(value: float) -> Champion:
        validation = champion.validation.model_copy(update={"image_auroc": value})
        return champion.model_copy(update={"validation": validation, "test": test})

    curse = "Better in selection than in the test"
    assert curse not in titles(result.model_copy(update={"champion": selected(0.94)}))
    assert curse in titles(result.model_copy(update={"champion": selected(0.96)}))
    assert "Few test pictures" in titles(result)
    assert "A perfect score has no interval" not in titles(result)
    perfect = test.model_copy(update={"image_auroc": 1.0, "image_auroc_low": 1.0, "image_auroc_high": 1.0})
    assert "A perfect score has no interval" in titles(changed(result, test=perfect))


def test_heatmaps_worse_than_the_defaults_are_told(made: Made) -> None:
    result = made()
    champion = result.champion
    assert champion is not None
    assert champion.default_patchcore is not None
    default = champion.default_patchcore.model_copy(update={"aupro": 0.8, "aupro_low": 0.75, "aupro_high": 0.85})
    for high, is_told in ((0.7, True), (0.76, False)):
        test = champion.test.model_copy(update={"aupro": 0.6, "aupro_low": 0.5, "aupro_high": high})
        told = titles(changed(result, test=test, default_patchcore=default))
        assert ("The default shows better where a defect is" in told) == is_told


def test_synthetic_evidence_comes_first_and_failures_are_counted(made: Made) -> None:
    failed = [row.model_copy(update={"status": "failed"}) for row in rows_of(10)[:4]]
    result = made(champion=False, rows=[*failed, *rows_of(10)[4:]], evidence="synthetic")
    assert titles(result) == ["Chosen by synthetic defects", "Many trials failed"]


@pytest.mark.parametrize(("calibrated", "rate"), [(12, 1 / 13), (39, 0.05), (100, 0.1)])
def test_the_chance_of_false_alarms_is_that_of_drawing_them(calibrated: int, rate: float) -> None:
    rng = np.random.default_rng(0)
    alarms = []
    for _ in range(4000):
        threshold = conformal_threshold(rng.normal(size=calibrated), rate).value
        alarms.append((rng.normal(size=10) > threshold).sum())
    for least in (1, 2, 3):
        assert alarm_chance(least, 10, rate, calibrated) == pytest.approx(np.mean(np.array(alarms) >= least), abs=0.03)


def test_the_command_line_asks_for_the_same_search(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[SearchRequest] = []

    def remember(request: SearchRequest, _: object) -> None:
        asked.append(request)
        raise typer.Exit(0)

    monkeypatch.setattr(autoad.search, "run_search", remember)
    requests = [
        SearchRequest(data=Path("a folder")),
        SearchRequest(data=Path("x"), seconds=None, trials=7, algorithms=("padim", "stfpm"), objective="aupro", seed=4),
        SearchRequest(data=Path("x"), seconds=None, deterministic=True, max_epochs=2, false_positive_rate=0.1),
        SearchRequest(data=Path("$(x)"), seconds=95.5, trials=3, space=Path("space.yaml"), engine="torch"),
        SearchRequest(data=Path("x"), warm_start=False),
        SearchRequest(data=Path("x"), threshold="f1-max"),
    ]
    for request in requests:
        command = repeat_command({**vars(request), "name": "taken"}, request.seed)
        assert command is not None
        assert CliRunner().invoke(app, shlex.split(command)[1:]).exit_code == 0, command
    assert asked == requests
    assert repeat_command({}, 0) is None


@pytest.mark.parametrize(("weight", "expected"), [(0.6, True), (0.85, False)])
def test_few_labelled_defects_are_a_caveat_and_many_beside_drawn_ones_are_not(
    made: Made, weight: float, expected: bool
) -> None:
    choice = Choice(trial=1, labelled_weight=weight, best=1, behind=0, error=0, tied=[1], wins=1, algorithm_wins=1)
    result = made(evidence="both").model_copy(update={"choice": choice})
    told = {one.title: one.text for one in caveats(gather(result, get_settings()))}
    assert ("which counted for 40%" in told.get("Chosen by few labelled defects", "")) == expected
    assert ("Chosen by few labelled defects" in told) == expected


def test_a_default_that_was_kept_is_told(made: Made) -> None:
    told = answer(gather(made().model_copy(update={"choice": KEPT_DEFAULT}), get_settings()))
    assert told[-1].startswith(
        "It was chosen because it is PatchCore's default fit, and trial 7, the best on the selection pictures, does "
        "not beat it by more than chance (0.020 in image AUROC, standard error 0.030); had these pictures"
    )


def test_an_ensemble_is_told_as_one(made: Made) -> None:
    members = [ChampionMember(trial=n, algorithm=name, config={}) for n, name in ((7, "dfm"), (2, "padim"))]
    result = changed(made(), trial=7, algorithm="dfm + padim", members=members)
    told = answer(gather(result.model_copy(update={"choice": ENSEMBLE}), get_settings()))
    assert told[0].startswith("Use dfm + padim (trials 7, 2): on ")
    assert told[-1] == (
        "It is the mean of what these trials say, chosen because it is better on the selection pictures than trial 7, "
        "the best alone, by more than chance (0.030 in image AUROC, standard error 0.010); had these pictures been "
        "drawn again, it would have been the best in 50% of all cases."
    )
