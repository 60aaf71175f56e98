"""What is said of thresholds."""

from __future__ import annotations

from typing import Literal

__all__ = ["THRESHOLD_METHODS", "ThresholdMethod", "describe_rate"]

ThresholdMethod = Literal["conformal", "f1-max"]
THRESHOLD_METHODS: tuple[ThresholdMethod, ...] = ("conformal", "f1-max")


def describe_rate(method: ThresholdMethod, rate: float, upper: float | None, what: str = "above it") -> str:
    """How many good pictures a threshold calls anomalous, as the end of a sentence.

    Args:
        method: by which the threshold was found.
        rate: what is guaranteed on average (``conformal``), or the share of calibration pictures (``f1-max``).
        upper: 90 % upper bound on the rate of this very threshold; None if it is not known.
        what: happens to these pictures.
    """
    told, bound = f"at most {rate:.1%} of good pictures {what} on average", "90 % bound"
    if method == "f1-max":
        told, bound = f"{rate:.1%} of the calibration pictures {what}", "nearly a 90 % bound: they chose it, too"
    return told if upper is None else f"{told}; by this calibration at most {upper:.1%} of good ones ({bound})"
