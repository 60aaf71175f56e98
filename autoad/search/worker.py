"""A worker process of a search, as Ray Tune runs it.

A module of its own, so that a process that runs trials imports only what trials need.
"""

from __future__ import annotations

import dataclasses
import platform
import time
from collections.abc import Iterator
from typing import Any

import torch
from ray import tune

from autoad.errors import AutoADError, FileStoreError, StorageFullError, TrialMemoryError, UnreadableImageError
from autoad.search.jobs import Job
from autoad.search.memory import free_memory
from autoad.search.place import Place
from autoad.search.trial import TrialReport, TrialTask

__all__ = ["WorkerActor"]

_IDLE_SECONDS = 0.1


class WorkerActor(tune.Trainable):  # type: ignore[misc]
    """A worker process: imports and masks are loaded once, then it runs one trial after another."""

    def setup(self, config: dict[str, Any], task: TrialTask, place: Place | None) -> None:
        """Get ready for the first job; a node that lacks something gets none."""
        torch.set_num_threads(1)
        self._node, self._unfit = platform.node(), ""
        self._away = place is not None
        self._job: Job | None = None
        self._reports: Iterator[TrialReport] | None = None
        self._cuda = task.engine.name == "cuda"
        self._memory = None if self._cuda else free_memory()  # a GPU's is another
        try:
            if place is not None:
                self._node, features_dir = place.settle()
                task = dataclasses.replace(task, features_dir=features_dir)
            self._worker = task.open_worker()
        except AutoADError as error:
            self._unfit = str(error)

    def assign(self, job: Job | None) -> None:
        """Take another job, or none for now; what was under way is dropped."""
        self._job, self._reports = job, None
        if self._cuda:
            torch.cuda.empty_cache()  # for the other workers of the GPU

    def step(self) -> dict[str, Any]:
        """Get the job's features, then go on to the next evaluation; a failure is a result, never an exception."""
        result: dict[str, Any] = {"node": self._node}
        job = self._job
        if job is None:
            time.sleep(_IDLE_SECONDS)
            return result | {"unfit": self._unfit, "memory": self._memory}
        try:
            if self._reports is None:
                seconds = self._worker.load(job.algorithm, job.config)
                self._reports = self._worker.run(
                    job.algorithm,
                    job.config,
                    sweep=job.sweep,
                    seconds=job.seconds,
                    exact_above=job.exact_above,
                    memory_limit=job.memory_limit,
                )
                return result | {"loaded": seconds}
            report = next(self._reports)
        except StorageFullError as error:
            self._job = None
            return result | {"full": str(error)}
        except (FileStoreError, UnreadableImageError) as error:
            self._job = None
            if self._away:  # the driver read these pictures; it is this node that cannot have them
                self._unfit = str(error)
                return result | {"lost": f"node {self._node} cannot get the pictures ({error})"}
            return result | {"failure": str(error), "out_of_memory": False}
        except Exception as error:
            self._job = None
            reason = f"{type(error).__name__}: {str(error).strip() or 'no message'}"
            return result | {"failure": reason, "out_of_memory": isinstance(error, TrialMemoryError)}
        if report.final:
            self._job = None
        return result | {"report": report}
