"""Searches of a server whose drivers are tests."""

from __future__ import annotations

import dataclasses
from typing import Any

from autoad.database import Database, this_process
from autoad.schema import Metrics, TrialRow
from autoad.search.submissions import Submissions
from autoad.serve.reports import report_store
from autoad.settings import Settings

ME = this_process()
CHAMPION: dict[str, Any] = {
    "trial": 1,
    "algorithm": "dfm",
    "config": {},
    "validation": {},
    "test": {"image_auroc": 0.9},
    "default_patchcore": None,
    "difference": None,
    "threshold": 1.0,
    "false_positive_rate": 0.1,
    "speed": None,
    "model": "/srv/models/bottle/3",
    "name": "bottle",
    "version": 3,
}


@dataclasses.dataclass
class Yard:
    """The queue, and what its driver does to it."""

    database: Database
    settings: Settings
    submissions: Submissions

    def begin(self, search: str, name: str) -> None:
        assert self.submissions.tables.begin_next(ME, 100) is not None
        self.summary: dict[str, Any] = {
            "search_id": search,
            "name": name,
            "status": "running",
            "objective": "image_auroc",
            "seed": 0,
            "seconds": 0.0,
            "dataset": {"path": str(self.settings.data_dir / "d.parquet"), "layout": "manifest", "hash": "h"}
            | {"counts": {}, "roles": {}},
            "evidence": "labelled",
            "engine": "torch float32",
            "notes": [f"skipped {self.settings.data_dir}/pictures/x.png: too small"],
            "champion": None,
            "leaderboard": [],
        }
        self.database.add_search(search, name, "hash", {}, self.summary, owner=ME)

    def end_trial(self, search: str, number: int, **fields: Any) -> None:
        row = {"trial": number, "algorithm": "dfm", "config": {}, "status": "complete"}
        row |= {"validation": Metrics(image_auroc=0.5)}
        self.database.write_trial(search, TrialRow.model_validate(row | fields), owner=ME)

    def complete(self, search: str) -> None:
        champion = CHAMPION | {"model": str(self.settings.data_dir / "models/default/bottle/3")}
        summary = self.summary | {"champion": champion, "status": "complete"}
        self.database.update_search(search, status="complete", summary=summary, owner=ME)
        report = report_store(self.settings, "default").write(b"<!doctype html><title>report</title>")
        assert self.submissions.tables.finish(search, ME, "complete", report=report)
