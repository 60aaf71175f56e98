"""Searching: spaces, trials, the Tune run, the leaderboard and the champion."""

from __future__ import annotations

from autoad.search import _ray_environment as _ray_environment
from autoad.search.plan import DEFAULT_RATE, DEFAULT_SECONDS, SearchRequest
from autoad.search.run import SearchListener, load_result, run_search
from autoad.search.scoring import score_pictures
from autoad.search.tuning import Budget

__all__ = [
    "DEFAULT_RATE",
    "DEFAULT_SECONDS",
    "Budget",
    "SearchListener",
    "SearchRequest",
    "load_result",
    "run_search",
    "score_pictures",
]
