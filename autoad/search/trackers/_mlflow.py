"""MLflow: a run for the search and a child run for each trial, in a database of its own."""

from __future__ import annotations

import importlib.util
import logging
import os
import time
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from autoad.errors import UsageError
from autoad.schema import Objective, SearchResult, TrialRow
from autoad.search.trackers._values import metrics, parameters
from autoad.settings import Settings, get_settings

if TYPE_CHECKING:
    from autoad.search.budget import Budget

__all__ = ["MlflowTracker"]

_TRIAL_STATUS = {"complete": "FINISHED", "pruned": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}
_SEARCH_STATUS = {"complete": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}


class MlflowTracker:
    """Logs to ``mlflow.db`` and ``mlflow/`` in the data folder; the experiment is named like the project.

    The parent run has the search's dataset and evidence, at the end the champion's test metrics and ``result.json``. A
    child run has a trial's configuration and its metrics by epoch. A search that is resumed goes on in its old run.

    Raises:
        UsageError: MLflow is not installed.
    """

    def __init__(self) -> None:
        if importlib.util.find_spec("mlflow") is None:
            raise UsageError("logging to MLflow needs the package mlflow-skinny; pip install 'autoad[mlflow]'")
        self._client: Any = None
        self._experiment = ""
        self._parent = ""
        self._objective: Objective = "image_auroc"
        self._children: dict[int, str] = {}

    def say(self, text: str) -> None:
        """Lines are for people."""

    def opened(self, search: SearchResult, rows: Sequence[TrialRow]) -> None:
        """Find the search's run, or begin one."""
        settings = get_settings()
        self._objective = search.objective
        self._client = _connect(settings)
        self._experiment = _experiment(self._client, settings)
        found = self._client.search_runs(
            [self._experiment], filter_string=f"tags.`autoad.search` = '{search.search_id}'", max_results=1
        )
        if found:
            self._parent = found[0].info.run_id
            self._client.update_run(self._parent, status="RUNNING")
            self._catch_up(rows)
            return
        tags = {
            "autoad.search": search.search_id,
            "autoad.dataset": search.dataset.path,
            "autoad.dataset_hash": search.dataset.hash,
            "autoad.evidence": search.evidence,
            "autoad.objective": search.objective,
            "autoad.engine": search.engine,
        }
        self._parent = self._client.create_run(self._experiment, tags=tags, run_name=search.name).info.run_id
        self._catch_up(rows)

    def _catch_up(self, rows: Sequence[TrialRow]) -> None:
        """Log what ended while nobody logged, and close what a killed process left open."""
        filtered = f"tags.`mlflow.parentRunId` = '{self._parent}'"
        runs, token = [], None
        while True:
            page = self._client.search_runs([self._experiment], filter_string=filtered, page_token=token)
            runs += page
            token = page.token
            if not token:
                break
        self._children = {int(run.data.tags["autoad.trial"]): run.info.run_id for run in runs}
        done = {int(run.data.tags["autoad.trial"]) for run in runs if run.info.status != "RUNNING"}
        for row in rows:
            if row.status != "running" and row.trial not in done:
                self.finished(row)

    def begin(self, budget: Budget) -> None:
        """Trials begin."""

    def started(self, row: TrialRow) -> None:
        """A trial begins."""
        self._child(row)

    def reported(self, row: TrialRow) -> None:
        """The metrics of an epoch."""
        self._log(self._child(row), metrics(row, self._objective), step=row.epochs_done or 0)

    def finished(self, row: TrialRow) -> None:
        """A trial has ended."""
        run = self._child(row)
        tags = {"autoad.status": row.status, "autoad.reason": row.reason, "autoad.node": row.node}
        self._log(run, metrics(row, self._objective), step=row.epochs_done or 0, tags=tags)
        self._client.set_terminated(run, _TRIAL_STATUS[row.status])
        self._children.pop(row.trial)

    def end(self) -> None:
        """Trials have ended."""

    def closed(self, result: SearchResult) -> None:
        """The search is over: the champion's metrics on the test pictures, and everything as JSON."""
        if result.champion is not None:
            test = result.champion.test
            named = {f"test_{name}": getattr(test, name) for name in ("image_auroc", "pixel_auroc", "aupro")}
            self._log(
                self._parent,
                {name: value for name, value in named.items() if value is not None},
                tags={"autoad.champion": result.champion.algorithm, "autoad.model": result.champion.address},
            )
        self._client.log_text(self._parent, result.model_dump_json(indent=2), "result.json")
        self._client.set_terminated(self._parent, _SEARCH_STATUS[result.status])

    def _child(self, row: TrialRow) -> str:
        if row.trial not in self._children:
            tags = {
                "mlflow.parentRunId": self._parent,
                "autoad.trial": str(row.trial),
                "autoad.origin": row.origin,
            }
            name = f"trial {row.trial} {row.algorithm}"
            run = self._client.create_run(self._experiment, tags=tags, run_name=name).info.run_id
            self._children[row.trial] = run
            self._log(run, {}, params=parameters(row))
        return self._children[row.trial]

    def _log(
        self,
        run: str,
        values: dict[str, float],
        *,
        step: int = 0,
        params: dict[str, bool | float | str] | None = None,
        tags: dict[str, str | None] | None = None,
    ) -> None:
        from mlflow.entities import Metric, Param, RunTag

        now = int(time.time() * 1000)
        self._client.log_batch(
            run,
            metrics=[Metric(name, value, now, step) for name, value in values.items()],
            params=[Param(name, str(value)) for name, value in (params or {}).items()],
            tags=[RunTag(name, value) for name, value in (tags or {}).items() if value],
        )


def _connect(settings: Settings) -> Any:
    # Nobody has agreed to be counted.
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of MLflow about what it uses of SQLAlchemy
        from mlflow.tracking import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.WARNING)
        address = f"sqlite:///{settings.data_dir / 'mlflow.db'}"
        return MlflowClient(tracking_uri=address, registry_uri=address)


def _experiment(client: Any, settings: Settings) -> str:
    found = client.get_experiment_by_name(settings.project)
    if found is not None:
        return str(found.experiment_id)
    folder = settings.data_dir / "mlflow" / settings.project
    return str(client.create_experiment(settings.project, artifact_location=folder.as_uri()))
