"""One trial that compares what one fit serves, and stays within its memory."""

from __future__ import annotations

import dataclasses
import itertools
import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from autoad.algorithms import Inputs, Runtime, get_algorithm
from autoad.algorithms.stfpm import STFPM
from autoad.data import Picture, assign_roles, load_mask, read_dataset
from autoad.errors import TrialError, TrialMemoryError
from autoad.evaluation import compute_metrics
from autoad.features import choose_engine
from autoad.models import load_inputs
from autoad.search.memory import MemoryGuard, predict_memory
from autoad.search.space import load_spaces
from autoad.search.sweep import EVALUATION_SIZE, Judge, evaluation_maps
from autoad.search.trial import TrialReport, TrialTask, TrialWorker

PATCHCORE = {"image_size": 128, "stages": (2,), "coreset_sampling_ratio": 0.05}
SWEEP = {"num_neighbors": (9, 1), "sigma": (4.0, 0.0, 8.0), "coreset_sampling_ratio": (0.05, 0.01)}


@pytest.fixture(scope="module")
def task(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> TrialTask:
    roles = assign_roles(read_dataset(demo))
    return TrialTask(
        train=tuple(roles.train[:24]),
        selection=tuple(roles.selection),
        labelled_weight=1.0,
        features_dir=tmp_path_factory.mktemp("features"),
        engine=choose_engine(),
        precision="float32",
        objective="image_auroc",
        epochs={"stfpm": 1},
        seed=0,
        timed=True,
    )


@pytest.fixture(scope="module")
def worker(task: TrialTask) -> TrialWorker:
    return TrialWorker(task)


def last(worker: TrialWorker, config: dict[str, Any], **options: Any) -> TrialReport:
    return list(worker.run("patchcore", config, **options))[-1]


def one_by_one(task: TrialTask) -> list[tuple[dict[str, Any], Any]]:
    """Metrics of each combination from a fit and a prediction of its own, exact."""
    found = []
    masks = [load_mask(picture, EVALUATION_SIZE) for picture in task.selection]
    labels = [not picture.is_normal for picture in task.selection]
    worker = TrialWorker(task)
    for values in itertools.product(*SWEEP.values()):
        changes = dict(zip(SWEEP, values, strict=True))
        algorithm = get_algorithm("patchcore")
        detector = algorithm(algorithm.Config(**PATCHCORE | changes), seed=task.seed)
        train, selection = (
            load_inputs(worker._store, p, detector.needs, task.engine) for p in (task.train, task.selection)
        )
        list(detector.fit(train))
        prediction = detector.predict(selection)
        scores, maps = prediction.scores.numpy(), evaluation_maps(prediction)
        found.append((changes, compute_metrics(scores, labels, maps, masks, exact=False)))
    return found


@pytest.mark.parametrize("objective", ["image_auroc", "image_f1_max", "aupro"])
def test_the_best_combination_is_the_best_of_as_many_trials(task: TrialTask, objective: str) -> None:
    worker = TrialWorker(dataclasses.replace(task, objective=objective))
    report = last(worker, PATCHCORE, sweep=SWEEP, exact_above=2.0)
    assert report.variants == 12
    alone = one_by_one(task)
    best = max((getattr(metrics, objective), metrics.aupro) for _, metrics in alone)
    assert (report.objective, report.validation.aupro) == pytest.approx(best)
    same = last(worker, PATCHCORE | report.swept, exact_above=2.0)
    assert same.validation.model_dump() == pytest.approx(report.validation.model_dump())
    assert same.swept == {}
    assert same.variants == 1


def test_latency_is_that_of_compiled_networks_each_structure_compiled_once(
    task: TrialTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, compiled, compile_it = TrialWorker(task), [], STFPM.compile

    def count(self: STFPM, **options: Any) -> None:
        compiled.append((self.config.image_size, options))
        compile_it(self, **options)
        measure, network = self.measure, self._compiled
        assert network is not None

        def slower(*given: Any) -> Any:
            time.sleep(0.3)
            return measure(*given)

        monkeypatch.setattr(self, "measure", slower)

    monkeypatch.setattr(STFPM, "compile", count)
    for config in ({"image_size": 64}, {"image_size": 64, "lr": 0.1}, {"image_size": 96}):
        report = list(worker.run("stfpm", config))[-1]
        assert report.latency_ms is not None
        assert report.latency_ms > 300
    assert compiled == [(64, {"threads": 1}), (96, {"threads": 1})]


def test_it_repeats(worker: TrialWorker) -> None:
    one, other = (last(worker, PATCHCORE, sweep=SWEEP) for _ in range(2))
    assert (one.swept, one.validation) == (other.swept, other.validation)
    assert set(one.swept) == set(SWEEP)
    assert one.model_mb == other.model_mb > 0


class Fixed:
    """A detector whose scores and maps are given by its configuration alone."""

    name = "fixed"
    post_fit: ClassVar = {"k": "scores", "sigma": "maps"}
    reducible = ()

    @dataclasses.dataclass(frozen=True)
    class Config:
        k: int = 3
        sigma: float = 1.0

    def __init__(self, scores: dict[int, list[float]], sharpness: dict[float, float]) -> None:
        self.config, self.scores, self.sharpness, self.drawn = self.Config(), scores, sharpness, []

    def measure(self, batch: Inputs, configs: Any) -> None:
        assert configs[0] == self.config

    def finish(self, measured: None, config: Config, *, maps: bool = True) -> Any:
        scores = torch.tensor(self.scores[config.k])
        if not maps:
            return dataclasses.make_dataclass("P", ["scores", "maps"])(scores, None)
        self.drawn.append((config.k, config.sigma))
        drawn = torch.rand(4, *EVALUATION_SIZE, generator=torch.Generator().manual_seed(0))
        drawn[2:, 50:90, 50:90] += self.sharpness[config.sigma]
        return dataclasses.make_dataclass("P", ["scores", "maps"])(scores, drawn)

    def reconfigured(self, **changes: Any) -> Any:
        return dataclasses.replace(self.config, **changes)


@pytest.fixture
def judge(task: TrialTask, monkeypatch: pytest.MonkeyPatch) -> Judge:
    mask = np.zeros(EVALUATION_SIZE, dtype=bool)
    mask[50:90, 50:90] = True
    good = [p for p in task.selection if p.is_normal][:2]
    bad = [p for p in task.selection if not p.is_normal][:2]
    monkeypatch.setattr("autoad.search.sweep.load_mask", lambda picture, size: mask & np.bool_(not picture.is_normal))
    return Judge([*good, *bad], "image_auroc", weight=1.0)


KS, SIGMAS = (3, 1, 5), (1.0, 0.0, 2.0)
GOOD, POOR = [0.1, 0.2, 0.3, 0.4], [0.1, 0.35, 0.3, 0.4]


def test_maps_are_drawn_only_for_what_can_win(judge: Judge) -> None:
    detector: Any = Fixed({3: POOR, 1: GOOD, 5: GOOD}, {1.0: 0.2, 0.0: 0.4, 2.0: 0.3})
    verdict = judge.judge(detector, None, {"k": KS, "sigma": SIGMAS}, exact_above=2.0)  # type: ignore[arg-type]
    assert verdict.swept == {"k": 1, "sigma": 0.0}, "AUPRO decides between sigmas, nearness between k of equal scores"
    assert sorted(detector.drawn) == [(1, 0.0), (1, 1.0), (1, 2.0)]
    assert verdict.variants == 9


def test_ties_go_to_the_default(judge: Judge) -> None:
    detector: Any = Fixed({3: GOOD, 1: GOOD, 5: GOOD}, dict.fromkeys(SIGMAS, 0.3))
    verdict = judge.judge(detector, None, {"k": KS, "sigma": SIGMAS}, exact_above=2.0)  # type: ignore[arg-type]
    assert verdict.swept == {"k": 3, "sigma": 1.0}


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_labelled_and_synthetic_defects_count_by_their_weight(
    task: TrialTask, monkeypatch: pytest.MonkeyPatch, weight: float
) -> None:
    """Two normals, a synthetic defect that lies between them, and a real one that lies above; the last has the mask."""
    masked: list[bool] = []

    def mask(picture: Picture, size: tuple[int, int]) -> np.ndarray:
        masked.append(picture.synthetic)
        return np.full(size, False) if picture.is_normal else np.eye(size[0], dtype=bool)

    monkeypatch.setattr("autoad.search.sweep.load_mask", mask)
    good = [p for p in task.selection if p.is_normal][:2]
    real, other = [p for p in task.selection if not p.is_normal][:2]
    drawn = dataclasses.replace(other, label="scratch", synthetic=True)
    selection = [*good, drawn, real] if weight else [*good, drawn, drawn]
    detector: Any = Fixed({3: [0.1, 0.3, 0.2, 0.4]}, {1.0: 0.3})
    verdict = Judge(selection, "image_auroc", weight=weight).judge(detector, None, {}, exact_above=-1.0)  # type: ignore[arg-type]
    assert verdict.scores.tolist() == pytest.approx([0.1, 0.3, 0.2, 0.4])
    assert verdict.by_kind == ({"scratch": 0.5} if weight else {"scratch": 0.75})
    assert verdict.validation.image_auroc == (1.0 if weight else 0.75)
    assert verdict.objective == pytest.approx(weight * 1.0 + (1 - weight) * verdict.by_kind["scratch"])
    assert masked == ([False] * 3 if weight else [False, False, True, True])


def test_scores_that_are_not_finite_fail_the_trial(judge: Judge) -> None:
    detector: Any = Fixed({3: GOOD, 1: [0.1, float("nan"), 0.3, 0.4]}, {1.0: 0.3})
    with pytest.raises(TrialError, match="not finite"):
        judge.judge(detector, None, {"k": (3, 1)}, exact_above=2.0)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["patchcore", "dfkde"])
def test_the_default_is_among_what_the_first_trial_compares(name: str, task: TrialTask) -> None:
    space = load_spaces([name])[name]
    sweep = space.sweep(space.defaults())
    assert {key: values[0] for key, values in sweep.items()} == {key: space.defaults()[key] for key in sweep}


# Memory


def limits() -> tuple[int, int]:
    return resource.getrlimit(resource.RLIMIT_DATA)


def exceed_and_go_on(task: TrialTask) -> None:
    worker, before = TrialWorker(task), limits()
    # The bank fits into 40 MiB, what choosing it takes does not.
    config = PATCHCORE | {"image_size": 256, "coreset_sampling_ratio": 0.2}
    with pytest.raises(TrialMemoryError, match=r"patchcore must take at most 12 MiB, but about \d+ MiB were predicted"):
        last(worker, config, memory_limit=12 << 20)
    assert limits() == before
    report = last(worker, config, memory_limit=1 << 30)
    assert report.peak_memory_mb is not None
    assert 12 < report.peak_memory_mb < 1024
    assert limits() == before


def test_a_trial_beyond_its_memory_fails_and_the_next_succeeds(task: TrialTask) -> None:
    """In a process of its own, as a worker is: what earlier tests have freed but left reserved is not limited."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        pool.submit(exceed_and_go_on, task).result()


def test_what_is_sure_to_be_too_much_is_refused_with_its_remedy(worker: TrialWorker) -> None:
    with pytest.raises(
        TrialMemoryError, match=r"memory bank .* must be at most 0\.00391 GiB but got .*: lower image_size"
    ):
        last(worker, PATCHCORE | {"coreset_sampling_ratio": 1.0, "image_size": 256}, memory_limit=4 << 20)


@pytest.mark.parametrize(
    "exhaust",
    [lambda: np.zeros(1 << 28), lambda: torch.zeros(1 << 28), lambda: [bytearray(1 << 26) for _ in range(9)]],
)
def test_every_allocator_is_bounded(exhaust: Callable[[], object]) -> None:
    before = limits()
    guard = MemoryGuard(256 << 20, 0, lambda: "too much")
    with pytest.raises(TrialMemoryError, match="ran out of memory: too much"), guard:
        exhaust()
    assert limits() == before
    with guard:
        assert len(np.ones(1 << 20)) == 1 << 20


def test_other_errors_pass_and_the_limit_is_restored() -> None:
    before = limits()
    guard = MemoryGuard(1 << 30, 0, lambda: "")
    with pytest.raises(RuntimeError, match="shapes do not fit"), guard:
        raise RuntimeError("shapes do not fit")
    assert limits() == before
    inside = list(guard.each(limits()[0] for _ in range(2)))
    assert inside[0] != before[0], "the limit holds while an item is computed"
    assert limits() == before


def test_the_peak_is_what_was_held_at_once() -> None:
    guard = MemoryGuard(None, 0, lambda: "")
    with guard:
        for _ in range(3):
            block = np.ones(8 << 20)
            time.sleep(0.1)  # several samples long, also where the machine has other work
            del block
    assert 60 < guard.peak / 2**20 < 130


@pytest.mark.parametrize(
    ("algorithm", "config"), [("patchcore", PATCHCORE | {"image_size": 256}), ("padim", {}), ("dfm", {}), ("stfpm", {})]
)
def test_a_whole_trial_takes_what_was_predicted(
    algorithm: str, config: dict[str, Any], task: TrialTask, worker: TrialWorker
) -> None:
    report = list(worker.run(algorithm, config))[-1]
    assert report.peak_memory_mb is not None
    predicted = predict_memory(algorithm, config, train=len(task.train), selection=len(task.selection))
    # Above, less strictly than where each algorithm has a process of its own: this one uses again what it had freed.
    assert 0.5 < predicted / 2**20 / report.peak_memory_mb < 5.0


def test_prediction_grows_with_what_it_depends_on() -> None:
    def predicted(**changes: Any) -> int:
        counts = {"train": 200, "selection": 100} | {k: changes.pop(k) for k in ("train", "selection") if k in changes}
        return predict_memory("patchcore", changes, **counts)

    base = predicted()
    assert predicted(train=400) > 1.5 * base
    assert predicted(selection=1000) > base
    assert predicted(coreset_sampling_ratio=0.5) > base
    gathered = predict_memory("patchcore", {}, train=200, selection=100, gathered=True)
    assert gathered - base == 300 * 2 * (32 * 32 * 40 + 16 * 16 * 112), "stages 2 and 3, float16"
    half = predict_memory("stfpm", {}, train=200, selection=100, runtime=Runtime(precision="bfloat16"))
    assert half < predict_memory("stfpm", {}, train=200, selection=100)
