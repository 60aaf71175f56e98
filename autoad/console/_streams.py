"""The two streams: results to stdout, progress to stderr."""

from __future__ import annotations

import sys

from rich.console import Console

__all__ = ["err", "out"]

_PIPE_WIDTH = 200

out = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)
err = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
