"""Choices of a champion that console and report must put into words."""

from __future__ import annotations

from autoad.schema import Choice

KEPT_DEFAULT = Choice(
    trial=1,
    labelled_weight=0,
    best=7,
    behind=0.02,
    error=0.03,
    tied=[7],
    wins=0.25,
    algorithm_wins=0.5,
    kept_default=True,
)
ENSEMBLE = Choice(
    trial=7,
    labelled_weight=1,
    best=7,
    behind=-0.03,
    error=0.01,
    tied=[],
    wins=0.5,
    algorithm_wins=0.5,
    members=[7, 2],
)
