"""Values as short text."""

from __future__ import annotations

from collections.abc import Sequence

from autoad.schema import TrialRow

__all__ = ["duration", "number", "one_line", "short_config", "sparkline"]

_BARS = "▁▂▃▄▅▆▇█"


def number(value: float | None, digits: int = 3) -> str:
    """A number with so many decimals, or a dash."""
    return "-" if value is None else f"{value:.{digits}f}"


def duration(seconds: float) -> str:
    """A time span such as ``45s``, ``3m05s`` or ``1h02m``."""
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


def one_line(text: str) -> str:
    """Text without line breaks and control characters; an error's message may hold either."""
    return "".join(letter for letter in " ".join(text.split()) if letter.isprintable())


def short_config(row: TrialRow) -> str:
    """A configuration in one line."""
    parts = []
    for key, value in row.config.items():
        shown = (
            f"{value:.4g}"
            if isinstance(value, float)
            else "+".join(map(str, value))
            if isinstance(value, list)
            else value
        )
        parts.append(f"{key}={shown}")
    return " ".join(str(part) for part in parts)


def sparkline(values: Sequence[float], width: int) -> str:
    """A row of at most ``width`` bars; of more values, the last of each stretch is drawn.

    The lowest bar stands for the smallest value, not for zero.
    """
    if not values or width < 1:
        return ""
    count = min(len(values), width)
    picked = [values[(place + 1) * len(values) // count - 1] for place in range(count)]
    low, span = min(picked), max(picked) - min(picked)
    return "".join(_BARS[round((value - low) / span * (len(_BARS) - 1)) if span else 0] for value in picked)
