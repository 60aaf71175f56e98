"""What all records have in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

__all__ = ["NAME", "TEXT", "Record"]

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
TEXT = r"^[^\x00]*$"  # PostgreSQL cannot store NUL


class Record(BaseModel):
    """Knows its fields and no others, and does not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)
