"""The command line: arguments in, records out. What a command does lives elsewhere and is imported when it runs."""

from __future__ import annotations

import json
import re
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autoad.commands._options import Json
from autoad.commands.keys import keys_app
from autoad.commands.models import delete, models
from autoad.commands.serving import promote, rollback, serve

if TYPE_CHECKING:
    from autoad.database import Database
    from autoad.schema import SearchEntry, SearchResult

app = typer.Typer(
    name="autoad",
    help="Finds, proves and keeps the best anomaly detector for a folder of pictures.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


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


_ON_RESUME = {"resume", "time", "trials", "patience", "trial_timeout", "address", "mlflow", "as_json"}


@app.command()
def search(
    context: typer.Context,
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
    name: Annotated[str, typer.Option(help="Name of the search.")] = "",
    model: Annotated[
        str, typer.Option(help="Model whose next version the champion becomes; the search's name by default.")
    ] = "",
    space: Annotated[
        Path | None, typer.Option(help="Search-space file or folder that overrides the packaged ones.")
    ] = None,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="One worker, no clock: repeats exactly. 16 trials, 5 epochs.")
    ] = False,
    no_warm_start: Annotated[
        bool, typer.Option("--no-warm-start", help="Try nothing that earlier searches of similar pictures found.")
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
    mlflow: Annotated[bool, typer.Option("--mlflow", help="Log to MLflow's database in the data folder too.")] = False,
    address: Annotated[str, typer.Option(help="HOST:PORT of a running Ray cluster that this machine belongs to.")] = "",
    as_json: Json = False,
) -> None:
    """Search algorithms and hyperparameters for a dataset; refit, calibrate and test the best."""
    from autoad.console import ConsoleListener
    from autoad.errors import UsageError
    from autoad.search import DEFAULT_SECONDS, SearchRequest, resume_search, run_search
    from autoad.search.trackers import FanOut, MlflowTracker, TensorBoardTracker

    listener = FanOut(ConsoleListener(), TensorBoardTracker(), *([MlflowTracker()] if mlflow else []))
    if resume:
        sources = {name: context.get_parameter_source(name) for name in context.params}
        given = {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}
        if kept := sorted(given - _ON_RESUME):
            raise UsageError(
                f"--{kept[0].replace('_', '-')} cannot be changed: a resumed search goes on as it began; only "
                f"--time, --trials, --patience, --trial-timeout, --address and --mlflow may be given"
            )
        resumed = resume_search(
            resume,
            listener,
            seconds=_seconds(time) if time else None,
            trials=trials,
            patience=patience,
            trial_timeout=_seconds(trial_timeout) if trial_timeout else None,
            address=address or None,
        )
        _show(resumed, as_json)
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
        model=model,
        space=space,
        deterministic=deterministic,
        warm_start=not no_warm_start,
        max_epochs=max_epochs,
        false_positive_rate=false_positive_rate,
        patience=patience,
        trial_timeout=_seconds(trial_timeout) if trial_timeout else None,
        engine=engine,
        precision=precision,
        address=address,
    )
    _show(run_search(request, listener), as_json)


def _show(result: SearchResult, as_json: bool) -> None:
    """A search's result and report; an interrupted one ends the process as Ctrl-C does."""
    from autoad.console import err, out, print_result
    from autoad.report import write_report

    if as_json:
        out.out(result.model_dump_json(indent=2), highlight=False)
    else:
        print_result(result)
    try:
        err.print(f"report: {write_report(result)}")
    except Exception as error:  # the answer is there, with or without its report
        err.print(f"the report could not be written ({error}); try: autoad report {result.name}", style="yellow")
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
def searches(
    name: Annotated[str | None, typer.Argument(help="Name or id of one search; all by default.")] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Watch a running search, the newest by default, until it ends.")
    ] = False,
    limit: Annotated[int, typer.Option(min=1, help="Searches to list, newest first.")] = 20,
    as_json: Json = False,
) -> None:
    """List searches, or follow one that another process carries out."""
    from autoad.console import err, out, searches_table
    from autoad.database import Database, describe_search, list_searches

    database = Database()
    try:
        if follow:
            entries = [_follow(database, name)]
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


def _follow(database: Database, name: str | None) -> SearchEntry:
    from autoad.console.devices import DevicesMeter
    from autoad.console.follow import follow_search
    from autoad.settings import get_settings

    # A database that other machines can reach says nothing about where the search runs.
    meter = None if get_settings().database_url else DevicesMeter()
    return follow_search(database, name, meter=meter)


@app.command()
def report(
    name: Annotated[str | None, typer.Argument(help="Name or id of a search; the newest by default.")] = None,
    output: Annotated[
        Path | None, typer.Option(help="File to write; report.html in the search's folder by default.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a search's report: one HTML file that opens without a network."""
    from autoad.console import out
    from autoad.report import write_report
    from autoad.search import load_result

    file = write_report(load_result(name), output)
    out.out(json.dumps({"report": str(file)}, indent=2) if as_json else str(file), highlight=False)


@app.command()
def score(
    model: Annotated[
        str, typer.Argument(help="Model, version (bottle/3, bottle@champion), search, or folder of a saved model.")
    ],
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


for _command in (delete, models, promote, rollback, serve):
    app.command()(_command)
app.add_typer(keys_app)


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
