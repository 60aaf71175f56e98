"""Searching: spaces, trials, the Tune run, the leaderboard and the champion."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

# What Ray reads when it is imported, by whatever module here.
from autoad.search import _ray_environment as _ray_environment

if TYPE_CHECKING:
    from autoad.search.budget import Budget
    from autoad.search.jobs import SearchListener
    from autoad.search.plan import DEFAULT_RATE, DEFAULT_SECONDS, SearchRequest
    from autoad.search.results import load_result
    from autoad.search.run import resume_search, run_search
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

_PLACES = {
    "Budget": "budget",
    "DEFAULT_RATE": "plan",
    "DEFAULT_SECONDS": "plan",
    "SearchListener": "jobs",
    "SearchRequest": "plan",
    "load_result": "results",
    "resume_search": "run",
    "run_search": "run",
    "score_pictures": "scoring",
}
"""Modules are imported when something of them is asked for: who scores needs no Ray, and a worker no database."""


if not TYPE_CHECKING:  # to which any name would be there

    def __getattr__(name: str) -> Any:
        if name in _PLACES:
            return getattr(import_module(f"autoad.search.{_PLACES[name]}"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
