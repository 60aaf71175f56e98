"""What there is to search with: algorithms, and what this machine offers."""

from __future__ import annotations

import os
from importlib.metadata import version

from autoad.algorithms import ALGORITHMS, get_algorithm
from autoad.features import available_engines, choose_engine, reachable_backbones
from autoad.search.space import load_spaces
from autoad.settings import get_settings

__all__ = ["examine_machine", "list_algorithms"]


def list_algorithms() -> list[dict[str, str]]:
    """Name, kind, way of learning, number of searched parameters and paper of each algorithm."""
    spaces = load_spaces()
    return [
        {
            "algorithm": name,
            "kind": get_algorithm(name).kind,
            "learns": f"up to {spaces[name].epochs} epochs" if get_algorithm(name).iterative else "in one pass",
            "searched": ", ".join(parameter.name for parameter in spaces[name].parameters),
            "paper": get_algorithm(name).paper,
        }
        for name in ALGORITHMS
    ]


def examine_machine() -> list[dict[str, str]]:
    """A line for each thing that decides what a search can do here."""
    import torch

    settings = get_settings()
    choice = choose_engine()
    lines = [("autoad", version("autoad"))]
    lines += [(package, version(package)) for package in ("ray", "optuna", "torch", "timm")]
    lines.append(("processor", f"{os.cpu_count()} cores"))
    for index in range(torch.cuda.device_count()):
        lines.append((f"GPU {index}", torch.cuda.get_device_name(index)))
    lines += [(f"engine {name}", state) for name, state in available_engines().items()]
    lines.append(("a search uses", f"{choice.name} {choice.precision}"))
    wanted = sorted({backbone for space in load_spaces().values() for backbone in space.backbones()})
    for name, weights in reachable_backbones(wanted).items():
        state = weights if isinstance(weights, str) else f"{weights.source}, sha256 {weights.sha256[:12]}"
        lines.append((f"backbone {name}", state))
    writable = "writable" if _writable(settings.data_dir) else "NOT WRITABLE: set AUTOAD_DATA_DIR"
    lines.append(("data folder", f"{settings.data_dir} ({writable})"))
    return [{"what": what, "state": state} for what, state in lines]


def _writable(folder: os.PathLike[str]) -> bool:
    path = os.path.abspath(folder)
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return os.path.isdir(path) and os.access(path, os.W_OK)
