from __future__ import annotations

import datetime
import io
import sqlite3
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from autoad.console.follow import follow_search
from autoad.database import Database, list_searches
from autoad.settings import Settings
from tests.console.conftest import trial
from tests.console.test_listener import Terminal, opened

_ELSEWHERE = "another-machine/1/1"  # whose processes are known by their heartbeat only


class Story:
    """A database in which another process carries out a search, one step whenever the follower sleeps."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.database = Database(Settings(data_dir=folder))
        self.steps: list[Callable[[], Any]] = []
        self.read: list[int] = []
        self.add("bottle", "abc123")
        clock = types.SimpleNamespace(sleep=lambda _: self.steps.pop(0)(), monotonic=time.monotonic)
        monkeypatch.setattr("autoad.console.follow.time", clock)
        ask = self.database.changed_trials
        monkeypatch.setattr(self.database, "changed_trials", lambda *a: self._count(ask(*a)))

    def _count(self, rows: Any) -> Any:
        self.read.append(len(rows))
        return rows

    def add(self, name: str, search_id: str) -> None:
        summary = opened(name).model_copy(update={"search_id": search_id}).model_dump(mode="json")
        self.database.add_search(search_id, name, "f" * 64, {"seconds": None, "trials": 9}, summary, owner=_ELSEWHERE)
        self.beat(search_id, 0.0)

    def beat(self, search_id: str, ago: float) -> None:
        with sqlite3.connect(self.folder / "autoad.db") as connection:
            moment = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=ago)
            text = moment.strftime("%Y-%m-%d %H:%M:%S.%f")
            connection.execute("update searches set heartbeat = ? where id = ?", (text, search_id))
        connection.close()

    def write(self, *rows: Any) -> Callable[[], None]:
        return lambda: [self.database.write_trial("abc123", row) for row in rows] and None

    def end(self, status: str) -> Callable[[], None]:
        return lambda: self.database.update_search("abc123", status=status)


@pytest.fixture
def story(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Story]:
    story = Story(tmp_path, monkeypatch)
    yield story
    story.database.close()


def test_it_prints_what_the_search_prints_and_reads_only_what_changed(story: Story) -> None:
    story.write(*(trial(number, value=0.5, seconds=1.0) for number in range(3)))()
    story.steps = [
        story.write(trial(3), trial(4)),
        story.write(trial(3, epochs_done=2)),
        story.write(trial(4, value=0.75, seconds=2.0)),
        story.write(trial(3, status="failed", reason="a\nb", seconds=3.0), trial(5, value=0.25, seconds=1.0)),
        lambda: None,
        story.end("complete"),
    ]
    stream = io.StringIO()
    entry = follow_search(story.database, "bottle", console=Console(file=stream, soft_wrap=True))
    assert (entry.status, entry.trials, entry.best) == ("complete", 6, 0.75)
    *lines, last = stream.getvalue().splitlines()
    assert lines == [
        "trial   0  padim                 image_auroc 0.5000  (1.0 s)",
        "trial   1  padim                 image_auroc 0.5000  (1.0 s)",
        "trial   2  padim                 image_auroc 0.5000  (1.0 s)",
        "trial   4  padim                 image_auroc 0.7500  (2.0 s)",
        "trial   3  padim                 failed: a b  (3.0 s)",
        "trial   5  padim                 image_auroc 0.2500  (1.0 s)",
    ]
    assert last.startswith("  best 0.7500 (padim, trial 4) | 6 trials: padim 6")
    assert story.read == [3, 2, 2, 2, 2, 0, 0]


def test_on_a_terminal_only_the_last_of_earlier_trials_get_a_line(story: Story) -> None:
    story.write(*(trial(number, value=0.5, seconds=1.0) for number in range(40)))()
    story.steps = [story.end("complete")]
    terminal = Terminal()
    follow_search(story.database, console=terminal.console)
    assert [line.split()[1] for line in terminal.lines if line.startswith("trial ")] == [str(n) for n in range(30, 40)]


def test_it_ends_when_the_search_shows_no_sign_of_life(story: Story) -> None:
    story.steps = [lambda: story.beat("abc123", 29.0), lambda: story.beat("abc123", 31.0)]
    entry = follow_search(story.database, "abc123", console=Console(file=io.StringIO()))
    assert (entry.status, entry.hint, story.steps) == ("lost", "autoad search --resume abc123", [])


def test_the_list_is_newest_first_with_what_each_has_reached(story: Story) -> None:
    story.write(trial(0, value=0.5), trial(1, value=0.875, status="pruned"), trial(2, value=0.75), trial(3))()
    story.end("complete")()
    story.add("tire", "def456")
    story.beat("def456", 31.0)
    story.add("board", "789abc")
    first, second, third = list_searches(story.database)
    assert (first.name, first.status, first.trials, first.best, first.hint) == ("board", "running", 0, None, None)
    assert (second.name, second.status, second.hint) == ("tire", "lost", "autoad search --resume def456")
    assert (third.name, third.status, third.trials, third.best) == ("bottle", "complete", 3, 0.75)
    assert third.started.tzinfo is not None
    assert [entry.name for entry in list_searches(story.database, 2)] == ["board", "tire"]
