"""What the two sides are asked to do: algorithms with the configuration that each needs to do the same."""

from __future__ import annotations

import dataclasses
from typing import Any

import optuna

from autoad.search.space import load_spaces

__all__ = ["TASKS", "Task", "draw_configs", "for_anomalib"]

_BACKBONE = "tf_efficientnet_lite0"


@dataclasses.dataclass(frozen=True)
class Task:
    """An algorithm with what both sides are told of it; all else is each side's default.

    Attributes:
        name: in tables.
        algorithm: as autoad has it.
        ours: changes to autoad's defaults.
        theirs: changes to anomalib's defaults.
        epochs: how long both train where accuracy is compared; None for algorithms that do not.
        goal: by what is timed, how many times faster than anomalib ours should be.
        seeds: with how many its accuracy is compared, at most.
        timed: whether it is timed.
        judged: whether its accuracy is compared: ``"whole"`` with all pictures, ``"part"`` with those that are timed.
    """

    name: str
    algorithm: str
    ours: dict[str, Any]
    theirs: dict[str, Any]
    epochs: int | None = None
    goal: dict[str, float] = dataclasses.field(default_factory=dict)
    seeds: int = 5
    timed: bool = True
    judged: str | None = "whole"


def _pretrained(*stages: int, **others: Any) -> dict[str, Any]:
    return {"backbone": _BACKBONE, "stages": stages, **others}


TASKS = (
    Task("DFKDE", "dfkde", {}, _pretrained(4), goal={"fit + predict": 5}, seeds=1),
    Task("DFM", "dfm", {}, {"backbone": _BACKBONE, "stage": 3}, goal={"fit + predict": 5}, seeds=1),
    Task(
        "PaDiM",
        "padim",
        {"outlier_deviations": 0.0},
        _pretrained(1, 2, 3, n_features=100),
        goal={"fit": 5, "predict 1": 5, "predict 16": 5},
    ),
    Task(
        "PatchCore 1 %",
        "patchcore",
        {"coreset_sampling_ratio": 0.01},
        _pretrained(2, 3, coreset_sampling_ratio=0.01),
        seeds=1,
    ),
    Task(
        "PatchCore 10 %",
        "patchcore",
        {},
        _pretrained(2, 3),
        goal={"fit": 20, "predict 1": 4, "predict 16": 4},
        seeds=1,
        judged="part",
    ),
    Task("STFPM", "stfpm", {}, _pretrained(1, 2, 3), epochs=5, goal={"epoch": 3}, judged="part"),
    Task(
        "Reverse Distillation",
        "reverse_distillation",
        {"backbone": "resnet18"},
        {"backbone": "resnet18", "stages": (1, 2, 3)},
        epochs=5,
        goal={"epoch": 3},
        judged="part",
    ),
    Task("CFlow", "cflow", {}, _pretrained(2, 3, 4), epochs=2, goal={"epoch": 3}, judged="part"),
    Task("GANomaly 256", "ganomaly", {"image_size": 256}, {"image_size": 256}, goal={"epoch": 2}, judged=None),
    Task("GANomaly 64", "ganomaly", {}, {"image_size": 64}, epochs=5, timed=False, judged="part"),
)
"""GANomaly is timed at anomalib's default size and judged at autoad's: an epoch of anomalib's takes a minute at 256."""


def draw_configs(count: int, seed: int) -> list[tuple[str, dict[str, Any]]]:
    """Random configurations of the frozen-backbone algorithms, in turn, from the packaged search spaces.

    Only what both sides can be told is drawn; the rest keeps its default.
    """
    names = ("patchcore", "padim", "dfm", "dfkde")
    large = {"resnet18", "resnet50", "wide_resnet50_2"}
    spaces = {name: space.without_backbones(large) for name, space in load_spaces(names).items()}
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    drawn: list[tuple[str, dict[str, Any]]] = []
    for number in range(count):
        name = names[number % len(names)]
        config = spaces[name].suggest(study.ask())
        shared = {key: value for key, value in config.items() if key in _SHARED[name]}
        if name == "dfkde":  # anomalib joins the stages' features along the wrong axis, and fails with several
            shared["stages"] = shared["stages"][-1:]
        drawn.append((name, shared | {"backbone": _BACKBONE}))
    return drawn


_SHARED = {
    "patchcore": {"image_size", "stages", "coreset_sampling_ratio"},
    "padim": {"image_size", "stages", "n_features"},
    "dfm": {"image_size", "stage", "pooling_kernel_size", "pca_level"},
    "dfkde": {"image_size", "stages", "n_pca_components"},
}
_CHANNELS = {1: 24, 2: 40, 3: 112, 4: 320}


def for_anomalib(name: str, config: dict[str, Any]) -> dict[str, Any]:
    """The same configuration in the form in which :mod:`theirs` takes it."""
    # What autoad limits to what there is, anomalib refuses.
    if name == "padim":
        most = sum(_CHANNELS[stage] for stage in config["stages"])
        return config | {"n_features": min(config["n_features"], most)}
    if name == "dfm":
        cells = config["image_size"] >> config["stage"] + 1
        return config | {"pooling_kernel_size": min(config["pooling_kernel_size"], cells)}
    return config
