"""Ensembles: the mean of what trials of different algorithms say, each in units of what it says of good pictures.

Detectors of different kinds err on different pictures, so the mean of their standardised scores can be better than any
of them (Dietterich: Ensemble methods in machine learning, 2000). It costs as much as all of them together, and an
average of what was best on the selection pictures flatters itself there; so it has to win by more than chance
(:func:`autoad.search.choice.choose_trial`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from autoad.algorithms import Prediction
from autoad.errors import TrialError
from autoad.features import FeatureStore
from autoad.models import Standard, load_inputs
from autoad.schema import Metrics, TrialRow
from autoad.search.candidate import Candidate
from autoad.search.sweep import Judge, evaluation_maps
from autoad.search.trial import TrialTask, fit_trial

__all__ = ["join_scores", "standardize", "top_trials"]

_MOST_MEMBERS = 3
_BATCH = 32

_Scores = npt.NDArray[np.floating]


def top_trials(rows: Sequence[TrialRow]) -> list[Candidate]:
    """The ensembles to consider: of the best trial of each of the best two algorithms, and of the best three.

    Args:
        rows: finished trials, best first.
    """
    best: dict[str, TrialRow] = {}
    for row in rows:
        best.setdefault(row.algorithm, row)
    first = list(best.values())[:_MOST_MEMBERS]
    return [Candidate(tuple(first[:count])) for count in range(2, len(first) + 1)]


def join_scores(scores: Sequence[_Scores], normal: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64] | None:
    """``[N]`` scores of an ensemble from its members' ``[N]``; None if one says the same of all normals.

    Args:
        scores: of each member.
        normal: ``[N]`` which pictures are good.
    """
    total = np.zeros(len(normal))
    for each in scores:
        one = each.astype(np.float64)
        center, spread = one[normal].mean(), one[normal].std()
        if not spread > 0:
            return None
        total += (one - center) / spread
    return total / len(scores)


def standardize(candidate: Candidate, task: TrialTask, *, threads: int) -> tuple[list[Standard], Metrics]:
    """What an ensemble's members say of the selection normals, and how good it is on the selection pictures.

    Each trial is fitted once more, on the train pictures alone: what it says of pictures that it was fitted on would
    not tell what it says of others.

    Args:
        candidate: the ensemble.
        task: what the trials shared, with the selection pictures that ranked them.
        threads: CPU threads of the backbones.

    Returns:
        The members' standards, in their order, and exact metrics; of maps at 256 x 256.

    Raises:
        TrialError: a member says the same of all good pictures.
    """
    normal = np.array([picture.is_normal for picture in task.selection])
    standards: list[Standard] = []
    scores = np.zeros(len(normal))
    total: npt.NDArray[np.float32] | None = None
    drawn = 0
    for row in candidate.rows:
        prediction, peaks = _predict(row, task, threads)
        raw = prediction.scores.numpy().astype(np.float64)
        known = {} if peaks is None else {"map_center": peaks[normal].mean(), "map_spread": peaks[normal].std()}
        center, spread = raw[normal].mean(), raw[normal].std()
        if not min(spread, known.get("map_spread", spread)) > 0:
            raise TrialError(f"trial {row.trial} ({row.algorithm}) says the same of all good pictures")
        standards.append(Standard(center=center, spread=spread, **known))
        scores += (raw - center) / spread / len(candidate.rows)
        if prediction.maps is not None:
            maps = prediction.maps.numpy()
            maps -= np.float32(known["map_center"])
            maps /= np.float32(known["map_spread"])
            total = maps if total is None else np.add(total, maps, out=total)
            drawn += 1
    if total is not None:
        total /= np.float32(drawn)
    judge = Judge(task.selection, task.objective, weight=task.labelled_weight)
    return standards, judge.metrics(scores.astype(np.float32), total, exact=True)


def _predict(row: TrialRow, task: TrialTask, threads: int) -> tuple[Prediction, npt.NDArray[np.float64] | None]:
    """What a trial says of the selection pictures, maps at the size of evaluation, and its own maps' largest values."""
    detector = fit_trial(row, task, task.train, threads=threads)
    inputs = load_inputs(FeatureStore(task.features_dir), task.selection, detector.needs, task.engine, threads=threads)
    scores, maps, peaks = [], [], []
    for part in inputs.batches(_BATCH):
        prediction = detector.predict(part)
        scores.append(prediction.scores.float().cpu())
        small = evaluation_maps(prediction)
        if prediction.maps is not None and small is not None:
            peaks.append(prediction.maps.amax(dim=(1, 2)).double().cpu().numpy())
            maps.append(torch.from_numpy(small))
    found = Prediction(torch.cat(scores), torch.cat(maps) if maps else None)
    return found, np.concatenate(peaks) if peaks else None
