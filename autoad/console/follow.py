"""Following a search that another process carries out, from the database."""

from __future__ import annotations

import datetime
import time

from rich.console import Console

from autoad.console._streams import err
from autoad.console.devices import DevicesMeter
from autoad.console.listener import Screen
from autoad.console.progress import Progress
from autoad.database import Database, Search, describe_search, is_lost, seconds_so_far
from autoad.schema import SearchEntry, TrialRow

__all__ = ["Follower", "follow_search"]

_EARLIER_LINES = 10


def follow_search(
    database: Database,
    name: str | None = None,
    *,
    console: Console = err,
    meter: DevicesMeter | None = None,
    interval: float = 1.0,
) -> SearchEntry:
    """Show a search until it has ended, or until its process shows no sign of life.

    Args:
        database: where its rows are.
        name: name or id; None for the newest.
        console: where to show it.
        meter: looks at the devices, if the search runs on this machine.
        interval: seconds between two looks.

    Returns:
        How it ended; ``status`` is ``lost`` if it did not.

    Raises:
        UsageError: there is no such search.
    """
    search = database.find_search(name)
    follower = Follower(database, search, console, meter)
    follower.screen.start()
    try:
        while True:
            # The status is read before the rows, so that no row of a search that has ended is missed.
            follower.update(search)
            if search.status != "running" or is_lost(search):
                return describe_search(database, search.id)
            time.sleep(interval)
            search = database.find_search(search.id)
    finally:
        follower.screen.stop()
        follower.screen.status()


class Follower:
    """Reads the rows of a search that changed, and hands them to a screen.

    Args:
        database: where the rows are.
        search: as it is now.
        console: where to show it.
        meter: looks at the devices, if the search runs on this machine.
    """

    def __init__(
        self, database: Database, search: Search, console: Console = err, meter: DevicesMeter | None = None
    ) -> None:
        self._database = database
        self._search = search
        self._read = time.monotonic()
        self._spent = seconds_so_far(search)
        self._after: int | None = None
        self._running: set[int] = set()
        self._since: datetime.datetime | None = None
        progress = Progress(search.summary["objective"], self._now)
        progress.name = search.name
        progress.ends_at = search.request.get("seconds")
        progress.trial_limit = search.request.get("trials")
        self.progress = progress
        self.screen = Screen(progress, console, meter)

    def _now(self) -> float:
        """The search's own time; it is told every few seconds, and goes on in between."""
        return self._spent + (time.monotonic() - self._read if self._search.status == "running" else 0.0)

    def update(self, search: Search) -> None:
        """Take in what has changed; on a terminal, only the last of earlier trials get a line."""
        if search.status != "running" or search.spent != self._search.spent:
            self._spent, self._read = max(self._now(), seconds_so_far(search)), time.monotonic()
        self._search = search
        if search.status != "running":
            self.progress.close()
        first, ended_rows = self._after is None, []
        known = -1 if self._after is None else self._after
        changed = self._database.changed_trials(search.id, known, self._running, self._since)
        for trial in sorted(
            changed, key=lambda trial: (trial.finished is None, trial.finished or trial.created, trial.number)
        ):
            row = TrialRow.model_validate(trial.row)
            # Rows of earlier versions have no times of their own.
            began = (trial.created - search.created).total_seconds() if row.started_after is None else row.started_after
            ended = row.ended_after
            if ended is None and trial.finished is not None:
                ended = (trial.finished - search.created).total_seconds()
            self.progress.hear(row, began=began, ended=ended)
            known = max(known, row.trial)
            if row.status == "running":
                self._running.add(row.trial)
                continue
            self._running.discard(row.trial)
            if trial.finished is not None:
                self._since = trial.finished
            ended_rows.append(row)
        self._after = known
        for row in ended_rows[-_EARLIER_LINES:] if first and self.screen.is_live else ended_rows:
            self.screen.ended(row)
        self.screen.remind()
