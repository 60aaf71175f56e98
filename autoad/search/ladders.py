"""Early stopping: a ladder for each algorithm that trains."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler

from autoad.algorithms import get_algorithm

__all__ = ["AlgorithmLadders"]

_START, _FACTOR, _END = 3, 3, 10_000


@dataclasses.dataclass(frozen=True)
class _Climber:
    """What a scheduler of Tune wants to know of a trial."""

    trial_id: str


class AlgorithmLadders:
    """Asynchronous successive halving (Li et al., 2020) with a ladder of its own for each algorithm.

    A flow after three epochs is compared with other flows after three epochs, never with a finished memory bank;
    algorithms that do not iterate run undisturbed.
    """

    def __init__(self, algorithms: Iterable[str]) -> None:
        self._ladders = {
            name: AsyncHyperBandScheduler(
                time_attr="epochs",
                metric="objective",
                mode="max",
                grace_period=_START,
                reduction_factor=_FACTOR,
                max_t=_END,
            )
            for name in algorithms
            if get_algorithm(name).iterative
        }
        self._entered: set[str] = set()

    def goes_on(self, trial: int, algorithm: str, objective: float, epochs: int) -> bool:
        """Whether a trial is among the best third of its ladder at this rung, and may train further.

        What it reached there counts from now on; saying so twice changes nothing.
        """
        ladder = self._ladders.get(algorithm)
        if ladder is None:
            return True
        climber = _Climber(str(trial))
        if climber.trial_id not in self._entered:
            self._entered.add(climber.trial_id)
            ladder.on_trial_add(None, climber)
        answer = ladder.on_trial_result(None, climber, {"objective": objective, "epochs": epochs})
        return bool(answer != TrialScheduler.STOP)
