"""The command line: arguments in, records out. What a command does lives elsewhere and is imported when it runs."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from autoad.commands._options import Json
from autoad.commands.datasets import datasets_app
from autoad.commands.inspect import inspect
from autoad.commands.keys import keys_app
from autoad.commands.models import delete, models
from autoad.commands.score import score
from autoad.commands.search import search
from autoad.commands.searches import leaderboard, report, searches
from autoad.commands.serving import promote, rollback, serve

app = typer.Typer(
    name="autoad",
    help="Finds, proves and keeps the best anomaly detector for a folder of pictures.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


for _command in (inspect, search, searches, leaderboard, report, score, models, promote, rollback, delete, serve):
    app.command()(_command)
for _group in (datasets_app, keys_app):
    app.add_typer(_group)


@app.command()
def algorithms(as_json: Json = False) -> None:
    """List the algorithms that a search chooses from."""
    from autoad.console import print_records
    from autoad.search.inventory import list_algorithms

    print_records(list_algorithms(), as_json)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say what this machine can do: engines, devices, reachable backbones, Ray, folders."""
    from autoad.console import print_records
    from autoad.search.inventory import examine_machine

    print_records(examine_machine(), as_json)


@app.command("demo-data")
def demo_data(
    folder: Annotated[Path, typer.Argument(help="Folder to write; must not exist or be empty.")],
    as_json: Json = False,
) -> None:
    """Write a small real-texture dataset with drawn defects and masks, in MVTec layout."""
    from autoad.console import out
    from autoad.data import read_dataset, write_demo_dataset

    dataset = read_dataset(write_demo_dataset(folder))
    if as_json:
        out.out(json.dumps({"path": str(folder), "hash": dataset.hash, "counts": dataset.counts()}, indent=2))
    else:
        counts = ", ".join(f"{count} {name}" for name, count in dataset.counts().items())
        out.print(f"wrote {folder}: {counts}\nsearch it with: autoad search --data {folder}")


def main() -> None:
    """Run the command line; errors that autoad raises on purpose become one line and an exit code."""
    from autoad.errors import AutoADError

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # who is told to terminate does so as on Ctrl-C
    try:
        app()
    except AutoADError as error:
        from autoad.console import err

        err.print(f"error: {error}", style="red")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
