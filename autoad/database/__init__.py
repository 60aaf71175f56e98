"""The metadata database: searches and their trials, a server's queue, models and their routes, API keys, replicas.

It is the truth about a search: a trial's row is committed before the sampler hears of the result. The command line, the
driver of a search, and a server's replicas and control plane open it; workers of a search never do. SQLite by default
(write-ahead log, for a local disk), any SQLAlchemy address through ``AUTOAD_DATABASE_URL``. Pictures and models are
files, not rows.
"""

from __future__ import annotations

from autoad.database._datasets import DatasetTables, FileRow
from autoad.database._keys import PREFIX, SCOPES, Keys, KeyTable, StoredKey, hash_secret
from autoad.database._listing import describe_search, is_lost, list_searches, seconds_so_far
from autoad.database._models import ModelTables, RouteConflictError
from autoad.database._owner import LEASE_SECONDS, is_gone, name_process, this_process
from autoad.database._records import DatasetVersion, ModelVersion, Search, Submission, Trial, aware
from autoad.database._session import OUTAGES, Database
from autoad.database._submissions import SubmissionTables

__all__ = [
    "LEASE_SECONDS",
    "OUTAGES",
    "PREFIX",
    "SCOPES",
    "Database",
    "DatasetTables",
    "DatasetVersion",
    "FileRow",
    "KeyTable",
    "Keys",
    "ModelTables",
    "ModelVersion",
    "RouteConflictError",
    "Search",
    "StoredKey",
    "Submission",
    "SubmissionTables",
    "Trial",
    "aware",
    "describe_search",
    "hash_secret",
    "is_gone",
    "is_lost",
    "list_searches",
    "name_process",
    "seconds_so_far",
    "this_process",
]
