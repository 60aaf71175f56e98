"""Which hyperparameters mattered, by algorithm: Optuna's importances and parallel coordinates.

The space is conditional (first the algorithm, then its own hyperparameters), so one picture over all of it would mostly
say that the algorithm matters. Each algorithm with enough finished trials becomes a study of its own instead.
"""

from __future__ import annotations

import dataclasses
import json
import warnings

import optuna
from optuna.trial import TrialState, create_trial

from autoad.algorithms import ALGORITHMS
from autoad.report.figure import Figure
from autoad.report.material import Material
from autoad.report.words import METRIC_TITLES

__all__ = ["ENOUGH", "Hyperparameters", "hyperparameters"]

ENOUGH = 8
"""Fewest finished trials of an algorithm from which importances are told."""


_PAGE_DECIDES = frozenset({"title", "template", "plot_bgcolor", "paper_bgcolor"})


@dataclasses.dataclass(frozen=True)
class Hyperparameters:
    """What the trials say of one algorithm's hyperparameters.

    Attributes:
        trials: finished ones.
        importances: share of each searched hyperparameter, largest first; they sum to 1.
        figure: parallel coordinates.
    """

    algorithm: str
    trials: int
    importances: dict[str, float]
    figure: Figure


def hyperparameters(material: Material) -> list[Hyperparameters]:
    """The algorithms with at least :data:`ENOUGH` finished trials, most trials first."""
    if material.study is None:
        return []
    title = METRIC_TITLES[material.result.objective]
    told = []
    trials = material.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    for algorithm in ALGORITHMS:
        its = [_without_prefix(trial, algorithm) for trial in trials if trial.params.get("algorithm") == algorithm]
        if len(its) < ENOUGH or len({trial.value for trial in its}) < 2 or not its[0].params:
            continue
        study = optuna.create_study(direction="maximize")
        study.add_trials(its)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            importances = optuna.importance.get_param_importances(study)
            drawn = optuna.visualization.plot_parallel_coordinate(study, target_name=title)
        if not importances:
            continue
        figure = json.loads(drawn.to_json())
        # The page has its own title, theme and grounds.
        layout = {key: value for key, value in figure["layout"].items() if key not in _PAGE_DECIDES}
        told.append(
            Hyperparameters(
                algorithm,
                len(its),
                importances,
                Figure(
                    f"parallel-{algorithm}",
                    f"Parallel coordinates of {len(its)} trials of {algorithm}: each line is a trial, each axis a "
                    "hyperparameter.",
                    figure["data"],
                    layout,
                    400,
                    narrowest=150 * (len(importances) + 1),
                    on_white=True,
                ),
            )
        )
    return sorted(told, key=lambda told: -told.trials)


def _without_prefix(trial: optuna.trial.FrozenTrial, algorithm: str) -> optuna.trial.FrozenTrial:
    """The trial without the algorithm, and without what had one choice only."""
    prefix = f"{algorithm}."
    names = [
        name
        for name, distribution in trial.distributions.items()
        if name.startswith(prefix) and not distribution.single()
    ]
    return create_trial(
        params={name.removeprefix(prefix): trial.params[name] for name in names},
        distributions={name.removeprefix(prefix): trial.distributions[name] for name in names},
        value=trial.value,
    )
