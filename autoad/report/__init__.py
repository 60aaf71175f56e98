"""A finished search as one HTML page that opens without a network."""

from __future__ import annotations

from autoad.report.page import write_report

__all__ = ["write_report"]
