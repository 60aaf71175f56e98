"""What is said of searches, their trials and their champions.

A metric is a fraction between 0 and 1, or None where it cannot be computed (one class only, no masks, no map).
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from typing import Any, Literal

from pydantic import Field

from autoad.schema._record import Record
from autoad.schema.thresholds import ThresholdMethod

__all__ = [
    "METRIC_NAMES",
    "Champion",
    "ChampionMember",
    "Choice",
    "DatasetSummary",
    "Difference",
    "Evidence",
    "Metrics",
    "Objective",
    "Origin",
    "SearchEntry",
    "SearchResult",
    "Speed",
    "TestMetrics",
    "TrialRow",
    "TrialStatus",
    "join_algorithms",
]

Evidence = Literal["labelled", "both", "synthetic"]
"""What trials are ranked by: labelled defects, synthetic ones, or both while there are few labelled ones."""
Objective = Literal["image_auroc", "image_aupr", "image_f1_max", "pixel_auroc", "aupro"]
Origin = Literal["default", "warm", "sampler"]
TrialStatus = Literal["running", "complete", "pruned", "failed", "stopped"]
METRIC_NAMES: tuple[Objective, ...] = ("image_auroc", "image_aupr", "image_f1_max", "pixel_auroc", "aupro")


class Metrics(Record):
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


class Difference(Record):
    """Champion minus default PatchCore in test image AUROC, with its paired bootstrap 95 % interval."""

    image_auroc: float
    low: float
    high: float


class Speed(Record):
    """What scoring costs on the machine that measured it.

    Attributes:
        latency_ms: median time of one picture, decoding included.
        pictures_per_second: with as many threads as the machine has cores.
        peak_memory_mb: largest resident memory of a process that loads the model and scores.
    """

    latency_ms: float
    pictures_per_second: float
    peak_memory_mb: float


class TrialRow(Record):
    """One row of the leaderboard.

    Attributes:
        trial: number of the trial in its study.
        status: ``complete``; ``pruned`` (stopped early beside better trials of its algorithm); ``failed``; ``stopped``
            (the search ended first).
        reason: why it failed or stopped.
        seconds: time of the trial, features included.
        objective: what the search maximises: of the metric that it was asked for, the value that its evidence gives.
        validation: metrics on the selection role; of its labelled defects where there are any, else of synthetic ones.
        by_kind: image AUROC by kind of synthetic defect, where those count.
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
    objective: float | None = None
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

    def value(self, objective: Objective) -> float | None:
        """What the search maximises; of rows that do not say, the metric on the selection role."""
        value: float | None = getattr(self.validation, objective) if self.objective is None else self.objective
        return value


class Choice(Record):
    """Why the search chose the trial that became its champion, and how sure that is.

    Attributes:
        trial: the chosen one; of an ensemble its first member.
        labelled_weight: how much labelled defects counted beside synthetic ones, from 0 to 1.
        best: trial with the highest objective.
        behind: by how much the chosen one's is lower; an ensemble's is higher, so that this is negative.
        error: standard error of that difference (stratified bootstrap of the selection pictures).
        tied: trials that are no worse than the best by more than one standard error, nor by more than .01; the fastest
            of them was chosen, unless the default was kept. Empty where an ensemble was chosen.
        wins: share of the bootstrap draws in which the chosen one is the best.
        algorithm_wins: share in which a trial of its algorithm is (or the same ensemble again).
        divisions: of the good pictures into train and selection that close trials were judged on; where there were
            several, all but ``labelled_weight`` is of the mean over them.
        members: trials of the ensemble that was chosen; empty where a single trial was.
        kept_default: whether the chosen one is PatchCore's default fit although another is better, because it is so by
            no more than one standard error and labelled defects were few; what only prediction reads may be tuned.
    """

    trial: int
    labelled_weight: float
    best: int
    behind: float
    error: float
    tied: list[int]
    wins: float
    algorithm_wins: float
    divisions: int = 1
    members: list[int] = Field(default_factory=list)
    kept_default: bool = False

    @property
    def trials(self) -> list[int]:
        """The chosen trials."""
        return self.members or [self.trial]


class ChampionMember(Record):
    """One detector of an ensemble."""

    trial: int
    algorithm: str
    config: dict[str, Any]


def join_algorithms(names: Iterable[str]) -> str:
    """What an ensemble of these algorithms is called; one name stays as it is."""
    return " + ".join(names)


class Champion(Record):
    """The model that a search chose, refitted and calibrated.

    Attributes:
        trial: of which it was made; of an ensemble its first member.
        algorithm: its algorithm, of an ensemble those of all members, joined by a plus.
        config: hyperparameters; of an ensemble those of its first member.
        members: of an ensemble, its detectors; empty for a single one.
        validation: what it was chosen by; before the refit, from the trial, or from fits of an ensemble's trials.
        test: of the saved model, on pictures that the search never saw.
        default_patchcore: the untuned default on the same pictures.
        difference: champion minus default in test image AUROC.
        threshold: raw score above which a picture is called anomalous.
        threshold_method: ``conformal`` guarantees a rate of false positives; ``f1-max`` has the best F1 on the
            calibration pictures and the selection's labelled defects, by which the trial was chosen too.
        false_positive_rate: largest rate of good pictures above the threshold that a conformal calibration guarantees,
            on average over calibration sets; with ``f1-max`` the share of calibration pictures above it.
        false_positive_rate_upper: 90 % upper bound on the rate that this very threshold has; None for what was
            calibrated before it was known.
        smallest_false_positive_rate: smallest rate that so many calibration pictures can guarantee; None for the same.
        pixel_threshold_method: of the threshold above which pixels form regions; None without a map, or for the same.
        pixel_false_positive_rate: the same rate for good pictures with any region.
        pixel_false_positive_rate_upper: its 90 % upper bound.
        model: folder of the saved model.
        name: of the model that it is a version of; None for what was saved before models had versions.
        version: its number.
    """

    trial: int
    algorithm: str
    config: dict[str, Any]
    members: list[ChampionMember] = Field(default_factory=list)
    validation: Metrics
    test: TestMetrics
    default_patchcore: TestMetrics | None
    difference: Difference | None
    threshold: float
    threshold_method: ThresholdMethod = "conformal"
    false_positive_rate: float
    false_positive_rate_upper: float | None = None
    smallest_false_positive_rate: float | None = None
    pixel_threshold_method: ThresholdMethod | None = None
    pixel_false_positive_rate: float | None = None
    pixel_false_positive_rate_upper: float | None = None
    speed: Speed | None
    model: str
    name: str | None = None
    version: int | None = None

    @property
    def trials(self) -> list[int]:
        """The trials that it was made of."""
        return [member.trial for member in self.members] or [self.trial]

    @property
    def origin(self) -> str:
        """``trial 3``, or ``trials 3, 7``."""
        return f"trial{'s' if self.members else ''} {', '.join(map(str, self.trials))}"

    @property
    def address(self) -> str:
        """By which commands and servers find it: ``bottle/2``, or the folder if it has no version."""
        return self.model if self.name is None else f"{self.name}/{self.version}"


class DatasetSummary(Record):
    """What was searched on."""

    path: str
    layout: str
    hash: str
    counts: dict[str, int]
    roles: dict[str, dict[str, int]]


class SearchResult(Record):
    """Everything that ``autoad search --json`` prints.

    Attributes:
        evidence: what ranked the trials: ``labelled`` defects, ``synthetic`` ones, or ``both``.
        choice: how the champion was chosen; None before that, and where the objective is no image AUROC.
    """

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
    choice: Choice | None = None


class SearchEntry(Record):
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
