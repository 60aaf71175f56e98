from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from autoad.console._text import duration, one_line, sparkline
from autoad.console.devices import DevicesMeter
from autoad.console.live import render, status_line, trial_line
from autoad.console.progress import Progress, View
from tests.console.conftest import Clock, trial


def draw(view: View, width: int, height: int, *, color: bool = False) -> list[str]:
    stream = io.StringIO()
    system = "truecolor" if color else None
    console = Console(file=stream, width=width, height=height, force_terminal=color, color_system=system)
    console.print(render(view, width, height))
    return stream.getvalue().splitlines()


@pytest.mark.parametrize("width", [20, 40, 80, 119, 120, 200])
@pytest.mark.parametrize("height", [2, 5, 10, 16, 24, 60])
def test_it_never_takes_more_than_the_terminal_has(busy: View, width: int, height: int) -> None:
    lines = draw(busy, width, height)
    assert 1 <= len(lines) <= height - 1
    assert max(map(len, lines)) <= width


@pytest.mark.parametrize("width", [80, 200])
def test_it_shows_everything_that_it_promises(progress: Progress, clock: Clock, width: int) -> None:
    progress.name, progress.trial_limit, progress.ends_at = "bottle", 40, 300.0
    config = {"backbone": "lite", "rate": 0.00012345, "stages": [1, 2]}
    progress.hear(trial(0, "padim", 0.5, seconds=10.0), began=0.0, ended=10.0)
    progress.hear(trial(1, "patchcore", 0.75, seconds=20.0, config=config), began=0.0, ended=20.0)
    progress.hear(trial(2, "dfm", status="failed", seconds=1.0), began=20.0, ended=21.0)
    progress.hear(trial(3, "cflow", epochs_done=4, predicted_seconds=90.0), began=25.0)
    clock.now = 60.0
    text = "\n".join(draw(progress.view(DevicesMeter().read()), width, 24))
    for part in (
        *("bottle", "3 of 40 trials", "3.0/min", "4m00s left"),
        *("image_auroc 0.7500", "AUPRO 0.375", "patchcore, trial 1", "40s ago"),
        "backbone=lite rate=0.0001234 stages=1+2",
        "0.5000 ▁█ 0.7500",
        *("cflow", "35s of about 1m30s", "epoch 4"),
        *("cores", "memory", "GiB"),
    ):
        assert part in text, part
    assert re.search(r"patchcore +1 +- +- +0\.750 +20s", text)
    assert re.search(r"dfm +- +- +1 +- +1s", text)


def test_what_matters_least_goes_first(busy: View) -> None:
    tall, short, tiny = ("\n".join(draw(busy, 80, height)) for height in (60, 14, 3))
    assert "trend" in tall
    assert "trend" not in short
    assert "algorithm_number_a" in short
    assert "and 2" in short, "some of the running trials are only counted"
    assert "best" in tiny
    assert "left" not in tiny or "trials" in tiny


def test_nothing_from_a_row_reaches_the_terminal_as_a_control_character(busy: View) -> None:
    failed = next(timed.row for timed in busy.ended if timed.row.status == "failed")
    assert failed.reason == "no room\x1b[2J"
    assert "failed: no room[2J" in trial_line(busy, failed).plain
    assert one_line("a\n b\t\x07\x9b1mc") == "a b 1mc"


def test_it_uses_the_terminals_own_colours(busy: View) -> None:
    """Numbers 30-37 follow the theme; 38 would set a colour of ours, 37, 97, 30 and 90 vanish on some background."""
    codes = set()
    for line in draw(busy, 200, 60, color=True):
        for sequence in re.findall(r"\x1b\[([\d;]*)m", line):
            codes |= {int(code) for code in sequence.split(";") if code}
    assert codes <= {0, 1, 2, 31, 32, 36}


def test_the_status_line_says_it_in_one(progress: Progress, clock: Clock) -> None:
    assert status_line(progress.view()) == "  no result yet | 0 trials"
    progress.hear(trial(0, "padim", 0.5))
    progress.hear(trial(1, "dfm", status="failed"))
    progress.hear(trial(2, "cflow"))
    clock.now, progress.ends_at = 60.0, 150.0
    assert status_line(progress.view()) == (
        "  best 0.5000 (padim, trial 0) | 2 trials: dfm 1, padim 1 | 2.0 trials/min | 1 failed | running cflow "
        "| 1m30s left"
    )


def test_bars_and_durations() -> None:
    assert sparkline([0.0, 0.5, 1.0], 10) == "▁▅█"
    assert sparkline([float(n) for n in range(100)], 4) == "▁▃▆█"
    assert sparkline([0.3, 0.3], 5) == "▁▁"
    assert sparkline([], 5) == ""
    assert [duration(s) for s in (-1, 0.4, 59.6, 61, 3599, 3600, 7384)] == [
        *("0s", "0s", "1m00s", "1m01s", "59m59s", "1h00m", "2h03m"),
    ]
