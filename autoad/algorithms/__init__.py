"""Eight anomaly detection algorithms behind one interface."""

from autoad.algorithms._base import Detector, Inputs, Kind, Needs, Precision, Prediction, Progress, Runtime
from autoad.algorithms._registry import ALGORITHMS, get_algorithm

__all__ = [
    "ALGORITHMS",
    "Detector",
    "Inputs",
    "Kind",
    "Needs",
    "Precision",
    "Prediction",
    "Progress",
    "Runtime",
    "get_algorithm",
]
