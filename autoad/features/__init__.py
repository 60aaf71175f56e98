"""Frozen backbones: where their weights are, what runs them, and the features that all trials share."""

from __future__ import annotations

from autoad.features.backbones import backbone_stages, create_backbone, feature_shapes
from autoad.features.engines import (
    Engine,
    EngineChoice,
    available_engines,
    choose_engine,
    create_engine,
    head_precision,
)
from autoad.features.pool import EnginePool, SharedEngine
from autoad.features.store import FeatureStore, as_tensors
from autoad.features.weights import DEFAULT_BACKBONE, Weights, find_weights, reachable_backbones

__all__ = [
    "DEFAULT_BACKBONE",
    "Engine",
    "EngineChoice",
    "EnginePool",
    "FeatureStore",
    "SharedEngine",
    "Weights",
    "as_tensors",
    "available_engines",
    "backbone_stages",
    "choose_engine",
    "create_backbone",
    "create_engine",
    "feature_shapes",
    "find_weights",
    "head_precision",
    "reachable_backbones",
]
