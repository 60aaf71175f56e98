"""How many pictures a second a key may have scored."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable

from autoad.serve.faults import RateError

__all__ = ["RateLimiter"]


class RateLimiter:
    """A bucket for each key that fills at ``rate`` and holds a second's worth, or one request's if that is more.

    A request may overdraw the bucket once and is let in whole; the next waits until that has been made up for.

    Args:
        rate: pictures a second; None for no limit.
        clock: seconds that never go back.
    """

    def __init__(self, rate: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._clock = clock
        self._buckets: dict[Hashable, tuple[float, float]] = {}

    def take(self, key: Hashable, pictures: int) -> None:
        """Take so many pictures from a key's bucket.

        Raises:
            RateError: it is empty; it says for how long.
        """
        if self._rate is None:
            return
        now = self._clock()
        level, filled = self._buckets.get(key, (max(1.0, self._rate), now))
        level = min(max(1.0, self._rate), level + self._rate * (now - filled))
        if level <= 0:
            self._buckets[key] = (level, now)
            seconds = math.floor(-level / self._rate) + 1
            raise RateError(
                f"this key may have {self._rate:g} pictures a second scored by each replica; ask again in {seconds} s",
                seconds,
            )
        self._buckets[key] = (level - pictures, now)
