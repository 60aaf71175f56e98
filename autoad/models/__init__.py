"""Deployable models: the artifact on disk, and the one path by which a picture gets its score."""

from __future__ import annotations

from autoad.models._addresses import ALIASES, MODELS, Address, check_model_name, parse_address
from autoad.models.artifact import (
    ArtifactMetrics,
    Backbone,
    Calibration,
    Manifest,
    Member,
    Provenance,
    Standard,
    read_manifest,
    save_model,
    write_manifest,
)
from autoad.models.detectors import describe_detector, load_inputs
from autoad.models.heatmap import draw_heatmap
from autoad.models.model import Model, Score

__all__ = [
    "ALIASES",
    "MODELS",
    "Address",
    "ArtifactMetrics",
    "Backbone",
    "Calibration",
    "Manifest",
    "Member",
    "Model",
    "Provenance",
    "Score",
    "Standard",
    "check_model_name",
    "describe_detector",
    "draw_heatmap",
    "load_inputs",
    "parse_address",
    "read_manifest",
    "save_model",
    "write_manifest",
]
