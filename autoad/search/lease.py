"""Being the one process that carries a search out."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

import sqlalchemy

from autoad.database import OUTAGES, Database, this_process
from autoad.errors import LeaseLostError, StateError
from autoad.schema import TrialRow

__all__ = ["Lease"]

_RENEWAL_SECONDS = 5.0
_RETRY_SECONDS = 0.5
"""A database that is locked, full, out of reach or, after a fail-over, read-only."""


class Lease:
    """Renews the heartbeat of a search from a thread, and writes its rows while nobody else has taken it over.

    Args:
        database: the metadata.
        search_id: of the search; the database names this process as its owner.
        spent: seconds that earlier processes spent on it.
        patience: seconds to wait for a database that cannot be written.
    """

    def __init__(self, database: Database, search_id: str, spent: float, patience: float) -> None:
        self._database = database
        self._search_id = search_id
        self._owner = this_process()
        self._before = spent
        self._started = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._lost: LeaseLostError | None = None
        self._patience = patience

    @property
    def spent(self) -> float:
        """Seconds of the search's own time."""
        return self._before + time.monotonic() - self._started

    def __enter__(self) -> Lease:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def check(self) -> None:
        """Raise :class:`LeaseLostError` if another process has taken the search over."""
        if self._lost is not None:
            raise self._lost

    def write_trial(self, row: TrialRow) -> None:
        """Commit a row, waiting for a database that is out of reach or full.

        Raises:
            LeaseLostError: another process has taken the search over.
            StateError: the database could not be written.
        """
        self._write(lambda: self._database.write_trial(self._search_id, row, owner=self._owner, spent=self.spent))

    def close(self, status: str, summary: dict[str, Any] | None = None) -> None:
        """Say how the search has ended, and give it up; waits and raises like :meth:`write_trial`."""
        self._write(
            lambda: self._database.update_search(self._search_id, status=status, summary=summary, owner=self._owner)
        )

    def _write(self, commit: Callable[[], None]) -> None:
        first = time.monotonic()
        while True:
            self.check()
            try:
                commit()
            except OUTAGES as error:
                if time.monotonic() - first > self._patience:
                    self._patience = 0.0  # what is still to be written will not wait as long again
                    raise StateError(f"the metadata database cannot be written ({str(error.orig).strip()})") from error
                time.sleep(_RETRY_SECONDS)
            else:
                return

    def _renew(self) -> None:
        while not self._ended.wait(_RENEWAL_SECONDS):
            try:
                self._database.renew(self._search_id, self._owner, self.spent)
            except LeaseLostError as error:
                self._lost = error
                return
            except sqlalchemy.exc.SQLAlchemyError:
                continue  # the next result that cannot be written says so
