"""``autoad datasets``: the datasets of a server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from autoad.commands._options import Json, Server, client_of, same_server

__all__ = ["datasets_app"]

Note = Annotated[str, typer.Option(help="Kept with the version.")]


class _Datasets(TyperGroup):
    """``autoad datasets`` and ``autoad datasets NAME`` list and show, as ``autoad models`` does."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        first = args[0] if args else ""
        return super().parse_args(ctx, args if first == "--help" or first in self.commands else ["show", *args])


datasets_app = typer.Typer(
    name="datasets", cls=_Datasets, help="List, show, send and label the datasets of a server; `show` may be left out."
)


@datasets_app.command("show")
def show_datasets(
    name: Annotated[
        str | None, typer.Argument(help="Name, for all its versions, or NAME/VERSION; all datasets by default.")
    ] = None,
    pictures: Annotated[
        bool, typer.Option("--pictures", help="List the pictures of the version, or of the newest.")
    ] = False,
    server: Server = None,
    as_json: Json = False,
) -> None:
    """List datasets, or show one's versions or pictures."""
    from autoad.console import datasets_table, out, print_dataset, print_records
    from autoad.errors import UsageError

    with client_of(server) as client:
        if pictures:
            if name is None:
                raise UsageError("--pictures must say of which dataset: give its name")
            found = list(client.dataset_pictures(name))
            rows = [{"path": one.path, "label": one.label, "split": one.split, "mask": one.mask or ""} for one in found]
            records = [one.model_dump(mode="json") for one in found]
            print_records(records if as_json else rows, as_json)
            return
        if name is None:
            entries = list(client.datasets())
        else:
            newest = client.dataset(name)
            entries = [newest, *([] if "/" in name else client.dataset_versions(name).versions[1:])]
    if as_json:
        out.out(json.dumps([entry.model_dump(mode="json") for entry in entries], indent=2), highlight=False)
    elif name is not None:
        print_dataset(entries)
    elif entries:
        out.print(datasets_table(entries))
    else:
        out.print(f"there is no dataset yet; send one with: autoad datasets submit FOLDER{same_server(server)}")


@datasets_app.command("submit")
def submit_dataset(
    data: Annotated[Path, typer.Argument(help="Folder of pictures, manifest, or archive (.zip, .tar, .tar.gz, ...).")],
    name: Annotated[str, typer.Option(help="Of the dataset; made of the folder's by default.")] = "",
    note: Note = "",
    server: Server = None,
    as_json: Json = False,
) -> None:
    """Send a dataset; only files that the server lacks travel."""
    from autoad.commands._remote_search import submit_there
    from autoad.console import out

    with client_of(server) as client:
        entry = submit_there(client, data, name or None, note)
    if as_json:
        out.out(entry.model_dump_json(indent=2), highlight=False)
        return
    counts = ", ".join(f"{count} {kind}" for kind, count in entry.counts.items())
    out.print(f"{entry}: {counts}")
    out.print(f"search it with: autoad search --data {entry}{same_server(server)}", style="bold")


@datasets_app.command("label")
def label_picture(
    name: Annotated[str, typer.Argument(help="Name of the dataset.")],
    picture: Annotated[Path, typer.Argument(help="The picture.")],
    label: Annotated[str, typer.Argument(help="What it shows: good, or the name of the defect.")],
    mask: Annotated[Path | None, typer.Option(help="Picture of where the defect is: nonzero pixels.")] = None,
    note: Note = "",
    server: Server = None,
    as_json: Json = False,
) -> None:
    """Make a picture a labelled example, in the dataset's next version."""
    from autoad.console import out

    with client_of(server) as client:
        entry = client.add_example(name, picture, label, mask=mask, note=note)
    if as_json:
        out.out(entry.model_dump_json(indent=2), highlight=False)
    else:
        out.print(f"{entry}: {picture} is {label}")
