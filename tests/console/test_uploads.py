from __future__ import annotations

import io

import pytest
from rich.console import Console

from autoad.console import uploads
from autoad.console.uploads import UploadProgress


def test_a_file_gets_a_line_for_each_step_and_one_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(uploads.time, "monotonic", lambda: now[0])
    console = Console(file=io.StringIO(), width=80)
    with UploadProgress(console) as progress:
        for done in range(5):
            progress(done * 10**6, 4 * 10**6, "hashing 9 files")
            now[0] += 6
        progress(0, 0, "committing 9 files")
    assert console.file.getvalue().splitlines() == [  # type: ignore[attr-defined]
        "hashing 9 files",
        "hashing 9 files (50% of 4.0 MB)",
        "hashing 9 files (100% of 4.0 MB)",
        "committing 9 files",
    ]


def test_a_terminal_gets_a_bar_that_goes_away() -> None:
    console = Console(file=io.StringIO(), width=100, force_terminal=True)
    with UploadProgress(console) as progress:
        progress(0, 4 * 10**6, "hashing 9 files")
        progress(10**6, 2 * 10**6, "sending 3 of 9 files")
        assert progress._bar is not None
        assert [(task.description, task.completed, task.total) for task in progress._bar.tasks] == [
            ("sending 3 of 9 files", 10**6, 2 * 10**6)
        ]
        progress(2 * 10**6, 2 * 10**6, "sending 3 of 9 files")
    assert "sending 3 of 9 files" in console.file.getvalue()  # type: ignore[attr-defined]
