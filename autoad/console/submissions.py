"""Searches on a server as a table."""

from __future__ import annotations

import datetime
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from autoad.console._text import duration, number
from autoad.schema import SubmissionEntry

__all__ = ["submissions_table"]

_STYLES = {"failed": "red", "cancelled": "yellow", "running": "green"}


def submissions_table(entries: Sequence[SubmissionEntry]) -> Table:
    """Searches, one a line, in the order given."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for title in ("name", "id", "status", "trials", "best", "champion", "promotion", "created", "time", "dataset"):
        right = title in {"trials", "best", "time"}
        width = 8 if title in {"name", "dataset"} else None
        table.add_column(title, justify="right" if right else "left", no_wrap=True, min_width=width)
    this_year = datetime.datetime.now().astimezone().year
    for entry in entries:
        created = entry.created.astimezone()
        status = entry.status if entry.position is None else f"{entry.status} ({entry.position + 1}.)"
        table.add_row(
            entry.name,
            entry.id,
            Text(status, _STYLES.get(entry.status, "")),
            str(entry.trials),
            number(entry.best),
            "-" if entry.champion is None else f"{entry.champion.algorithm} {entry.champion.address}",
            "-" if entry.promotion is None else entry.promotion.state,
            created.strftime("%d %b %H:%M" if created.year == this_year else "%d %b %Y"),
            duration(entry.seconds),
            entry.dataset,
        )
    return table
