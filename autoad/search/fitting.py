"""From fitted detectors to a saved model."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from autoad.algorithms import Detector
from autoad.data import Picture
from autoad.features import EngineChoice, find_weights
from autoad.models import Backbone, Manifest, Member, Model, Provenance, Standard, save_model
from autoad.search.candidate import Candidate
from autoad.search.trial import TrialTask, fit_trial

__all__ = ["fit_model", "save_detectors"]


def fit_model(
    folder: Path,
    name: str,
    candidate: Candidate,
    task: TrialTask,
    pictures: Sequence[Picture],
    provenance: Provenance,
    *,
    threads: int,
    standards: Sequence[Standard] = (),
) -> Model:
    """Fit a candidate's trials on ``pictures``, save them as one model in ``folder`` and load it from there.

    Args:
        folder: of the model.
        name: of the model.
        candidate: one trial, or an ensemble.
        task: what the trials shared.
        pictures: good ones.
        provenance: where it comes from.
        threads: CPU threads.
        standards: of an ensemble, one for each trial.
    """
    detectors = [fit_trial(row, task, pictures, threads=threads) for row in candidate.rows]
    save_detectors(folder, name, detectors, task.engine, provenance, standards=standards)
    return Model.load(folder, threads=threads)


def save_detectors(
    folder: Path,
    name: str,
    detectors: Sequence[Detector],
    engine: EngineChoice,
    provenance: Provenance,
    *,
    standards: Sequence[Standard] = (),
) -> Manifest:
    """Save fitted detectors as one model, with all that scoring by it takes, not calibrated yet.

    Args:
        folder: of the model.
        name: of the model.
        detectors: that were fitted.
        engine: which ran the backbones over the pictures that they were fitted on.
        provenance: where it comes from.
        standards: of several detectors, one for each.
    """
    units: Sequence[Standard | None] = standards or [None] * len(detectors)
    members = [
        (_member(detector, engine, standard), detector.tensors())
        for detector, standard in zip(detectors, units, strict=True)
    ]
    return save_model(folder, name, members, provenance)


def _member(detector: Detector, engine: EngineChoice, standard: Standard | None) -> Member:
    needs, backbone = detector.needs, None
    if needs.backbone is not None:
        weights = find_weights(needs.backbone)
        backbone = Backbone(
            name=needs.backbone,
            stages=needs.stages,
            weights_source=weights.source,
            weights_sha256=weights.sha256,
            mean=weights.mean,
            std=weights.std,
            engine=engine.name,
            precision=engine.precision,
        )
    return Member(
        algorithm=detector.name,
        kind=detector.kind,
        config=dataclasses.asdict(detector.config),
        seed=detector.seed,
        image_size=needs.image_size,
        device="cuda" if detector.runtime.device.startswith("cuda") else "cpu",
        precision=detector.runtime.precision,
        backbone=backbone,
        standard=standard,
    )
