"""The algorithms by name."""

from __future__ import annotations

import importlib
from typing import cast

from autoad.algorithms._base import Detector
from autoad.errors import UnknownNameError

__all__ = ["ALGORITHMS", "get_algorithm"]

# Imported only when asked for: `autoad --help` must not wait for torch models that nobody names.
_CLASSES = {
    "dfkde": "autoad.algorithms.dfkde:DFKDE",
    "dfm": "autoad.algorithms.dfm:DFM",
    "ganomaly": "autoad.algorithms.ganomaly:GANomaly",
    "cflow": "autoad.algorithms.cflow:CFlow",
    "padim": "autoad.algorithms.padim:PaDiM",
    "patchcore": "autoad.algorithms.patchcore:PatchCore",
    "stfpm": "autoad.algorithms.stfpm:STFPM",
    "reverse_distillation": "autoad.algorithms.reverse_distillation:ReverseDistillation",
}

ALGORITHMS: tuple[str, ...] = tuple(_CLASSES)
"""Names of all algorithms, in the order in which their defaults are tried."""


def get_algorithm(name: str) -> type[Detector]:
    """The detector class of an algorithm.

    Raises:
        UnknownNameError: there is no algorithm of that name.
    """
    if name not in _CLASSES:
        raise UnknownNameError("algorithm", name, ALGORITHMS)
    module, _, attribute = _CLASSES[name].partition(":")
    return cast(type[Detector], getattr(importlib.import_module(module), attribute))
