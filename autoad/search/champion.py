"""From the best trial to a finished model: refit, calibrate, and one look at the test pictures.

The order matters. The detector is fitted on train pictures and selection normals and saved; that saved model is loaded
and calibrated on normals used for neither; from then on nothing changes, and the test pictures are scored once.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

import autoad
from autoad.algorithms import Prediction
from autoad.data import Dataset, Picture, Roles, load_mask
from autoad.errors import ArtifactError, TrialError, is_full
from autoad.evaluation import (
    PixelIntervals,
    bootstrap_interval,
    bootstrap_pixel_interval,
    by_defect,
    compute_metrics,
    known_pixels,
    paired_difference,
)
from autoad.models import (
    ArtifactMetrics,
    Model,
    Provenance,
    Standard,
    read_manifest,
    write_manifest,
)
from autoad.models.parity import choose_parity, write_parity
from autoad.models.registry import Registry
from autoad.models.speed import measure_speed
from autoad.schema import (
    Champion,
    ChampionMember,
    Difference,
    Evidence,
    Metrics,
    ModelVersionEntry,
    Speed,
    TestMetrics,
    ThresholdMethod,
    TrialRow,
)
from autoad.search.candidate import Candidate
from autoad.search.choice import Limits
from autoad.search.ensemble import standardize
from autoad.search.final_scores import FinalScore, write_final_scores
from autoad.search.fitting import fit_model
from autoad.search.sweep import EVALUATION_SIZE, evaluation_maps
from autoad.search.trial import TrialTask

__all__ = ["Finisher", "RefitError"]

_DEFAULT_PATCHCORE = "patchcore"
_SPEED_PICTURES = 32


class RefitError(TrialError):
    """A trial that succeeded gives no model that can be used: it cannot be fitted again, or costs too much."""


_Scores = np.ndarray[Any, np.dtype[np.float64]]


@dataclasses.dataclass(frozen=True)
class _Tested:
    """A calibrated model's answers.

    Attributes:
        metrics: on the test role.
        scores: of the test pictures.
        calibration: scores of the calibration pictures.
        threshold: what that calibration made of them.
    """

    metrics: TestMetrics
    scores: _Scores
    calibration: _Scores
    threshold: float


def _test(model: Model, calibration_scores: _Scores, pictures: Sequence[Picture], seed: int) -> _Tested:
    """Score the test role through the calibrated model and measure it."""
    calibration = model.manifest.calibration
    if calibration is None:
        raise ArtifactError(f"the model {model.name!r} must be calibrated before it is tested")
    scores, maps = [], []
    for score in model.score_many(picture.read() for picture in pictures):
        scores.append(score.score)
        if score.anomaly_map is not None:
            maps.append(torch.from_numpy(score.anomaly_map))
    values = np.asarray(scores, dtype=np.float64)
    labels = np.array([not picture.is_normal for picture in pictures])
    masks = [load_mask(picture, EVALUATION_SIZE) for picture in pictures]
    stacked = evaluation_maps(Prediction(torch.from_numpy(values), torch.stack(maps))) if maps else None
    metrics = compute_metrics(values, labels, stacked, masks)
    image = bootstrap_interval(values, labels, seed=seed) or (None, None)
    known = known_pixels(stacked, masks)
    pixel = PixelIntervals() if known is None else bootstrap_pixel_interval(*known, seed=seed)
    normal = values[~labels]
    return _Tested(
        TestMetrics(
            **metrics.model_dump(),
            image_auroc_low=image[0],
            image_auroc_high=image[1],
            pixel_auroc_low=pixel.pixel_auroc and pixel.pixel_auroc[0],
            pixel_auroc_high=pixel.pixel_auroc and pixel.pixel_auroc[1],
            aupro_low=pixel.aupro and pixel.aupro[0],
            aupro_high=pixel.aupro and pixel.aupro[1],
            false_positive_rate=float((normal > calibration.threshold).mean()) if len(normal) else None,
            by_defect=by_defect(values, [picture.label for picture in pictures], stacked, masks),
        ),
        values,
        calibration_scores,
        calibration.threshold,
    )


def _final_scores(name: Literal["champion", "default_patchcore"], tested: _Tested, roles: Roles) -> list[FinalScore]:
    """A model's answers as rows of the table that is kept."""
    answers: tuple[tuple[Literal["calibration", "test"], Sequence[Picture], _Scores], ...] = (
        ("calibration", roles.calibration, tested.calibration),
        ("test", roles.test, tested.scores),
    )
    return [
        FinalScore(
            name, role, str(picture.path), picture.sha256, picture.label, float(score), bool(score > tested.threshold)
        )
        for role, pictures, scores in answers
        for picture, score in zip(pictures, scores, strict=True)
    ]


@dataclasses.dataclass(frozen=True)
class Finisher:
    """Makes a candidate into a finished model: refits, saves, calibrates and tests it, beside the default PatchCore.

    Attributes:
        task: what the trials shared, with the selection pictures that ranked them.
        roles: the dataset's roles; the test role is used here and nowhere else in a search.
        dataset: for the record.
        name: of the model whose next version it becomes.
        search: id of the search.
        evidence: what the trials were ranked by.
        threshold: how the threshold is found; ``f1-max`` by the selection's labelled defects.
        rate: false-positive rate that a conformal threshold guarantees.
        limits: that the finished model must keep to.
        registry: where the model goes.
        scratch_dir: folder in which it is made, on the disk of the registry's.
        scores_file: where the calibration and test scores of both models go.
        default_config: PatchCore's defaults.
        threads: CPU threads for refitting and scoring.
        say: told what happens.
        note: told what should be kept with the result.
    """

    task: TrialTask
    roles: Roles
    dataset: Dataset
    name: str
    search: str
    evidence: Evidence
    threshold: ThresholdMethod
    rate: float
    limits: Limits
    registry: Registry
    scratch_dir: Path
    scores_file: Path
    default_config: dict[str, Any]
    threads: int
    say: Callable[[str], None]
    note: Callable[[str], None]

    def finish(self, candidate: Candidate) -> Champion:
        """The finished model, as the next version of its name.

        One that this search has already made of the same candidate is taken as it is: its process was killed between
        registering it and the last word to the database.

        Raises:
            RefitError: a trial's configuration does not work on these pictures, or the model exceeds the limits; the
                test pictures have not been looked at then.
        """
        made = self.registry.made_of(self.search, candidate.trials, self.name)
        if made is not None:
            self.say(f"{candidate} has already been finished as {self.name}/{made.version}")
            return _champion(candidate, made, self.registry.open(self.name, made.version))
        scratch = self.scratch_dir / f".{self.search}-{time.time_ns()}"
        folder = scratch / "champion"
        try:
            model, validation = self._fit(candidate, folder)
            model, calibrated = self._calibrate(model)
            write_manifest(folder, model.manifest)
            speed = self._measure_speed(candidate, folder)
            self.say("recording what it says of pictures that whoever deploys it can compare with")
            write_parity(folder, model, choose_parity(self.roles.selection, self.roles.calibration))
            self.say(f"testing on {len(self.roles.test)} pictures that the search never saw")
            champion = _test(model, calibrated, self.roles.test, self.task.seed)
            default = champion if self._is_default(candidate) else self._test_default(scratch / "default")
            metrics = ArtifactMetrics(
                validation=validation,
                test=champion.metrics,
                default_patchcore=default.metrics if default else None,
                difference=self._difference(champion, default) if default else None,
                speed=speed,
            )
            write_manifest(folder, model.manifest.model_copy(update={"metrics": metrics}))
            kept = _final_scores("champion", champion, self.roles)
            if default:
                kept += _final_scores("default_patchcore", default, self.roles)
            write_final_scores(self.scores_file, kept)
            made = self.registry.register(folder, self.name)
            return _champion(candidate, made, self.registry.open(self.name, made.version))
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    @property
    def _normals(self) -> tuple[Picture, ...]:
        """What the finished model is fitted on."""
        selection = self.roles.selection
        return (*self.roles.train, *(picture for picture in selection if picture.is_normal and not picture.synthetic))

    @functools.cached_property
    def _calibration(self) -> list[bytes]:
        """The calibration pictures, which champion and default are both calibrated on."""
        return [picture.read() for picture in self.roles.calibration]

    def _provenance(self, candidate: Candidate) -> Provenance:
        return Provenance(
            code_version=autoad.__version__,
            search=self.search,
            trial=candidate.trial,
            members=candidate.trials if candidate.is_ensemble else (),
            dataset_hash=self.dataset.hash,
            dataset_counts=self.dataset.counts(),
            evidence=self.evidence,
        )

    def _fit(self, candidate: Candidate, folder: Path) -> tuple[Model, Metrics]:
        """The refitted model, not calibrated, and how good the candidate was on the selection pictures."""
        normals = self._normals
        self.say(f"refitting {candidate} on {len(normals)} good pictures")
        standards: list[Standard] = []
        validation = candidate.rows[0].validation
        try:
            if candidate.is_ensemble:
                standards, validation = standardize(candidate, self.task, threads=self.threads)
            model = fit_model(
                folder,
                self.name,
                candidate,
                self.task,
                normals,
                self._provenance(candidate),
                threads=self.threads,
                standards=standards,
            )
        except Exception as error:
            if is_full(error):  # every other trial would meet the same disk
                raise
            raise RefitError(f"{candidate} could not be refitted: {error}") from error
        return model, validation

    def _calibrate(self, model: Model) -> tuple[Model, _Scores]:
        """The calibrated model and its scores of the calibration pictures."""
        defects = None
        if self.threshold == "f1-max":
            defects = [picture for picture in self.roles.selection if not picture.is_normal and not picture.synthetic]
        model, _, scores = model.calibrate(self._calibration, self.rate, defects)
        return model, scores

    def _measure_speed(self, candidate: Candidate, folder: Path) -> Speed | None:
        """Its speed, which must keep to the limits; None if it cannot be measured and need not be."""
        self.say("measuring its speed")
        pictures = [picture.path for picture in self.roles.calibration][:_SPEED_PICTURES]
        try:
            speed = measure_speed(folder, pictures, threads=self.threads)
        except ArtifactError as error:
            if self.limits != Limits():
                raise RefitError(f"{candidate} cannot be held against {self.limits}: {error}") from error
            self.note(str(error))
            return None
        refusal = self.limits.refusal(latency_ms=speed.latency_ms, memory_mb=speed.peak_memory_mb)
        if refusal:
            raise RefitError(f"{candidate} is no champion: it {refusal}")
        return speed

    def _is_default(self, candidate: Candidate) -> bool:
        """Whether it is the untuned default PatchCore itself."""
        default = json.loads(json.dumps(self.default_config))
        return candidate.algorithm == _DEFAULT_PATCHCORE and candidate.rows[0].config == default

    def _test_default(self, folder: Path) -> _Tested | None:
        """The untuned default PatchCore on the same pictures; None if it cannot be fitted."""
        self.say("testing the untuned default PatchCore beside it")
        row = TrialRow(trial=-1, algorithm=_DEFAULT_PATCHCORE, config=self.default_config, status="complete")
        default = Candidate((row,))
        try:
            model = fit_model(
                folder,
                "default-patchcore",
                default,
                self.task,
                self._normals,
                self._provenance(default),
                threads=self.threads,
            )
            model, calibrated = self._calibrate(model)
            return _test(model, calibrated, self.roles.test, self.task.seed)
        except (TrialError, MemoryError, RuntimeError) as error:
            self.note(f"the default PatchCore could not be fitted to compare with: {error}")
            return None

    def _difference(self, champion: _Tested, default: _Tested) -> Difference | None:
        labels = np.array([not picture.is_normal for picture in self.roles.test])
        compared = paired_difference(champion.scores, default.scores, labels, seed=self.task.seed)
        if compared is None:
            return None
        return Difference(image_auroc=compared[0], low=compared[1], high=compared[2])


def _champion(candidate: Candidate, version: ModelVersionEntry, folder: Path) -> Champion:
    """What a search says of the version that it has made."""
    manifest = read_manifest(folder)
    calibration, metrics = manifest.calibration, manifest.metrics
    if calibration is None or metrics is None:
        raise ArtifactError(f"the model {str(folder)!r} must have been calibrated and tested; search again")
    return Champion(
        trial=candidate.trial,
        algorithm=candidate.algorithm,
        config=candidate.rows[0].config,
        members=[
            ChampionMember(trial=row.trial, algorithm=row.algorithm, config=row.config)
            for row in candidate.rows
            if candidate.is_ensemble
        ],
        validation=metrics.validation,
        test=metrics.test,
        default_patchcore=metrics.default_patchcore,
        difference=metrics.difference,
        threshold=calibration.threshold,
        threshold_method=calibration.method,
        false_positive_rate=calibration.rate,
        false_positive_rate_upper=calibration.rate_upper,
        smallest_false_positive_rate=calibration.smallest_rate,
        pixel_threshold_method=calibration.pixel_method,
        pixel_false_positive_rate=calibration.pixel_rate,
        pixel_false_positive_rate_upper=calibration.pixel_rate_upper,
        speed=metrics.speed,
        model=str(folder),
        name=version.name,
        version=version.version,
    )
