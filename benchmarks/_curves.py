"""Curves with bands as an SVG file, in a few lines and without a plotting package."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from html import escape

__all__ = ["Curve", "Panel", "draw"]

_WIDTH, _HEIGHT, _MARGIN, _GAP = 300, 260, 52, 26
_COLOURS = ("#0b5fa5", "#d1495b", "#2a9d5c", "#8f5fbf", "#e08e0b", "#5f6b76", "#12a4b5", "#a05a2c", "#b0b000")


@dataclasses.dataclass(frozen=True)
class Curve:
    """A line, and a band around it, over a panel's moments; NaN where there is nothing."""

    name: str
    middle: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


@dataclasses.dataclass(frozen=True)
class Panel:
    """Some curves over the same moments, in minutes, drawn on a logarithmic axis."""

    title: str
    moments: Sequence[float]
    curves: Sequence[Curve]


def draw(panels: Sequence[Panel], label: str) -> str:
    """The SVG text of panels side by side, with a legend below.

    Args:
        panels: what to draw; curves of one name have one colour.
        label: of the vertical axis.
    """
    names = list(dict.fromkeys(curve.name for panel in panels for curve in panel.curves))
    colour = dict(zip(names, itertools.cycle(_COLOURS), strict=False))
    columns = 3
    width = len(panels) * (_WIDTH + _GAP) + _MARGIN
    height = _HEIGHT + 66 + 20 * math.ceil(len(names) / columns)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="12" fill="#333">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text transform="translate(14 {_HEIGHT / 2 + 20}) rotate(-90)" text-anchor="middle">{escape(label)}</text>',
    ]
    for place, panel in enumerate(panels):
        parts += _draw_panel(panel, _MARGIN + place * (_WIDTH + _GAP), colour)
    for place, name in enumerate(names):
        x = _MARGIN + (place % columns) * (width - _MARGIN) / columns
        y = _HEIGHT + 72 + 20 * (place // columns)
        parts.append(f'<path d="M{x:.0f} {y - 4}h22" stroke="{colour[name]}" stroke-width="2.5"/>')
        parts.append(f'<text x="{x + 28:.0f}" y="{y}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _draw_panel(panel: Panel, left: float, colour: dict[str, str]) -> list[str]:
    values = [v for curve in panel.curves for v in (*curve.low, *curve.high) if not math.isnan(v)]
    bottom, top = min(values), max(values)
    bottom, top = bottom - 0.03 * (top - bottom or 1), top + 0.03 * (top - bottom or 1)
    first, last = math.log(panel.moments[0]), math.log(panel.moments[-1])

    def x(minutes: float) -> float:
        return left + 34 + (math.log(minutes) - first) / (last - first) * (_WIDTH - 34)

    def y(value: float) -> float:
        return 30 + (top - value) / (top - bottom) * _HEIGHT

    parts = [
        f'<text x="{left + _WIDTH / 2:.0f}" y="18" text-anchor="middle" font-size="14">{escape(panel.title)}</text>'
    ]
    step = next(s for s in (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0) if (top - bottom) / s <= 7)
    for number in range(math.ceil(bottom / step), math.floor(top / step) + 1):
        height = y(number * step)
        parts.append(f'<path d="M{left + 34:.0f} {height:.1f}H{left + _WIDTH:.0f}" stroke="#ddd"/>')
        parts.append(f'<text x="{left + 30:.0f}" y="{height + 4:.1f}" text-anchor="end">{number * step:.3g}</text>')
    for minutes in (0.5, 1, 2, 5, 10, 20):
        if panel.moments[0] <= minutes <= panel.moments[-1]:
            parts.append(f'<text x="{x(minutes):.1f}" y="{_HEIGHT + 46}" text-anchor="middle">{minutes:g}</text>')
    parts.append(f'<text x="{left + _WIDTH / 2:.0f}" y="{_HEIGHT + 60}" text-anchor="middle" font-size="11">min</text>')
    for curve in panel.curves:
        known = [i for i, value in enumerate(curve.middle) if not math.isnan(value)]
        upper = [f"{x(panel.moments[i]):.1f},{y(curve.high[i]):.1f}" for i in known]
        lower = [f"{x(panel.moments[i]):.1f},{y(curve.low[i]):.1f}" for i in reversed(known)]
        middle = [f"{x(panel.moments[i]):.1f},{y(curve.middle[i]):.1f}" for i in known]
        shade = colour[curve.name]
        parts.append(f'<polygon points="{" ".join([*upper, *lower])}" fill="{shade}" fill-opacity="0.1"/>')
        parts.append(f'<polyline points="{" ".join(middle)}" fill="none" stroke="{shade}" stroke-width="2"/>')
    return parts
