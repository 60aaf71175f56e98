"""From fitted detectors to a saved model."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from autoad.algorithms import Detector
from autoad.data import Picture
from autoad.features import EngineChoice, find_weights
from autoad.models import Backbone, Member, Model, Provenance, Standard, save_model
from autoad.search.candidate import Candidate
from autoad.search.trial import TrialTask, fit_trial

__all__ = ["describe_detector", "fit_model"]


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
    units: Sequence[Standard | None] = standards or [None] * len(candidate.rows)
    members = [
        describe_detector(fit_trial(row, task, pictures, threads=threads), task.engine, standard)
        for row, standard in zip(candidate.rows, units, strict=True)
    ]
    save_model(folder, name, members, provenance)
    return Model.load(folder, threads=threads)


def describe_detector(
    detector: Detector, engine: EngineChoice, standard: Standard | None = None
) -> tuple[Member, dict[str, Tensor]]:
    """A fitted detector as a member of a model: all that scoring by it takes, and its tensors.

    Args:
        detector: that was fitted.
        engine: which ran the backbone over the pictures that it was fitted on.
        standard: of a member of an ensemble.
    """
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
    member = Member(
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
    return member, detector.tensors()
