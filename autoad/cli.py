"""The command line: arguments in, records out. What a command does lives elsewhere and is imported when it runs."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from autoad.schema import SearchResult

app = typer.Typer(
    name="autoad",
    help="Finds, proves and keeps the best anomaly detector for a folder of pictures.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]


def _seconds(text: str) -> float:
    """Read a duration such as ``90``, ``45s``, ``20m`` or ``1h30m``."""
    match = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?", text.strip())
    if not text.strip() or match is None:
        raise typer.BadParameter(f"must be a duration such as 90s, 20m or 1h30m but got {text!r}")
    hours, minutes, seconds = (float(part or 0) for part in match.groups())
    total = 3600 * hours + 60 * minutes + seconds
    if total <= 0:
        raise typer.BadParameter(f"must be longer than nothing but got {text!r}")
    return total


@app.command()
def search(
    data: Annotated[
        Path | None, typer.Option(help="Folder of pictures (MVTec layout, or good/ and bad/) or a manifest.")
    ] = None,
    resume: Annotated[
        str, typer.Option(help="Name or id of an interrupted search to go on with; takes --time and --trials.")
    ] = "",
    time: Annotated[
        str, typer.Option(help="Time for the whole search, such as 20m or 1h30m. Default 20m, or none with --trials.")
    ] = "",
    trials: Annotated[int | None, typer.Option(min=1, help="Number of trials.")] = None,
    algorithms: Annotated[str, typer.Option(help="Comma-separated names; all eight by default.")] = "",
    objective: Annotated[str, typer.Option(help="Metric on the selection pictures that ranks trials.")] = "image_auroc",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the sampler and of every detector.")] = 0,
    name: Annotated[str, typer.Option(help="Name of the search and its model.")] = "",
    space: Annotated[
        Path | None, typer.Option(help="Search-space file or folder that overrides the packaged ones.")
    ] = None,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="One worker, no clock: repeats exactly. 16 trials, 5 epochs.")
    ] = False,
    max_epochs: Annotated[
        int | None, typer.Option(min=1, help="Lower the ceiling of epochs of all algorithms.")
    ] = None,
    false_positive_rate: Annotated[
        float | None, typer.Option(help="Share of good pictures that may be called anomalous. Default 0.05.")
    ] = None,
    patience: Annotated[
        int | None, typer.Option(min=1, help="End after so many finished trials in a row without a better one.")
    ] = None,
    trial_timeout: Annotated[
        str, typer.Option(help="Time after which a trial counts as hanging. Default a quarter of --time, or 1h.")
    ] = "",
    engine: Annotated[str, typer.Option(help="What runs the backbone: auto, openvino, torch or cuda.")] = "auto",
    precision: Annotated[str, typer.Option(help="Of the backbone: auto, float32 or bfloat16.")] = "auto",
    address: Annotated[str, typer.Option(help="HOST:PORT of a running Ray cluster that this machine belongs to.")] = "",
    as_json: Json = False,
) -> None:
    """Search algorithms and hyperparameters for a dataset; refit, calibrate and test the best."""
    from autoad.console import ConsoleListener
    from autoad.errors import UsageError
    from autoad.search import DEFAULT_SECONDS, SearchRequest, load_result, resume_search, run_search

    if resume:
        if data is not None:
            raise UsageError("--resume must stand without --data: a search keeps the pictures that it began with")
        listener = ConsoleListener(load_result(resume).objective)
        limit = _seconds(time) if time else None
        _show(resume_search(resume, listener, seconds=limit, trials=trials), as_json)
        return
    if data is None:
        raise UsageError("a search needs pictures: give --data FOLDER, or --resume NAME to go on with an earlier one")
    default = DEFAULT_SECONDS if trials is None and not deterministic else None
    request = SearchRequest(
        data=data,
        algorithms=tuple(part.strip() for part in algorithms.split(",") if part.strip()),
        objective=objective,
        trials=trials,
        seconds=_seconds(time) if time else default,
        seed=seed,
        name=name,
        space=space,
        deterministic=deterministic,
        max_epochs=max_epochs,
        false_positive_rate=false_positive_rate,
        patience=patience,
        trial_timeout=_seconds(trial_timeout) if trial_timeout else None,
        engine=engine,
        precision=precision,
        address=address,
    )
    _show(run_search(request, ConsoleListener(objective)), as_json)


def _show(result: SearchResult, as_json: bool) -> None:
    """A search's result; an interrupted one ends the process as Ctrl-C does."""
    from autoad.console import out, print_result

    if as_json:
        out.out(result.model_dump_json(indent=2), highlight=False)
    else:
        print_result(result)
    if result.status == "interrupted":
        raise typer.Exit(130)


@app.command()
def leaderboard(
    name: Annotated[str | None, typer.Argument(help="Name or id of a search; the newest by default.")] = None,
    top: Annotated[int, typer.Option(min=0, help="Rows to show; 0 for all.")] = 15,
    as_json: Json = False,
) -> None:
    """Show a search's ranked trials and its champion."""
    from autoad.console import out, print_result
    from autoad.search import load_result

    result = load_result(name)
    if as_json:
        out.out(result.model_dump_json(indent=2), highlight=False)
    else:
        print_result(result, top=top or len(result.leaderboard))


@app.command()
def score(
    model: Annotated[str, typer.Argument(help="Name or id of a search, or the folder of a saved model.")],
    pictures: Annotated[list[Path], typer.Argument(help="Pictures to score.")],
    heatmaps: Annotated[Path, typer.Option(help="Folder for heatmap files.")] = Path("heatmaps"),
    no_heatmaps: Annotated[bool, typer.Option("--no-heatmaps", help="Write no heatmaps.")] = False,
    as_json: Json = False,
) -> None:
    """Score pictures with a saved model: verdict, regions and heatmaps."""
    from autoad.console import err, out, print_scores
    from autoad.search import score_pictures

    scored, unreadable = score_pictures(model, pictures, None if no_heatmaps else heatmaps)
    if as_json:
        out.out(json.dumps([picture.model_dump() for picture in scored], indent=2), highlight=False)
    else:
        print_scores(scored)
    for line in unreadable:
        err.print(line, style="red")
    if unreadable:
        raise typer.Exit(1)


@app.command()
def algorithms(as_json: Json = False) -> None:
    """List the algorithms that a search chooses from."""
    from autoad.search.inventory import list_algorithms

    _print_records(list_algorithms(), as_json)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say what this machine can do: engines, devices, reachable backbones, Ray, folders."""
    from autoad.search.inventory import examine_machine

    _print_records(examine_machine(), as_json)


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


def _print_records(records: list[dict[str, str]], as_json: bool) -> None:
    from rich.table import Table

    from autoad.console import out

    if as_json:
        out.out(json.dumps(records, indent=2), highlight=False)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in records[0]:
        table.add_column(title, overflow="fold")
    for record in records:
        table.add_row(*record.values())
    out.print(table)


def main() -> None:
    """Run the command line; errors that autoad raises on purpose become one line and an exit code."""
    from autoad.errors import AutoADError

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
