"""The report's figures as Plotly's JSON; the page draws them.

A colour is the name of one of the page's CSS variables (``@text`` for ``--text``), so that a figure follows the
reader's light or dark theme. Text that comes from the dataset is escaped, because Plotly reads HTML tags in labels.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from autoad.algorithms import ALGORITHMS

__all__ = ["Figure", "legend", "marker"]

_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "hexagon")


@dataclasses.dataclass(frozen=True)
class Figure:
    """One figure.

    Attributes:
        name: its id on the page.
        label: what it shows, for those who cannot see it.
        data: Plotly's traces.
        layout: Plotly's layout, without colours and fonts that the page sets.
        height: in pixels.
        narrowest: width below which it scrolls rather than shrinks, in pixels; 0 for none.
        on_white: whether its ground is white in the dark theme too, because its colours are not ours.
    """

    name: str
    label: str
    data: list[dict[str, Any]]
    layout: dict[str, Any]
    height: int
    narrowest: int = 0
    on_white: bool = False


def marker(algorithm: str, **more: Any) -> dict[str, Any]:
    """Colour and shape of an algorithm: the same in all figures, and told apart without colours."""
    place = ALGORITHMS.index(algorithm) if algorithm in ALGORITHMS else len(ALGORITHMS)
    return {"color": f"@algorithm-{place % 8}", "symbol": _SYMBOLS[place % len(_SYMBOLS)]} | more


def legend() -> dict[str, Any]:
    """A legend in one line above the figure."""
    return {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom", "title": {"text": ""}}
