from __future__ import annotations

import json
import os
import re
import shlex
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from autoad.database import Database, this_process
from autoad.schema import Metrics, TrialRow
from autoad.settings import Settings
from tests.conftest import Run
from tests.ports import free_port

ROOT = Path(__file__).parent.parent


def test_the_list_has_what_the_search_found(autoad: Run, searched: dict[str, Any]) -> None:
    (entry,) = [e for e in json.loads(autoad("searches", "--json").stdout) if e["name"] == "small"]
    values = [row["objective"] for row in searched["leaderboard"] if row["status"] == "complete"]
    assert entry["best"] == max(values)
    assert (entry["search_id"], entry["status"], entry["trials"]) == (searched["search_id"], "complete", 5)
    assert (entry["champion"], entry["seconds"]) == (searched["champion"]["algorithm"], searched["seconds"])
    shown = autoad("searches", "--limit", 1000).stdout
    assert re.search(rf"small +{searched['search_id']} +complete ", shown)
    done = autoad("searches", "small", "--follow", "--json")
    assert (done.returncode, json.loads(done.stdout)) == (0, [entry])
    assert done.stderr.count("trial  ") == 5
    missing = autoad("searches", "smal")
    assert missing.returncode == 2
    assert "no search 'smal'" in missing.stderr


def test_nothing_to_list_says_how_to_begin(autoad: Run, tmp_path: Path) -> None:
    done = autoad("searches", AUTOAD_DATA_DIR=str(tmp_path))
    assert done.returncode == 0
    assert "autoad search --data" in done.stdout
    assert autoad("searches", "--json", AUTOAD_DATA_DIR=str(tmp_path)).stdout == "[]\n"


class Following:
    """A command that follows a search which this process pretends to carry out."""

    def __init__(self, folder: Path, summary: dict[str, Any]) -> None:
        self.folder = folder
        self.database = Database(Settings(data_dir=folder))
        self.database.add_search("abc123", "bottle", "f" * 64, {}, summary, owner=this_process())
        self.write(0, 0.5)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "autoad.cli", "searches", "bottle", "--follow"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"AUTOAD_DATA_DIR": str(folder), "COLUMNS": "200"},
        )
        assert self.process.stderr is not None
        assert "trial   0" in self.process.stderr.readline()

    def write(self, number: int, value: float) -> None:
        metrics = Metrics(image_auroc=value)
        row = TrialRow(trial=number, algorithm="dfm", config={}, status="complete", validation=metrics, seconds=1.0)
        self.database.write_trial("abc123", row)

    def result(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, err


@pytest.fixture
def following(tmp_path: Path, searched: dict[str, Any]) -> Iterator[Following]:
    summary = searched | {"search_id": "abc123", "name": "bottle", "champion": None, "leaderboard": [], "seconds": 0.0}
    following = Following(tmp_path, summary)
    yield following
    if following.process.poll() is None:
        following.process.kill()
    following.process.communicate()
    following.database.close()


def complete(following: Following) -> None:
    following.write(1, 0.75)
    following.database.update_search("abc123", status="complete")


def fail(following: Following) -> None:
    following.database.update_search("abc123", status="failed")


def interrupt(following: Following) -> None:
    following.process.send_signal(signal.SIGINT)


def lose(following: Following) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        owner = f"{this_process().split('/')[0]}/{ended.pid}/1"
    connection = sqlite3.connect(following.folder / "autoad.db")
    with connection:
        connection.execute("update searches set owner = ?", (owner,))
    connection.close()


@pytest.mark.parametrize(
    ("end", "code", "line"),
    [(complete, 0, "trial   1"), (fail, 1, ""), (lose, 1, "--resume abc123"), (interrupt, 130, "")],
)
def test_following_ends_with_the_search(
    following: Following, end: Callable[[Following], None], code: int, line: str
) -> None:
    end(following)
    returned, out, err = following.result()
    assert returned == code, err
    assert line in err
    assert "Traceback" not in err
    assert ("bottle" in out) == (code != 130)
    left = {complete: "complete", fail: "failed", lose: "running", interrupt: "running"}
    assert following.database.find_search("bottle").status == left[end], "following changes nothing"


def get(address: str) -> Any:
    with urllib.request.urlopen(address, timeout=5) as answer:  # the address is this machine's
        return json.loads(answer.read())


def test_the_documented_dashboard_opens_the_study(searched: dict[str, Any], state: Path) -> None:
    documented = re.search(r"^    (optuna-dashboard .*)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert documented is not None
    port = free_port()
    command = shlex.split(documented[1].replace("$AUTOAD_DATA_DIR", str(state)))
    process = subprocess.Popen(
        [Path(sys.executable).parent / command[0], *command[1:], "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        address = f"http://127.0.0.1:{port}/api/studies"
        studies = None
        for _ in range(300):
            try:
                studies = get(address)["study_summaries"]
                break
            except urllib.error.URLError:
                assert process.poll() is None, "the dashboard ended"
                time.sleep(0.1)
        assert studies is not None
        (study,) = [study for study in studies if study["study_name"] == searched["search_id"]]
        trials = get(f"{address}/{study['study_id']}")["trials"]
    finally:
        process.terminate()
        process.wait(timeout=30)
    found = {trial["number"]: trial["values"] for trial in trials if trial["state"] == "Complete"}
    assert found == {row["trial"]: [row["objective"]] for row in searched["leaderboard"]}


def test_a_search_leaves_event_files_for_every_trial(searched: dict[str, Any], state: Path) -> None:
    folder = state / "searches" / searched["search_id"] / "tensorboard"
    assert {path.name for path in folder.iterdir()} == {
        f"{row['trial']:04d}-{row['algorithm']}" for row in searched["leaderboard"]
    }


def test_a_search_was_logged_to_mlflow(searched: dict[str, Any], state: Path) -> None:
    connection = sqlite3.connect(state / "mlflow.db")
    runs = connection.execute("select run_uuid, name, status from runs").fetchall()
    parent = next(run for run, name, _ in runs if name == "small")
    tested = connection.execute("select value from metrics where key = 'test_image_auroc' and run_uuid = ?", (parent,))
    assert tested.fetchall() == [(searched["champion"]["test"]["image_auroc"],)]
    connection.close()
    names = {f"trial {row['trial']} {row['algorithm']}" for row in searched["leaderboard"]}
    assert {name for _, name, _ in runs} == names | {"small"}
    assert {status for _, _, status in runs} == {"FINISHED"}
    (stored,) = (state / "mlflow").rglob("result.json")
    assert json.loads(stored.read_text())["champion"] == searched["champion"]
