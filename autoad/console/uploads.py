"""How far an upload is, on stderr: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

from autoad.console._streams import err

__all__ = ["UploadProgress"]

_LINE_EVERY = 10.0


class UploadProgress:
    """What :meth:`autoad.client.Client.submit_dataset` calls while it sends; used as a context.

    Args:
        console: where to show it.
    """

    def __init__(self, console: Console = err) -> None:
        self._console = console
        self._text = ""
        self._told = 0.0
        self._task: TaskID | None = None
        self._bar: Progress | None = None
        if console.is_terminal and not console.is_dumb_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
            self._bar = Progress(*columns, console=console, transient=True)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, done: int, total: int, text: str) -> None:
        """Show that so many of so many bytes are done of what ``text`` says."""
        new = text != self._text
        self._text = text
        if self._bar is None:
            if new or time.monotonic() - self._told >= _LINE_EVERY:
                self._told = time.monotonic()
                share = f" ({done / total:.0%} of {total / 1e6:,.1f} MB)" if total and not new else ""
                self._console.print(f"{text}{share}", style="dim")
            return
        if new and self._task is not None:
            self._bar.remove_task(self._task)
        if new or self._task is None:
            self._task = self._bar.add_task(text, total=max(total, 1))
        self._bar.update(self._task, completed=done, total=max(total, 1))
