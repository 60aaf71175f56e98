"""How often, and after which waits, something is tried again."""

from __future__ import annotations

import email.utils
import random
import time
from asyncio import sleep

__all__ = ["Attempts"]

_FIRST_WAIT = 1.0
_LONGEST_WAIT = 5.0
_LONGEST_ASKED = 60.0


class Attempts:
    """The attempts at one thing.

    Three waits of one, two and four seconds outlast the restart of whatever has died in the server. Some chance in them
    keeps many clients from coming back together.

    Args:
        retries: how often it is tried again, however quickly it fails.
        patience: seconds from the first failure during which it is tried again, however often it fails.
    """

    def __init__(self, retries: int, patience: float = 0.0) -> None:
        self._retries = retries
        self._patience = patience
        self._failed = 0
        self._since = 0.0

    def forget(self) -> None:
        """It went well: what fails from now on is a first failure."""
        self._failed = 0

    async def again(self, *, asked: str | None = None, patient: bool = True) -> bool:
        """Wait, after a failure; False, at once, if it was the last.

        Args:
            asked: the server's ``Retry-After``; what it says is waited at least, up to a minute.
            patient: whether the failure is one that passes, so that patience is for it.
        """
        now = time.monotonic()
        if not self._failed:
            self._since = now
        wait = max(min(_FIRST_WAIT * 2.0**self._failed, _LONGEST_WAIT), _asked_for(asked))
        wait *= random.uniform(1.0, 1.25)  # noqa: S311
        if self._failed >= self._retries:
            left = self._since + self._patience - now
            if not patient or left <= 0:
                return False
            wait = min(wait, left)  # the last attempt is made when patience ends
        self._failed += 1
        await sleep(wait)
        return True


def _asked_for(value: str | None) -> float:
    """Seconds that a ``Retry-After`` asks for: a number of them, or a date."""
    if value is None:
        return 0.0
    if value.isascii() and value.isdigit():
        return min(float(value), _LONGEST_ASKED)
    try:
        moment = email.utils.parsedate_to_datetime(value).timestamp()
    except (TypeError, ValueError):
        return 0.0
    return min(max(0.0, moment - time.time()), _LONGEST_ASKED)
