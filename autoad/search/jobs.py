"""What the dispatcher is given and what it gives."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from autoad.schema import Origin, SearchResult, TrialRow
from autoad.search.budget import Budget

__all__ = ["Job", "Listener", "SearchListener", "Strategy", "Suggestion"]


class Listener(Protocol):
    """Hears how the search goes."""

    def started(self, row: TrialRow) -> None:
        """A trial begins."""

    def reported(self, row: TrialRow) -> None:
        """A trial that trains was evaluated on its way; the row says where it stands."""

    def finished(self, row: TrialRow) -> None:
        """A trial has ended, in whatever way."""


@dataclasses.dataclass(frozen=True)
class Strategy:
    """What helps a search along; each can be left out, to measure what it does.

    Attributes:
        ladders: stop trials that fall behind others of their algorithm.
        shares: deal time to algorithms by promise; otherwise the sampler chooses the algorithm, too.
        costs: begin nothing that is expected to outlast the time that is left, or to take a quarter of it.
    """

    ladders: bool = True
    shares: bool = True
    costs: bool = True


@dataclasses.dataclass(frozen=True)
class Suggestion:
    """A trial that the sampler is not asked about: a default, a good one of an earlier search, one that was cut off."""

    origin: Origin
    algorithm: str
    config: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Job:
    """What a worker is to do.

    Attributes:
        trial: number of the trial.
        algorithm: name of the algorithm.
        config: its hyperparameters.
        sweep: by parameter, values to compare after the fit.
        seconds: for fitting, for algorithms that train; None for the ceiling of epochs.
        exact_above: objective from which pixel metrics are computed exactly.
        memory_limit: bytes that the trial may take; None for no limit.
    """

    trial: int
    algorithm: str
    config: dict[str, Any]
    sweep: dict[str, tuple[Any, ...]]
    seconds: float | None
    exact_above: float
    memory_limit: int | None = None


class SearchListener(Listener, Protocol):
    """Hears how the search goes."""

    def say(self, text: str) -> None:
        """Something worth a line."""

    def opened(self, search: SearchResult, rows: Sequence[TrialRow]) -> None:
        """This process carries the search out; ``rows`` are trials from before an interruption."""

    def begin(self, budget: Budget) -> None:
        """Trials begin."""

    def end(self) -> None:
        """Trials have ended."""

    def closed(self, result: SearchResult) -> None:
        """The search is over, in whatever way."""
