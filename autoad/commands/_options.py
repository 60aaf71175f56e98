"""Options that many commands have."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from autoad.client import Client

__all__ = ["AnyServer", "Json", "Server", "client_of", "named_server", "same_server"]

Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
AnyServer = Annotated[
    str | None,
    typer.Option(help="Address of a server to ask instead of this machine. Default AUTOAD_SERVER; '' for none."),
]
Server = Annotated[
    str | None, typer.Option(help="Address of the server. Default AUTOAD_SERVER, or http://127.0.0.1:8000.")
]


def named_server(server: str | None) -> str:
    """The server that the option or the environment names; empty for none."""
    from autoad.settings import get_settings

    return get_settings().server if server is None else server


def client_of(server: str | None) -> Client:
    """A client of the server that the option or the environment names, or of the one on this machine."""
    from autoad.client import Client

    return Client(server)


def same_server(server: str | None) -> str:
    """What a command that is recommended needs in order to ask the same server."""
    return f" --server {shlex.quote(server)}" if server else ""
