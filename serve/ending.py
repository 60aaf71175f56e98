"""How carrying a submitted search out has ended."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

__all__ = ["Ending"]


@dataclasses.dataclass(frozen=True)
class Ending:
    """What a driver says at its end.

    Attributes:
        status: ``later``: another driver is to go on.
        error: for people who do not see this machine.
        promotion: a :class:`autoad.schema.PromotionVerdict`.
        report: sha256 of the report.
    """

    status: Literal["complete", "failed", "later"]
    error: str | None = None
    promotion: dict[str, Any] | None = None
    report: str | None = None
