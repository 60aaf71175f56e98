"""Trials that tie are judged again on other divisions of the good pictures, and only then one is chosen."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from autoad.algorithms import get_algorithm
from autoad.data import Picture
from autoad.features import FeatureStore
from autoad.models import load_inputs
from autoad.schema import TrialRow
from autoad.search.choice import Limits, choose_trial
from autoad.search.course import _task
from autoad.search.finalists import Division, Finalists, other_divisions
from autoad.search.plan import SearchRequest, make_plan
from autoad.search.selection_scores import SelectionScores
from autoad.search.trial import TrialTask
from autoad.settings import Settings
from tests.search.test_choice import SELECTION, SEPARATED, row


def pictures(count: int, label: str = "good") -> tuple[Picture, ...]:
    return tuple(Picture(Path(f"{label}{n}.png"), f"{label}{n}", label, None, "") for n in range(count))


@pytest.fixture(scope="module")
def task(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> TrialTask:
    plan = make_plan(SearchRequest(data=demo, algorithms=("dfkde", "padim"), trials=2, seconds=None))
    task = _task(plan, plan.roles.selection, Settings(data_dir=tmp_path_factory.mktemp("state")))
    return dataclasses.replace(task, labelled_weight=1.0)


@pytest.fixture
def rows() -> list[TrialRow]:
    dfkde = get_algorithm("dfkde").Config(stages=(3,))
    return [row(n, 0.9, 3.0, algorithm="dfkde").model_copy(update={"config": vars(dfkde)}) for n in (4, 7)]


def test_divisions_use_each_picture_once_as_selection_normal() -> None:
    train, selection = pictures(40), (*pictures(52)[40:], *pictures(3, "dent"))
    divisions = other_divisions(train, selection)
    assert [len(normals) for _, normals in divisions] == [12, 12]
    drawn = [picture for _, normals in divisions for picture in normals]
    assert len(set(drawn)) == 24
    assert set(drawn) <= set(train)
    for learnt, normals in divisions:
        assert {*learnt, *normals} == set(pictures(52))
        assert not {*learnt} & {*normals}
        assert len(learnt) == 40


@pytest.mark.parametrize(("train", "normals", "found"), [(40, 30, 0), (40, 29, 1), (8, 0, 0), (3, 2, 1), (3, 4, 0)])
def test_many_normals_need_no_other_division_and_few_pictures_allow_none(train: int, normals: int, found: int) -> None:
    assert len(other_divisions(pictures(train), pictures(100)[-normals:] if normals else ())) == found


def test_each_is_fitted_without_the_normals_that_it_is_judged_on(
    task: TrialTask, rows: list[TrialRow], tmp_path: Path
) -> None:
    said: list[str] = []
    divisions = Finalists(task, tmp_path, None, 1, said.append).judge_again(rows)
    assert len(divisions) == 2
    assert "2 trials are close" in said[0]
    labelled = [picture for picture in task.selection if not picture.is_normal]
    store = FeatureStore(task.features_dir)
    for division, (train, normals) in zip(divisions, other_divisions(task.train, task.selection), strict=True):
        assert division.selection == (*normals, *labelled)
        detector = get_algorithm("dfkde")(get_algorithm("dfkde").Config(stages=(3,)), seed=task.seed)
        for _ in detector.fit(load_inputs(store, train, detector.needs, task.engine)):
            pass
        asked = load_inputs(store, division.selection, detector.needs, task.engine)
        expected = torch.cat([detector.predict(asked[i : i + 1]).scores for i in range(len(division.selection))])
        for trial in (4, 7):
            np.testing.assert_allclose(division.scores[trial], expected, rtol=1e-5, atol=1e-6)


def test_drawn_defects_are_on_the_new_normals_and_do_not_stay(
    task: TrialTask, rows: list[TrialRow], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def draw(normals: Sequence[Picture], folder: Path, *, per_kind: int, seed: int) -> tuple[Picture, ...]:
        folder.mkdir()
        assert (per_kind, seed) == (24, task.seed)
        return tuple(Picture(one.path, one.sha256, "scar", None, "", synthetic=True) for one in normals)

    monkeypatch.setattr("autoad.search.finalists.draw_defects", draw)
    monkeypatch.setattr(Finalists, "_score", lambda _, row, train, selection: np.zeros(len(selection), np.float32))
    drawing = TrialTask(**vars(task) | {"labelled_weight": 0.5})
    for division in Finalists(drawing, tmp_path, None, 1, str).judge_again(rows):
        drawn = [picture for picture in division.selection if picture.synthetic]
        normals = [picture for picture in division.selection if picture.is_normal and not picture.synthetic]
        assert [one.path for one in drawn] == [one.path for one in normals]
    assert not list(tmp_path.iterdir())


def test_time_is_kept_to_and_one_alone_is_not_judged(task: TrialTask, rows: list[TrialRow], tmp_path: Path) -> None:
    long = [one.model_copy(update={"seconds": 10.0}) for one in rows]
    for seconds, count in ((19.0, 0), (39.0, 1), (400.0, 2)):
        assert len(Finalists(task, tmp_path, seconds, 1, str).judge_again(long)) == count
    short = [one.model_copy(update={"seconds": 1e-4}) for one in rows]
    assert len(Finalists(task, tmp_path, 1e-3, 1, str).judge_again(short)) == 1, "the first took longer than expected"
    assert Finalists(task, tmp_path, None, 1, str).judge_again(rows[:1]) == []


def test_what_cannot_be_fitted_again_is_left_out(task: TrialTask, rows: list[TrialRow], tmp_path: Path) -> None:
    said: list[str] = []
    broken = rows[1].model_copy(update={"config": rows[1].config | {"stages": (9,)}})
    for division in Finalists(task, tmp_path, None, 1, said.append).judge_again([rows[0], broken]):
        assert list(division.scores) == [4]
    assert "trial 7 (dfkde) could not be judged again" in said[1]


def test_the_mean_over_divisions_decides(tmp_path: Path) -> None:
    """Both separate the first division's pictures; of another's, only the slower one does."""
    kept = SelectionScores(tmp_path)
    kept.keep(0, SEPARATED)
    kept.keep(1, SEPARATED)
    rows = [row(0, 1.0, 9.0), row(1, 1.0, 3.0)]
    asked: list[int] = []

    def again(ties: Sequence[TrialRow]) -> list[Division]:
        asked.extend(one.trial for one in ties)
        return [Division(tuple(SELECTION), {0: SEPARATED, 1: -SEPARATED})]

    order, (choice,) = choose_trial(rows, SELECTION, kept, "image_auroc", 1.0, Limits(), seed=0)
    assert ([one.trial for one in order], choice.divisions) == ([1, 0], 1)
    order, (choice,) = choose_trial(rows, SELECTION, kept, "image_auroc", 1.0, Limits(), seed=0, judge_again=again)
    assert asked == [0, 1]
    assert [one.trial for one in order] == [0, 1]
    assert (choice.trial, choice.tied, choice.divisions, choice.wins) == (0, [0], 2, 1.0)


def test_one_of_two_that_is_left_does_not_win_by_that(tmp_path: Path) -> None:
    kept = SelectionScores(tmp_path)
    kept.keep(0, SEPARATED)
    kept.keep(1, SEPARATED)
    rows = [row(0, 1.0, 9.0), row(1, 1.0, 3.0)]
    order, (choice,) = choose_trial(
        rows, SELECTION, kept, "image_auroc", 1.0, Limits(), seed=0,
        judge_again=lambda _: [Division(tuple(SELECTION), {0: SEPARATED})],
    )  # fmt: skip
    assert ([one.trial for one in order], choice.divisions) == ([1, 0], 1)
