"""The parity gate: whether a deployed model scores what the artifact scored when it was evaluated.

An artifact carries pictures with the scores and maps that the saved model gave them right after calibration. The same
pictures go through the server; every answer is held against the record. Differences are measured in interquartile
ranges of the calibration pictures' scores, so that one tolerance fits algorithms whose scores differ by orders of
magnitude.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from autoad.models import Manifest
from autoad.models.parity import MAP_STEP, ParityPicture

__all__ = ["Answer", "Discrepancy", "Ruler", "find_discrepancies"]

FLOAT32_TOLERANCE = 1e-4
BFLOAT16_TOLERANCE = 1e-2
"""In interquartile ranges: about what two orders of summation differ by, and far below what changes a verdict."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """What the server said of one parity picture.

    Attributes:
        index: of the picture in the parity set.
        score: raw.
        is_anomalous: the verdict.
        anomaly_map: ``[H, W]`` float32; None if the reply had none.
        replica: which process answered.
        batch: how many pictures the request carried.
    """

    index: int
    score: float
    is_anomalous: bool
    anomaly_map: NDArray[np.float32] | None
    replica: str
    batch: int


@dataclasses.dataclass(frozen=True)
class Discrepancy:
    """One answer that is not what was evaluated.

    Attributes:
        sha256: of the picture.
        what: ``score``, ``verdict`` or ``map``.
        expected: score recorded with the artifact (of a map: its largest value).
        got: the server's.
        difference: in interquartile ranges; infinite where the two cannot be compared.
        replica: which process answered.
        batch: how many pictures the request carried.
    """

    sha256: str
    what: Literal["score", "verdict", "map"]
    expected: float
    got: float
    difference: float
    replica: str
    batch: int

    def __str__(self) -> str:
        return (
            f"picture {self.sha256[:12]}: {self.what} {self.got:.6g} instead of {self.expected:.6g} "
            f"({self.difference:.2g} interquartile ranges; replica {self.replica}, batch of {self.batch})"
        )


@dataclasses.dataclass(frozen=True)
class Ruler:
    """How differences are measured.

    Attributes:
        tolerance: largest difference allowed, in units.
        score_unit: interquartile range of the calibration pictures' scores.
        map_unit: interquartile range of their maps' largest values; None without maps.
        threshold: of the verdict.
    """

    tolerance: float
    score_unit: float
    map_unit: float | None
    threshold: float

    @classmethod
    def of(cls, manifest: Manifest, pictures: Sequence[ParityPicture]) -> Ruler:
        """For a calibrated model and its parity set.

        Raises:
            ValueError: the model was never calibrated, or the set has no calibration pictures.
        """
        calibration = [picture for picture in pictures if picture.role == "calibration"]
        if manifest.calibration is None or not calibration:
            raise ValueError("a parity set must hold calibration pictures of a calibrated model")
        precisions: set[str] = {member.precision for member in manifest.members}
        precisions |= {member.backbone.precision for member in manifest.members if member.backbone is not None}
        peaks = [float(picture.anomaly_map.max()) for picture in calibration if picture.anomaly_map is not None]
        return cls(
            tolerance=BFLOAT16_TOLERANCE if "bfloat16" in precisions else FLOAT32_TOLERANCE,
            score_unit=_interquartile_range([picture.score for picture in calibration]),
            map_unit=_interquartile_range(peaks) if peaks else None,
            threshold=manifest.calibration.threshold,
        )


def find_discrepancies(ruler: Ruler, pictures: Sequence[ParityPicture], answers: Iterable[Answer]) -> list[Discrepancy]:
    """Every answer that differs from the record by more than the ruler allows, largest difference first.

    A verdict must be the recorded one unless the recorded score lies within the tolerance of the threshold. A map is
    compared at every ``MAP_STEP``-th pixel, where the record has it. A score that is no number differs infinitely.
    """
    found: list[Discrepancy] = []
    for answer in answers:
        picture = pictures[answer.index]

        def add(
            what: Literal["score", "verdict", "map"],
            expected: float,
            got: float,
            difference: float,
            picture: ParityPicture = picture,
            answer: Answer = answer,
        ) -> None:
            found.append(Discrepancy(picture.sha256, what, expected, got, difference, answer.replica, answer.batch))

        difference = _units(answer.score - picture.score, ruler.score_unit)
        if not difference <= ruler.tolerance:
            add("score", picture.score, answer.score, difference)
        margin = _units(picture.score - ruler.threshold, ruler.score_unit)
        if answer.is_anomalous != picture.is_anomalous and margin > ruler.tolerance:
            add("verdict", picture.score, answer.score, margin)
        if picture.anomaly_map is not None and ruler.map_unit is not None:
            expected = float(picture.anomaly_map.max())
            sampled = None if answer.anomaly_map is None else answer.anomaly_map[::MAP_STEP, ::MAP_STEP]
            if sampled is None or sampled.shape != picture.anomaly_map.shape:
                add("map", expected, float("nan"), float("inf"))
                continue
            difference = _units(float(np.abs(sampled - picture.anomaly_map).max()), ruler.map_unit)
            if not difference <= ruler.tolerance:
                add("map", expected, float(sampled.max()), difference)
    return sorted(found, key=lambda one: one.difference, reverse=True)


def _interquartile_range(values: Sequence[float]) -> float:
    low, high = np.quantile(values, [0.25, 0.75])
    return float(high - low)


def _units(difference: float, unit: float) -> float:
    """The size of a difference in units. Where all calibration scores are equal, only equality will do."""
    if np.isnan(difference):
        return float("inf")
    if difference == 0:
        return 0.0
    return abs(difference) / unit if unit > 0 else float("inf")
