"""``autoad models`` and ``autoad delete``: of this machine's data folder and database, or of a server."""

from __future__ import annotations

import getpass
import json
import os
from typing import TYPE_CHECKING, Annotated

import typer

from autoad.commands._options import AnyServer, Json, client_of, named_server

if TYPE_CHECKING:
    from autoad.schema import ModelEntry

__all__ = ["delete", "models"]


def models(
    name: Annotated[
        str | None, typer.Argument(help="One model, with its versions and history; all by default.")
    ] = None,
    server: AnyServer = None,
    as_json: Json = False,
) -> None:
    """List models, or a model's versions, aliases and history."""
    from autoad.console import models_table, out, print_model

    if named_server(server):
        with client_of(server) as client:
            entries = client.models() if name is None else [client.model(name)]
    else:
        entries = _models_here(name)
    if as_json:
        records = [entry.model_dump(mode="json") for entry in entries]
        out.out(json.dumps(records if name is None else records[0], indent=2), highlight=False)
    elif name is not None:
        print_model(entries[0])
    elif entries:
        out.print(models_table(entries))
    else:
        out.print("there is no model yet; make one with: autoad search --data FOLDER")


def delete(
    name: Annotated[str, typer.Argument(help="Name of a model.")],
    version: Annotated[int, typer.Argument(min=1, help="Number of the version.")],
    reason: Annotated[str, typer.Option(help="Why; kept in the model's history.")] = "",
    server: AnyServer = None,
    as_json: Json = False,
) -> None:
    """Delete a version of a model that has no part in answering; its number is not given again."""
    from autoad.console import out

    if named_server(server):
        with client_of(server) as client:
            client.delete(name, version, reason=reason)
    else:
        _delete_here(name, version, reason)
    if as_json:
        out.out(json.dumps({"name": name, "version": version}, indent=2), highlight=False)
    else:
        out.print(f"{name}: version {version} is deleted")


def _models_here(name: str | None) -> list[ModelEntry]:
    from autoad.database import Database
    from autoad.models.registry import Registry

    database = Database()
    try:
        registry = Registry(database)
        return registry.models() if name is None else [registry.model(name)]
    finally:
        database.close()


def _delete_here(name: str, version: int, reason: str) -> None:
    from autoad.database import Database
    from autoad.models.registry import Registry

    database = Database()
    try:
        Registry(database).delete(name, version, reason=reason, actor=_user())
    finally:
        database.close()


def _user() -> str:
    """Who is at the keyboard; a container may have no name for its user."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"user {os.getuid()}"
