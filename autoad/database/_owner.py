"""Which process carries a search out, and whether it still does."""

from __future__ import annotations

import datetime
import os
import socket
from pathlib import Path

__all__ = ["LEASE_SECONDS", "is_gone", "this_process"]

LEASE_SECONDS = 30.0
"""Without a heartbeat for so long, an owner on another machine counts as gone."""


def this_process() -> str:
    """``HOST/PID/START``; the start, in clock ticks since boot, tells a process from a later one of the same number."""
    return f"{socket.gethostname()}/{os.getpid()}/{_start(os.getpid())}"


def is_gone(owner: str, heartbeat: datetime.datetime | None) -> bool:
    """Whether the process ``owner`` no longer exists; on another machine, whether its heartbeat has stopped."""
    host, pid, start = owner.rsplit("/", 2)
    if host == socket.gethostname():
        return _start(int(pid)) != start
    if heartbeat is None:
        return True
    if heartbeat.tzinfo is None:  # SQLite keeps no time zone
        heartbeat = heartbeat.replace(tzinfo=datetime.UTC)
    return (datetime.datetime.now(datetime.UTC) - heartbeat).total_seconds() > LEASE_SECONDS


def _start(pid: int) -> str:
    """Field 22 of ``/proc/PID/stat``; empty for a process that has ended, or waits as a zombie for its parent."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]
