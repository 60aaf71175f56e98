"""TensorBoard event files, one folder a trial."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import masked_crc32c
from tensorboardX.summary import hparams, scalar

from autoad.schema import Objective, SearchResult, TrialRow
from autoad.search.trackers._values import metrics, parameters
from autoad.settings import get_settings

if TYPE_CHECKING:
    from autoad.search.budget import Budget

__all__ = ["TensorBoardTracker"]


class _Events:
    """The event file of one trial.

    Each event is one write, so that a process that is killed leaves whole events and all of them. tensorboardX's own
    writers hand events to a thread, which loses the last ones then, or wait for the disk after each, which takes
    milliseconds; nothing here is worth waiting for, since the database has it all.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns() // 10**9}.{socket.gethostname()}"
        self._file = open(folder / name, "ab", buffering=0)  # noqa: SIM115
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def add(self, *summaries: Summary, step: int = 0) -> None:
        """Append what belongs to one moment."""
        together = Summary(value=[value for summary in summaries for value in summary.value])
        self._write(Event(wall_time=time.time(), step=step, summary=together))

    def _write(self, event: Event) -> None:
        """A record is a length, its checksum, the event and its checksum."""
        data = event.SerializeToString()
        length = struct.pack("<Q", len(data))
        checksums = [struct.pack("<I", masked_crc32c(part)) for part in (length, data)]
        self._file.write(b"".join((length, checksums[0], data, checksums[1])))

    def close(self) -> None:
        self._file.close()


class TensorBoardTracker:
    """Writes event files to ``searches/ID/tensorboard``, a folder for each trial.

    Scalars are the objective and the metrics by epoch (an algorithm that learns in one pass has the one epoch 0); the
    hyperparameters tab has the configuration beside the final metrics. Look at them with
    ``tensorboard --logdir AUTOAD_DATA_DIR/searches/ID/tensorboard``.
    """

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._objective: Objective = "image_auroc"
        self._open: dict[int, _Events] = {}

    def say(self, text: str) -> None:
        """Lines are for people."""

    def opened(self, search: SearchResult, rows: Sequence[TrialRow]) -> None:
        """The search has its folder."""
        self._folder = get_settings().searches_dir / search.search_id / "tensorboard"
        self._objective = search.objective

    def begin(self, budget: Budget) -> None:
        """Trials begin."""

    def started(self, row: TrialRow) -> None:
        """A trial begins: its configuration is written before anything can go wrong."""
        _, session_start, _ = hparams(parameters(row), {})
        self._events(row).add(session_start)

    def reported(self, row: TrialRow) -> None:
        """The metrics of an epoch."""
        self._scalars(row)

    def finished(self, row: TrialRow) -> None:
        """The final metrics; a trial that failed has none, and no end of its session."""
        self._scalars(row)
        events = self._events(row)
        if row.status in {"complete", "pruned"}:
            # The plugin derives the columns from all sessions, so that algorithms may differ in their parameters.
            _, _, session_end = hparams({}, {})
            events.add(session_end)
        self._open.pop(row.trial).close()

    def end(self) -> None:
        """Close what is open."""
        for number in list(self._open):
            self._open.pop(number).close()

    def closed(self, result: SearchResult) -> None:
        """The search is over."""

    def _events(self, row: TrialRow) -> _Events:
        if row.trial not in self._open:
            if self._folder is None:
                raise RuntimeError("the tracker must be told of the search before its trials")
            self._open[row.trial] = _Events(self._folder / f"{row.trial:04d}-{row.algorithm}")
        return self._open[row.trial]

    def _scalars(self, row: TrialRow) -> None:
        summaries = [scalar(name, value) for name, value in metrics(row, self._objective).items()]
        if summaries:
            self._events(row).add(*summaries, step=row.epochs_done or 0)
