"""Searching: spaces, trials, the Tune run, the leaderboard and the champion."""

from __future__ import annotations

from autoad.search import _ray_environment as _ray_environment
from autoad.search.budget import Budget
from autoad.search.jobs import SearchListener
from autoad.search.plan import DEFAULT_RATE, DEFAULT_SECONDS, SearchRequest
from autoad.search.run import load_result, resume_search, run_search
from autoad.search.scoring import score_pictures

__all__ = [
    "DEFAULT_RATE",
    "DEFAULT_SECONDS",
    "Budget",
    "SearchListener",
    "SearchRequest",
    "load_result",
    "resume_search",
    "run_search",
    "score_pictures",
]
