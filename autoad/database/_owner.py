"""Which process carries a search out, and whether it still does."""

from __future__ import annotations

import datetime
import os
import socket
from pathlib import Path

__all__ = ["LEASE_SECONDS", "is_gone", "name_process", "this_process"]

LEASE_SECONDS = 30.0
"""Without a heartbeat for so long, an owner on another machine counts as gone."""


def this_process() -> str:
    """The name of this process, see :func:`name_process`."""
    return name_process(os.getpid())


def name_process(pid: int) -> str:
    """``HOST/KERNEL/PID/START`` of a process of this machine.

    The start, in clock ticks since boot, tells a process from a later one of the same number; the kernel (its boot and
    its namespace of processes) tells hosts and containers of one name apart.
    """
    return f"{_here()}/{pid}/{_start(pid)}"


def is_gone(owner: str, heartbeat: datetime.datetime | None) -> bool:
    """Whether the process ``owner`` no longer exists; on another machine, whether its heartbeat has stopped."""
    where, pid, start = owner.rsplit("/", 2)
    if where == _here():
        return not start or _start(int(pid)) != start  # it may have ended before its start could be read
    if heartbeat is None:
        return True
    if heartbeat.tzinfo is None:  # SQLite keeps no time zone
        heartbeat = heartbeat.replace(tzinfo=datetime.UTC)
    return (datetime.datetime.now(datetime.UTC) - heartbeat).total_seconds() > LEASE_SECONDS


def _here() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8]
    return f"{socket.gethostname()}/{boot}-{Path('/proc/self/ns/pid').stat().st_ino}"


def _start(pid: int) -> str:
    """Field 22 of ``/proc/PID/stat``; empty for a process that has ended, or waits as a zombie for its parent."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]
