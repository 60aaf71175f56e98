"""``autoad search`` and ``autoad searches --follow`` on a server."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import typer

from autoad.client import Client, Search
from autoad.commands._options import client_of, same_server
from autoad.console import err, out, print_result
from autoad.console.uploads import UploadProgress
from autoad.errors import NoTrialSucceededError, RefusedError
from autoad.schema import DatasetEntry, SubmissionEntry

__all__ = ["follow_there", "search_there", "submit_there"]

_DATASET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}(/[1-9][0-9]{0,8})?")


def search_there(server: str | None, data: str, *, as_json: bool, follow: bool, **options: Any) -> None:
    """Submit the data, unless it is a dataset there, search on it, and show how it goes and what comes of it.

    Args:
        server: as the option has it.
        data: folder, manifest or archive of this machine, or name of a dataset there.
        as_json: whether the result is printed as JSON.
        follow: whether to wait for it.
        options: of :meth:`autoad.client.Client.search`.
    """
    with client_of(server) as client:
        search = client.search(_dataset(client, data), **options)
        if not follow:
            if as_json:
                out.out(search.entry.model_dump_json(indent=2), highlight=False)
            else:
                out.print(f"search {search.name} ({search.id}) is {_standing(search.entry)}")
            err.print(f"follow it with: {_command(search, '--follow', server)}")
            return
        err.print(f"search {search.name} ({search.id}) on {search.entry.dataset} at {client.server}")
        follow_there(search, server)
        _show(search, server, as_json)


def submit_there(client: Client, data: Path, name: str | None = None, note: str = "") -> DatasetEntry:
    """Send pictures of this machine, and show how it goes."""
    client.health()  # or a server that is not there would be waited for as one that comes back
    try:
        with UploadProgress() as progress:
            entry = client.submit_dataset(data, name, note=note, progress=progress)
    except KeyboardInterrupt:
        err.print("stopped; what was sent is kept, and the same command goes on with the rest")
        raise
    for skipped in entry.skipped[:20]:
        err.print(f"left out: {skipped.path}: {skipped.reason}", style="yellow")
    if len(entry.skipped) > 20:
        err.print(f"left out: {len(entry.skipped) - 20} more", style="yellow")
    return entry


def follow_there(search: Search, server: str | None) -> None:
    """Show a search's events until it has ended; Ctrl-C ends the showing, not the search."""
    try:
        for event in search.follow():
            err.print(event.text)
    except KeyboardInterrupt:
        err.print(f"\nthe search goes on at the server; follow it with: {_command(search, '--follow', server)}")
        err.print(f"end it with: {_command(search, '--cancel', server)}")
        raise typer.Exit(130) from None


def _dataset(client: Client, data: str) -> DatasetEntry | str:
    path = Path(data)
    if not path.exists() and _DATASET.fullmatch(data):
        err.print(f"there is no {data} here: searching the server's dataset of that name")
        return data
    return submit_there(client, path)


def _show(search: Search, server: str | None, as_json: bool) -> None:
    """What came of a search that has ended, and the exit code for it."""
    entry = search.entry
    if entry.status == "failed":
        why = entry.error or f"the search {entry.name} failed"
        if entry.trials and entry.best is None:
            raise NoTrialSucceededError(why)
        err.print(f"error: {why}", style="red")
        raise typer.Exit(1)
    try:
        result = search.leaderboard()
    except RefusedError as error:
        if entry.status == "complete":
            raise
        err.print(f"{entry.name} was cancelled: {error}", style="yellow")
        raise typer.Exit(130) from None
    if as_json:
        out.out(result.model_dump_json(indent=2), highlight=False)
    else:
        print_result(result, there=same_server(server))
    if entry.promotion is not None:
        err.print(f"promotion: {entry.promotion.state}: {entry.promotion.reason}")
    err.print(f"report: autoad report {shlex.quote(entry.name)}{same_server(server)}")
    if entry.status == "cancelled":
        raise typer.Exit(130)


def _standing(entry: SubmissionEntry) -> str:
    before = f", {entry.position} before it" if entry.position else ""
    return f"{entry.status}{before}"


def _command(search: Search, option: str, server: str | None) -> str:
    return f"autoad searches {shlex.quote(search.name)} {option}{same_server(server)}"
