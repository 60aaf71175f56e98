from __future__ import annotations

import json
import sqlite3
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

from autoad.errors import UsageError
from autoad.schema import DatasetSummary, Metrics, SearchResult, TrialRow
from autoad.search.budget import Budget
from autoad.search.trackers import FanOut, MlflowTracker, TensorBoardTracker


def search(**fields: Any) -> SearchResult:
    dataset = DatasetSummary(path="/pictures", layout="folder", hash="f" * 64, counts={}, roles={})
    return SearchResult.model_validate(
        {
            "search_id": "abc123",
            "name": "bottle",
            "status": "running",
            "objective": "aupro",
            "seed": 0,
            "seconds": 0.0,
            "dataset": dataset.model_dump(),
            "evidence": "labelled",
            "engine": "torch float32",
            "notes": [],
            "champion": None,
            "leaderboard": [],
            **fields,
        }
    )


def row(number: int, status: str, epochs: int | None = None, aupro: float | None = None, **fields: Any) -> TrialRow:
    validation = Metrics(image_auroc=None if aupro is None else aupro / 2, aupro=aupro)
    config = {"backbone": "lite", "stages": [1, 2], "rate": 0.25, "flip": True}
    return TrialRow.model_validate(
        {
            "trial": number,
            "algorithm": "cflow",
            "config": config,
            "status": status,
            "epochs_done": epochs,
            "validation": validation.model_dump(),
            **fields,
        }
    )


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AUTOAD_DATA_DIR", str(tmp_path))
    return tmp_path


class Heard:
    """A listener that remembers."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: self.events.append((name, *arguments))


class Broken(Heard):
    def started(self, row: TrialRow) -> None:
        self.events.append(("started", row))
        raise OSError("disk full")


def test_a_listener_that_raises_is_reported_once_and_left_out() -> None:
    first, broken, last = Heard(), Broken(), Heard()
    listeners = FanOut(first, broken, last)
    budget, opened, running, ended = Budget(1, None, 1), search(), row(0, "running"), row(0, "complete", aupro=0.5)
    listeners.opened(opened, ())
    listeners.begin(budget)
    listeners.started(running)
    listeners.reported(running)
    listeners.started(running)
    listeners.finished(ended)
    listeners.end()
    listeners.closed(opened)
    everything: list[tuple[str, Any]] = [
        ("opened", opened, ()),
        ("begin", budget),
        ("started", running),
        ("say", "Broken failed and is left out from here on (OSError: disk full)"),
        ("reported", running),
        ("started", running),
        ("finished", ended),
        ("end",),
        ("closed", opened),
    ]
    assert first.events == everything
    assert last.events == everything
    assert broken.events == everything[:3]


def test_ctrl_c_is_not_swallowed() -> None:
    class Interrupted(Heard):
        def started(self, row: TrialRow) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        FanOut(Interrupted()).started(row(0, "running"))


def events(folder: Path) -> Iterator[Event]:
    """Events of a folder's one file: eight bytes of length, four of checksum, the event, four of checksum."""
    (path,) = folder.iterdir()
    data = path.read_bytes()
    place = 0
    while place < len(data):
        (length,) = struct.unpack_from("<Q", data, place)
        yield Event.FromString(data[place + 12 : place + 12 + length])
        place += length + 16


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    for event in events(folder):
        for value in event.summary.value:
            if value.WhichOneof("value") == "simple_value":
                found.setdefault(value.tag, []).append((event.step, pytest.approx(value.simple_value)))
    return found


def sessions(folder: Path) -> list[HParamsPluginData]:
    return [
        HParamsPluginData.FromString(value.metadata.plugin_data.content)
        for event in events(folder)
        for value in event.summary.value
        if value.metadata.plugin_data.plugin_name == "hparams"
    ]


def test_tensorboard_gets_epochs_and_hyperparameters(state: Path) -> None:
    tracker = TensorBoardTracker()
    tracker.opened(search(), ())
    tracker.started(row(7, "running"))
    folder = state / "searches" / "abc123" / "tensorboard" / "0007-cflow"
    tracker.reported(row(7, "running", 1, 0.5))
    assert scalars(folder)["objective"] == [(1, 0.5)], "in the file before the call returns, whatever happens next"
    tracker.reported(row(7, "running", 2, 0.75))
    tracker.finished(row(7, "complete", 3, 0.875, seconds=12.0))
    assert scalars(folder) == {
        "objective": [(1, 0.5), (2, 0.75), (3, 0.875)],
        "aupro": [(1, 0.5), (2, 0.75), (3, 0.875)],
        "image_auroc": [(1, 0.25), (2, 0.375), (3, 0.4375)],
        "seconds": [(3, 12.0)],
    }
    start, end = sessions(folder)
    named = {name: getattr(value, value.WhichOneof("kind")) for name, value in start.session_start_info.hparams.items()}
    assert named == {"algorithm": "cflow", "backbone": "lite", "stages": "[1, 2]", "rate": 0.25, "flip": True}
    assert end.HasField("session_end_info")


def test_tensorboard_leaves_a_failed_trial_without_an_end(state: Path) -> None:
    tracker = TensorBoardTracker()
    tracker.opened(search(), ())
    tracker.started(row(0, "running"))
    tracker.finished(row(0, "failed", reason="ValueError: boom"))
    folder = state / "searches" / "abc123" / "tensorboard" / "0000-cflow"
    assert [data.HasField("session_end_info") for data in sessions(folder)] == [False]
    assert scalars(folder) == {}


@pytest.fixture
def no_mlflow_globals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")


class Mlflow:
    """What MLflow's database holds, read with SQL."""

    def __init__(self, state: Path) -> None:
        self._path = state / "mlflow.db"

    def ask(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        connection = sqlite3.connect(self._path)
        try:
            return connection.execute(query, values).fetchall()
        finally:
            connection.close()

    def runs(self) -> dict[str, tuple[str, str]]:
        """Identifier and status by name."""
        return {name: (run, status) for run, name, status in self.ask("select run_uuid, name, status from runs")}

    def metrics(self, run: str) -> set[tuple[str, int, float]]:
        return set(self.ask("select key, step, value from metrics where run_uuid = ?", run))

    def pairs(self, table: str, run: str) -> dict[str, str]:
        return dict(self.ask(f"select key, value from {table} where run_uuid = ?", run))


@pytest.mark.usefixtures("no_mlflow_globals")
def test_mlflow_gets_a_run_and_a_child_for_each_trial_and_goes_on_with_it(state: Path) -> None:
    tracker = MlflowTracker()
    tracker.opened(search(), ())
    tracker.started(row(0, "running"))
    tracker.reported(row(0, "running", 1, 0.5))
    tracker.finished(row(0, "complete", 2, 0.75, seconds=9.0))
    tracker.started(row(1, "running"))
    tracker.started(row(2, "running"))
    tracker.finished(row(2, "failed", reason="ValueError: boom"))

    mlflow = Mlflow(state)
    runs = mlflow.runs()
    assert {name: status for name, (_, status) in runs.items()} == {
        "bottle": "RUNNING",
        "trial 0 cflow": "FINISHED",
        "trial 1 cflow": "RUNNING",
        "trial 2 cflow": "FAILED",
    }
    parent, child = runs["bottle"][0], runs["trial 0 cflow"][0]
    assert mlflow.metrics(child) == {
        *{("objective", 1, 0.5), ("aupro", 1, 0.5), ("image_auroc", 1, 0.25)},
        *{("objective", 2, 0.75), ("aupro", 2, 0.75), ("image_auroc", 2, 0.375), ("seconds", 2, 9.0)},
    }
    assert mlflow.pairs("params", child) == {
        "algorithm": "cflow",
        "backbone": "lite",
        "stages": "[1, 2]",
        "rate": "0.25",
        "flip": "True",
    }
    assert mlflow.pairs("tags", child)["mlflow.parentRunId"] == parent
    assert mlflow.pairs("tags", runs["trial 2 cflow"][0])["autoad.reason"] == "ValueError: boom"
    assert mlflow.pairs("tags", parent)["autoad.dataset_hash"] == "f" * 64

    # The process is killed; trial 1 was given up meanwhile, and trial 3 was never told of.
    again = MlflowTracker()
    again.opened(search(), (row(0, "complete", 2, 0.75), row(1, "stopped"), row(3, "complete", aupro=0.25)))
    again.closed(search(status="interrupted"))
    runs = mlflow.runs()
    assert len(runs) == 5
    assert {name: status for name, (_, status) in runs.items()} == {
        "bottle": "KILLED",
        "trial 0 cflow": "FINISHED",
        "trial 1 cflow": "KILLED",
        "trial 2 cflow": "FAILED",
        "trial 3 cflow": "FINISHED",
    }
    assert runs["bottle"][0] == parent
    (stored,) = (state / "mlflow" / "default").rglob("result.json")
    assert json.loads(stored.read_text())["status"] == "interrupted"


def test_without_mlflow_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'autoad\[mlflow\]'"):
        MlflowTracker()
