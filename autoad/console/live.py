"""The live view: a pure function from a :class:`~autoad.console.progress.View` to something that rich can draw.

It uses the terminal's own colours only, so that it can be read on a light and on a dark background, and never takes
more lines or columns than it is given.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from autoad.console._text import duration, number, one_line, short_config, sparkline
from autoad.console.devices import Devices
from autoad.console.progress import Timed, View
from autoad.schema import TrialRow

__all__ = ["render", "status_line", "trial_line"]

_WIDE = 120
_LABEL = "cyan"
_GIB = 2**30


def trial_line(view: View, row: TrialRow) -> Text:
    """An ended trial in one line."""
    value = view.value(row)
    line = Text(f"trial {row.trial:3d}  {row.algorithm:20s}  ")
    if row.status in {"complete", "pruned"}:
        line.append(f"{view.objective} {number(value, 4)}", "bold" if row.status == "complete" else "")
        line.append(" (pruned)" if row.status == "pruned" else "", "dim")
    else:
        line.append(f"{row.status}: ", "red" if row.status == "failed" else "dim")
        line.append(one_line(row.reason or "no reason known"))
    line.append(f"  ({number(row.seconds, 1)} s)", "dim")
    return line


def status_line(view: View) -> str:
    """The whole search in one line, for where there is no terminal."""
    best, left = view.best, view.seconds_left
    failed = sum(timed.row.status == "failed" for timed in view.ended)
    each = Counter(timed.row.algorithm for timed in view.ended)
    counts = ", ".join(f"{name} {count}" for name, count in sorted(each.items()))
    parts = [
        f"best {number(view.value(best.row), 4)} ({best.row.algorithm}, trial {best.row.trial})"
        if best
        else "no result yet",
        f"{len(view.ended)} trials" + (f": {counts}" if view.ended else ""),
        f"{rate:.1f} trials/min" if (rate := view.trials_per_minute) else "",
        f"{failed} failed" if failed else "",
        f"running {', '.join(sorted(timed.row.algorithm for timed in view.running))}" if view.running else "",
        f"{duration(left)} left" if left else "",
    ]
    return "  " + " | ".join(part for part in parts if part)


def render(view: View, width: int, height: int) -> RenderableType:
    """The view for a terminal of ``width`` columns and ``height`` lines; it leaves the last line free.

    Where the lines do not suffice, the history goes first, then the configuration, the devices, the least of the
    algorithms and the last of the running trials; the best result and the time stay.
    """
    lines = max(1, height - 1)
    head = _head(view, width)
    best = _best(view, width)
    if width >= _WIDE:
        left_width = 64
        right_width = width - left_width - 3
        top: list[RenderableType] = [*head, *best][:lines]
        rest = lines - len(top)
        if rest < 3:
            return Group(*top)
        right = _fit([*_history(view, right_width)], rest) + _devices(view, right_width)
        right = [*_running(view, right_width, max(1, rest - len(right) - 1)), *right][:rest]
        grid = Table.grid(padding=(0, 3, 0, 0))
        grid.add_column(width=left_width, no_wrap=True)
        grid.add_column(width=right_width, no_wrap=True)
        grid.add_row(_algorithms(view, left_width, rest), Group(*right))
        return Group(*top, grid)
    history, devices = _history(view, width), _devices(view, width)
    wanted = max(1, min(len(view.running), 4)) + 1 + len(view.by_algorithm()) + 1
    blocks = {"history": history, "config": best[1:], "devices": devices}
    for name in ("history", "config", "devices"):
        if len(head) + len(best[:1]) + sum(map(len, blocks.values())) + wanted > lines:
            blocks[name] = []
    fixed: list[RenderableType] = [*head, *best[:1], *blocks["config"], *blocks["history"]]
    rest = lines - len(fixed) - len(blocks["devices"])
    if rest < 4:
        return Group(*[*fixed, *_running(view, width, max(0, rest - 1))[1:]][:lines])
    running = _running(view, width, max(1, min(len(view.running), 4, rest // 3)))
    algorithms = _algorithms(view, width, rest - len(running))
    return Group(*fixed, algorithms, *running, *blocks["devices"])


def _line(*parts: tuple[str, str] | str, width: int) -> Text:
    text = Text.assemble(*parts, no_wrap=True, overflow="ellipsis")
    text.truncate(width, overflow="ellipsis")
    return text


def _fit(lines: Sequence[RenderableType], count: int) -> list[RenderableType]:
    return list(lines) if len(lines) <= count else []


def _head(view: View, width: int) -> list[RenderableType]:
    left, rate = view.seconds_left, view.trials_per_minute
    of = "" if view.trial_limit is None else f" of {view.trial_limit}"
    parts: list[tuple[str, str] | str] = [
        (one_line(view.name) or "search", "bold"),
        f"  {len(view.ended)}{of} trials",
        f"  {rate:.1f}/min" if rate else "",
        f"  {duration(view.now - view.since)} gone",
        ("" if left is None else f"  {duration(left)} left" if left else "  time is over", "bold"),
        (" " + "\N{BOX DRAWINGS LIGHT HORIZONTAL}" * width, "dim"),
    ]
    line = Text.assemble(("\N{BOX DRAWINGS LIGHT HORIZONTAL} ", "dim"), *parts, no_wrap=True)
    line.truncate(width)  # the rule that parts the view from the lines above it takes what is left
    return [line]


def _best(view: View, width: int) -> list[RenderableType]:
    best = view.best
    if best is None:
        return [_line(("best  ", _LABEL), ("no result yet", "dim"), width=width)]
    row = best.row
    ago = view.now - (view.now if best.ended is None else best.ended)
    aupro = f"  AUPRO {number(row.validation.aupro)}" if view.objective != "aupro" and row.validation.aupro else ""
    return [
        _line(
            ("best  ", _LABEL),
            (f"{view.objective} {number(view.value(row), 4)}", "bold green"),
            f"{aupro}  {row.algorithm}, trial {row.trial}",
            (f"  {duration(ago)} ago", "dim"),
            width=width,
        ),
        _line("      ", (one_line(short_config(row)), "dim"), width=width),
    ]


def _history(view: View, width: int) -> list[RenderableType]:
    history = view.history
    if len(history) < 2:
        return []
    first, last = f"{history[0]:.4f} ", f" {history[-1]:.4f}"
    # Objectives end at 1, and what is left to it shrinks by factors: .95 to .97 is as large a step as .50 to .70.
    steps = [-math.log(max(1 - value, 1e-4)) for value in history]
    bars = sparkline(steps, min(60, width - 6 - len(first) - len(last)))
    return [_line(("trend ", _LABEL), (first, "dim"), (bars, "green"), (last, "dim"), width=width)]


def _algorithms(view: View, width: int, lines: int) -> Table:
    counts = view.by_algorithm()
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style=_LABEL)
    table.add_column("algorithm", no_wrap=True, width=20)
    for title in ("done", "pruned", "failed", "best", "time"):
        table.add_column(title, justify="right", no_wrap=True, width=6)
    room = max(0, lines - 1)
    shown = counts if len(counts) <= room else counts[: max(0, room - 1)]
    top = counts[0].best if counts else None
    for count in shown:
        table.add_row(
            count.algorithm,
            str(count.complete or "-"),
            str(count.pruned or "-"),
            Text(str(count.failed or "-"), "red" if count.failed else ""),
            Text(number(count.best), "bold green" if count.best is not None and count.best == top else ""),
            duration(count.seconds),
        )
    if len(shown) < len(counts) and room:
        table.add_row(Text(f"and {len(counts) - len(shown)} more", "dim"))
    return table


def _running(view: View, width: int, most: int) -> list[RenderableType]:
    if not view.running:
        return [_line(("running  ", _LABEL), ("nothing", "dim"), width=width)]
    nodes = view.by_node()
    where = "".join(f"  {name} {count}" for name, count in nodes.items())
    lines: list[RenderableType] = [_line(("running", _LABEL), (where, "dim"), width=width)]
    shown = view.running if len(view.running) <= most else view.running[: max(0, most - 1)]
    lines += [_running_line(timed, view, width, with_node=bool(nodes)) for timed in shown]
    if len(shown) < len(view.running):
        lines.append(_line((f"  and {len(view.running) - len(shown)} more", "dim"), width=width))
    return lines


def _running_line(timed: Timed, view: View, width: int, *, with_node: bool) -> Text:
    row, elapsed = timed.row, view.now - timed.began
    expected = row.predicted_seconds
    time = duration(elapsed) if expected is None else f"{duration(elapsed)} of about {duration(expected)}"
    value = view.value(row)
    return _line(
        f"  {row.trial:3d} {row.algorithm:20s} ",
        (f"{time:18s}", "bold red" if expected is not None and elapsed > 2 * expected else ""),
        f" epoch {row.epochs_done}" if row.epochs_done else "",
        f"  {number(value)}" if value is not None else "",
        (f"  {one_line(row.node)}" if with_node and row.node else "", "dim"),
        width=width,
    )


def _devices(view: View, width: int) -> list[RenderableType]:
    if view.devices is None:
        return []
    return [_cpu(view.devices, width), *(_gpus(view.devices, width))]


def _cpu(devices: Devices, width: int) -> Text:
    cores = devices.cores
    bars = "".join("▁▂▃▄▅▆▇█"[min(7, int(core * 8))] for core in cores[:16])
    busy = sum(cores) / len(cores) if cores else 0.0
    return _line(
        ("cpu  ", _LABEL),
        (bars, "green"),
        f" {busy:4.0%} of {len(cores)} cores",
        ("   memory ", _LABEL),
        f"{devices.memory_used / _GIB:.1f} of {devices.memory_total / _GIB:.1f} GiB",
        width=width,
    )


def _gpus(devices: Devices, width: int) -> list[RenderableType]:
    return [
        _line(
            (f"gpu {index} ", _LABEL),
            f"{gpu.busy:4.0%}  {gpu.memory_used / _GIB:.1f} of {gpu.memory_total / _GIB:.1f} GiB",
            (f"  {gpu.name}", "dim"),
            width=width,
        )
        for index, gpu in enumerate(devices.gpus[:8])
    ]
