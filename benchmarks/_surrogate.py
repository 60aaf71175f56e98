"""What a trial that was never run would have given, learnt from trials that were.

Random forests over the hyperparameters predict the objective and the logarithm of seconds, as in surrogate benchmarks
for hyperparameter optimisation (Eggensperger et al., "Efficient benchmarking of hyperparameter optimizers via
surrogates", AAAI 2015). A learning curve is one forest over hyperparameters and the logarithm of epochs; beyond what
was recorded it is flat.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from _recording import Recording
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sklearn.ensemble import RandomForestRegressor
from sklearn.model_selection import GroupKFold

from autoad.search.space import Space
from autoad.search.trial import RUNGS

__all__ = ["Evaluation", "Quality", "Surrogate"]

_TREES = 50
_SHORTEST = 0.01

_POWERS = {"patchcore": (1.5, 0.5)}
"""How a fit's and an evaluation's seconds grow with the number of training pictures, where that is not linearly and not
at all: a memory bank's fit is between linear and quadratic, and a larger bank takes longer to search. With these the
default takes on all pictures what ``cached_trials.py`` measured."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A point of a trial: when it is reached, in seconds from the beginning of the fit, and what is found there."""

    seconds: float
    epochs: int | None
    objective: float
    final: bool


@dataclasses.dataclass(frozen=True)
class Quality:
    """How well held-out trials are predicted (5 folds): rank correlations, and what is left of the log seconds."""

    trials: int
    objective: float
    seconds: float
    residual: float


class Surrogate:
    """Trials of one dataset.

    What a configuration reaches is learnt from the dataset's own trials, how long it takes from all recordings: that
    depends on the numbers of pictures alone.

    Args:
        recording: real trials.
        recordings: all of them, with the same numbers of pictures.
        spaces: search space by algorithm.
        machine: factor on all seconds: a slower machine.
    """

    def __init__(
        self,
        recording: Recording,
        recordings: Sequence[Recording],
        spaces: Mapping[str, Space],
        *,
        machine: float = 1.0,
    ) -> None:
        header = recording.header
        self._machine = machine
        self._more_train = header["train_of_all"] / header["train"]
        pictures = sum(header["selection"])
        self._more_selection = header["selection_of_all"] / pictures
        all_pictures = (header["train_of_all"] + header["selection_of_all"]) / (header["train"] + pictures)
        self._features = {key: machine * all_pictures * s for key, s in header["feature_seconds"].items()}
        self._models = {name: _Model(spaces[name], _of([recording], name), _of(recordings, name)) for name in spaces}

    def feature_seconds(self, config: Mapping[str, Any]) -> float:
        """Seconds until the store holds all pictures' features for the first trial of this backbone and size."""
        return self._features[f"{config.get('backbone')} {config['image_size']}"]

    def trial(
        self, algorithm: str, config: Mapping[str, Any], ceiling: int | None, seconds: float | None, jitter: float
    ) -> list[Evaluation]:
        """The evaluations of a trial, as :meth:`TrialWorker.run` would report them.

        Args:
            algorithm: its name.
            config: its hyperparameters.
            ceiling: of epochs.
            seconds: that it may fit.
            jitter: how far it deviates from the expected time, in standard deviations of the unexplained log seconds.
        """
        model = self._models[algorithm]
        factor = math.exp(jitter * min(model.quality.residual, 0.5))
        fit, judge = model.seconds(config)
        fit_power, judge_power = _POWERS.get(algorithm, (1.0, 0.0))
        fit *= factor * self._machine * self._more_train**fit_power
        judge *= factor * self._machine * self._more_selection * self._more_train**judge_power
        if ceiling is None:
            return [Evaluation(fit + judge, None, model.objective(config, [1])[0], final=True)]
        points: list[tuple[float, int, bool]] = []
        elapsed = 0.0
        for epoch in range(1, ceiling + 1):
            elapsed += fit
            final = epoch == ceiling or (seconds is not None and elapsed * (1 + 0.5 / epoch) > seconds)
            if final or epoch in RUNGS:
                elapsed += judge
                points.append((elapsed, epoch, final))
            if final:
                break
        objectives = model.objective(config, [epoch for _, epoch, _ in points])
        return [Evaluation(s, e, o, f) for (s, e, f), o in zip(points, objectives, strict=True)]

    def quality(self) -> dict[str, Quality]:
        """By algorithm."""
        return {name: model.quality for name, model in self._models.items()}


class _Model:
    """Forests of one algorithm."""

    def __init__(
        self, space: Space, trials: Sequence[Mapping[str, Any]], timed_trials: Sequence[Mapping[str, Any]]
    ) -> None:
        self._space = space
        self._longest = max(point[0] for trial in trials for point in trial["curve"])
        curves, objectives, of_trial = [], [], []
        timed, fits, judges = [], [], []
        for number, trial in enumerate(trials):
            described = self._describe(trial["config"])
            for epochs, _, _, objective in trial["curve"]:
                curves.append([*described, math.log(epochs)])
                objectives.append(objective)
                of_trial.append(number)
        for trial in timed_trials:
            timed.append(self._describe(trial["config"]))
            epochs, fit, judge = trial["curve"][-1][:3]
            fits.append(math.log(max(fit / epochs, _SHORTEST)))
            judges.append(math.log(max(judge, _SHORTEST)))
        x, y, groups = np.array(curves), np.array(objectives), np.array(of_trial)
        self._objective = _Forest(x, y)
        self._fit = _Forest(np.array(timed), np.array(fits))
        self._judge = _Forest(np.array(timed), np.array(judges))
        self.quality = _quality(x, y, groups, np.array(timed), np.array(fits))

    def objective(self, config: Mapping[str, Any], epochs: Sequence[int]) -> list[float]:
        described = self._describe(config)
        points = [[*described, math.log(min(epoch, self._longest))] for epoch in epochs]
        return [float(value) for value in self._objective.predict(np.array(points))]

    def seconds(self, config: Mapping[str, Any]) -> tuple[float, float]:
        """Of an epoch (or the whole fit), and of an evaluation."""
        described = np.array([self._describe(config)])
        return math.exp(self._fit.predict(described)[0]), math.exp(self._judge.predict(described)[0])

    def _describe(self, config: Mapping[str, Any]) -> list[float]:
        values: list[float] = []
        for parameter in self._space.parameters:
            value = config[parameter.name]
            value = tuple(value) if isinstance(value, list) else value
            if parameter.type == "categorical":
                values += [float(value == choice) for choice in parameter.choices]
            elif parameter.is_proposed:
                values.append(math.log(value) if parameter.log else float(value))
        return values


class _Forest:
    """A random forest that answers single questions quickly: the checks of scikit-learn take longer than the trees."""

    def __init__(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> None:
        forest = RandomForestRegressor(_TREES, max_features=0.7, random_state=0).fit(x, y)
        self._trees = [tree.tree_ for tree in forest.estimators_]

    def predict(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        narrow = x.astype(np.float32)
        total: NDArray[np.float64] = sum(tree.predict(narrow)[:, 0] for tree in self._trees) / len(self._trees)
        return total


def _quality(
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    groups: NDArray[np.int64],
    timed: NDArray[np.float64],
    fits: NDArray[np.float64],
) -> Quality:
    """Of held-out trials; the objective is compared at the end of each."""
    objective, seconds = np.full(len(y), np.nan), np.full(len(fits), np.nan)
    for train, test in GroupKFold(min(5, len(set(groups)))).split(x, y, groups):
        objective[test] = _Forest(x[train], y[train]).predict(x[test])
    # The recordings tried the same configurations, which must not be learnt from one and asked of another.
    _, same = np.unique(timed, axis=0, return_inverse=True)
    for train, test in GroupKFold(min(5, len(set(same)))).split(timed, fits, same):
        seconds[test] = _Forest(timed[train], fits[train]).predict(timed[test])
    last = [int(np.flatnonzero(groups == group)[-1]) for group in np.unique(groups)]
    return Quality(
        trials=len(last),
        objective=float(spearmanr(objective[last], y[last]).statistic),
        seconds=float(spearmanr(seconds, fits).statistic),
        residual=float(np.std(seconds - fits)),
    )


def _of(recordings: Sequence[Recording], algorithm: str) -> list[dict[str, Any]]:
    return [
        trial
        for recording in recordings
        for trial in recording.trials
        if trial["algorithm"] == algorithm and trial.get("curve")
    ]
