"""One hyperparameter of a search space."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any, Literal

import optuna

__all__ = ["Parameter", "ParameterType"]

ParameterType = Literal["float", "int", "categorical", "sweep", "fixed"]


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One hyperparameter: the values it may take.

    Attributes:
        name: field of the algorithm's Config.
        type: ``float`` or ``int`` between ``low`` and ``high``, ``categorical`` among ``choices``, ``sweep`` for all of
            them in each trial, or ``fixed``.
        low: smallest value.
        high: largest value.
        log: whether equal ratios, rather than equal differences, are equally likely.
        step: distance between neighbouring values.
        fractions: shares of the value proposed that a trial compares with it, between 0 and 1.
        choices: values of any kind that YAML knows; a list stands as a tuple.
        default: tried first; the value itself when fixed.
        help: one line on what it does.
    """

    name: str
    type: ParameterType
    low: float | None = None
    high: float | None = None
    log: bool = False
    step: float | None = None
    fractions: tuple[float, ...] = ()
    choices: tuple[Any, ...] = ()
    default: Any = None
    help: str = ""

    @property
    def is_proposed(self) -> bool:
        """Whether Optuna chooses its value."""
        return self.type not in ("sweep", "fixed")

    def suggest(self, trial: optuna.trial.BaseTrial, algorithm: str) -> Any:
        """A value chosen by Optuna under the name ``ALGORITHM.PARAMETER``; the default where Optuna does not choose."""
        key = f"{algorithm}.{self.name}"
        if self.type == "categorical":
            values = {self.encode(choice): choice for choice in self.choices}
            return values[trial.suggest_categorical(key, list(values))]
        if not self.is_proposed or self.low is None or self.high is None:
            return self.default
        if self.type == "int":
            return trial.suggest_int(key, int(self.low), int(self.high), step=int(self.step or 1), log=self.log)
        return trial.suggest_float(key, self.low, self.high, step=self.step, log=self.log)

    def sweep(self, value: Any) -> tuple[Any, ...]:
        """What a trial compares after its fit: ``value`` itself first, then what lies ever farther from it."""
        if self.type == "sweep":
            own = self.choices.index(value) if value in self.choices else -1
            near = sorted(range(len(self.choices)), key=lambda place: (abs(place - own), place))
            return (value, *(self.choices[place] for place in near if place != own))
        return (value, *(value * fraction for fraction in sorted(self.fractions, reverse=True)))

    def encode(self, value: Any) -> Any:
        """A value as Optuna stores it: it knows no lists, so they become JSON."""
        return json.dumps(value) if isinstance(value, (list, tuple)) else value

    def refusal(self, value: Any) -> str | None:
        """Why a value of the right kind is not one that the parameter may take; None if it is."""
        if self.type in ("categorical", "sweep"):
            return None if value in self.choices else f"must be one of {list(self.choices)}"
        if self.low is not None and self.high is not None:
            if not self.low <= value <= self.high:
                return f"must lie between low ({self.low:g}) and high ({self.high:g})"
            steps = 0.0 if self.step is None else (value - self.low) / self.step
            if not math.isclose(steps, round(steps), abs_tol=1e-6):
                return f"must be low ({self.low:g}) plus a multiple of step ({self.step:g})"
        return None
