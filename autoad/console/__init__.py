"""What people see: tables on stdout, the progress of a search on stderr."""

from __future__ import annotations

from autoad.console._streams import err, out
from autoad.console._text import short_config
from autoad.console.datasets import datasets_table, print_dataset
from autoad.console.inspection import print_inspection
from autoad.console.listener import ConsoleListener
from autoad.console.models import models_table, print_model
from autoad.console.submissions import submissions_table
from autoad.console.tables import leaderboard_table, print_records, print_result, print_scores, searches_table

__all__ = [
    "ConsoleListener",
    "datasets_table",
    "err",
    "leaderboard_table",
    "models_table",
    "out",
    "print_dataset",
    "print_inspection",
    "print_model",
    "print_records",
    "print_result",
    "print_scores",
    "searches_table",
    "short_config",
    "submissions_table",
]
