"""What may become the champion: a finished trial, or an ensemble of several."""

from __future__ import annotations

import dataclasses

from autoad.schema import TrialRow, join_algorithms

__all__ = ["Candidate"]


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One finished trial, or several whose answers are averaged.

    Attributes:
        rows: of the trials, the best first.
    """

    rows: tuple[TrialRow, ...]

    def __str__(self) -> str:
        named = ", ".join(map(str, self.trials))
        return f"trial{'s' if self.is_ensemble else ''} {named} ({self.algorithm})"

    @property
    def is_ensemble(self) -> bool:
        """Whether it is more than one trial."""
        return len(self.rows) > 1

    @property
    def trial(self) -> int:
        """The (first) trial's number."""
        return self.rows[0].trial

    @property
    def trials(self) -> tuple[int, ...]:
        """The numbers of all its trials."""
        return tuple(row.trial for row in self.rows)

    @property
    def algorithm(self) -> str:
        """The algorithm, or those of all trials."""
        return join_algorithms(row.algorithm for row in self.rows)

    @property
    def fit_seconds(self) -> float:
        """What the trials took together, without getting their features, which the store has now."""
        return sum((row.seconds or 0.0) - (row.feature_seconds or 0.0) for row in self.rows)

    @property
    def latency_ms(self) -> float | None:
        """What all of them take for a picture, one after the other; None where it was not measured."""
        known = [row.latency_ms for row in self.rows if row.latency_ms is not None]
        return sum(known) if len(known) == len(self.rows) else None

    @property
    def model_mb(self) -> float | None:
        """MiB of what all of them learnt; None where it is not known."""
        known = [row.model_mb for row in self.rows if row.model_mb is not None]
        return sum(known) if len(known) == len(self.rows) else None
