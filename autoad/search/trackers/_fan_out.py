"""One listener for several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from autoad.schema import SearchResult, TrialRow

if TYPE_CHECKING:
    from autoad.search.budget import Budget
    from autoad.search.jobs import SearchListener

__all__ = ["FanOut"]


class FanOut:
    """Tells each listener in turn; one that raises is reported to the others and dropped, and the search goes on.

    Args:
        listeners: the console first, so that it hears of the others' failures.
    """

    def __init__(self, *listeners: SearchListener) -> None:
        self._listeners = list(listeners)

    def _tell(self, event: Callable[[SearchListener], None]) -> None:
        dropped = []
        for listener in list(self._listeners):
            try:
                event(listener)
            except Exception as error:
                self._listeners.remove(listener)
                reason = f"{type(error).__name__}: {error}"
                dropped.append(f"{type(listener).__name__} failed and is left out from here on ({reason})")
        for text in dropped:
            self.say(text)

    def say(self, text: str) -> None:
        """Something worth a line."""
        self._tell(lambda listener: listener.say(text))

    def opened(self, search: SearchResult, rows: Sequence[TrialRow]) -> None:
        """The search has its record in the database."""
        self._tell(lambda listener: listener.opened(search, rows))

    def begin(self, budget: Budget) -> None:
        """Trials begin."""
        self._tell(lambda listener: listener.begin(budget))

    def started(self, row: TrialRow) -> None:
        """A trial begins."""
        self._tell(lambda listener: listener.started(row))

    def reported(self, row: TrialRow) -> None:
        """A trial was evaluated on its way."""
        self._tell(lambda listener: listener.reported(row))

    def finished(self, row: TrialRow) -> None:
        """A trial has ended."""
        self._tell(lambda listener: listener.finished(row))

    def end(self) -> None:
        """Trials have ended."""
        self._tell(lambda listener: listener.end())

    def closed(self, result: SearchResult) -> None:
        """The search is over."""
        self._tell(lambda listener: listener.closed(result))
