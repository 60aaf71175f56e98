"""One trial: fit a configuration on the train role, score the selection role."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from autoad.algorithms import Detector, Inputs, Precision, Runtime, get_algorithm
from autoad.data import Picture
from autoad.features import EngineChoice, FeatureStore, create_engine
from autoad.models import load_inputs
from autoad.schema import Metrics, Objective, TrialRow
from autoad.search.memory import MemoryGuard, copied_bytes, predict_memory, release_free_memory
from autoad.search.sweep import Judge

__all__ = ["RUNGS", "TrialReport", "TrialTask", "TrialWorker", "fit_trial"]

RUNGS = frozenset({3, 9, 27, 81, 243})
"""Epochs after which a trial that trains is evaluated."""


@dataclasses.dataclass(frozen=True)
class TrialTask:
    """What all trials of a search share; sent to each worker once.

    Attributes:
        train: normal pictures to fit on.
        selection: pictures to be ranked by; test pictures never get here.
        labelled_weight: of labelled defects beside synthetic ones in what is maximised.
        features_dir: the node's feature store.
        engine: runs the backbone.
        precision: of the detectors' own networks.
        epochs: ceiling of epochs by algorithm.
        timed: whether to measure latency and memory (off where results must repeat exactly).
    """

    train: tuple[Picture, ...]
    selection: tuple[Picture, ...]
    labelled_weight: float
    features_dir: Path
    engine: EngineChoice
    precision: Precision
    objective: Objective
    epochs: dict[str, int]
    seed: int
    timed: bool

    @property
    def runtime(self) -> Runtime:
        """Where detectors compute."""
        return Runtime("cuda" if self.engine.name == "cuda" else "cpu", self.precision)

    def open_worker(self) -> TrialWorker:
        """What a worker process runs the trials with."""
        return TrialWorker(self)


@dataclasses.dataclass(frozen=True)
class TrialReport:
    """Where a trial stands after an evaluation.

    Attributes:
        objective: what the sampler maximises.
        swept: chosen value of each parameter that was swept; the trial's configuration is then ``config | swept``.
        variants: how many combinations of such values were compared.
        final: whether the trial ends here; otherwise the scheduler may stop it.
        exact: whether the pixel metrics are exact.
        peak_memory_mb: most anonymous memory, in MiB, that the trial has added to its process so far, while it fitted
            and was measured; None where the task is not ``timed``, for it varies from run to run.
        model_mb: MiB of the detector's tensors.
        scores: ``[N]`` raw scores of the selection pictures.
    """

    objective: float
    validation: Metrics
    by_kind: dict[str, float]
    swept: dict[str, Any]
    variants: int
    epochs_done: int | None
    budget_limited: bool
    final: bool
    exact: bool
    latency_ms: float | None
    peak_memory_mb: float | None
    model_mb: float
    scores: npt.NDArray[np.float32]


def fit_trial(row: TrialRow, task: TrialTask, pictures: Sequence[Picture], *, threads: int) -> Detector:
    """A finished trial's detector, fitted on other pictures; what trains does so for as many epochs as the trial did.

    Args:
        row: the trial.
        task: what the trials shared.
        pictures: good ones.
        threads: CPU threads of the backbone.
    """
    algorithm = get_algorithm(row.algorithm)
    config = algorithm.Config(**row.config | ({"epochs": row.epochs_done} if algorithm.iterative else {}))
    detector = algorithm(config, seed=task.seed, runtime=task.runtime)
    store = FeatureStore(task.features_dir)
    for _ in detector.fit(load_inputs(store, pictures, detector.needs, task.engine, threads=threads)):
        pass
    return detector


class TrialWorker:
    """Runs the trials that one worker is given, one after another."""

    def __init__(self, task: TrialTask) -> None:
        self._task = task
        self._store = FeatureStore(task.features_dir)
        self._judge = Judge(task.selection, task.objective, weight=task.labelled_weight)
        self._backbone_ms: dict[tuple[str, tuple[int, ...], tuple[int, int]], float] = {}
        self._networks_ms: dict[tuple[Hashable, ...], float] = {}

    def load(self, algorithm: str, config: dict[str, Any]) -> float:
        """See to it that the store holds what a trial needs; how many seconds that took."""
        started = time.perf_counter()
        needs = get_algorithm(algorithm)(get_algorithm(algorithm).Config(**config)).needs
        for pictures in (self._task.train, self._task.selection):
            load_inputs(self._store, pictures, needs, self._task.engine)
        return time.perf_counter() - started

    def run(
        self,
        algorithm: str,
        config: dict[str, Any],
        *,
        sweep: Mapping[str, Sequence[Any]] | None = None,
        seconds: float | None = None,
        exact_above: float = -np.inf,
        memory_limit: int | None = None,
    ) -> Iterator[TrialReport]:
        """Carry out one trial, reporting at each rung of the early-stopping ladder and at the end.

        Args:
            algorithm: name of the algorithm.
            config: its hyperparameters, without ``epochs``.
            sweep: by parameter, values to compare after the fit, ``config``'s own first (:meth:`Space.sweep`).
            seconds: time for fitting, for algorithms that train; None for the ceiling of epochs.
            exact_above: objective from which pixel metrics are computed exactly.
            memory_limit: bytes that the trial may add to this process; None for as many as the machine has. Computing
                features that the store lacks is not part of it.

        Raises:
            TrialError: the configuration does not work.
            TrialMemoryError: it needs more memory than the trial may have. The worker can go on to another trial.
        """
        task, detector_type = self._task, get_algorithm(algorithm)
        if detector_type.iterative:
            config = config | {"epochs": task.epochs[algorithm]}
        runtime = task.runtime
        if memory_limit is not None:
            runtime = dataclasses.replace(runtime, memory=memory_limit)
        detector = detector_type(detector_type.Config(**config), seed=task.seed, runtime=runtime)
        train = load_inputs(self._store, task.train, detector.needs, task.engine)
        selection = load_inputs(self._store, task.selection, detector.needs, task.engine)
        release_free_memory()

        def explain() -> str:
            expected = predict_memory(
                algorithm, config, train=len(train), selection=len(selection), runtime=runtime, gathered=copies > 0
            )
            limit = "all that this machine has" if memory_limit is None else f"at most {memory_limit / 2**20:.0f} MiB"
            return (
                f"this trial of {algorithm} must take {limit}, but about {expected / 2**20:.0f} MiB were predicted; "
                "lower image_size, or let a trial have more"
            )

        copies = copied_bytes(train) + copied_bytes(selection)
        guard = MemoryGuard(memory_limit, copies, explain)
        started = time.perf_counter()
        for progress in guard.each(detector.fit(train)):
            elapsed = time.perf_counter() - started
            spent = seconds is not None and elapsed * (1 + 0.5 / progress.epoch) > seconds
            final = progress.epoch >= progress.epochs or spent
            if not final and progress.epoch not in RUNGS:
                continue
            with guard:
                verdict = self._judge.judge(detector, selection, sweep or {}, exact_above=exact_above)
                size = sum(tensor.nbytes for tensor in verdict.detector.tensors().values())
            yield TrialReport(
                objective=verdict.objective,
                validation=verdict.validation,
                by_kind=verdict.by_kind,
                swept=verdict.swept,
                variants=verdict.variants,
                epochs_done=progress.epoch if detector_type.iterative else None,
                budget_limited=detector_type.iterative and progress.epoch < progress.epochs,
                final=final,
                exact=verdict.exact,
                latency_ms=self._latency_ms(verdict.detector, selection) if final and task.timed else None,
                peak_memory_mb=guard.peak / 2**20 if task.timed else None,
                model_mb=size / 2**20,
                scores=verdict.scores,
            )
            if final:
                return

    def _latency_ms(self, detector: Detector, inputs: Inputs) -> float:
        """Median time from resized pixels to score, one picture at a time."""
        needs, one = detector.needs, inputs[:1]
        head = self._head_ms(detector, one)
        if needs.backbone is None:
            return head
        key = (needs.backbone, needs.stages, needs.image_size)
        if key not in self._backbone_ms:
            choice = self._task.engine
            engine = create_engine(
                needs.backbone,
                needs.stages,
                needs.image_size,
                engine=choice.name,
                precision=choice.precision,
                threads=1,
            )
            pixels = np.zeros((1, *needs.image_size, 3), dtype=np.uint8)
            engine(pixels)
            self._backbone_ms[key] = _median_ms(lambda: engine(pixels))
        return head + self._backbone_ms[key]

    def _head_ms(self, detector: Detector, one: Inputs) -> float:
        """Of the detector alone, with its networks compiled as a saved model's are; networks of one structure once."""
        if not detector.compiles or self._task.runtime.device != "cpu":
            return _median_ms(lambda: detector.predict(one))
        config = detector.config
        shapes = sorted((name, tuple(tensor.shape)) for name, tensor in detector.tensors().items())
        structure = (detector.name, detector.needs.image_size, *shapes)
        if structure not in self._networks_ms:
            ready = detector.reconfigured()
            ready.compile(threads=1)
            ready.predict(one)
            self._networks_ms[structure] = _median_ms(lambda: ready.measure(one, (config,)))
        measured = detector.measure(one, (config,))
        return self._networks_ms[structure] + _median_ms(lambda: detector.finish(measured, config))


def _median_ms(call: Any, repeats: int = 3) -> float:
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return 1000 * statistics.median(times)
