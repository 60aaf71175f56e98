"""What a trial will take, learnt from the trials that have finished.

For each algorithm the logarithm of a trial's seconds is a linear function of its hyperparameters, fitted by Bayesian
linear regression after each trial (Bishop, "Pattern Recognition and Machine Learning", 2006, section 3.3). The prior
knows one thing only: time grows with the number of pixels. Features that the store does not hold yet cost extra, once
for each backbone and picture size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoad.search.space import Parameter, Space

__all__ = ["CostModel"]

_NOISE = 0.25
"""Standard deviation of log seconds that the hyperparameters do not explain; two workers disturb each other."""

_INTERCEPT_SCALE, _SLOPE_SCALE = 10.0, 0.7
_PIXELS = "image_size"


class CostModel:
    """Seconds of trials to come.

    Args:
        spaces: search space by algorithm.
    """

    def __init__(self, spaces: Mapping[str, Space]) -> None:
        self._spaces = spaces
        self._seen: dict[str, list[tuple[NDArray[np.float64], float]]] = {name: [] for name in spaces}
        self._fits: dict[str, NDArray[np.float64]] = {}
        self._rates: dict[tuple[Any, Any], float] = {}

    def observe(self, algorithm: str, config: Mapping[str, Any], seconds: float, feature_seconds: float = 0.0) -> None:
        """Learn from a trial.

        Args:
            algorithm: its name.
            config: its hyperparameters.
            seconds: what it took beside its features; of an algorithm that trains, for each epoch.
            feature_seconds: what getting its features took.
        """
        key = _feature_key(config)
        self._rates.setdefault(key, feature_seconds / float(config.get(_PIXELS, 256)) ** 2)
        if seconds <= 0:
            return
        self._seen[algorithm].append((self._describe(algorithm, config), math.log(seconds)))
        self._fits[algorithm] = self._fit(algorithm)

    def predict(self, algorithm: str, config: Mapping[str, Any]) -> float | None:
        """Seconds of a trial beside its features (of each epoch, where it trains); None before anything is known."""
        if algorithm not in self._fits:
            return None
        return math.exp(float(self._describe(algorithm, config) @ self._fits[algorithm]))

    def predict_features(self, config: Mapping[str, Any]) -> float:
        """Seconds that getting the features will take: nothing where a trial had the same backbone and size."""
        key = _feature_key(config)
        if key in self._rates or not self._rates:
            return 0.0
        same = [rate for (backbone, _), rate in self._rates.items() if backbone == key[0]]
        # The first load of a size filled the store; the dearest known rate is that of a load that did.
        return max(same or self._rates.values()) * float(config.get(_PIXELS, 256)) ** 2

    def _describe(self, algorithm: str, config: Mapping[str, Any]) -> NDArray[np.float64]:
        values = [1.0]
        for parameter in self._spaces[algorithm].parameters:
            values += _describe(parameter, config.get(parameter.name, parameter.default))
        return np.array(values)

    def _fit(self, algorithm: str) -> NDArray[np.float64]:
        inputs = np.stack([x for x, _ in self._seen[algorithm]])
        targets = np.array([y for _, y in self._seen[algorithm]])
        prior = np.zeros(inputs.shape[1])
        scale = np.full(inputs.shape[1], _SLOPE_SCALE)
        scale[0], prior[0] = _INTERCEPT_SCALE, targets.mean()
        column = 1
        for parameter in self._spaces[algorithm].parameters:
            if parameter.name == _PIXELS and parameter.type != "fixed":
                prior[column] = 2.0  # of log(side), that is 1 of log(pixels)
            column += len(_describe(parameter, parameter.default))
        precision = np.diag(scale**-2.0) + inputs.T @ inputs / _NOISE**2
        return prior + np.linalg.solve(precision, inputs.T @ (targets - inputs @ prior) / _NOISE**2)


def _feature_key(config: Mapping[str, Any]) -> tuple[Any, Any]:
    return config.get("backbone"), config.get(_PIXELS)


def _describe(parameter: Parameter, value: Any) -> list[float]:
    """A hyperparameter's value as numbers that are 0 at its default."""
    value = tuple(value) if isinstance(value, list) else value  # as JSON has it
    if parameter.choices:
        return [float(value == choice) for choice in parameter.choices if choice != parameter.default]
    if parameter.type == "fixed" or parameter.low is None or parameter.high is None:
        return []
    if parameter.log or parameter.name == _PIXELS:
        return [math.log(float(value) / float(parameter.default))]
    return [(float(value) - float(parameter.default)) / (parameter.high - parameter.low or 1.0)]
