"""What is said of models, their versions and routes, of scores, and of who may ask."""

from __future__ import annotations

import datetime
from typing import Literal, Self

from pydantic import Field, model_validator

from autoad.schema._record import TEXT, Record
from autoad.schema.searches import Metrics
from autoad.schema.thresholds import ThresholdMethod

__all__ = [
    "KeyEntry",
    "MapFormat",
    "ModelEntry",
    "ModelVersionEntry",
    "PictureReply",
    "PromoteRequest",
    "PromotionResult",
    "ReasonRequest",
    "Region",
    "ReplicaEntry",
    "RouteAction",
    "RouteChangeEntry",
    "RouteEntry",
    "Scope",
    "ScoreReply",
    "ScoredPicture",
    "TimingReply",
]

RouteAction = Literal["promote", "rollback", "canary", "shadow", "end_canary", "end_shadow", "delete"]
MapFormat = Literal["none", "png", "npy"]
Scope = Literal["score", "submit", "admin"]


class Region(Record):
    """A connected part of the picture above the pixel threshold; pixels of the original picture, origin top left."""

    x: int
    y: int
    width: int
    height: int
    area: int
    score: float


class ScoredPicture(Record):
    """What ``autoad score --json`` says of one picture.

    Attributes:
        score: raw score; higher is more anomalous.
        normalized_score: between 0 and 1; 0.5 at the threshold.
        is_anomalous: whether the raw score lies above the threshold.
        regions: where, most anomalous first; None for algorithms without a map.
        heatmap: file of the heatmap, if one was written.
    """

    picture: str
    model: str
    score: float
    normalized_score: float
    is_anomalous: bool
    regions: list[Region] | None
    heatmap: str | None = None


class RouteEntry(Record):
    """Which versions of a model answer requests that name none.

    Attributes:
        generation: goes up by one with every change.
        champion: answers.
        previous: answered before; what a rollback goes back to.
        canary: answers ``canary_share`` of the requests instead of the champion, chosen by hash of the request's id.
        canary_share: from 0 to 1.
        shadow: scores the same pictures beside the answer, only to be watched.
        staged: being loaded everywhere and checked, because somebody wants to promote it.
    """

    project: str
    name: str
    generation: int
    champion: int | None = None
    previous: int | None = None
    canary: int | None = None
    canary_share: float = 0.0
    shadow: int | None = None
    staged: int | None = None


class ModelVersionEntry(Record):
    """A registered version of a model.

    Attributes:
        aliases: ``champion``, ``previous``, ``canary``, ``shadow``, as far as they point at it.
        search: id of the search that made it; None for one that was registered from a folder.
        trial: number of the trial; of an ensemble that of its first member.
        threshold: raw score above which it calls a picture anomalous.
        threshold_method: as of :class:`Champion`, and so are ``false_positive_rate`` and its upper bound.
        size: of its artifact, in bytes.
        validation: metrics on the selection role.
        test: metrics on the test role.
    """

    name: str
    version: int
    algorithm: str
    aliases: list[str]
    search: str | None
    trial: int | None
    dataset_hash: str
    code_version: str
    created: datetime.datetime
    size: int
    threshold: float | None
    threshold_method: ThresholdMethod | None = None
    false_positive_rate: float | None = None
    false_positive_rate_upper: float | None = None
    validation: Metrics | None
    test: Metrics | None


class RouteChangeEntry(Record):
    """One line of a model's history."""

    generation: int
    action: RouteAction
    before: int | None
    after: int | None
    reason: str
    actor: str
    at: datetime.datetime


class ModelEntry(Record):
    """A model: its route, versions (newest first) and history (newest first; empty where a server lists models)."""

    name: str
    route: RouteEntry
    versions: list[ModelVersionEntry]
    history: list[RouteChangeEntry]


class KeyEntry(Record):
    """An API key, without its secret.

    Attributes:
        id: the part of the key that is no secret, by which it is looked up.
        scopes: what it may do: ``score`` pictures, ``submit`` searches, ``admin`` (everything).
        revoked: since when it is refused.
    """

    id: str
    project: str
    name: str
    scopes: list[Scope]
    created: datetime.datetime
    revoked: datetime.datetime | None = None


class ReplicaEntry(Record):
    """A process that scores.

    Attributes:
        loaded: versions that it holds, as ``PROJECT/NAME/VERSION``.
        failed: those that it could not load, and why.
    """

    id: str
    loaded: list[str]
    failed: dict[str, str]


class PromoteRequest(Record):
    """What a promotion is asked for.

    Attributes:
        version: None for the newest.
        reason: kept in the model's history.
        canary: share of the requests, above 0 and below 1, that it is to answer; None to make it the champion.
        shadow: whether it is to score beside the champion, unseen; not with ``canary``.
    """

    version: int | None = Field(default=None, ge=1, le=999_999_999)
    reason: str = Field(default="", max_length=1000, pattern=TEXT)
    canary: float | None = Field(default=None, gt=0, lt=1)
    shadow: bool = False

    @model_validator(mode="after")
    def _is_one_thing(self) -> Self:
        if self.canary is not None and self.shadow:
            raise ValueError("a version becomes a canary or a shadow, not both; leave out canary or shadow")
        return self


class ReasonRequest(Record):
    """Why something is to be done; kept in the model's history."""

    reason: str = Field(default="", max_length=1000, pattern=TEXT)


class PromotionResult(Record):
    """A promotion that was carried out.

    Attributes:
        route: as it is now.
        version: that was promoted.
        replicas: that had loaded it, and whose scores are those that were evaluated.
        parity_pictures: how many pictures were sent.
        parity_answers: how many answers were compared.
        seconds: that it took.
    """

    route: RouteEntry
    version: int
    replicas: list[str]
    parity_pictures: int
    parity_answers: int
    seconds: float


class PictureReply(Record):
    """What a model says of one picture.

    Attributes:
        score: raw; higher is more anomalous.
        normalized_score: between 0 and 1; 0.5 at the threshold.
        is_anomalous: whether the raw score lies above the threshold.
        regions: where, in pixels of the picture as it was sent, most anomalous first; null for a model without a map.
        map: base64 of the anomaly map, if it was asked for and the model has one. ``npy``: float32, raw, at the model's
            image size. ``png``: 8 bits, normalised, so that 127 lies at the pixel threshold.
    """

    score: float
    normalized_score: float
    is_anomalous: bool
    regions: list[Region] | None
    map: str | None = None


class TimingReply(Record):
    """Where the time went, in milliseconds; of several pictures the longest.

    Attributes:
        read: the request's body, from the network.
        decode: picture to pixels, and to the model's size.
        queue: waiting for the batch before.
        forward: backbone, its share of the batch.
        head: the model itself, and what calibration makes of its answer.
        total: from before the body is read to the scores; making the reply comes after that.
    """

    read: float
    decode: float
    queue: float
    forward: float
    head: float
    total: float


class ScoreReply(Record):
    """The reply to a request to score.

    Attributes:
        model: that was asked for.
        version: that answered.
        replica: process that answered.
        request_id: from ``X-Request-Id``, or made here; decides between champion and canary.
        pictures: in the order of the request.
    """

    model: str
    version: int
    replica: str
    request_id: str
    pictures: list[PictureReply]
    timing_ms: TimingReply
