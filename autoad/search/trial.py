"""One trial: fit a configuration on the train role, score the selection role."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from autoad.algorithms import Detector, Inputs, Needs, Precision, Prediction, Runtime, get_algorithm
from autoad.algorithms._maps import upsample
from autoad.data import GOOD, Picture, load_mask
from autoad.errors import TrialError
from autoad.evaluation import compute_metrics, image_metrics
from autoad.features import EngineChoice, FeatureStore, as_tensors, create_engine
from autoad.schema import Metrics, Objective

__all__ = [
    "EVALUATION_SIZE",
    "TrialReport",
    "TrialTask",
    "TrialWorker",
    "evaluation_maps",
    "load_inputs",
    "objective_value",
]

EVALUATION_SIZE = (256, 256)
"""Height and width at which maps are compared with masks, whatever size a detector works at."""

_RUNGS = frozenset({3, 9, 27, 81, 243})
_PREDICT_BATCH = 16


@dataclasses.dataclass(frozen=True)
class TrialTask:
    """What all trials of a search share; sent to each worker once.

    Attributes:
        train: normal pictures to fit on.
        selection: pictures to be ranked by; test pictures never get here.
        features_dir: the node's feature store.
        engine: runs the backbone.
        precision: of the detectors' own networks.
        epochs: ceiling of epochs by algorithm.
        timed: whether to measure latency (off where results must repeat exactly).
    """

    train: tuple[Picture, ...]
    selection: tuple[Picture, ...]
    synthetic: bool
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


@dataclasses.dataclass(frozen=True)
class TrialReport:
    """Where a trial stands after an evaluation.

    Attributes:
        objective: what the sampler maximises.
        final: whether the trial ends here; otherwise the scheduler may stop it.
        exact: whether the pixel metrics are exact.
    """

    objective: float
    validation: Metrics
    by_kind: dict[str, float]
    epochs_done: int | None
    budget_limited: bool
    final: bool
    exact: bool
    latency_ms: float | None


def load_inputs(
    store: FeatureStore, pictures: Sequence[Picture], needs: Needs, engine: EngineChoice, threads: int = 1
) -> Inputs:
    """The pictures as a detector wants them, from the feature store."""
    features = {}
    if needs.backbone is not None:
        arrays = store.features(
            pictures,
            backbone=needs.backbone,
            stages=needs.stages,
            image_size=needs.image_size,
            engine=engine,
            threads=threads,
        )
        features = as_tensors(arrays)
    images = as_tensors({0: store.images(pictures, needs.image_size)})[0] if needs.images else None
    if images is not None:
        images = images.permute(0, 2, 3, 1)
    return Inputs(needs.image_size, features, images)


def evaluation_maps(prediction: Prediction) -> npt.NDArray[np.float32] | None:
    """The prediction's maps at :data:`EVALUATION_SIZE`; None if there are none."""
    if prediction.maps is None:
        return None
    maps = prediction.maps.float().cpu()
    if tuple(maps.shape[-2:]) != EVALUATION_SIZE:
        maps = upsample(maps, EVALUATION_SIZE)
    return maps.numpy()


def objective_value(validation: Metrics, by_kind: dict[str, float], objective: Objective) -> float:
    """What the sampler maximises; with synthetic defects and image AUROC, the mean over their kinds.

    Raises:
        TrialError: the objective cannot be computed for this trial.
    """
    if objective == "image_auroc" and by_kind:
        return statistics.fmean(by_kind.values())
    value: float | None = getattr(validation, objective)
    if value is None:
        raise TrialError(f"the objective {objective} could not be computed (no map, or no masks to compare it with)")
    return value


class TrialWorker:
    """Runs the trials that one worker is given, one after another."""

    def __init__(self, task: TrialTask) -> None:
        self._task = task
        self._store = FeatureStore(task.features_dir)
        self._labels = np.array([not picture.is_normal for picture in task.selection])
        self._masks = [load_mask(picture, EVALUATION_SIZE) for picture in task.selection]
        self._backbone_ms: dict[tuple[str, tuple[int, ...], tuple[int, int]], float] = {}

    def run(
        self, algorithm: str, config: dict[str, Any], *, seconds: float | None = None, exact_above: float = -np.inf
    ) -> Iterator[TrialReport]:
        """Carry out one trial, reporting at each rung of the early-stopping ladder and at the end.

        Args:
            algorithm: name of the algorithm.
            config: its hyperparameters, without ``epochs``.
            seconds: time for fitting, for algorithms that train; None for the ceiling of epochs.
            exact_above: objective from which pixel metrics are computed exactly.

        Raises:
            TrialError: the configuration does not work.
        """
        task, detector_type = self._task, get_algorithm(algorithm)
        if detector_type.iterative:
            config = config | {"epochs": task.epochs[algorithm]}
        detector = detector_type(detector_type.Config(**config), seed=task.seed, runtime=task.runtime)
        train = load_inputs(self._store, task.train, detector.needs, task.engine)
        selection = load_inputs(self._store, task.selection, detector.needs, task.engine)
        started = time.perf_counter()
        for progress in detector.fit(train):
            elapsed = time.perf_counter() - started
            spent = seconds is not None and elapsed * (1 + 0.5 / progress.epoch) > seconds
            final = progress.epoch >= progress.epochs or spent
            if not final and progress.epoch not in _RUNGS:
                continue
            prediction = self._predict(detector, selection)
            scores, maps = prediction.scores.numpy(), evaluation_maps(prediction)
            validation = compute_metrics(scores, self._labels, maps, self._masks, exact=False)
            by_kind = self._by_kind(prediction) if task.synthetic else {}
            objective = objective_value(validation, by_kind, task.objective)
            exact = objective >= exact_above and validation.aupro is not None
            if exact:
                validation = compute_metrics(scores, self._labels, maps, self._masks, exact=True)
            yield TrialReport(
                objective=objective_value(validation, by_kind, task.objective),
                validation=validation,
                by_kind=by_kind,
                epochs_done=progress.epoch if detector_type.iterative else None,
                budget_limited=detector_type.iterative and progress.epoch < progress.epochs,
                final=final,
                exact=exact,
                latency_ms=self._latency_ms(detector, selection) if final and task.timed else None,
            )
            if final:
                return

    def _predict(self, detector: Detector, inputs: Inputs) -> Prediction:
        parts = [detector.predict(batch) for batch in inputs.batches(_PREDICT_BATCH)]
        scores = torch.cat([part.scores for part in parts]).cpu()
        if not bool(torch.isfinite(scores).all()):
            raise TrialError("the detector gave scores that are not finite")
        maps = [part.maps.cpu() for part in parts if part.maps is not None]
        return Prediction(scores, torch.cat(maps) if maps else None)

    def _by_kind(self, prediction: Prediction) -> dict[str, float]:
        """Image AUROC of each kind of synthetic defect against all normals."""
        labels = np.array([picture.label for picture in self._task.selection])
        scores = prediction.scores.numpy()
        result = {}
        for kind in sorted(set(labels.tolist()) - {GOOD}):
            chosen = (labels == kind) | (labels == GOOD)
            value = image_metrics(scores[chosen], labels[chosen] != GOOD).image_auroc
            if value is not None:
                result[kind] = value
        return result

    def _latency_ms(self, detector: Detector, inputs: Inputs) -> float:
        """Median time from resized pixels to score, one picture at a time."""
        needs, one = detector.needs, inputs[:1]
        head = _median_ms(lambda: detector.predict(one))
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


def _median_ms(call: Any, repeats: int = 3) -> float:
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return 1000 * statistics.median(times)
