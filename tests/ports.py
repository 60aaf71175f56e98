"""Ports for what the tests start."""

from __future__ import annotations

import random
import socket

_CHANCE = random.SystemRandom()


def free_port() -> int:
    """One that nobody listens on, and that neither the kernel nor Ray hands out before it is used."""
    while True:
        port = _CHANCE.randrange(20_000, 32_000)
        with socket.socket() as one:
            try:
                one.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
