"""Time spans as people write them."""

from __future__ import annotations

import re

from autoad.errors import UsageError

__all__ = ["parse_duration"]

_SPAN = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?")


def parse_duration(text: str) -> float:
    """Seconds of a duration such as ``90``, ``45s``, ``20m`` or ``1h30m``.

    Raises:
        UsageError: it is none, or no time at all.
    """
    match = _SPAN.fullmatch(text.strip())
    if not text.strip() or match is None:
        raise UsageError(f"a duration must be written as 90s, 20m or 1h30m but got {text!r}")
    hours, minutes, seconds = (float(part or 0) for part in match.groups())
    total = 3600 * hours + 60 * minutes + seconds
    if total <= 0:
        raise UsageError(f"a duration must be longer than nothing but got {text!r}")
    return total
