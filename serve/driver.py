"""The process that carries one submitted search out: ``python -m autoad.serve.driver ID STARTER [ADDRESS]``.

The supervisor starts it (:mod:`autoad.serve.supervisor`). It belongs to nobody from then on, and says in the database
that it lives. Whatever ends it, another one goes on.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from types import TracebackType

import sqlalchemy

from autoad.database import OUTAGES, Database, Submission, SubmissionTables, this_process
from autoad.errors import AutoADError, FileStoreError, LeaseLostError, StateError, StorageFullError, UsageError, is_full
from autoad.serve.ending import Ending
from autoad.settings import Settings, get_settings

__all__ = ["Watch", "main", "record"]

_NICENESS = 10  # scoring comes first
_POLL_SECONDS, _RENEWAL_SECONDS = 1.0, 5.0
_STOP_SECONDS = 120.0
_RETRY_SECONDS = 1.0


class Watch:
    """Says that the driver lives, and stops its main thread when somebody has cancelled the search.

    Args:
        tables: with the submission.
        search: its id.
        driver: name of this process.
        interrupt: stops the main thread.
        give_up: ends the process, if that takes too long.
    """

    def __init__(
        self,
        tables: SubmissionTables,
        search: str,
        driver: str,
        interrupt: Callable[[], object],
        give_up: Callable[[], object],
    ) -> None:
        self._tables = tables
        self._search = search
        self._driver = driver
        self._interrupt = interrupt
        self._give_up = give_up
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)
        self.cancelled = False
        self.lost = False

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        renewed = time.monotonic()
        while not self._ended.wait(_POLL_SECONDS):
            try:
                asked = self._tables.is_cancelled(self._search, self._driver)
                if asked is False and time.monotonic() - renewed >= _RENEWAL_SECONDS:
                    renewed = time.monotonic()
                    self._tables.renew(self._search, self._driver)
            except sqlalchemy.exc.SQLAlchemyError:
                continue  # the search itself says so when it can go on no longer
            if asked is not False:
                self.lost, self.cancelled = asked is None, bool(asked)
                self._interrupt()
                if not self._ended.wait(_STOP_SECONDS):
                    self._give_up()
                return


class _Stop:
    """Raises KeyboardInterrupt at SIGINT and SIGTERM, until it is too late for that."""

    def __init__(self) -> None:
        self.heeded = True
        # A shell has its background processes ignore SIGINT.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self)

    def __call__(self, *_: object) -> None:
        if self.heeded:
            raise KeyboardInterrupt

    def send(self) -> None:
        """To the main thread, from another."""
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


def main(search: str, starter: str, address: str = "") -> None:
    """Carry a submission out.

    Args:
        search: its id.
        starter: who has taken it for this process; nothing is done if it is somebody else's by now.
        address: of the Ray cluster to search on; empty for a Ray of its own.
    """
    with contextlib.suppress(OSError):
        os.nice(_NICENESS)
    stop = _Stop()
    settings = get_settings()
    database = Database(settings)
    tables = SubmissionTables(database)
    driver = this_process()
    row = tables.claim(search, starter, driver)
    if row is None:
        _say(f"the search {search} is another process's")
        return
    _say(f"process {driver} carries the search {search} out")
    with Watch(tables, search, driver, stop.send, lambda: os._exit(1)) as watch:
        try:
            ending = _carry_out(row, database, settings, address, watch)
        except KeyboardInterrupt:
            ending = Ending("later")
        finally:
            stop.heeded = False
    if not watch.lost:
        record(tables, search, driver, ending, cancelled=watch.cancelled, patience=settings.database_patience)
    database.close()


def _carry_out(row: Submission, database: Database, settings: Settings, address: str, watch: Watch) -> Ending:
    """Search; whatever goes wrong, how the submission ends is said."""
    try:
        from autoad.serve.searching import carry_out  # PyTorch and Ray, which take seconds

        return carry_out(row, database, settings, address=address, cancelled=lambda: watch.cancelled)
    except LeaseLostError as error:
        return Ending("later", str(error))
    except (StateError, StorageFullError, FileStoreError, *OUTAGES) as error:
        _say(f"stopped: {error}")
        return Ending("later", _plain(error))
    except AutoADError as error:
        if outage := _outage(error, address):
            _say(f"stopped: {error}")
            return Ending("later", outage)
        _say(f"failed: {error}")
        return Ending("failed", _plain(error))
    except Exception as error:
        traceback.print_exc()
        if is_full(error):
            return Ending("later", "the disk of the server is full")
        return Ending("failed", "the driver failed; its log says why")


def _outage(error: AutoADError, address: str) -> str:
    """What is out of reach where the request is blamed for it; empty where it is not that."""
    if isinstance(error.__cause__, OUTAGES):
        return "the database is out of reach"
    if address and type(error) is UsageError and isinstance(error.__cause__, OSError):
        return "the Ray cluster does not answer"
    return ""


def record(
    tables: SubmissionTables, search: str, driver: str, ending: Ending, *, cancelled: bool, patience: float
) -> None:
    """Say in the database how it has ended, as long as that may take; what cannot be said is found out later.

    Args:
        tables: with the submission.
        search: its id.
        driver: name of this process.
        ending: what to say.
        cancelled: whether it was stopped because somebody wanted it.
        patience: seconds to wait for a database that is out of reach.
    """
    first = time.monotonic()
    while True:
        try:
            if ending.status == "later" and not cancelled:
                tables.release(search, driver, ending.error)
            else:
                status = "cancelled" if cancelled else ending.status
                tables.finish(
                    search,
                    driver,
                    status,
                    error=None if cancelled else ending.error,
                    promotion=ending.promotion,
                    report=ending.report,
                )
        except OUTAGES:
            if time.monotonic() - first > patience:
                raise
            time.sleep(_RETRY_SECONDS)
        else:
            return


def _plain(error: Exception) -> str:
    """For people who do not see this machine."""
    from autoad.search.public import without_paths

    if isinstance(error, sqlalchemy.exc.SQLAlchemyError):
        return "the database is out of reach"
    return without_paths(str(error))


def _say(text: str) -> None:
    sys.stderr.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
    sys.stderr.flush()


def _run(arguments: Sequence[str]) -> None:
    if not 2 <= len(arguments) <= 3:
        sys.exit("usage: python -m autoad.serve.driver ID STARTER [ADDRESS]")
    main(*arguments)


if __name__ == "__main__":
    _run(sys.argv[1:])
