"""The page as a browser without a network shows it; needs Chromium (``make test`` installs Debian's)."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from autoad.report import write_report
from tests.report.conftest import Made, rows_of

_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-component-update"),
    *("--disable-background-networking", "--disable-sync", "--allow-file-access-from-files", "--window-size=1400,900"),
    *("--host-resolver-rules=MAP * ~NOTFOUND", "--proxy-server=http://127.0.0.1:9", "--virtual-time-budget=20000"),
)
_WATCH = """<script>
window.complaints = [];
for (const kind of ["error", "unhandledrejection", "securitypolicyviolation"])
  addEventListener(kind, (event) => complaints.push(`${kind} ${event.message || event.reason || event.blockedURI}`));
</script>"""
_LOOK = """<!doctype html><body>
<iframe src="report.html" style="width:WIDTHpx;height:900px;border:0"></iframe>
<pre></pre>
<script>
document.querySelector("iframe").addEventListener("load", () => setTimeout(() => {
  const inner = document.querySelector("iframe").contentDocument, view = inner.defaultView;
  const firsts = () => [...inner.querySelectorAll(".sortable tbody tr")].map((row) => row.cells[4].dataset.value);
  const head = inner.querySelectorAll(".sortable th")[4];
  const before = firsts();
  head.firstElementChild.click();
  const descending = firsts();
  head.firstElementChild.click();
  document.querySelector("pre").textContent = JSON.stringify({
    complaints: view.complaints,
    beyond: inner.documentElement.scrollWidth - inner.documentElement.clientWidth,
    drawn: [...inner.querySelectorAll("[data-figure]")].map((place) => [
      place.dataset.figure, place.querySelectorAll("svg.main-svg").length, place.getBoundingClientRect().width]),
    loaded: view.performance.getEntriesByType("resource").map((entry) => entry.name),
    before, descending, ascending: firsts(), sorted: head.getAttribute("aria-sort"),
  });
}, 3000));
</script>"""


def look(file: Path, width: int) -> dict[str, Any]:
    """What a browser makes of a report in a window of that width."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert chromium, "these tests need Chromium: apt-get install chromium"
    page = file.read_text()
    (file.parent / "report.html").write_text(page.replace("<meta charset", f"{_WATCH}<meta charset", 1))
    (file.parent / "frame.html").write_text(_LOOK.replace("WIDTH", str(width)))
    profile = file.parent / f"profile-{width}"
    command = [chromium, *_FLAGS, f"--user-data-dir={profile}", "--dump-dom", (file.parent / "frame.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    told = re.search(r"<pre>(.+?)</pre>", done.stdout, re.DOTALL)
    assert told is not None, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(html.unescape(told[1]))
    return found


@pytest.mark.parametrize("width", [375, 1280])
def test_it_draws_fits_and_sorts_without_a_network(made: Made, tmp_path: Path, width: int) -> None:
    label = "a-very-long-label-of-a-defect-without-any-place-to-break-it" * 2
    file = write_report(made(rows=rows_of(60), label=label), tmp_path / "page" / "made.html")
    found = look(file, width)
    assert found["complaints"] == []
    assert found["beyond"] == 0, "the page does not scroll sideways"
    assert [name for name, *_ in found["drawn"]] == [
        *("comparison", "scores", "roc", "history", "pareto", "parallel-padim")
    ]
    assert all(parts > 0 and (200 < wide < width or name == "parallel-padim") for name, parts, wide in found["drawn"])
    assert not [name for name in found["loaded"] if name.startswith("http")]
    values = [float(value) for value in found["before"] if value]
    gone = [""] * found["before"].count("")
    assert found["descending"] == [*sorted(filter(None, found["before"]), key=lambda value: -float(value)), *gone]
    assert [float(value) for value in found["ascending"] if value] == sorted(values)
    assert found["ascending"][len(values) :] == gone
    assert found["sorted"] == "ascending"
