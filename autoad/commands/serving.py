"""``autoad serve``, and what asks a server: ``promote``, ``rollback``."""

from __future__ import annotations

import signal
import threading
from typing import Annotated, Any

import typer

from autoad.commands._options import Json, Server, client_of

__all__ = ["promote", "rollback", "serve"]

Reason = Annotated[str, typer.Option(help="Why; kept in the model's history.")]


def serve(
    host: Annotated[str, typer.Option(help="Where to listen. Other than loopback needs an API key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port.")] = 8000,
    replicas: Annotated[
        int | None, typer.Option(min=1, help="Processes that score, at least. Default 2, on one core 1.")
    ] = None,
    max_replicas: Annotated[
        int | None, typer.Option(min=1, help="Most of them, when there is much to do. Default --replicas.")
    ] = None,
    address: Annotated[str, typer.Option(help="HOST:PORT of a running Ray cluster that this machine belongs to.")] = "",
) -> None:
    """Serve promoted models over HTTP until Ctrl-C."""
    from autoad.console import err, out
    from autoad.serve.local import serve_forever
    from autoad.serve.options import ServeOptions

    given: dict[str, Any] = {"replicas": replicas, "max_replicas": max_replicas or replicas}
    options = ServeOptions(host=host, port=port, **{name: value for name, value in given.items() if value is not None})
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())

    def ready(where: str) -> None:
        out.print(f"serving at {where} (documentation: {where}/docs)")
        err.print("stop with Ctrl-C")

    err.print("starting")
    serve_forever(options, address=address, ready=ready, stop=stop)
    err.print("stopped")


def promote(
    name: Annotated[str, typer.Argument(help="Name of a model.")],
    version: Annotated[int | None, typer.Option(min=1, help="Which version; the newest by default.")] = None,
    canary: Annotated[
        str, typer.Option(help="Let it answer only such a share of the requests, such as 10%. 0% ends a canary.")
    ] = "",
    shadow: Annotated[
        bool | None, typer.Option("--shadow/--no-shadow", help="Let it score beside the champion, unseen; or end that.")
    ] = None,
    reason: Reason = "",
    server: Server = None,
    as_json: Json = False,
) -> None:
    """Let a version of a model answer, once it scores on the server exactly what was evaluated."""
    from autoad.console import out
    from autoad.errors import UsageError

    if canary and shadow is not None:
        raise UsageError(
            f"--canary and {'--shadow' if shadow else '--no-shadow'} are two changes; make one after the other"
        )
    share = _share(canary) if canary else None
    if share == 0 or shadow is False:
        role = "shadow" if shadow is False else "canary"
        if version is not None:
            raise UsageError(f"--version cannot be given to end a {role}: there is but one; leave it out")
        with client_of(server) as client:
            end = client.end_canary if role == "canary" else client.end_shadow
            route = end(name, reason=reason)
        text = f"{name}: ended; version {route.champion} answers alone"
        out.out(route.model_dump_json(indent=2) if as_json else text, highlight=False)
        return
    with client_of(server) as client:
        result = client.promote(name, version, reason=reason, canary=share, shadow=bool(shadow))
    if as_json:
        out.out(result.model_dump_json(indent=2), highlight=False)
        return
    how = "the champion" if share is None and not shadow else "shadow" if shadow else f"canary for {share:.1%}"
    out.print(
        f"{name}: version {result.version} is {how}; {result.parity_answers} answers of {len(result.replicas)} "
        f"replicas to {result.parity_pictures} pictures are what was evaluated ({result.seconds:.1f} s)"
    )


def rollback(
    name: Annotated[str, typer.Argument(help="Name of a model.")],
    reason: Reason = "",
    server: Server = None,
    as_json: Json = False,
) -> None:
    """Let the version answer that was the champion before."""
    from autoad.console import out

    with client_of(server) as client:
        route = client.rollback(name, reason=reason)
    if as_json:
        out.out(route.model_dump_json(indent=2), highlight=False)
    else:
        out.print(f"{name}: version {route.champion} is the champion again, instead of {route.previous}")


def _share(text: str) -> float:
    """A share of requests, written ``10%`` or ``0.1``.

    Raises:
        UsageError: it is none.
    """
    from autoad.errors import UsageError

    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share < 1:
        raise UsageError(f"--canary must be a share from 0% to below 100% but got {text!r}")
    return share
