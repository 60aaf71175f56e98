"""How the champion's thresholds are found: what is refused, what is decided, and what reaches the calibration."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from autoad.data import Picture, Roles
from autoad.errors import UsageError
from autoad.schema import SubmitRequest, TrialRow
from autoad.search import SearchRequest, champion
from autoad.search.candidate import Candidate
from autoad.search.choice import Limits
from autoad.search.plan import make_plan
from autoad.serve import searching
from tests.serve.submitting import write_folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Forty good pictures, six of which calibrate, and three cracked ones, one of which selects."""
    return write_folder(tmp_path / "pictures", good=40)


def request(data: Path, **changes: Any) -> SearchRequest:
    return SearchRequest(data=data, algorithms=("ganomaly",), **changes)


def test_f1_max_needs_a_labelled_defect_and_keeps_to_no_rate(pictures: Path) -> None:
    plan = make_plan(request(pictures, threshold="f1-max"))
    calibrating = len(plan.roles.calibration)
    assert (plan.threshold, plan.rate) == ("f1-max", 1 / (calibrating + 1)), "of a pixel threshold without masks"
    assert not [note for note in plan.notes if "guarantee" in note]
    plain = make_plan(request(pictures))
    assert (plain.threshold, plain.rate) == ("conformal", plan.rate)
    assert [note for note in plain.notes if "guarantee" in note]
    with pytest.raises(UsageError, match="keeps to no rate: leave out --false-positive-rate"):
        make_plan(request(pictures, threshold="f1-max", false_positive_rate=0.5))
    with pytest.raises(UsageError, match=r"unknown threshold 'f1'.*conformal.*f1-max"):
        make_plan(request(pictures, threshold="f1"))
    with pytest.raises(UsageError, match="needs a labelled defect among the selection pictures but there is none"):
        make_plan(request(pictures / "train" / "good", threshold="f1-max"))


def test_a_single_defect_tests_and_does_not_set_a_threshold(pictures: Path) -> None:
    for index in (1, 2):
        (pictures / "test" / "crack" / f"{index}.png").unlink()
        (pictures / "ground_truth" / "crack" / f"{index}_mask.png").unlink()
    with pytest.raises(UsageError, match="needs a labelled defect among the selection pictures"):
        make_plan(request(pictures, threshold="f1-max"))


class ReachedError(Exception):
    """What was asked of the calibration."""


class Recording:
    """A model that tells what it is calibrated with."""

    def calibrate(self, *arguments: Any) -> None:
        raise ReachedError(*arguments)


@pytest.mark.parametrize("method", ["conformal", "f1-max"])
def test_the_calibration_gets_real_defects_of_the_selection_and_nothing_of_the_test(
    method: Any, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    roles = make_plan(request(pictures)).roles
    (crack,) = (picture for picture in roles.selection if not picture.is_normal)
    drawn = dataclasses.replace(roles.selection[0], label="cutpaste", synthetic=True)
    roles = dataclasses.replace(roles, selection=(*roles.selection, drawn))
    fitted: list[Picture] = []

    def fit(*arguments: Any, **_: Any) -> Recording:
        fitted.extend(arguments[4])
        return Recording()

    monkeypatch.setattr(champion, "fit_model", fit)
    nothing: Any = SimpleNamespace(made_of=lambda *_: None)
    dataset: Any = SimpleNamespace(hash="h", counts=dict)
    with pytest.raises(ReachedError) as reached:
        champion.Finisher(
            cast(Any, None), roles, dataset,
            name="bottle", search="s", evidence="labelled", threshold=method, rate=0.1, limits=Limits(),
            registry=nothing,
            scratch_dir=tmp_path, scores_file=tmp_path / "scores", default_config={}, threads=1,
            say=lambda _: None, note=lambda _: None,
        ).finish(Candidate((TrialRow(trial=0, algorithm="ganomaly", config={}, status="complete"),)))  # fmt: skip
    assert reached.value.args == (
        [picture.read() for picture in roles.calibration], 0.1, None if method == "conformal" else [crack]
    )  # fmt: skip
    used = {picture.sha256 for picture in roles.calibration} | {crack.sha256}
    assert used.isdisjoint(picture.sha256 for picture in (*fitted, *roles.test))


def test_a_server_searches_with_the_threshold_that_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[SearchRequest] = []
    monkeypatch.setattr(searching, "run_search", lambda request, *_, **__: asked.append(request))
    database: Any = SimpleNamespace(searches_of=lambda _: [])
    for method in ("conformal", "f1-max"):
        submitted = SubmitRequest(dataset="bottle/1", threshold=cast(Any, method))
        searching._search("s", submitted, tmp_path, database, "")
    assert [request.threshold for request in asked] == ["conformal", "f1-max"]


def test_roles_of_one_search_serve_both_methods(pictures: Path) -> None:
    def roles(method: str) -> Roles:
        return make_plan(request(pictures, threshold=method)).roles

    assert roles("conformal") == roles("f1-max")
