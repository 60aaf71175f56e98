"""The artifact: a folder with ``model.safetensors``, ``manifest.json`` and a model card.

Nothing in it is code, and nothing of it is unpickled. The backbone's weights are not copied; the manifest names them by
sha256 and loading refuses any others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import safetensors
import safetensors.torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from autoad.errors import ArtifactError
from autoad.evaluation import smallest_rate
from autoad.files import write_atomically
from autoad.schema import (
    Difference,
    Evidence,
    Metrics,
    Speed,
    TestMetrics,
    ThresholdMethod,
    describe_rate,
    join_algorithms,
)

__all__ = [
    "SCHEMA_VERSION",
    "ArtifactMetrics",
    "Backbone",
    "Calibration",
    "Manifest",
    "Member",
    "Provenance",
    "Standard",
    "load_tensors",
    "read_manifest",
    "save_model",
    "write_manifest",
]

SCHEMA_VERSION = 2
_TENSORS = "model.safetensors"
_MANIFEST = "manifest.json"
_CARD = "README.md"


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Backbone(_Record):
    """The frozen network whose features a member scores, and the engine that ran it when it was evaluated."""

    name: str
    stages: tuple[int, ...]
    weights_source: str
    weights_sha256: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    engine: str
    precision: str


class Standard(_Record):
    """What a member says of good pictures that it was not fitted on; its answers count in these units.

    Attributes:
        center: mean raw score.
        spread: standard deviation of the raw scores.
        map_center: mean of the maps' largest values; None without a map, as ``map_spread``.
        map_spread: their standard deviation.
    """

    center: float
    spread: float = Field(gt=0)
    map_center: float | None = None
    map_spread: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _both(self) -> Self:
        if (self.map_center is None) != (self.map_spread is None):
            raise ValueError("map_center and map_spread must both be there, or neither")
        return self


class Member(_Record):
    """One detector of the model.

    Attributes:
        image_size: height and width to which a picture is resized, antialiased bilinear.
        device: where the detector computed, ``cpu`` or ``cuda``.
        precision: in which its own networks score. Those that are compiled do so in float32, whatever they were
            trained in.
        backbone: None for algorithms that work on pixels alone.
        standard: None for the only member of a model, whose answers are the model's as they are.
    """

    algorithm: str
    kind: Literal["classification", "segmentation"]
    config: dict[str, Any]
    seed: int
    image_size: tuple[int, int]
    device: Literal["cpu", "cuda"]
    precision: Literal["float32", "bfloat16"]
    backbone: Backbone | None
    standard: Standard | None = None


class Calibration(_Record):
    """What turns a raw score into a verdict.

    Attributes:
        threshold: a picture is anomalous when its raw score is greater.
        method: ``conformal``; or ``f1-max``, the best F1 on the calibration pictures and the selection's labelled
            defects.
        rate: false-positive rate that split-conformal calibration on ``pictures`` normal pictures guarantees; with
            ``f1-max`` the share of these pictures above the threshold.
        rate_upper: 90 % upper bound on the false-positive rate of this very threshold; None for models that were saved
            before it was known, as all that follows ``pixel_scale``.
        scale: spread of the calibration scores, the unit of the normalised score.
        pixel_threshold: above it pixels form regions; None without a map, as all of the same prefix.
        pixel_scale: spread of the calibration maps' largest values.
        pixel_method: as ``method``; ``f1-max`` compares pixels with the defects' masks.
        pixel_rate: as ``rate``, of good pictures with any region.
        pixel_rate_upper: its 90 % upper bound.
    """

    threshold: float
    rate: float
    pictures: int
    scale: float
    pixel_threshold: float | None
    pixel_scale: float | None
    method: ThresholdMethod = "conformal"
    rate_upper: float | None = None
    pixel_method: ThresholdMethod | None = None
    pixel_rate: float | None = None
    pixel_rate_upper: float | None = None

    @property
    def smallest_rate(self) -> float:
        """The smallest false-positive rate that so many pictures can guarantee."""
        return smallest_rate(self.pictures)

    @property
    def facts(self) -> dict[str, str]:
        """What the thresholds are and promise, in words; by which threshold it is."""
        told = describe_rate(self.method, self.rate, self.rate_upper, "lie above it")
        text = (
            f"{self.threshold:.6g} ({self.method}, {self.pictures} calibration pictures, which can guarantee "
            f"{self.smallest_rate:.1%} at the least); {told}"
        )
        if self.method == "f1-max":
            text += "; the labelled defects of the F1 chose the trial too, but nothing was fitted on them"
        facts = {"threshold": text}
        if self.pixel_threshold is not None and self.pixel_method is not None and self.pixel_rate is not None:
            told = describe_rate(self.pixel_method, self.pixel_rate, self.pixel_rate_upper, "have any region")
            facts["threshold of pixels"] = f"{self.pixel_threshold:.6g} ({self.pixel_method}); {told}"
        return facts


class Provenance(_Record):
    """Where the model comes from.

    Attributes:
        trial: of the search; of several, that of the first member.
        members: of an ensemble, each member's trial; empty for a single detector.
    """

    code_version: str
    search: str
    trial: int
    members: tuple[int, ...] = ()
    dataset_hash: str
    dataset_counts: dict[str, int]
    evidence: Evidence

    @property
    def trials(self) -> tuple[int, ...]:
        """All trials that it was made of."""
        return self.members or (self.trial,)


class ArtifactMetrics(_Record):
    """How good the model was found to be."""

    validation: Metrics
    test: TestMetrics
    default_patchcore: TestMetrics | None = None
    difference: Difference | None = None
    speed: Speed | None = None


class Manifest(_Record):
    """All that a model is, apart from its tensors.

    Attributes:
        members: its detectors.
        combine: how their answers become one: as they are, or the mean of all in units of their :class:`Standard`.
        tensors_sha256: of ``model.safetensors``.
        calibration: None until the saved model has been calibrated.
    """

    schema_version: int = SCHEMA_VERSION
    name: str
    members: tuple[Member, ...] = Field(min_length=1)
    combine: Literal["single", "mean"] = "single"
    tensors_sha256: str
    provenance: Provenance
    calibration: Calibration | None = None
    metrics: ArtifactMetrics | None = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        """Several answers can be averaged only in units that they share; one member's need none."""
        single = self.combine == "single"
        if single != (len(self.members) == 1) or any((member.standard is None) != single for member in self.members):
            raise ValueError(f"{len(self.members)} members cannot be combined as {self.combine!r}")
        return self

    @property
    def algorithm(self) -> str:
        """Its algorithm; of an ensemble, those of all members."""
        return join_algorithms(member.algorithm for member in self.members)


def save_model(
    folder: Path, name: str, members: Sequence[tuple[Member, Mapping[str, Tensor]]], provenance: Provenance
) -> Manifest:
    """Write fitted detectors' tensors and the first manifest (not calibrated yet) into ``folder``.

    Args:
        folder: of the model.
        name: of the model.
        members: each with its tensors; of several, each has its :class:`Standard`.
        provenance: where it comes from.
    """
    folder.mkdir(parents=True, exist_ok=True)
    alone = len(members) == 1
    data = safetensors.torch.save(
        {
            key if alone else f"{place}.{key}": value.contiguous()
            for place, (_, tensors) in enumerate(members)
            for key, value in tensors.items()
        }
    )
    write_atomically(folder / _TENSORS, data)
    manifest = Manifest(
        name=name,
        members=tuple(member for member, _ in members),
        combine="single" if alone else "mean",
        tensors_sha256=hashlib.sha256(data).hexdigest(),
        provenance=provenance,
    )
    write_manifest(folder, manifest)
    return manifest


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest, and the model card that says the same in words."""
    write_atomically(folder / _MANIFEST, manifest.model_dump_json(indent=2).encode())
    write_atomically(folder / _CARD, model_card(manifest).encode())


def read_manifest(folder: Path) -> Manifest:
    """The manifest in ``folder``.

    Raises:
        ArtifactError: there is none, it is damaged, or it was written by a newer autoad.
    """
    try:
        text = (folder / _MANIFEST).read_bytes()
    except OSError as error:
        raise ArtifactError(f"{str(folder)!r} is not a saved model: it has no readable {_MANIFEST}") from error
    try:
        manifest = Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ArtifactError(
            f"{str(folder / _MANIFEST)!r} is damaged or was written by another version of autoad "
            f"(at {where}: {first['msg']}); copy the model again from where it was saved"
        ) from error
    if manifest.schema_version > SCHEMA_VERSION:
        raise ArtifactError(
            f"{str(folder)!r} has schema version {manifest.schema_version} but this autoad reads up to "
            f"{SCHEMA_VERSION}; update autoad"
        )
    return manifest


def load_tensors(folder: Path, manifest: Manifest) -> list[dict[str, Tensor]]:
    """Each member's tensors, after checking that they are the ones that the manifest was written for.

    Raises:
        ArtifactError: the file is missing, damaged or another model's.
    """
    path = folder / _TENSORS
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"the saved model {str(folder)!r} has no readable {_TENSORS}") from error
    if hashlib.sha256(data).hexdigest() != manifest.tensors_sha256:
        raise ArtifactError(
            f"{str(path)!r} is damaged: its sha256 is not the one in {_MANIFEST}; "
            "copy the model again from where it was saved"
        )
    tensors: dict[str, Tensor] = safetensors.torch.load(data)
    if manifest.combine == "single":
        return [tensors]
    found: list[dict[str, Tensor]] = [{} for _ in manifest.members]
    for key, value in tensors.items():
        place, _, own = key.partition(".")
        found[int(place)][own] = value
    return found


def _three_digits(value: float | None) -> str:
    return "not computable" if value is None else f"{value:.3f}"


def model_card(manifest: Manifest) -> str:
    """The model in words (Markdown)."""
    source = manifest.provenance
    trials = ", ".join(map(str, source.trials))
    lines = [
        f"# {manifest.name}",
        "",
        f"An anomaly detector chosen by autoad {source.code_version} (search {source.search}, "
        f"trial{'s' if source.members else ''} {trials}).",
        "",
    ]
    if manifest.combine == "mean":
        lines += [
            f"- ensemble: the mean of {len(manifest.members)} detectors' answers, each in units of what it says of "
            "good pictures",
        ]
    for member in manifest.members:
        lines += [
            f"- algorithm: {member.algorithm} ({member.kind}), pictures resized to "
            f"{member.image_size[0]} x {member.image_size[1]}",
            f"- config: {', '.join(f'{key} {value}' for key, value in member.config.items())}",
        ]
        if member.backbone is not None:
            backbone = member.backbone
            lines.append(
                f"- backbone: {backbone.name}, weights {backbone.weights_sha256[:12]} ({backbone.weights_source}), "
                f"run by {backbone.engine} in {backbone.precision}"
            )
    counts = ", ".join(f"{count} {name}" for name, count in source.dataset_counts.items())
    lines += [f"- dataset: {source.dataset_hash[:12]} ({counts})", f"- evidence: {source.evidence}"]
    if manifest.calibration is not None:
        lines += [f"- {title}: {text}" for title, text in manifest.calibration.facts.items()]
    if manifest.metrics is not None:
        lines += ["", "| | image AUROC | pixel AUROC | AUPRO |", "|---|---|---|---|"]
        rows: list[tuple[str, Metrics | None]] = [
            ("selection", manifest.metrics.validation),
            ("test", manifest.metrics.test),
            ("default PatchCore, test", manifest.metrics.default_patchcore),
        ]
        for title, metrics in rows:
            if metrics is not None:
                cells = (metrics.image_auroc, metrics.pixel_auroc, metrics.aupro)
                lines.append(f"| {title} | {' | '.join(_three_digits(cell) for cell in cells)} |")
    return "\n".join(lines) + "\n"
