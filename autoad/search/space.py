"""Search spaces: which values of which hyperparameters a search may try.

Each algorithm has a YAML file in ``autoad.search_spaces``; a user's file or folder (``--space``) is laid over them,
parameter by parameter. Optuna sees one conditional space: first the algorithm, then that algorithm's parameters, named
``patchcore.num_neighbors``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import optuna

from autoad.algorithms import ALGORITHMS
from autoad.errors import SearchSpaceError, UnknownNameError, WeightsError
from autoad.search._parameter import Parameter
from autoad.search._space_file import SpaceFile, read_space_file

__all__ = ["Parameter", "Space", "load_spaces", "suggest_config"]

_BACKBONE = "backbone"


@dataclasses.dataclass(frozen=True)
class Space:
    """What may be tried of one algorithm.

    Attributes:
        algorithm: its name.
        help: one line on it.
        epochs: most epochs that a trial may train; None for algorithms that do not. Never searched.
        parameters: hyperparameters, searched, swept or fixed; those not among them keep the algorithm's own defaults.
    """

    algorithm: str
    help: str
    epochs: int | None
    parameters: tuple[Parameter, ...]

    def defaults(self) -> dict[str, Any]:
        """The configuration of the algorithm's first trial."""
        return {parameter.name: parameter.default for parameter in self.parameters}

    def suggest(self, trial: optuna.trial.BaseTrial) -> dict[str, Any]:
        """A configuration chosen by Optuna; what is swept has its default."""
        return {parameter.name: parameter.suggest(trial, self.algorithm) for parameter in self.parameters}

    def sweep(self, config: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
        """By parameter, the values that a trial of ``config`` compares after its fit (``TrialWorker.run``).

        The configuration's own value comes first, the others by how near they are to it; parameters with a single value
        are left out.
        """
        swept = {parameter.name: parameter.sweep(config[parameter.name]) for parameter in self.parameters}
        return {name: values for name, values in swept.items() if len(values) > 1}

    def encode(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """A configuration, or a part of one, as Optuna's parameters (for ``Study.enqueue_trial``).

        Raises:
            UnknownNameError: it holds a name that is no parameter of this space.
        """
        known = {parameter.name: parameter for parameter in self.parameters}
        for name in config:
            if name not in known:
                raise UnknownNameError(f"parameter of {self.algorithm}", name, known)
        return {
            f"{self.algorithm}.{name}": known[name].encode(value)
            for name, value in config.items()
            if known[name].is_proposed
        }

    def backbones(self) -> set[str]:
        """The backbones that may be tried; empty for an algorithm that works on pixels alone."""
        return {
            str(choice)
            for parameter in self.parameters
            if parameter.name == _BACKBONE
            for choice in parameter.choices or (parameter.default,)
        }

    def without_backbones(self, unreachable: set[str]) -> Space:
        """The same space without some backbones; the first that is left takes the place of a default that is not.

        Raises:
            WeightsError: no backbone would be left.
        """
        left = []
        for parameter in self.parameters:
            if parameter.name == _BACKBONE and unreachable & self.backbones():
                choices = tuple(choice for choice in parameter.choices if choice not in unreachable)
                if not choices:
                    raise WeightsError(
                        f"{self.algorithm} needs one of the backbones {', '.join(sorted(self.backbones()))} but their "
                        "weights cannot be reached; put NAME.safetensors into the folder that AUTOAD_WEIGHTS_DIR names"
                    )
                default = choices[0] if parameter.default in unreachable else parameter.default
                parameter = dataclasses.replace(parameter, choices=choices, default=default)
            left.append(parameter)
        return dataclasses.replace(self, parameters=tuple(left))


def suggest_config(trial: optuna.trial.BaseTrial, spaces: Mapping[str, Space]) -> tuple[str, dict[str, Any]]:
    """An algorithm and its configuration, chosen by Optuna."""
    algorithm = trial.suggest_categorical("algorithm", list(spaces))
    return algorithm, spaces[algorithm].suggest(trial)


def load_spaces(algorithms: Sequence[str] | None = None, override: Path | None = None) -> dict[str, Space]:
    """The search spaces of some algorithms.

    Args:
        algorithms: their names; None for all.
        override: a YAML file, or a folder of them, to lay over the packaged ones.

    Raises:
        SearchSpaceError: a file is wrong; names the file, line and key.
        UnknownNameError: there is no such algorithm.
    """
    names = ALGORITHMS if algorithms is None else tuple(algorithms)
    for name in names:
        if name not in ALGORITHMS:
            raise UnknownNameError("algorithm", name, ALGORITHMS)
    overrides: dict[str, SpaceFile] = {}
    for path in [] if override is None else _files(override):
        file = read_space_file(path)
        if file.algorithm in overrides:
            raise SearchSpaceError(
                f"{path}: a second space for {file.algorithm}; the first is {overrides[file.algorithm].path}"
            )
        overrides[file.algorithm] = file
    folder = resources.files("autoad.search_spaces")
    packaged = {name: read_space_file(folder / f"{name}.yaml") for name in names}
    return {name: _lay_over(file, overrides.get(name)) for name, file in packaged.items()}


def _files(override: Path) -> list[Path]:
    if not override.is_dir():
        return [override]
    files = sorted(path for path in override.iterdir() if path.suffix in (".yaml", ".yml"))
    if not files:
        raise SearchSpaceError(f"{override}: a folder of search spaces must hold .yaml files but has none")
    return files


def _lay_over(packaged: SpaceFile, override: SpaceFile | None) -> Space:
    parameters = packaged.parameters | ({} if override is None else override.parameters)
    epochs = packaged.epochs if override is None or override.epochs is None else override.epochs
    return Space(packaged.algorithm, (override and override.help) or packaged.help, epochs, tuple(parameters.values()))
