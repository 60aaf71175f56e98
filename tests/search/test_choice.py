from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, cast

import numpy as np
import pytest

from autoad.data import Picture
from autoad.errors import ArtifactError, UsageError
from autoad.schema import Choice, Metrics, Speed, SubmitRequest, TrialRow
from autoad.search import SearchRequest, champion
from autoad.search.candidate import Candidate
from autoad.search.choice import Limits, choose_trial
from autoad.search.finalists import Division
from autoad.search.plan import make_plan
from autoad.search.selection_scores import SelectionScores
from tests.serve.submitting import write_folder

COUNT = 40


def picture(number: int) -> Picture:
    return Picture(Path(f"{number}.png"), f"{number:064x}", "good" if number < COUNT // 2 else "dent", None, "")


SELECTION = [picture(number) for number in range(COUNT)]
SEPARATED = np.arange(COUNT, dtype=np.float32)
NEARLY = SEPARATED.copy()
NEARLY[[19, 20]] = NEARLY[[20, 19]]  # one pair in 400 the wrong way round
BLIND = np.tile(np.float32([0, 1]), COUNT // 2)


def row(
    trial: int,
    auroc: float,
    latency_ms: float | None,
    *,
    algorithm: str = "dfm",
    mb: float = 1.0,
    origin: Literal["default", "sampler"] = "sampler",
) -> TrialRow:
    metrics = Metrics(image_auroc=auroc)
    return TrialRow(
        trial=trial,
        algorithm=algorithm,
        origin=origin,
        config={},
        status="complete",
        validation=metrics,
        latency_ms=latency_ms,
        model_mb=mb,
    )


@pytest.fixture
def kept(tmp_path: Path) -> SelectionScores:
    kept = SelectionScores(tmp_path)
    for trial, scores in enumerate((SEPARATED, NEARLY, BLIND, NEARLY)):
        kept.keep(trial, scores)
    return kept


def chosen(rows: list[TrialRow], kept: SelectionScores, limits: Limits = Limits()) -> list[int]:  # noqa: B008
    return [one.trial for one in choose_trial(rows, SELECTION, kept, "image_auroc", 1.0, limits, seed=0)[0]]


def test_the_fastest_of_those_that_tie(kept: SelectionScores) -> None:
    rows = [row(0, 1.0, 9.0), row(1, 0.9975, 3.0, algorithm="padim"), row(2, 0.5, 1.0)]
    order, (choice,) = choose_trial(rows, SELECTION, kept, "image_auroc", 1.0, Limits(), seed=0)
    assert [one.trial for one in order] == [1, 0, 2]
    assert (choice.trial, choice.best, choice.tied) == (1, 0, [0, 1])
    assert choice.behind == pytest.approx(1 / 400)
    assert choice.error >= choice.behind
    assert 0 < choice.wins < 0.7
    assert choice.algorithm_wins == choice.wins


def test_speed_makes_up_for_a_hundredth_at_most_however_unsure_the_rest_is(kept: SelectionScores) -> None:
    """Each takes another normal for a defect, so that chance explains much more than the difference."""
    best, behind, less = SEPARATED.copy(), SEPARATED.copy(), SEPARATED.copy()
    best[1] = behind[2] = less[2] = 100
    behind[19] = 24.5  # above 5 of 20 defects
    less[19] = 22.5  # above 3
    for trial, scores in ((0, best), (1, behind), (2, less)):
        kept.keep(trial, scores)
    rows = [row(0, 0.95, 9.0), row(2, 0.9425, 5.0), row(1, 0.9375, 3.0)]
    order, (choice,) = choose_trial(rows, SELECTION, kept, "image_auroc", 1.0, Limits(), seed=0)
    assert choice.error > 0.03
    assert ([one.trial for one in order], choice.tied) == ([2, 0, 1], [0, 2])


def test_the_default_patchcore_stays_unless_it_is_beaten_by_more_than_chance(kept: SelectionScores) -> None:
    """Trial 1 is behind by less than a standard error, 2 by far more."""
    real = [
        dataclasses.replace(one, sha256=f"{n + COUNT:064x}") for n, one in enumerate(SELECTION) if not one.is_normal
    ]
    drawn = [dataclasses.replace(one, synthetic=True) if not one.is_normal else one for one in SELECTION]

    def choose(weight: float, default: int, algorithm: str = "patchcore") -> Choice:
        rows = [row(0, 1.0, 9.0), row(1, 0.9975, 9.0), row(2, 0.5, 9.0), row(3, 0.9975, 2.0)]
        rows[default] = row(default, 0.9, 9.0, algorithm=algorithm, origin="default")
        pictures = drawn if not weight else [*drawn, *real]
        for trial, scores in enumerate((SEPARATED, NEARLY, BLIND, NEARLY)):
            kept.keep(trial, scores if not weight else np.concatenate([scores, scores[COUNT // 2 :]]))
        return choose_trial(rows, pictures, kept, "image_auroc", weight, Limits(), seed=0)[1][0]

    for weight in (0.0, 0.75):
        choice = choose(weight, 1)
        assert (choice.trial, choice.best, choice.kept_default) == (1, 0, True)
        assert 0 < choice.behind <= choice.error
        assert choose(weight, 2).trial == 3, "it is beaten, so speed decides among the others"
    assert (choose(0.85, 1).trial, choose(0.85, 1).kept_default) == (3, False)
    assert choose(0.0, 1, "padim").trial == 3
    assert (choose(0.0, 0).trial, choose(0.0, 0).kept_default) == (0, False), "it is the best itself"


def test_the_default_patchcore_is_judged_again_before_what_is_closer(kept: SelectionScores) -> None:
    drawn = [dataclasses.replace(one, synthetic=True) if not one.is_normal else one for one in SELECTION]
    asked: list[int] = []

    def judge_again(rows: Sequence[TrialRow]) -> list[Division]:
        asked.extend(one.trial for one in rows)
        return []

    rows = [row(0, 1.0, 9.0), row(1, 0.9975, 9.0), row(3, 0.9975, 2.0, algorithm="patchcore", origin="default")]
    choose_trial(rows, drawn, kept, "image_auroc", 0.0, Limits(), seed=0, judge_again=judge_again)
    assert asked == [3, 0, 1]


def test_what_is_about_as_fast_gives_way_to_what_is_better(kept: SelectionScores) -> None:
    assert chosen([row(0, 1.0, 3.5), row(1, 0.9975, 3.0), row(2, 0.5, 1.0)], kept) == [0, 1, 2]


def test_where_nothing_is_timed_the_smaller_one(kept: SelectionScores) -> None:
    assert chosen([row(0, 1.0, None, mb=9.0), row(1, 0.9975, None, mb=2.0)], kept) == [1, 0]


def test_scores_that_are_lost_or_of_other_pictures_only_keep_a_trial_from_tying(
    kept: SelectionScores, tmp_path: Path
) -> None:
    rows = [row(0, 1.0, 9.0), row(1, 0.9975, 3.0), row(3, 0.9975, 3.0), row(7, 0.99, 1.0)]
    (tmp_path / "selection" / "1.npy").write_bytes(b"half")
    kept.keep(3, NEARLY[:-1])
    assert chosen(rows, kept) == [0, 1, 3, 7]
    (tmp_path / "selection" / "0.npy").unlink()
    order, choices = choose_trial(rows, SELECTION, kept, "image_auroc", 1.0, Limits(), seed=0)
    assert ([one.trial for one in order], choices) == ([0, 1, 3, 7], [])


def test_another_objective_is_taken_at_its_word(kept: SelectionScores) -> None:
    rows = [row(0, 1.0, 9.0), row(1, 0.9975, 3.0)]
    order, choices = choose_trial(rows, SELECTION, kept, "aupro", 1.0, Limits(), seed=0)
    assert ([one.trial for one in order], choices) == ([0, 1], [])


def test_trials_beyond_the_limits_and_unfinished_ones_are_left_out(kept: SelectionScores) -> None:
    rows = [row(0, 1.0, 9.0), row(1, 0.9975, 3.0, mb=50.0), row(2, 0.5, 1.0)]
    assert chosen(rows, kept, Limits(latency_ms=5.0)) == [1, 2]
    assert chosen(rows, kept, Limits(memory_mb=10.0)) == [0, 2]
    assert chosen(rows, kept, Limits(latency_ms=0.1)) == []
    assert chosen([row(0, 1.0, 9.0).model_copy(update={"status": "pruned"})], kept) == []


def test_a_limit_says_what_exceeds_it() -> None:
    limits = Limits(5.0, 100.0)
    assert str(limits) == "--max-latency-ms 5 and --max-memory-mb 100"
    assert limits.refusal(latency_ms=5.0, memory_mb=100.0) is None
    assert limits.refusal(latency_ms=None, memory_mb=None) is None
    assert limits.refusal(latency_ms=7.25, memory_mb=1.0) == (
        "takes 7.2 ms a picture, which is more than --max-latency-ms 5"
    )
    assert limits.refusal(latency_ms=1.0, memory_mb=101.0) == "takes 101 MB, which is more than --max-memory-mb 100"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Forty good pictures and three defective ones in MVTec layout."""
    return write_folder(tmp_path / "data", good=40)


def test_the_evidence_follows_from_how_many_defects_are_labelled(folder: Path) -> None:
    few = make_plan(SearchRequest(data=folder, algorithms=("ganomaly",)))
    assert few.evidence == "both"
    assert 0 < few.labelled_weight < 0.5
    none = make_plan(SearchRequest(data=folder / "train" / "good", algorithms=("ganomaly",)))
    assert (none.evidence, none.labelled_weight) == ("synthetic", 0)
    other = make_plan(SearchRequest(data=folder, algorithms=("ganomaly",), objective="image_aupr"))
    assert other.evidence == "labelled", "another metric has no common scale for drawn and real defects"


def test_limits_are_refused_where_they_make_no_sense(folder: Path) -> None:
    for wrong in (0, -1, float("inf"), float("nan")):
        with pytest.raises(UsageError, match="--max-latency-ms must be greater than 0"):
            make_plan(SearchRequest(data=folder, max_latency_ms=wrong))
    with pytest.raises(UsageError, match="leave out --max-memory-mb or --deterministic"):
        make_plan(SearchRequest(data=folder, max_memory_mb=900, deterministic=True, seconds=None))
    with pytest.raises(ValueError, match="leave the limits out"):
        SubmitRequest(dataset="bottle", deterministic=True, max_latency_ms=5)
    plan = make_plan(SearchRequest(data=folder, algorithms=("ganomaly",), max_latency_ms=5, max_memory_mb=900))
    assert plan.limits == Limits(5, 900)


class Made:
    """Stands for a fitted model that calibrates, and that nobody may test."""

    manifest = None

    def calibrate(self, *_: object) -> tuple[Made, None, list[float]]:
        return self, None, [0.0]


@pytest.mark.parametrize(
    ("speed", "limits", "said"),
    [
        (Speed(latency_ms=9, pictures_per_second=1, peak_memory_mb=1), Limits(latency_ms=5), "takes 9.0 ms"),
        (Speed(latency_ms=1, pictures_per_second=1, peak_memory_mb=901), Limits(memory_mb=900), "takes 901 MB"),
        (None, Limits(latency_ms=5), "cannot be held against --max-latency-ms 5: no such process"),
    ],
)
def test_a_finished_model_that_costs_too_much_is_refused_before_it_is_tested(
    speed: Speed | None, limits: Limits, said: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(*_: object, **__: object) -> Speed:
        if speed is None:
            raise ArtifactError("no such process")
        return speed

    monkeypatch.setattr(champion, "fit_model", lambda *_, **__: Made())
    monkeypatch.setattr(champion, "write_manifest", lambda *_: None)
    monkeypatch.setattr(champion, "measure_speed", measure)
    monkeypatch.setattr(champion, "_test", lambda *_: pytest.fail("the test pictures were looked at"))
    nothing: Any = SimpleNamespace(made_of=lambda *_: None)
    dataset: Any = SimpleNamespace(hash="h", counts=dict)
    with pytest.raises(champion.RefitError, match=said):
        champion.Finisher(
            cast(Any, None), make_plan(SearchRequest(data=folder, algorithms=("ganomaly",))).roles,
            dataset, name="bottle", search="s", evidence="labelled", threshold="conformal", rate=0.1, limits=limits,
            registry=nothing, scratch_dir=tmp_path, scores_file=tmp_path / "scores", default_config={}, threads=1,
            say=lambda _: None, note=lambda _: None,
        ).finish(Candidate((row(0, 1.0, 3.0),)))  # fmt: skip
