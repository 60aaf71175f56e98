"""The progress of a search on stderr: a live view below a line for each trial, or lines only."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from autoad.console._streams import err
from autoad.console._text import one_line
from autoad.console.devices import Devices, DevicesMeter
from autoad.console.live import render, status_line, trial_line
from autoad.console.progress import Progress
from autoad.schema import SearchResult, TrialRow

if TYPE_CHECKING:
    from autoad.search import Budget

__all__ = ["ConsoleListener", "Screen"]

_STATUS_EVERY = 30.0
_LOOK_EVERY = 1.0


class Screen:
    """Draws a :class:`~autoad.console.progress.Progress`: live on a terminal, otherwise as plain lines.

    Args:
        progress: what to draw.
        console: where to; the live view needs one that is a terminal, can move its cursor and knows block characters.
        meter: looks at this machine's devices for the live view; None to leave them out.
    """

    def __init__(self, progress: Progress, console: Console = err, meter: DevicesMeter | None = None) -> None:
        self._progress = progress
        self._console = console
        self._meter = meter
        self._devices: Devices | None = None
        self._looked = float("-inf")
        self._status_at = time.monotonic()
        self._live: Live | None = None

    @property
    def is_live(self) -> bool:
        """Whether this console can show the live view; FORCE_COLOR makes a pipe colourful, but no terminal."""
        console = self._console
        able = console.is_terminal and not console.is_dumb_terminal and console.encoding.startswith("utf")
        return able and console.file.isatty()

    def start(self) -> None:
        """Show the live view, where there can be one."""
        if self.is_live and self._live is None:
            self._live = Live(
                console=self._console,
                get_renderable=self._renderable,
                refresh_per_second=2,
                transient=True,
                vertical_overflow="crop",
            )
            self._live.start(refresh=True)

    def stop(self) -> None:
        """Take the live view away; the lines above it stay."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def say(self, text: str) -> None:
        """Print a line of its own."""
        self._print(Text(one_line(text), "dim"))

    def ended(self, row: TrialRow) -> None:
        """Print the line of a trial that has ended."""
        line = trial_line(self._progress.view(), row)
        if self._live is not None:
            # A line that wraps is torn apart when the window gets narrower.
            line.truncate(self._console.width, overflow="ellipsis")
        self._console.print(line)
        if self._live is not None:
            self._live.refresh()  # or the trial would be seen running below its own line
        self.remind()

    def remind(self) -> None:
        """Print the status line, if there is no live view and the last one is long ago."""
        if self._live is None and time.monotonic() - self._status_at >= _STATUS_EVERY:
            self.status()

    def status(self) -> None:
        """Print the status line."""
        self._status_at = time.monotonic()
        self._print(Text(status_line(self._progress.view()), "dim"))

    def _print(self, line: Text) -> None:
        """On a terminal a long line breaks between words; in a file it stays one."""
        self._console.print(line, soft_wrap=not self.is_live)

    def _renderable(self) -> RenderableType:
        if self._meter is not None and time.monotonic() - self._looked >= _LOOK_EVERY:
            self._looked = time.monotonic()
            self._devices = self._meter.read()
        return render(self._progress.view(self._devices), *self._console.size)


class ConsoleListener:
    """Shows a search that runs in this process."""

    def __init__(self, console: Console = err) -> None:
        start = time.monotonic()
        self._progress = Progress("image_auroc", lambda: time.monotonic() - start)
        self._screen = Screen(self._progress, console, DevicesMeter())
        self._earlier: list[TrialRow] = []

    def say(self, text: str) -> None:
        """A line of its own."""
        self._screen.say(text)

    def opened(self, search: SearchResult, rows: Sequence[TrialRow]) -> None:
        """The search has a name, and trials if it goes on after an interruption."""
        self._progress.name = search.name
        self._progress.objective = search.objective
        self._earlier = [row for row in rows if row.status != "running"]

    def begin(self, budget: Budget) -> None:
        """Trials begin."""
        progress = self._progress
        progress.since = progress.clock() - budget.elapsed
        progress.trial_limit = budget.trials
        progress.ends_at = None if budget.seconds is None else progress.since + budget.seconds
        for row in sorted(self._earlier, key=lambda row: (row.ended_after or 0.0, row.trial)):
            began, ended = (progress.since + (moment or 0.0) for moment in (row.started_after, row.ended_after))
            progress.hear(row, began=began, ended=ended)
        self._screen.start()

    def end(self) -> None:
        """Trials have ended."""
        self._screen.stop()
        self._progress.close()
        self._screen.status()

    def started(self, row: TrialRow) -> None:
        """A trial begins."""
        self._progress.hear(row)

    def reported(self, row: TrialRow) -> None:
        """A trial was evaluated on its way."""
        self._progress.hear(row)
        self._screen.remind()

    def finished(self, row: TrialRow) -> None:
        """A trial has ended."""
        self._progress.hear(row)
        self._screen.ended(row)

    def closed(self, result: SearchResult) -> None:
        """The search is over; its result is printed elsewhere."""
