"""How good a detector is, how sure that is, and where it draws the line."""

from __future__ import annotations

from autoad.evaluation.best_f1 import BestF1
from autoad.evaluation.comparison import Comparison, compare_trials, drawn_per_kind, labelled_weight, many_labelled
from autoad.evaluation.intervals import (
    PixelIntervals,
    bootstrap_interval,
    bootstrap_pixel_interval,
    paired_difference,
)
from autoad.evaluation.metrics import ImageMetrics, PixelMetrics, image_metrics
from autoad.evaluation.pixels import pixel_metrics
from autoad.evaluation.regions import find_regions
from autoad.evaluation.summary import by_defect, compute_metrics, known_pixels
from autoad.evaluation.thresholds import (
    Threshold,
    conformal_rank,
    conformal_threshold,
    measured_threshold,
    normalize_scores,
    score_scale,
    smallest_rate,
)
from autoad.schema import Region

__all__ = [
    "BestF1",
    "Comparison",
    "ImageMetrics",
    "PixelIntervals",
    "PixelMetrics",
    "Region",
    "Threshold",
    "bootstrap_interval",
    "bootstrap_pixel_interval",
    "by_defect",
    "compare_trials",
    "compute_metrics",
    "conformal_rank",
    "conformal_threshold",
    "drawn_per_kind",
    "find_regions",
    "image_metrics",
    "known_pixels",
    "labelled_weight",
    "many_labelled",
    "measured_threshold",
    "normalize_scores",
    "paired_difference",
    "pixel_metrics",
    "score_scale",
    "smallest_rate",
]
