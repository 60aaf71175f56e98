"""From fitted detectors to a saved model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from autoad.data import Picture
from autoad.models import Model, Provenance, Standard, describe_detector, save_model
from autoad.search.candidate import Candidate
from autoad.search.trial import TrialTask, fit_trial

__all__ = ["fit_model"]


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
