"""Trials that are close are judged again on other divisions of the good pictures, where there are few of these.

All trials are judged on one division into train and selection normals, so that each is fitted once. With few selection
normals the order of the first few trials then depends on which pictures these happen to be. So each that is close to
the best is fitted again with other pictures of the train role as selection normals (repeated splits, as in Kohavi: A
study of cross-validation and bootstrap for accuracy estimation and model selection, 1995); labelled defects, which
nothing is fitted on, are the same in all divisions, and synthetic ones are drawn on the new normals.
"""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from autoad.data import Picture, draw_defects
from autoad.errors import AutoADError, is_full
from autoad.evaluation import drawn_per_kind
from autoad.features import FeatureStore
from autoad.models import load_inputs
from autoad.schema import TrialRow
from autoad.search.trial import TrialTask, fit_trial

__all__ = ["Division", "Finalists", "other_divisions"]

_FEW = 30
"""Selection normals from which one division must do."""

_MOST_DIVISIONS = 2
_MOST_TRIALS = 8
_BATCH = 32


@dataclasses.dataclass(frozen=True)
class Division:
    """What trials say of the selection pictures of another division.

    Attributes:
        selection: the pictures: normals, labelled defects, then synthetic ones.
        scores: by trial, ``[N]`` raw scores.
    """

    selection: tuple[Picture, ...]
    scores: dict[int, npt.NDArray[np.float32]]


def other_divisions(
    train: Sequence[Picture], selection: Sequence[Picture]
) -> list[tuple[tuple[Picture, ...], tuple[Picture, ...]]]:
    """Other train pictures and selection normals: as many of the latter as there are, and no picture twice.

    Args:
        train: in the order of their sha256, which is as good as drawing lots.
        selection: with the first division's normals.
    """
    normals = tuple(picture for picture in selection if picture.is_normal and not picture.synthetic)
    size, found = len(normals), []
    if not 0 < size < _FEW:
        return []
    for start in range(0, min(_MOST_DIVISIONS, len(train) // size) * size, size):
        chosen = tuple(train[start : start + size])
        found.append(((*train[:start], *train[start + size :], *normals), chosen))
    return found


@dataclasses.dataclass(frozen=True)
class Finalists:
    """Judges trials again, in this process.

    Attributes:
        task: what the trials shared, with the first division.
        folder: of the search.
        seconds: that it may take, by what the trials took; None for any.
        threads: CPU threads.
        say: told what happens.
    """

    task: TrialTask
    folder: Path
    seconds: float | None
    threads: int
    say: Callable[[str], None]

    def judge_again(self, rows: Sequence[TrialRow]) -> list[Division]:
        """What trials say of other divisions; none where there is no need or no time.

        Args:
            rows: finished trials; of many the first few are judged. One that cannot be
                fitted again is left out of the scores.
        """
        divisions = other_divisions(self.task.train, self.task.selection)
        rows = rows[:_MOST_TRIALS]
        if self.seconds is not None:
            expected = sum(row.seconds or 0.0 for row in rows)
            divisions = divisions[: int(self.seconds / max(expected, 1e-9))]
        if len(rows) < 2 or not divisions:
            return []
        self.say(f"{len(rows)} trials are close: judging them on other divisions of the good pictures")
        started, judged = time.monotonic(), []
        for number, division in enumerate(divisions, 1):
            judged.append(self._judge(rows, number, *division))
            if self.seconds is not None and (time.monotonic() - started) * (number + 1) / number > self.seconds:
                break
        return judged

    def _judge(
        self, rows: Sequence[TrialRow], number: int, train: tuple[Picture, ...], normals: tuple[Picture, ...]
    ) -> Division:
        task, folder = self.task, self.folder / f"synthetic-{number}"
        labelled = [picture for picture in task.selection if not picture.is_normal and not picture.synthetic]
        try:
            count = drawn_per_kind(task.labelled_weight)
            drawn = draw_defects(normals, folder, per_kind=count, seed=task.seed)
            selection = (*normals, *labelled, *drawn)
            scores = {}
            for row in rows:
                try:
                    scores[row.trial] = self._score(row, train, selection)
                except (AutoADError, MemoryError, RuntimeError) as error:
                    if is_full(error):
                        raise
                    self.say(f"trial {row.trial} ({row.algorithm}) could not be judged again: {error}")
            return Division(selection, scores)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _score(self, row: TrialRow, train: Sequence[Picture], selection: Sequence[Picture]) -> npt.NDArray[np.float32]:
        task = self.task
        detector = fit_trial(row, task, train, threads=self.threads)
        store = FeatureStore(task.features_dir)
        inputs = load_inputs(store, selection, detector.needs, task.engine, threads=self.threads)
        parts = [detector.measure(part, (detector.config,)) for part in inputs.batches(_BATCH)]
        found = torch.cat([detector.finish(part, detector.config, maps=False).scores for part in parts])
        return found.float().cpu().numpy()
