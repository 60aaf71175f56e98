"""A finished search, or an inspected dataset, as one HTML page that opens without a network."""

from __future__ import annotations

from autoad.report.inspection import write_inspection
from autoad.report.page import write_report

__all__ = ["write_inspection", "write_report"]
