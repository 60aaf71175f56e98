"""What hears of a search besides the console: TensorBoard, MLflow, and the fan-out to all of them."""

from __future__ import annotations

from autoad.search.trackers._fan_out import FanOut
from autoad.search.trackers._mlflow import MlflowTracker
from autoad.search.trackers._tensorboard import TensorBoardTracker

__all__ = ["FanOut", "MlflowTracker", "TensorBoardTracker"]
