"""What is said of searches that a server carries out."""

from __future__ import annotations

import datetime
from typing import Literal, Self

from pydantic import Field, model_validator

from autoad.schema._record import NAME, TEXT, Record
from autoad.schema.searches import Champion, Difference, Objective, TrialRow
from autoad.schema.thresholds import ThresholdMethod

__all__ = [
    "EventKind",
    "PromoteWhen",
    "PromotionState",
    "PromotionVerdict",
    "SearchEvent",
    "SubmissionEntry",
    "SubmissionPage",
    "SubmissionStatus",
    "SubmitRequest",
]

PromoteWhen = Literal["never", "better", "always"]
SubmissionStatus = Literal["queued", "running", "complete", "failed", "cancelled"]
PromotionState = Literal["pending", "promoted", "kept", "refused"]
EventKind = Literal["status", "note", "trial", "champion", "promotion", "end"]


class SubmitRequest(Record):
    """A search that a server is to carry out.

    Attributes:
        dataset: name, or ``NAME/VERSION``; the newest version by default.
        name: of the search; made of the dataset's and the date where empty.
        model: whose next version the champion becomes; the dataset's name where empty.
        algorithms: names; empty for all eight.
        objective: metric on the selection pictures that ranks trials.
        seconds: for the whole search; 20 minutes where neither it nor ``trials`` is given.
        trials: number of trials.
        seed: of the sampler and of every detector.
        deterministic: one worker and no clock.
        warm_start: whether earlier searches of similar pictures are learnt from.
        max_epochs: lowers the ceilings of epochs.
        threshold: ``conformal`` keeps to a rate of false positives; ``f1-max`` has the best F1 on the calibration
            pictures and the selection's labelled defects, and needs some.
        false_positive_rate: share of good pictures that may be called anomalous, for ``conformal`` alone.
        patience: end after so many finished trials in a row without a better one.
        max_latency_ms: most milliseconds that the champion may take for a picture on the server.
        max_memory_mb: most memory, in MB, that a process which scores with the champion may take.
        keep_suspicious: whether to learn from good pictures that look unlike the others or like the labelled defects,
            too; they are set aside, and named in a note, otherwise.
        promote_when: whether the champion is promoted at the end: ``never``; when it beats the version that serves, on
            the dataset's test pictures, by more than chance (``better``; also when none serves); or ``always``.
    """

    dataset: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}(/[1-9][0-9]{0,8})?$")
    name: str = Field(default="", pattern=rf"^$|{NAME}")
    model: str = Field(default="", pattern=rf"^$|{NAME}")
    algorithms: list[str] = Field(default_factory=list, max_length=100)
    objective: Objective = "image_auroc"
    seconds: float | None = Field(default=None, gt=0, le=30 * 86400, allow_inf_nan=False)
    trials: int | None = Field(default=None, ge=1, le=1_000_000)
    seed: int = Field(default=0, ge=0, le=2**31 - 1)
    deterministic: bool = False
    warm_start: bool = True
    max_epochs: int | None = Field(default=None, ge=1, le=100_000)
    threshold: ThresholdMethod = "conformal"
    false_positive_rate: float | None = Field(default=None, gt=0, lt=1)
    patience: int | None = Field(default=None, ge=1, le=1_000_000)
    max_latency_ms: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    max_memory_mb: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    keep_suspicious: bool = False
    promote_when: PromoteWhen = "never"

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        if self.deterministic and self.seconds is not None:
            raise ValueError("a deterministic search must not depend on the clock: give trials instead of seconds")
        if self.deterministic and (self.max_latency_ms, self.max_memory_mb) != (None, None):
            raise ValueError("a deterministic search must not depend on what is measured: leave the limits out")
        if self.threshold == "f1-max" and self.false_positive_rate is not None:
            raise ValueError(
                "the threshold f1-max keeps to no rate: leave out false_positive_rate, or give the threshold conformal"
            )
        return self


class PromotionVerdict(Record):
    """Whether a search's champion came to serve, and why.

    Attributes:
        state: ``pending``; ``promoted``; ``kept`` (the version that served goes on, for the new one was not better);
            ``refused`` (the server did not let it serve: the reason says why).
        compared_with: version that served.
        pictures: test pictures that both scored.
        difference: new minus serving, in image AUROC on them, with its paired 95 % interval.
    """

    state: PromotionState
    reason: str
    compared_with: int | None = None
    pictures: int = 0
    difference: Difference | None = None


class SubmissionEntry(Record):
    """A search on a server.

    Attributes:
        id: of the search.
        dataset: ``NAME/VERSION``.
        position: how many are before it in the queue; None once it runs.
        trials: how many have ended.
        best: largest objective of a complete trial.
        seconds: of the search's own time so far.
        error: why it failed, or what it waits for while it runs (an outage), for people.
        restarts: how often its driver had to be started again.
        champion: what it chose, once it has.
        promotion: what came of ``promote_when``; None where nobody asked, or not yet.
    """

    id: str
    name: str
    dataset: str
    model: str
    status: SubmissionStatus
    objective: Objective
    promote_when: PromoteWhen
    position: int | None = None
    trials: int = 0
    best: float | None = None
    seconds: float = 0.0
    error: str | None = None
    restarts: int = 0
    champion: Champion | None = None
    promotion: PromotionVerdict | None = None
    actor: str = Field(default="", pattern=TEXT)
    created: datetime.datetime
    started: datetime.datetime | None = None
    finished: datetime.datetime | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing of it will change any more."""
        waits = self.promotion is not None and self.promotion.state == "pending"
        return self.status in {"complete", "failed", "cancelled"} and not waits


class SubmissionPage(Record):
    """Searches, newest first; ``next`` is the cursor of the next page, None on the last."""

    items: list[SubmissionEntry]
    next: str | None = None


class SearchEvent(Record):
    """Something that happened to a search; ``print`` it.

    Attributes:
        id: by which following goes on after a pause (``Last-Event-ID``).
        text: for people, one line.
        search: as it was then.
        trial: that has ended, for ``trial``.
    """

    id: str
    kind: EventKind
    text: str
    search: SubmissionEntry
    trial: TrialRow | None = None

    def __str__(self) -> str:
        return self.text
