"""Draws docs/live.svg: ``python docs/live.py NAME FILE [COLUMNS]`` while the search NAME runs on this machine."""

from __future__ import annotations

import io
import re
import sys
import time

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.terminal_theme import DIMMED_MONOKAI

from autoad.console.devices import DevicesMeter
from autoad.console.follow import Follower
from autoad.console.live import render, trial_line
from autoad.database import Database


def main(name: str, file: str, columns: str = "88") -> None:
    """Draw the last trials' lines with the view below them."""
    width, height = int(columns), 34
    console = Console(file=io.StringIO(), record=True, width=width, height=height, highlight=False)
    database, meter = Database(), DevicesMeter()
    follower = Follower(database, database.find_search(name), Console(file=io.StringIO()))
    follower.update(database.find_search(name))
    time.sleep(1)  # the meter shows use since its last look
    view = follower.progress.view(meter.read())
    for timed in view.ended[-8:]:
        console.print(trial_line(view, timed.row))
    console.print(render(view, width, height - 10))
    # The template's own font would be fetched from elsewhere.
    template = re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    console.save_svg(file, title="autoad search", theme=DIMMED_MONOKAI, code_format=template)
    database.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
