"""Checks of hyperparameters, and the ways in which frozen features are read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from autoad.algorithms._base import Inputs
from autoad.errors import TrialMemoryError, UsageError

__all__ = ["BUNDLED_BACKBONE", "check_memory", "check_stages", "feature_map", "fitted", "require"]

BUNDLED_BACKBONE = "tf_efficientnet_lite0"
"""Default of every Config: the one backbone whose weights are always there. The references use larger ones."""


def require(holds: bool, name: str, rule: str, value: object) -> None:
    """Raise ``UsageError("NAME must be RULE but got VALUE")`` unless ``holds``."""
    if not holds:
        raise UsageError(f"{name} must be {rule} but got {value!r}")


def check_stages(name: str, stages: Sequence[int]) -> tuple[int, ...]:
    """``stages`` as a tuple (files hold lists).

    Raises:
        UsageError: they are not distinct numbers from 0 to 4 in ascending order.
    """
    known = isinstance(stages, list | tuple) and all(type(s) is int and 0 <= s <= 4 for s in stages)
    rule = "one or more distinct stages from 0 to 4, ascending,"
    require(known and len(stages) > 0 and list(stages) == sorted(set(stages)), name, rule, stages)
    return tuple(stages)


def check_memory(size: int, limit: int, what: str, remedy: str) -> None:
    """Refuse, before anything is allocated, what would take more bytes than a detector may.

    Raises:
        TrialMemoryError: ``size`` is over the ``limit``; says what to change.
    """
    if size > limit:
        raise TrialMemoryError(
            f"{what} must be at most {limit / 2**30:.3g} GiB but got {size / 2**30:.3g} GiB: {remedy}"
        )


def feature_map(batch: Inputs, stage: int, device: str) -> Tensor:
    """One stage's features as float32 ``[N, C, h, w]`` on ``device``, memory still channels-last."""
    return batch.features[stage].to(device, torch.float32)


def fitted(value: Any, name: str) -> Any:
    """``value``, unless it is None because nothing was learnt yet.

    Raises:
        UsageError: the detector was neither fitted nor loaded.
    """
    if value is None:
        raise UsageError(f"{name} must be fitted, or its tensors loaded, before it predicts or is saved")
    return value
