"""Warnings that are not for whoever uses autoad."""

from __future__ import annotations

import threading
import warnings
from typing import Any, ClassVar

__all__ = ["Quiet"]


class Quiet:
    """Ignores some warnings while any thread is inside; may be entered again and again, by several threads at once.

    ``warnings.catch_warnings`` alone is unsafe there: threads that leave it in another order than they entered it
    restore each other's filters. The first thread in and the last one out do it for all.

    Args:
        only: which warnings, as ``warnings.filterwarnings`` takes it; all if nothing is said.
    """

    _lock: ClassVar = threading.Lock()
    _inside: ClassVar[int] = 0
    _saved: ClassVar[warnings.catch_warnings[Any]]

    def __init__(self, **only: Any) -> None:
        self._only = only

    def __enter__(self) -> None:
        with Quiet._lock:
            if not Quiet._inside:
                Quiet._saved = warnings.catch_warnings()
                Quiet._saved.__enter__()
            warnings.filterwarnings("ignore", **self._only)
            Quiet._inside += 1

    def __exit__(self, *exc: object) -> None:
        with Quiet._lock:
            Quiet._inside -= 1
            if not Quiet._inside:
                Quiet._saved.__exit__(None, None, None)
