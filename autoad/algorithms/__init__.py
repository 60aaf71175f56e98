"""Eight anomaly detection algorithms behind one interface."""

from autoad.algorithms._base import (
    MEMORY_LIMIT,
    Detector,
    Effect,
    Footprint,
    Inputs,
    Kind,
    Needs,
    Precision,
    Prediction,
    Progress,
    Runtime,
    Shapes,
)
from autoad.algorithms._maps import upsample
from autoad.algorithms._registry import ALGORITHMS, get_algorithm

__all__ = [
    "ALGORITHMS",
    "MEMORY_LIMIT",
    "Detector",
    "Effect",
    "Footprint",
    "Inputs",
    "Kind",
    "Needs",
    "Precision",
    "Prediction",
    "Progress",
    "Runtime",
    "Shapes",
    "get_algorithm",
    "upsample",
]
