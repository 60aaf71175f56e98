"""``autoad search``: here, or on a server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from autoad.commands._options import AnyServer, Json, named_server

if TYPE_CHECKING:
    from autoad.schema import SearchResult

__all__ = ["search"]

_ON_RESUME = {"resume", "time", "trials", "patience", "trial_timeout", "address", "mlflow", "as_json", "server"}
_HERE = {"resume", "space", "trial_timeout", "engine", "precision", "mlflow", "address"}
_THERE = {"promote_when", "no_follow"}


def search(
    context: typer.Context,
    data: Annotated[
        str | None,
        typer.Option(
            help="Folder of pictures (MVTec layout, or good/ and bad/) or a manifest; with a server also an archive, "
            "or the NAME or NAME/VERSION of a dataset there."
        ),
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
        str,
        typer.Option(
            help="Model whose next version the champion becomes; the search's name by default, on a server the "
            "dataset's."
        ),
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
    threshold: Annotated[
        str,
        typer.Option(
            help="conformal: keeps to --false-positive-rate. f1-max: the best F1 on calibration pictures and labelled "
            "selection defects."
        ),
    ] = "conformal",
    false_positive_rate: Annotated[
        float | None, typer.Option(help="Share of good pictures that may be called anomalous. Default 0.05.")
    ] = None,
    patience: Annotated[
        int | None, typer.Option(min=1, help="End after so many finished trials in a row without a better one.")
    ] = None,
    max_latency_ms: Annotated[
        float | None, typer.Option(help="Most milliseconds that the champion may take for a picture on this machine.")
    ] = None,
    max_memory_mb: Annotated[
        float | None, typer.Option(help="Most memory, in MB, that a process which scores with the champion may take.")
    ] = None,
    keep_suspicious: Annotated[
        bool,
        typer.Option(
            "--keep-suspicious", help="Learn from good pictures that look unlike the others or like the defects, too."
        ),
    ] = False,
    trial_timeout: Annotated[
        str, typer.Option(help="Time after which a trial counts as hanging. Default a quarter of --time, or 1h.")
    ] = "",
    engine: Annotated[str, typer.Option(help="What runs the backbone: auto, openvino, torch or cuda.")] = "auto",
    precision: Annotated[str, typer.Option(help="Of the backbone: auto, float32 or bfloat16.")] = "auto",
    mlflow: Annotated[bool, typer.Option("--mlflow", help="Log to MLflow's database in the data folder too.")] = False,
    address: Annotated[str, typer.Option(help="HOST:PORT of a running Ray cluster that this machine belongs to.")] = "",
    server: AnyServer = None,
    promote_when: Annotated[
        str,
        typer.Option(
            help="On a server: whether the champion answers at the end: never, always, or when it is better than the "
            "version that serves."
        ),
    ] = "never",
    no_follow: Annotated[
        bool, typer.Option("--no-follow", help="On a server: start the search and do not wait for it.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Search algorithms and hyperparameters for a dataset; refit, calibrate and test the best."""
    from autoad.console import err
    from autoad.errors import UsageError
    from autoad.schema import Objective, PromoteWhen, ThresholdMethod, parse_duration

    given = _given(context)
    seconds = parse_duration(time) if time else None
    names = tuple(part.strip() for part in algorithms.split(",") if part.strip())
    if named_server(server):
        from autoad.commands._remote_search import search_there

        if refused := sorted(given & _HERE):
            raise UsageError(
                f"{_option(refused[0])} cannot be given to a server: it decides that itself; leave it out, or search "
                "here with --server ''"
            )
        if data is None:
            raise UsageError("a search needs pictures: give --data FOLDER, or the NAME of a dataset on the server")
        search_there(
            server,
            data,
            as_json=as_json,
            follow=not no_follow,
            time=seconds,
            trials=trials,
            algorithms=names,
            objective=cast(Objective, objective),
            name=name,
            model=model,
            seed=seed,
            deterministic=deterministic,
            warm_start=not no_warm_start,
            max_epochs=max_epochs,
            threshold=cast(ThresholdMethod, threshold),
            false_positive_rate=false_positive_rate,
            patience=patience,
            max_latency_ms=max_latency_ms,
            max_memory_mb=max_memory_mb,
            keep_suspicious=keep_suspicious,
            promote_when=cast(PromoteWhen, promote_when),
        )
        return
    if there := sorted(given & _THERE):
        raise UsageError(f"{_option(there[0])} is for a search on a server: name one with --server, or leave it out")
    limit = parse_duration(trial_timeout) if trial_timeout else None
    if resume:
        if kept := sorted(given - _ON_RESUME):
            raise UsageError(
                f"{_option(kept[0])} cannot be changed: a resumed search goes on as it began; only "
                f"--time, --trials, --patience, --trial-timeout, --address and --mlflow may be given"
            )
        err.print(f"reading what {resume} has found", style="dim")
        _resume(resume, mlflow, as_json, seconds, trials, patience, limit, address)
        return
    if data is None:
        raise UsageError("a search needs pictures: give --data FOLDER, or --resume NAME to go on with an earlier one")
    err.print(f"reading {data}", style="dim")  # and importing, which takes seconds as well
    from autoad.search import DEFAULT_SECONDS

    _begin(
        mlflow,
        as_json,
        data=Path(data),
        algorithms=names,
        objective=objective,
        trials=trials,
        seconds=DEFAULT_SECONDS if seconds is None and trials is None and not deterministic else seconds,
        seed=seed,
        name=name,
        model=model,
        space=space,
        deterministic=deterministic,
        warm_start=not no_warm_start,
        max_epochs=max_epochs,
        threshold=threshold,
        false_positive_rate=false_positive_rate,
        patience=patience,
        trial_timeout=limit,
        max_latency_ms=max_latency_ms,
        max_memory_mb=max_memory_mb,
        keep_suspicious=keep_suspicious,
        engine=engine,
        precision=precision,
        address=address,
    )


def _given(context: typer.Context) -> set[str]:
    """The options that were written."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _listener(mlflow: bool) -> Any:
    from autoad.console import ConsoleListener
    from autoad.search.trackers import FanOut, MlflowTracker, TensorBoardTracker

    return FanOut(ConsoleListener(), TensorBoardTracker(), *([MlflowTracker()] if mlflow else []))


def _begin(mlflow: bool, as_json: bool, **request: Any) -> None:
    from autoad.search import SearchRequest, run_search

    _show(run_search(SearchRequest(**request), _listener(mlflow)), as_json)


def _resume(
    name: str,
    mlflow: bool,
    as_json: bool,
    seconds: float | None,
    trials: int | None,
    patience: int | None,
    trial_timeout: float | None,
    address: str,
) -> None:
    from autoad.search import resume_search

    resumed = resume_search(
        name,
        _listener(mlflow),
        seconds=seconds,
        trials=trials,
        patience=patience,
        trial_timeout=trial_timeout,
        address=address or None,
    )
    _show(resumed, as_json)


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
