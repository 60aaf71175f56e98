"""Datasets on a server as tables."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from autoad.console._streams import out
from autoad.schema import DatasetEntry

__all__ = ["datasets_table", "print_dataset"]

_SKIPPED = 20


def datasets_table(entries: Sequence[DatasetEntry]) -> Table:
    """Versions of datasets, one a line, in the order given."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("name", "version", "good", "defective", "masks", "layout", "MB", "made", "by", "note"):
        right = title in {"version", "good", "defective", "masks", "MB"}
        table.add_column(title, justify="right" if right else "left", overflow="fold")
    for entry in entries:
        counts = [str(entry.counts.get(name, 0)) for name in ("good", "defective", "masks")]
        table.add_row(
            entry.name,
            str(entry.version),
            *counts,
            entry.layout,
            f"{entry.size / 1e6:,.1f}",
            f"{entry.created.astimezone():%Y-%m-%d %H:%M}",
            entry.actor or "-",
            entry.note,
        )
    return table


def print_dataset(entries: Sequence[DatasetEntry]) -> None:
    """Versions of a dataset, and what was left out of the first of them."""
    out.print(datasets_table(entries))
    skipped = entries[0].skipped
    if skipped:
        out.print(f"\nleft out of {entries[0]}:")
    for file in skipped[:_SKIPPED]:
        out.print(f"  {file.path}: {file.reason}")
    if len(skipped) > _SKIPPED:
        out.print(f"  and {len(skipped) - _SKIPPED} more")
