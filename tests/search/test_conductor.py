"""What workers are told, without workers."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import numpy as np

from autoad.schema import Metrics
from autoad.search.selection_scores import SelectionScores
from autoad.search.trial import TrialReport
from autoad.search.tuning import _Conductor

REPORT = TrialReport(
    objective=0.5,
    validation=Metrics(image_auroc=0.5),
    by_kind={},
    swept={},
    variants=1,
    epochs_done=3,
    budget_limited=True,
    final=False,
    exact=False,
    latency_ms=None,
    peak_memory_mb=None,
    model_mb=None,
    scores=np.zeros(4, np.float32),
)


class Actor:
    """Remembers what it was assigned."""

    def __init__(self) -> None:
        self.jobs: list[object] = []
        self.assign = self
        self.remote = self.jobs.append


class FellBehind:
    """A dispatcher that stops every trial and has nothing else to do."""

    finished = False

    def report(self, *_: object, **__: object) -> bool:
        return False

    def next_job(self, *_: object) -> None:
        return None


def test_a_trial_that_fell_behind_is_dropped_though_there_is_nothing_else_to_do(tmp_path: Path) -> None:
    dispatcher: Any = FellBehind()
    conductor = _Conductor(dispatcher, lambda: 1, SelectionScores(tmp_path))
    actor = Actor()
    trial = types.SimpleNamespace(trial_id="a", temporary_state=types.SimpleNamespace(ray_actor=actor))
    assert conductor.on_trial_result(None, trial, {"node": "here", "report": REPORT}) == "CONTINUE"
    assert actor.jobs == [None]
    assert conductor.on_trial_result(None, trial, {"node": "here", "unfit": ""}) == "CONTINUE"
    assert actor.jobs == [None], "it waits already"
