"""Models and their versions as tables on stdout."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from autoad.console._streams import out
from autoad.console._text import number
from autoad.schema import ModelEntry, ModelVersionEntry, RouteChangeEntry

__all__ = ["models_table", "print_model"]


def models_table(entries: Sequence[ModelEntry]) -> Table:
    """Models, one a line."""
    table = _table("name", "versions", "newest", "champion", "previous", "canary", "shadow")
    for entry in entries:
        route = entry.route
        canary = "-" if route.canary is None else f"{route.canary} ({route.canary_share:.0%})"
        aliases = [_version(route.champion), _version(route.previous), canary, _version(route.shadow)]
        table.add_row(entry.name, str(len(entry.versions)), str(entry.versions[0].version), *aliases)
    return table


def print_model(entry: ModelEntry) -> None:
    """A model's versions, newest first, and who changed its aliases, when and why."""
    out.print(f"{entry.name}: models:/{entry.name}/VERSION or models:/{entry.name}@ALIAS")
    out.print()
    out.print(_versions_table(entry.versions))
    out.print()
    if entry.history:
        out.print(_history_table(entry.history))
    else:
        out.print(f"nothing was promoted yet; with a server running: autoad promote {entry.name}")


def _versions_table(versions: Sequence[ModelVersionEntry]) -> Table:
    table = _table("version", "aliases", "algorithm", "image AUROC", "pixel AUROC", "AUPRO", "made", "MB", "search")
    for version in versions:
        test = version.test
        figures = [test.image_auroc, test.pixel_auroc, test.aupro] if test is not None else [None] * 3
        table.add_row(
            str(version.version),
            ", ".join(version.aliases) or "-",
            version.algorithm,
            *map(number, figures),
            f"{version.created.astimezone():%Y-%m-%d %H:%M}",
            f"{version.size / 1e6:.1f}",
            version.search or "-",
        )
    table.caption = "AUROC and AUPRO on the test pictures of the version's own search"
    return table


def _history_table(history: Sequence[RouteChangeEntry]) -> Table:
    table = _table("when", "what", "version", "by", "why")
    for line in history:
        change = " -> ".join("none" if one is None else str(one) for one in (line.before, line.after))
        action = line.action.replace("_", " ")
        table.add_row(f"{line.at.astimezone():%Y-%m-%d %H:%M:%S}", action, change, line.actor, line.reason)
    return table


def _version(version: int | None) -> str:
    return "-" if version is None else str(version)


def _table(*titles: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", caption_justify="left")
    for title in titles:
        right = title in {"versions", "newest", "image AUROC", "pixel AUROC", "AUPRO", "MB"}
        table.add_column(title, justify="right" if right else "left", overflow="fold")
    return table
