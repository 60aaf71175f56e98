from __future__ import annotations

import io
import time

import pyte
import pytest
from rich.console import Console

from autoad.console import ConsoleListener
from autoad.schema import DatasetSummary, SearchResult
from autoad.search import Budget
from tests.console.conftest import trial


def opened(name: str = "bottle") -> SearchResult:
    dataset = DatasetSummary(path="/pictures", layout="folder", hash="f" * 64, counts={}, roles={})
    return SearchResult.model_validate(
        {
            "search_id": "abc123",
            "name": name,
            "status": "running",
            "objective": "image_auroc",
            "seed": 0,
            "seconds": 0.0,
            "dataset": dataset.model_dump(),
            "evidence": "labelled",
            "engine": "torch float32",
            "notes": [],
            "champion": None,
            "leaderboard": [],
        }
    )


class Terminal(io.StringIO):
    """A terminal of which the test sees the screen and what has scrolled off it."""

    def __init__(self, width: int = 80, height: int = 24) -> None:
        super().__init__()
        self._screen = pyte.HistoryScreen(width, height, history=1000)
        self._screen.set_mode(pyte.modes.LNM)
        self._stream = pyte.Stream(self._screen)
        self.sent = 0
        self.console = Console(
            file=self, force_terminal=True, width=width, height=height, _environ={"TERM": "xterm-256color"}
        )

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self._stream.feed(text)
        self.sent += len(text)
        return len(text)

    @property
    def lines(self) -> list[str]:
        above = ["".join(line[x].data for x in range(80)).rstrip() for line in self._screen.history.top]
        return above + [line.rstrip() for line in self._screen.display]


def test_on_a_terminal_the_view_stays_below_the_lines_and_leaves_nothing_behind() -> None:
    terminal = Terminal()
    listener = ConsoleListener(terminal.console)
    listener.opened(opened(), ())
    listener.say("a note")
    listener.begin(Budget(trials=60, seconds=None, workers=1))
    for number in range(40):
        listener.started(trial(number))
        listener.reported(trial(number, epochs_done=1))
        listener.finished(trial(number, value=0.5 + number / 100, seconds=1.0))
    listener.started(trial(40, "cflow"))
    time.sleep(0.7)
    during = terminal.lines
    assert sum(line.startswith("─ bottle  40 of 60 trials") for line in during) == 1, (
        "drawn in place, not again and again"
    )
    assert sum(line.startswith("trial ") for line in during) == 40
    assert any("cflow" in line for line in during[-12:])
    listener.end()
    after = [line for line in terminal.lines if line]
    assert after[0] == "a note"
    assert [line.split()[1] for line in after[1:41]] == [str(number) for number in range(40)]
    assert after[41].startswith("  best 0.8900 (padim, trial 39) | 40 trials: padim 40")
    assert not any("left" in line for line in after), "nothing is to come"
    assert not any("bottle" in line for line in after)


def test_in_a_pipe_there_is_a_line_for_each_trial_and_a_status_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    listener = ConsoleListener(Console(file=stream, force_terminal=False, soft_wrap=True, width=40))
    monkeypatch.setattr("autoad.console.listener._STATUS_EVERY", 1000.0)
    listener.opened(opened(), ())
    listener.begin(Budget(trials=None, seconds=60.0, workers=1))
    for number in range(5):
        listener.started(trial(number))
        listener.finished(trial(number, value=0.5, seconds=1.0))
        if number == 3:
            monkeypatch.setattr("autoad.console.listener._STATUS_EVERY", 0.0)
            listener.reported(trial(4))
            monkeypatch.setattr("autoad.console.listener._STATUS_EVERY", 1000.0)
    listener.end()
    text = stream.getvalue()
    assert all(letter.isprintable() or letter == "\n" for letter in text)
    lines = text.splitlines()
    assert [line[:9].rstrip() for line in lines] == [
        *(f"trial   {number}" for number in range(4)),
        "  best 0.",
        "trial   4",
        "  best 0.",
    ]
    assert lines[4].startswith("  best 0.5000 (padim, trial 0) | 4 trials: padim 4")


@pytest.mark.parametrize("reason", ["colours in a pipe", "dumb", "not UTF-8"])
def test_no_live_view_where_it_could_not_be_drawn(reason: str) -> None:
    class File(io.StringIO):
        encoding = "iso-8859-1" if reason == "not UTF-8" else "utf-8"  # type: ignore[assignment]

        def isatty(self) -> bool:
            return reason != "colours in a pipe"

    environment = {"TERM": "dumb" if reason == "dumb" else "xterm"}
    stream = File()
    listener = ConsoleListener(Console(file=stream, force_terminal=True, _environ=environment))
    listener.begin(Budget(trials=1, seconds=None, workers=1))
    listener.finished(trial(0, value=0.5, seconds=1.0))
    listener.end()
    assert "\x1b[?25l" not in stream.getvalue(), "the cursor is never hidden"
    assert stream.getvalue().count("\n") == 2


def test_trials_from_before_an_interruption_count() -> None:
    terminal = Terminal()
    listener = ConsoleListener(terminal.console)
    earlier = [
        trial(n, value=0.9 - n / 10, seconds=5.0, started_after=10.0 * n, ended_after=10.0 * n + 5) for n in (0, 1)
    ]
    listener.opened(opened(), [*earlier, trial(2)])
    listener.begin(Budget(trials=10, seconds=None, workers=1, before=15.0))
    screen = "\n".join(terminal.lines)
    listener.end()
    assert "2 of 10 trials" in screen
    assert "image_auroc 0.9000" in screen
    assert "10s ago" in screen
    assert "running  nothing" in screen
