"""Ensembles: when one is chosen, and that the finished model is the mean of its members."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

import autoad
from autoad.algorithms import get_algorithm
from autoad.data import GOOD, Picture
from autoad.database import Database
from autoad.errors import ArtifactError, TrialError
from autoad.evaluation import image_metrics
from autoad.models import Model, Provenance, read_manifest, write_manifest
from autoad.models.parity import read_parity
from autoad.models.registry import Registry
from autoad.report import write_report
from autoad.schema import Choice, TrialRow
from autoad.search import SearchRequest, champion, choice, course, run_search
from autoad.search.candidate import Candidate
from autoad.search.champion import Finisher
from autoad.search.choice import Limits, choose_trial
from autoad.search.course import _task
from autoad.search.ensemble import join_scores, standardize, top_trials
from autoad.search.finalists import Division
from autoad.search.fitting import fit_model
from autoad.search.lease import Lease
from autoad.search.plan import Plan, make_plan
from autoad.search.selection_scores import SelectionScores
from autoad.search.trial import TrialTask, TrialWorker
from autoad.settings import Settings
from tests.search.test_choice import COUNT, SELECTION, SEPARATED, row

NORMAL = np.arange(COUNT) < COUNT // 2
RNG = np.random.default_rng(3)
SIGNAL = np.where(NORMAL, 0.0, 1.0)
ONE, OTHER, THIRD = ((SIGNAL + RNG.normal(0, 0.7, COUNT)).astype(np.float32) for _ in range(3))
UNITS = np.float32(1000) * OTHER - 7  # other units change nothing


def keep(folder: Path, *scores: np.ndarray) -> SelectionScores:
    kept = SelectionScores(folder)
    for trial, one in enumerate(scores):
        kept.keep(trial, one)
    return kept


ROWS = [row(0, 0.9, 3.0, algorithm="dfm"), row(1, 0.9, 4.0, algorithm="padim"), row(2, 0.9, 5.0, algorithm="stfpm")]


def auroc(scores: np.ndarray) -> float:
    value = image_metrics(scores, ~NORMAL).image_auroc
    assert value is not None
    return value


def test_of_several_algorithms_the_best_trials_and_three_at_most() -> None:
    rows = [row(n, 0.9, 1.0, algorithm=name) for n, name in enumerate(("dfm", "dfm", "padim", "stfpm", "cflow"))]
    assert [one.trials for one in top_trials(rows)] == [(0, 2), (0, 2, 3)]
    assert top_trials(rows[:2]) == []
    three = Candidate((rows[0], rows[2], rows[3]))
    assert str(three) == "trials 0, 2, 3 (dfm + padim + stfpm)"
    assert (three.latency_ms, three.model_mb) == (3.0, 3.0)
    assert Candidate((rows[0], row(9, 0.9, None))).latency_ms is None
    assert str(Candidate((rows[4],))) == "trial 4 (cflow)"


def test_scores_are_averaged_in_units_of_the_normals() -> None:
    joined = join_scores([ONE, UNITS], NORMAL)
    parts = [(one - one[NORMAL].mean()) / one[NORMAL].std() for one in (ONE, OTHER)]
    assert joined is not None
    np.testing.assert_allclose(joined, np.mean(parts, axis=0), atol=1e-4)
    assert join_scores([ONE, np.where(NORMAL, 2, ONE).astype(np.float32)], NORMAL) is None


def test_an_ensemble_that_is_clearly_better_is_chosen(tmp_path: Path) -> None:
    kept = keep(tmp_path, ONE, UNITS, THIRD)
    order, (choice, single) = choose_trial(ROWS, SELECTION, kept, "image_auroc", 1.0, Limits(), seed=0)
    alone = [auroc(scores) for scores in (ONE, OTHER, THIRD)]
    best = int(np.argmax(alone))
    assert sorted(order[0].trials) == [0, 1, 2]
    # Should it come to nothing, the search goes on as if there had been none.
    without, (alone_chosen,) = choose_trial(
        ROWS, SELECTION, kept, "image_auroc", 1.0, Limits(), seed=0, ensemble_seconds=-1.0
    )
    assert (order[1:], single) == (without, alone_chosen)
    assert choice.members == list(order[0].trials)
    assert choice.members[0] == choice.trial == choice.best == best
    joined = join_scores([ONE, UNITS, THIRD], NORMAL)
    assert joined is not None
    assert -choice.behind == pytest.approx(auroc(joined) - alone[best])
    assert -choice.behind > choice.error > 0
    assert choice.wins > 0.5
    assert choice.tied == []


@pytest.mark.parametrize(
    ("limits", "seconds", "chosen"),
    [
        (Limits(latency_ms=12.0, memory_mb=3.0), 18.0, 3),
        (Limits(latency_ms=11.9), None, 2),
        (Limits(memory_mb=2.9), None, 2),
        (Limits(), 17.9, 2),
        (Limits(latency_ms=6.9), None, 1),
        (Limits(), 11.9, 1),
    ],
)
def test_it_must_keep_to_the_limits_as_a_whole_and_be_fitted_in_time(
    limits: Limits, seconds: float | None, chosen: int, tmp_path: Path
) -> None:
    """Of two, the first with the second is meant, for these are made the better ones."""
    kept = keep(tmp_path, ONE, UNITS + 300 * SIGNAL.astype(np.float32), THIRD - 0.1 * SIGNAL.astype(np.float32))
    rows = [one.model_copy(update={"seconds": 5.0, "feature_seconds": 2.0}) for one in ROWS]
    order, _ = choose_trial(rows, SELECTION, kept, "image_auroc", 1.0, limits, seed=0, ensemble_seconds=seconds)
    assert len(order[0].rows) == chosen


def test_what_is_not_clearly_better_leaves_the_best_trial(tmp_path: Path) -> None:
    """Two that say the same gain nothing together; neither do two of one algorithm, whatever they say."""
    kept = keep(tmp_path, ONE, ONE, THIRD)
    order, (choice,) = choose_trial(ROWS[:2], SELECTION, kept, "image_auroc", 1.0, Limits(), seed=0)
    assert ([one.trials for one in order], choice.members) == ([(0,), (1,)], [])
    same = [one.model_copy(update={"algorithm": "dfm"}) for one in ROWS]
    order, (choice,) = choose_trial(
        same, SELECTION, keep(tmp_path, ONE, UNITS, THIRD), "image_auroc", 1.0, Limits(), seed=0
    )
    assert [len(one.rows) for one in order] == [1, 1, 1]


def test_where_close_trials_are_judged_again_the_mean_over_divisions_decides(tmp_path: Path) -> None:
    """On the first division together they are better; on the others the first alone is right."""
    kept = keep(tmp_path, ONE, UNITS, THIRD)
    others = [Division(tuple(SELECTION), {0: SEPARATED, 1: -OTHER, 2: -THIRD}) for _ in range(2)]
    order, (choice,) = choose_trial(
        ROWS, SELECTION, kept, "image_auroc", 1.0, Limits(), seed=0, judge_again=lambda _: others
    )
    assert choice.divisions == 3
    assert len(order[0].rows) == 1


def test_an_ensemble_that_wins_is_judged_again_with_those_that_are_close(tmp_path: Path) -> None:
    """Its members are asked first, for of many only some are."""
    kept = keep(tmp_path, ONE, UNITS, THIRD, ONE)
    rows = [*ROWS, row(3, 0.9, 4.0, algorithm="dfm")]
    asked: list[int] = []

    def again(close: Sequence[TrialRow]) -> list[Division]:
        asked.extend(one.trial for one in close)
        return [Division(tuple(SELECTION), {0: ONE, 1: UNITS, 2: THIRD, 3: ONE})]

    order, (choice, _) = choose_trial(rows, SELECTION, kept, "image_auroc", 1.0, Limits(), seed=0, judge_again=again)
    assert sorted(choice.members) == [0, 1, 2]
    assert asked == [*choice.members, 3]
    assert (order[0].trials, choice.divisions) == (tuple(choice.members), 2)


# The finished model


def finished_row(trial: int, algorithm: str, **config: object) -> TrialRow:
    defaults = dataclasses.asdict(get_algorithm(algorithm).Config())
    return row(trial, 0.9, 3.0, algorithm=algorithm).model_copy(update={"config": defaults | config})


MEMBERS = Candidate(
    (
        finished_row(4, "padim", image_size=96),
        finished_row(2, "dfkde", image_size=128),
        finished_row(7, "patchcore", image_size=128, coreset_sampling_ratio=0.02),
    )
)


@pytest.fixture(scope="module")
def plan(demo: Path) -> Plan:
    return make_plan(SearchRequest(data=demo, algorithms=("dfkde", "padim"), trials=2, seconds=None))


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings(data_dir=tmp_path_factory.mktemp("state"))


@pytest.fixture(scope="module")
def task(plan: Plan, settings: Settings) -> TrialTask:
    return _task(plan, plan.roles.selection, settings)


PROVENANCE = Provenance(
    code_version=autoad.__version__,
    search="s",
    trial=4,
    members=(4, 2, 7),
    dataset_hash="h",
    dataset_counts={},
    evidence="labelled",
)


def test_the_model_is_the_mean_of_its_members_in_their_units(task: TrialTask, tmp_path: Path) -> None:
    standards, validation = standardize(MEMBERS, task, threads=1)
    model = fit_model(tmp_path / "all", "m", MEMBERS, task, task.train, PROVENANCE, threads=1, standards=standards)
    data = [picture.read() for picture in task.selection]
    good = np.array([picture.label == GOOD for picture in task.selection])
    answers = [answer for _, answer in model._answers(data)]
    scores = np.array([score for score, _ in answers])
    parts, peaks, maps = [], [], []
    for place, one in enumerate(MEMBERS.rows):
        alone = fit_model(tmp_path / str(place), "m", Candidate((one,)), task, task.train, PROVENANCE, threads=1)
        raw = [answer for _, answer in alone._answers(data)]
        parts.append(np.array([score for score, _ in raw]))
        assert standards[place].center == pytest.approx(parts[-1][good].mean(), rel=1e-5)
        assert standards[place].spread == pytest.approx(parts[-1][good].std(), rel=1e-4)
        if one.algorithm == "dfkde":
            assert standards[place].map_center is standards[place].map_spread is None
            continue
        maps.append([found for _, found in raw])
        peaks.append(np.array([found.max() for _, found in raw if found is not None]))
        assert standards[place].map_center == pytest.approx(peaks[-1][good].mean(), rel=1e-5)
        assert standards[place].map_spread == pytest.approx(peaks[-1][good].std(), rel=1e-4)
    expected = np.mean([(one - one[good].mean()) / one[good].std() for one in parts], axis=0)
    np.testing.assert_allclose(scores, expected, atol=1e-4)
    assert scores[good].mean() == pytest.approx(0, abs=1e-3)
    assert validation.image_auroc == image_metrics(scores, ~good).image_auroc
    assert validation.aupro is not None
    # The larger map is taken as it is, the smaller one enlarged: where it is constant along the border, by its value.
    (found,) = {answer.shape for _, answer in answers if answer is not None}
    assert found == (128, 128)
    last = answers[-1][1]
    assert last is not None
    small, large = maps[0][-1], maps[1][-1]
    assert small is not None
    assert large is not None
    corner = [
        (part[0, 0] - peak[good].mean()) / peak[good].std() for part, peak in zip((small, large), peaks, strict=True)
    ]
    assert last[0, 0] == pytest.approx(np.mean(corner), abs=1e-3)


def test_drawn_defects_are_no_good_pictures_and_metrics_are_of_labelled_ones(task: TrialTask) -> None:
    drawn = [dataclasses.replace(one, label="scratch", synthetic=True) for one in task.selection if not one.is_normal]
    both = dataclasses.replace(task, selection=(*task.selection, *drawn[:3]), labelled_weight=0.5)
    assert standardize(MEMBERS, both, threads=1) == standardize(MEMBERS, task, threads=1)


def test_a_member_that_says_the_same_of_all_good_pictures_is_refused(task: TrialTask) -> None:
    one = next(picture for picture in task.selection if picture.is_normal)
    alike = dataclasses.replace(task, selection=(one, one, *(p for p in task.selection if not p.is_normal)))
    with pytest.raises(TrialError, match=r"trial 4 \(padim\) says the same of all good pictures"):
        standardize(MEMBERS, alike, threads=1)


def test_it_becomes_a_champion_like_any_other(plan: Plan, task: TrialTask, settings: Settings, tmp_path: Path) -> None:
    said: list[str] = []
    database = Database(settings)
    registry = Registry(database, settings)

    finish = Finisher(
        task,
        plan.roles,
        plan.dataset,
        name="bottle",
        search="s",
        evidence=plan.evidence,
        threshold="conformal",
        rate=0.2,
        limits=Limits(),
        registry=registry,
        scratch_dir=settings.models_dir,
        scores_file=tmp_path / "scores.parquet",
        default_config=dataclasses.asdict(get_algorithm("patchcore").Config(image_size=128)),
        threads=1,
        say=said.append,
        note=said.append,
    ).finish
    champion = finish(MEMBERS)
    assert champion.algorithm == "padim + dfkde + patchcore"
    assert champion.trials == [4, 2, 7]
    assert champion.origin == "trials 4, 2, 7"
    assert champion.test.image_auroc is not None
    assert champion.test.image_auroc > 0.7
    assert champion.test.aupro is not None
    assert champion.speed is not None
    assert champion.difference is not None
    entry = registry.resolve("bottle/1")
    assert (entry.algorithm, entry.trial) == ("padim + dfkde + patchcore", 4)
    folder = registry.open("bottle", 1)
    assert "trials 4, 2, 7" in (folder / "README.md").read_text()
    parity = read_parity(folder)
    loaded = Model.load(folder, threads=1)
    for picture, score in zip(parity, loaded.score_many(one.data for one in parity), strict=True):
        assert score.score == pytest.approx(picture.score, abs=1e-5)
        assert score.is_anomalous == picture.is_anomalous
    # Finished already; but the first of its trials alone is something else.
    assert finish(MEMBERS) == champion
    assert registry.resolve("bottle").version == 1
    single = finish(Candidate(MEMBERS.rows[:1]))
    assert (single.version, single.algorithm, single.members) == (2, "padim", [])
    assert finish(MEMBERS) == champion
    database.close()

    for change in ({"combine": "single"}, {"members": read_manifest(folder).members[:1]}):
        copy = tmp_path / "copy"
        shutil.copytree(folder, copy)
        write_manifest(copy, read_manifest(folder).model_copy(update=change))
        with pytest.raises(ArtifactError, match="cannot be combined"):
            Model.load(copy)
        shutil.rmtree(copy)


# A whole search


class Quiet:
    """Keeps what a search says; hears nothing else."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def __getattr__(self, name: str) -> object:
        return lambda *_, **__: None


@pytest.mark.parametrize("fails", [False, True])
def test_a_search_makes_it_its_champion_or_else_the_trial_that_it_would_have_chosen(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """The trials run here instead of in Ray's workers; that the ensemble wins is decided here, too."""
    monkeypatch.setenv("AUTOAD_DATA_DIR", str(tmp_path / "data"))
    members = list(MEMBERS.rows[:2])

    def run_trials(
        plan: Plan, first: object, selection: Sequence[Picture], search_id: str, folder: Path, settings: Settings,
        database: Database, lease: Lease, *_: object,
    ) -> bool:  # fmt: skip
        worker = TrialWorker(_task(plan, selection, settings))
        for place, one in enumerate(members):
            report = list(worker.run(one.algorithm, one.config))[-1]
            lease.write_trial(
                one.model_copy(update={"trial": place, "objective": report.objective, "validation": report.validation})
            )
            SelectionScores(folder).keep(place, report.scores)
        return False

    def wins(field: choice._Field, found: object, limits: Limits, seconds: float | None) -> tuple[Candidate, Choice]:
        assert seconds is None
        both = Candidate(field.rows)
        return both, choice._single(field, field.compare()).model_copy(
            update={"trial": both.trial, "members": list(both.trials)}
        )

    monkeypatch.setattr(course, "_run_trials", run_trials)
    monkeypatch.setattr(choice, "_ensemble", wins)
    if fails:
        monkeypatch.setattr(champion, "standardize", lambda *_, **__: (_ for _ in ()).throw(TrialError("no spread")))
    listener = Quiet()
    request = SearchRequest(
        data=demo, algorithms=("dfkde", "padim"), trials=2, seconds=None, name="both", keep_suspicious=True
    )
    result = run_search(request, cast(Any, listener))
    assert result.status == "complete"
    assert result.champion is not None
    assert result.choice is not None
    assert result.champion.trials == result.choice.trials
    if fails:
        assert result.champion.members == []
        assert any("could not be refitted: no spread" in note for note in result.notes)
        assert result.champion.trial in result.choice.tied
    else:
        assert sorted(result.champion.trials) == [0, 1]
        manifest = read_manifest(Path(result.champion.model))
        assert [member.algorithm for member in manifest.members] == result.champion.algorithm.split(" + ")
        page = write_report(result, tmp_path / "report.html").read_text()
        assert page.count("(champion, with others)") == 2
        assert "Detector 1 of 2" in page
        assert "Detector 2 of 2" in page
