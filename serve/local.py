"""``autoad serve``: the Serve application on a Ray of this machine's own, or on a cluster that it belongs to."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import autoad.search._ray_environment  # noqa: F401  (before Ray)
from autoad.database import Database, Keys
from autoad.errors import UsageError
from autoad.search.cluster import LocalWorkers, check_reachable, join_ray, local_ray
from autoad.serve._haproxy import configure_haproxy
from autoad.serve.auth import check_may_listen
from autoad.serve.options import ServeOptions

__all__ = ["serve_forever"]

_APPLICATION = "autoad"
_CHECK_SECONDS = 1.0


def serve_forever(
    options: ServeOptions, *, address: str = "", ready: Callable[[str], None], stop: threading.Event
) -> None:
    """Deploy the application and keep it up until ``stop`` is set.

    Args:
        options: of the application.
        address: ``HOST:PORT`` of a running Ray cluster's head; empty for a Ray of our own.
        ready: told the address once requests are answered.
        stop: ends it, and with it what was started here.

    Raises:
        UsageError: the port is taken, the host needs an API key and there is none, or the cluster cannot be joined.
        StateError: Ray itself has died.
    """
    database = Database()
    try:
        check_may_listen(options.host, Keys(database))
    finally:
        database.close()
    _check_port(options)
    with tempfile.TemporaryDirectory(prefix="autoad-serve-") as folder:
        if not address:  # a cluster's processes have an environment of their own
            configure_haproxy(Path(folder))
        with _ray(options, address) as check:
            from ray import serve

            from autoad.serve.app import build

            serve.start(http_options={"host": options.host, "port": options.port}, proxy_location="EveryNode")
            try:
                # Where the server is told a cluster, searches run there, too.
                told = options.model_copy(update={"search_address": options.search_address or address})
                serve.run(build(told), name=_APPLICATION, route_prefix="/")
                host = f"[{options.host}]" if ":" in options.host else options.host
                ready(f"http://{host}:{options.port}")
                while not stop.wait(_CHECK_SECONDS):
                    check()
            finally:
                with contextlib.suppress(Exception):  # Ray may be the very thing that has died
                    serve.shutdown()


@contextlib.contextmanager
def _ray(options: ServeOptions, address: str) -> Iterator[Callable[[], None]]:
    """Gives what raises :class:`StateError` when Ray is no more."""
    if address:
        check_reachable(address)
        with join_ray(address, backbones=(), cuda=False, alone=False) as cluster:
            _check_alone(address)
            yield cluster.check
        return
    # Serve's own actors ask for no processor; replicas ask for one each, whatever they really use.
    own = LocalWorkers(max(os.cpu_count() or 1, options.max_replicas), gpus_each=0.0)
    with local_ray(own):
        yield own.check


def _check_alone(address: str) -> None:
    """Refuse a cluster on which Serve runs: where it listens cannot be changed, and ending it would end all of it.

    Raises:
        UsageError: it does.
    """
    import ray
    from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

    with contextlib.suppress(ValueError):
        ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
        raise UsageError(
            f"Ray Serve runs on the cluster {address} already; deploy there with: serve deploy serve/config.yaml"
        )


def _check_port(options: ServeOptions) -> None:
    """Refuse a port that somebody listens on: Serve would wait for it in silence.

    Raises:
        UsageError: somebody does, or there is no such host.
    """
    try:
        with socket.socket(socket.AF_INET6 if ":" in options.host else socket.AF_INET) as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind((options.host, options.port))
    except OSError as error:
        raise UsageError(
            f"cannot listen on {options.host}:{options.port} ({error.strerror or error}); choose another --host or "
            "--port"
        ) from error
