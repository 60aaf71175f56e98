"""``autoad searches``, ``leaderboard`` and ``report``: here, or on a server."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autoad.commands._options import AnyServer, Json, client_of, named_server, same_server

if TYPE_CHECKING:
    from autoad.client import Client, Search
    from autoad.database import Database
    from autoad.schema import SearchEntry, SubmissionEntry

__all__ = ["leaderboard", "report", "searches"]


def leaderboard(
    name: Annotated[str | None, typer.Argument(help="Name or id of a search; the newest by default.")] = None,
    top: Annotated[int, typer.Option(min=0, help="Rows to show; 0 for all.")] = 15,
    server: AnyServer = None,
    as_json: Json = False,
) -> None:
    """Show a search's ranked trials and its champion."""
    from autoad.console import out, print_result

    if named_server(server):
        with client_of(server) as client:
            result = _there(client, name).leaderboard()
    else:
        from autoad.search import load_result

        result = load_result(name)
    if as_json:
        out.out(result.model_dump_json(indent=2), highlight=False)
    else:
        there = same_server(server) if named_server(server) else None
        print_result(result, top=top or len(result.leaderboard), there=there)


def report(
    name: Annotated[str | None, typer.Argument(help="Name or id of a search; the newest by default.")] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="File to write. Default report.html in the search's folder; from a server NAME.html here."),
    ] = None,
    server: AnyServer = None,
    as_json: Json = False,
) -> None:
    """Write a search's report: one HTML file that opens without a network."""
    from autoad.console import out

    if named_server(server):
        with client_of(server) as client:
            file = _there(client, name).report(output or Path())
    else:
        from autoad.report import write_report
        from autoad.search import load_result

        file = write_report(load_result(name), output)
    out.out(json.dumps({"report": str(file)}, indent=2) if as_json else str(file), highlight=False)


def searches(
    name: Annotated[str | None, typer.Argument(help="Name or id of one search; all by default.")] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Watch a running search, the newest by default, until it ends.")
    ] = False,
    cancel: Annotated[bool, typer.Option("--cancel", help="On a server: end the search; what it found stays.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="Searches to list, newest first.")] = 20,
    server: AnyServer = None,
    as_json: Json = False,
) -> None:
    """List searches, or follow one that another process or a server carries out."""
    from autoad.errors import UsageError

    if named_server(server):
        if cancel and name is None:
            raise UsageError("--cancel must say which search: give its name or id")
        if cancel and follow:
            raise UsageError("--cancel and --follow are two things; do one after the other")
        _searches_there(server, name, follow, cancel, limit, as_json)
        return
    if cancel:
        raise UsageError("--cancel is for a search on a server: name one with --server, or press Ctrl-C where it runs")
    _searches_here(name, follow, limit, as_json)


def _searches_here(name: str | None, follow: bool, limit: int, as_json: bool) -> None:
    from autoad.console import err, out, searches_table
    from autoad.database import Database, describe_search, list_searches

    database = Database()
    try:
        if follow:
            entries = [_follow_here(database, name)]
        else:
            entries = list_searches(database, limit) if name is None else [describe_search(database, name)]
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    finally:
        database.close()
    if as_json:
        out.out(json.dumps([entry.model_dump(mode="json") for entry in entries], indent=2), highlight=False)
    elif entries:
        out.print(searches_table(entries))
    else:
        out.print("there is no search yet; start one with: autoad search --data FOLDER")
    for entry in entries:
        if entry.hint is not None and (entry.status == "lost" or name is not None):
            err.print(f"{entry.name} was cut off; go on with: {entry.hint}", style="red")
    if follow and entries[0].status in {"failed", "lost"}:
        raise typer.Exit(1)


def _follow_here(database: Database, name: str | None) -> SearchEntry:
    from autoad.console.devices import DevicesMeter
    from autoad.console.follow import follow_search
    from autoad.settings import get_settings

    # A database that other machines can reach says nothing about where the search runs.
    meter = None if get_settings().database_url else DevicesMeter()
    return follow_search(database, name, meter=meter)


def _searches_there(
    server: str | None, name: str | None, follow: bool, cancel: bool, limit: int, as_json: bool
) -> None:
    from autoad.commands._remote_search import follow_there
    from autoad.console import err, out, submissions_table

    entries: list[SubmissionEntry]
    with client_of(server) as client:
        if name is None and not follow:
            entries = [search.entry for search in itertools.islice(client.searches(), limit)]
        else:
            search = _there(client, name)
            if cancel:
                search.cancel()
            elif follow:
                follow_there(search, server)
            entries = [search.entry]
    if as_json:
        out.out(json.dumps([entry.model_dump(mode="json") for entry in entries], indent=2), highlight=False)
    elif entries:
        out.print(submissions_table(entries))
    else:
        out.print(f"there is no search yet; start one with: autoad search --data FOLDER{same_server(server)}")
    for entry in entries:
        if name is not None and entry.error:
            err.print(f"{entry.name} failed: {entry.error}", style="red")
        if name is not None and entry.promotion is not None:
            err.print(f"promotion: {entry.promotion.state}: {entry.promotion.reason}")
    if follow and entries[0].status == "failed":
        raise typer.Exit(1)


def _there(client: Client, name: str | None) -> Search:
    """A search on a server; the newest where none is named.

    Raises:
        UsageError: there is none yet.
    """
    from autoad.errors import UsageError

    found = next(client.searches(), None) if name is None else client.find_search(name)
    if found is None:
        raise UsageError(f"there is no search yet at {client.server}; start one with: autoad search --data FOLDER")
    return found
