"""``autoad keys``: the API keys of a server."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from autoad.commands._options import Json

__all__ = ["keys_app"]

keys_app = typer.Typer(name="keys", help="Make, list and revoke the API keys of a server.", no_args_is_help=True)
Project = Annotated[str, typer.Option(help="Project of the key; AUTOAD_PROJECT by default.")]


@keys_app.command("create")
def create_key(
    name: Annotated[str, typer.Argument(help="Who will use the key.")],
    scope: Annotated[list[str], typer.Option(help="score, submit or admin, which includes both; may be repeated.")],
    project: Project = "",
    as_json: Json = False,
) -> None:
    """Make an API key and print it; it cannot be shown again."""
    from autoad.console import err, out
    from autoad.database import Database, Keys

    database = Database()
    try:
        entry, key = Keys(database).create(name, scope, project or None)
    finally:
        database.close()
    if as_json:
        out.out(json.dumps({"key": key} | entry.model_dump(mode="json"), indent=2), highlight=False)
        return
    out.out(key, highlight=False)
    err.print(f"this is the only time that the key {name!r} is shown: keep it as you keep a password")


@keys_app.command("list")
def list_keys(project: Project = "", as_json: Json = False) -> None:
    """List a project's API keys, without their secrets."""
    from autoad.console import out, print_records
    from autoad.database import Database, Keys

    database = Database()
    try:
        entries = Keys(database).list(project or None)
    finally:
        database.close()
    if as_json:
        out.out(json.dumps([entry.model_dump(mode="json") for entry in entries], indent=2), highlight=False)
    elif not entries:
        out.print("there is no key yet; make one with: autoad keys create NAME --scope score")
    else:
        rows = [
            {
                "name": entry.name,
                "id": entry.id,
                "scopes": ", ".join(entry.scopes),
                "created": f"{entry.created:%Y-%m-%d %H:%M}",
                "revoked": f"{entry.revoked:%Y-%m-%d %H:%M}" if entry.revoked else "",
            }
            for entry in entries
        ]
        print_records(rows, as_json=False)


@keys_app.command("revoke")
def revoke_key(
    name: Annotated[str, typer.Argument(help="Name of the key.")], project: Project = "", as_json: Json = False
) -> None:
    """Refuse an API key from now on; running servers notice within a second."""
    from autoad.console import err, out
    from autoad.database import Database, Keys

    database = Database()
    try:
        entry = Keys(database).revoke(name, project or None)
    finally:
        database.close()
    if as_json:
        out.out(entry.model_dump_json(indent=2), highlight=False)
    else:
        err.print(f"the key {entry.name!r} is refused from now on")
