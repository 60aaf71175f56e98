"""Records that the command line, the server and the SDK share.

A metric is a fraction between 0 and 1, or None where it cannot be computed (one class only, no masks, no map).
"""

from __future__ import annotations

import datetime
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = [
    "METRIC_NAMES",
    "Champion",
    "DatasetSummary",
    "Difference",
    "Evidence",
    "KeyEntry",
    "Metrics",
    "ModelEntry",
    "ModelVersionEntry",
    "Objective",
    "Origin",
    "Region",
    "RouteAction",
    "RouteChangeEntry",
    "RouteEntry",
    "Scope",
    "ScoredPicture",
    "SearchEntry",
    "SearchResult",
    "Speed",
    "TestMetrics",
    "TrialRow",
    "TrialStatus",
]

Evidence = Literal["labelled", "synthetic"]
Objective = Literal["image_auroc", "image_aupr", "image_f1_max", "pixel_auroc", "aupro"]
Origin = Literal["default", "warm", "sampler"]
RouteAction = Literal["promote", "rollback", "canary", "shadow", "end_canary", "end_shadow", "delete"]
Scope = Literal["score", "submit", "admin"]
TrialStatus = Literal["running", "complete", "pruned", "failed", "stopped"]
_TEXT = r"^[^\x00]*$"  # PostgreSQL cannot store NUL
METRIC_NAMES: tuple[Objective, ...] = ("image_auroc", "image_aupr", "image_f1_max", "pixel_auroc", "aupro")


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Metrics(_Record):
    """How well anomalous pictures and pixels are told from normal ones.

    Attributes:
        image_auroc: area under the ROC curve of image scores.
        image_aupr: area under their precision-recall curve (average precision).
        image_f1_max: their best F1 over all thresholds.
        pixel_auroc: area under the ROC curve of anomaly-map pixels.
        aupro: area under the per-region overlap curve up to a false-positive rate of 0.3, divided by 0.3.
    """

    image_auroc: float | None = None
    image_aupr: float | None = None
    image_f1_max: float | None = None
    pixel_auroc: float | None = None
    aupro: float | None = None


class TestMetrics(Metrics):
    """Metrics on the test role, with bootstrap 95 % intervals and a row for each type of defect."""

    __test__ = False  # not a test case, whatever pytest makes of the name

    image_auroc_low: float | None = None
    image_auroc_high: float | None = None
    pixel_auroc_low: float | None = None
    pixel_auroc_high: float | None = None
    aupro_low: float | None = None
    aupro_high: float | None = None
    false_positive_rate: float | None = None
    by_defect: dict[str, Metrics] = Field(default_factory=dict)


class Difference(_Record):
    """Champion minus default PatchCore in test image AUROC, with its paired bootstrap 95 % interval."""

    image_auroc: float
    low: float
    high: float


class Speed(_Record):
    """What scoring costs on the machine that measured it.

    Attributes:
        latency_ms: median time of one picture, decoding included.
        pictures_per_second: with as many threads as the machine has cores.
        peak_memory_mb: largest resident memory of a process that loads the model and scores.
    """

    latency_ms: float
    pictures_per_second: float
    peak_memory_mb: float


class TrialRow(_Record):
    """One row of the leaderboard.

    Attributes:
        trial: number of the trial in its study.
        status: ``complete``; ``pruned`` (stopped early beside better trials of its algorithm); ``failed``; ``stopped``
            (the search ended first).
        reason: why it failed or stopped.
        seconds: time of the trial, features included.
        validation: metrics on the selection role.
        by_kind: image AUROC by kind of synthetic defect, when those selected.
        latency_ms: median time to score one picture from pixels, one thread.
        epochs_done: epochs trained, for algorithms that train.
        budget_limited: whether the trial's share of the time ended before the ceiling of epochs.
        exact: whether pixel metrics are exact rather than from a histogram.
        proposed: the configuration as it was proposed and fitted, before post-fit hyperparameters were swept.
        variants: how many settings of post-fit hyperparameters were compared on the one fit; ``config`` has the best.
        peak_memory_mb: most memory that the trial took, beyond what its worker held before.
        model_mb: size of what was learnt.
        curve: objective by epoch at which it was evaluated.
        feature_seconds: the part of ``seconds`` that went into getting its features.
        predicted_seconds: what the cost model had expected of ``seconds``; None before it could tell.
        attempts: how often it was begun; more than one after its worker was lost or ran out of memory.
        node: name of the machine that ran it.
        started_after: when it began, in seconds of the search's own time (interruptions not counted).
        ended_after: when it ended.
        origin: who proposed it: ``default``, ``warm`` (an earlier search) or ``sampler``.
    """

    trial: int
    algorithm: str
    config: dict[str, Any]
    status: TrialStatus
    reason: str | None = None
    seconds: float | None = None
    validation: Metrics = Metrics()
    by_kind: dict[str, float] = Field(default_factory=dict)
    latency_ms: float | None = None
    epochs_done: int | None = None
    budget_limited: bool = False
    exact: bool = False
    proposed: dict[str, Any] = Field(default_factory=dict)
    variants: int = 1
    peak_memory_mb: float | None = None
    model_mb: float | None = None
    curve: dict[int, float] = Field(default_factory=dict)
    feature_seconds: float | None = None
    predicted_seconds: float | None = None
    attempts: int = 1
    node: str | None = None
    started_after: float | None = None
    ended_after: float | None = None
    origin: Origin = "sampler"


class Champion(_Record):
    """The model that a search chose, refitted and calibrated.

    Attributes:
        validation: what it was chosen by; from the trial, before the refit.
        test: of the saved model, on pictures that the search never saw.
        default_patchcore: the untuned default on the same pictures.
        difference: champion minus default in test image AUROC.
        threshold: raw score above which a picture is called anomalous.
        false_positive_rate: largest rate of good pictures above the threshold that its calibration guarantees.
        model: folder of the saved model.
        name: of the model that it is a version of; None for what was saved before models had versions.
        version: its number.
    """

    trial: int
    algorithm: str
    config: dict[str, Any]
    validation: Metrics
    test: TestMetrics
    default_patchcore: TestMetrics | None
    difference: Difference | None
    threshold: float
    false_positive_rate: float
    speed: Speed | None
    model: str
    name: str | None = None
    version: int | None = None

    @property
    def address(self) -> str:
        """By which commands and servers find it: ``bottle/2``, or the folder if it has no version."""
        return self.model if self.name is None else f"{self.name}/{self.version}"


class DatasetSummary(_Record):
    """What was searched on."""

    path: str
    layout: str
    hash: str
    counts: dict[str, int]
    roles: dict[str, dict[str, int]]


class SearchResult(_Record):
    """Everything that ``autoad search --json`` prints."""

    search_id: str
    name: str
    status: Literal["running", "complete", "interrupted", "failed"]
    objective: Objective
    seed: int
    seconds: float
    dataset: DatasetSummary
    evidence: Evidence
    engine: str
    notes: list[str]
    champion: Champion | None
    leaderboard: list[TrialRow]


class SearchEntry(_Record):
    """A search in the list of searches.

    Attributes:
        status: as in :class:`SearchResult`; ``lost`` if it should be running but its process is gone.
        dataset: folder or manifest that was searched.
        trials: how many have ended.
        best: largest objective of a complete trial.
        champion: algorithm of the champion, once there is one.
        started: when, in UTC.
        seconds: time that it took so far.
        hint: what can be done about a search that was cut off.
    """

    search_id: str
    name: str
    status: Literal["running", "complete", "interrupted", "failed", "lost"]
    dataset: str
    objective: Objective
    trials: int
    best: float | None
    champion: str | None
    started: datetime.datetime
    seconds: float
    hint: str | None = None


class Region(_Record):
    """A connected part of the picture above the pixel threshold; pixels of the original picture, origin top left."""

    x: int
    y: int
    width: int
    height: int
    area: int
    score: float


class ScoredPicture(_Record):
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


class RouteEntry(_Record):
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


class ModelVersionEntry(_Record):
    """A registered version of a model.

    Attributes:
        aliases: ``champion``, ``previous``, ``canary``, ``shadow``, as far as they point at it.
        search: id of the search that made it; None for one that was registered from a folder.
        trial: number of the trial.
        threshold: raw score above which it calls a picture anomalous.
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
    validation: Metrics | None
    test: Metrics | None


class RouteChangeEntry(_Record):
    """One line of a model's history."""

    generation: int
    action: RouteAction
    before: int | None
    after: int | None
    reason: str
    actor: str
    at: datetime.datetime


class ModelEntry(_Record):
    """A model: its route, versions (newest first) and history (newest first; empty where a server lists models)."""

    name: str
    route: RouteEntry
    versions: list[ModelVersionEntry]
    history: list[RouteChangeEntry]


class KeyEntry(_Record):
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


class ReplicaEntry(_Record):
    """A process that scores.

    Attributes:
        loaded: versions that it holds, as ``PROJECT/NAME/VERSION``.
        failed: those that it could not load, and why.
    """

    id: str
    loaded: list[str]
    failed: dict[str, str]


class PromoteRequest(_Record):
    """What a promotion is asked for.

    Attributes:
        version: None for the newest.
        reason: kept in the model's history.
        canary: share of the requests, above 0 and below 1, that it is to answer; None to make it the champion.
        shadow: whether it is to score beside the champion, unseen; not with ``canary``.
    """

    version: int | None = Field(default=None, ge=1, le=999_999_999)
    reason: str = Field(default="", max_length=1000, pattern=_TEXT)
    canary: float | None = Field(default=None, gt=0, lt=1)
    shadow: bool = False

    @model_validator(mode="after")
    def _is_one_thing(self) -> Self:
        if self.canary is not None and self.shadow:
            raise ValueError("a version becomes a canary or a shadow, not both; leave out canary or shadow")
        return self


class ReasonRequest(_Record):
    """Why something is to be done; kept in the model's history."""

    reason: str = Field(default="", max_length=1000, pattern=_TEXT)


class PromotionResult(_Record):
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
