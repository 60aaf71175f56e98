"""From the best trial to a finished model: refit, calibrate, and one look at the test pictures.

The order matters. The detector is fitted on train pictures and selection normals and saved; that saved model is loaded
and calibrated on normals used for neither; from then on nothing changes, and the test pictures are scored once.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

import autoad
from autoad.algorithms import Detector, Prediction
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
from autoad.features import EngineChoice, find_weights
from autoad.models import (
    ArtifactMetrics,
    Backbone,
    Manifest,
    Member,
    Model,
    Provenance,
    Standard,
    read_manifest,
    save_model,
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
    ModelVersionEntry,
    TestMetrics,
    ThresholdMethod,
    TrialRow,
)
from autoad.search.candidate import Candidate
from autoad.search.choice import Limits
from autoad.search.ensemble import standardize
from autoad.search.final_scores import FinalScore, write_final_scores
from autoad.search.sweep import EVALUATION_SIZE, evaluation_maps
from autoad.search.trial import TrialTask, fit_trial

__all__ = ["RefitError", "finish_champion", "fit_model", "save_detectors"]

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


def fit_model(
    folder: Path,
    name: str,
    candidate: Candidate,
    task: TrialTask,
    pictures: Sequence[Picture],
    provenance: Provenance,
    *,
    threads: int,
    standards: Sequence[Standard] = (),
) -> Model:
    """Fit a candidate's trials on ``pictures``, save them as one model in ``folder`` and load it from there.

    Args:
        folder: of the model.
        name: of the model.
        candidate: one trial, or an ensemble.
        task: what the trials shared.
        pictures: good ones.
        provenance: where it comes from.
        threads: CPU threads.
        standards: of an ensemble, one for each trial.
    """
    detectors = [fit_trial(row, task, pictures, threads=threads) for row in candidate.rows]
    save_detectors(folder, name, detectors, task.engine, provenance, standards=standards)
    return Model.load(folder, threads=threads)


def save_detectors(
    folder: Path,
    name: str,
    detectors: Sequence[Detector],
    engine: EngineChoice,
    provenance: Provenance,
    *,
    standards: Sequence[Standard] = (),
) -> Manifest:
    """Save fitted detectors as one model, with all that scoring by it takes, not calibrated yet.

    Args:
        folder: of the model.
        name: of the model.
        detectors: that were fitted.
        engine: which ran the backbones over the pictures that they were fitted on.
        provenance: where it comes from.
        standards: of several detectors, one for each.
    """
    units: Sequence[Standard | None] = standards or [None] * len(detectors)
    members = [
        (_member(detector, engine, standard), detector.tensors())
        for detector, standard in zip(detectors, units, strict=True)
    ]
    return save_model(folder, name, members, provenance)


def _member(detector: Detector, engine: EngineChoice, standard: Standard | None) -> Member:
    needs, backbone = detector.needs, None
    if needs.backbone is not None:
        weights = find_weights(needs.backbone)
        backbone = Backbone(
            name=needs.backbone,
            stages=needs.stages,
            weights_source=weights.source,
            weights_sha256=weights.sha256,
            mean=weights.mean,
            std=weights.std,
            engine=engine.name,
            precision=engine.precision,
        )
    return Member(
        algorithm=detector.name,
        kind=detector.kind,
        config=dataclasses.asdict(detector.config),
        seed=detector.seed,
        image_size=needs.image_size,
        device="cuda" if detector.runtime.device.startswith("cuda") else "cpu",
        precision=detector.runtime.precision,
        backbone=backbone,
        standard=standard,
    )


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


def finish_champion(
    candidate: Candidate,
    task: TrialTask,
    roles: Roles,
    dataset: Dataset,
    *,
    name: str,
    search: str,
    evidence: Evidence,
    threshold: ThresholdMethod,
    rate: float,
    limits: Limits,
    registry: Registry,
    scratch_dir: Path,
    scores_file: Path,
    default_config: dict[str, Any],
    threads: int,
    say: Callable[[str], None],
    note: Callable[[str], None],
) -> Champion:
    """Refit, save, calibrate and test the best trial or ensemble, beside the untuned default PatchCore.

    The finished model becomes the next version of ``name``. One that this search has already made of the same is taken
    as it is: its process was killed between registering it and the last word to the database.

    Args:
        candidate: what won.
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

    Raises:
        RefitError: a trial's configuration does not work on these pictures, or the model exceeds the limits; the test
            pictures have not been looked at then.
    """
    made = registry.made_of(search, candidate.trials, name)
    if made is not None:
        say(f"{candidate} has already been finished as {name}/{made.version}")
        return _champion(candidate, made, registry.open(name, made.version))
    provenance = Provenance(
        code_version=autoad.__version__,
        search=search,
        trial=candidate.trial,
        members=candidate.trials if candidate.is_ensemble else (),
        dataset_hash=dataset.hash,
        dataset_counts=dataset.counts(),
        evidence=evidence,
    )
    normals = (*roles.train, *(picture for picture in roles.selection if picture.is_normal and not picture.synthetic))
    calibration = [picture.read() for picture in roles.calibration]
    defects = None
    if threshold == "f1-max":
        defects = [picture for picture in roles.selection if not picture.is_normal and not picture.synthetic]
    scratch = scratch_dir / f".{search}-{time.time_ns()}"
    try:
        say(f"refitting {candidate} on {len(normals)} good pictures")
        standards: list[Standard] = []
        validation = candidate.rows[0].validation
        try:
            if candidate.is_ensemble:
                standards, validation = standardize(candidate, task, threads=threads)
            model = fit_model(
                scratch / "champion", name, candidate, task, normals, provenance, threads=threads, standards=standards
            )
        except Exception as error:
            if is_full(error):  # every other trial would meet the same disk
                raise
            raise RefitError(f"{candidate} could not be refitted: {error}") from error
        model, _, scores = model.calibrate(calibration, rate, defects)
        write_manifest(scratch / "champion", model.manifest)
        say("measuring its speed")
        speed = None
        try:
            speed = measure_speed(
                scratch / "champion", [picture.path for picture in roles.calibration][:_SPEED_PICTURES], threads=threads
            )
        except ArtifactError as error:
            if limits != Limits():
                raise RefitError(f"{candidate} cannot be held against {limits}: {error}") from error
            note(str(error))
        else:
            refusal = limits.refusal(latency_ms=speed.latency_ms, memory_mb=speed.peak_memory_mb)
            if refusal:
                raise RefitError(f"{candidate} is no champion: it {refusal}")
        say("recording what it says of pictures that whoever deploys it can compare with")
        write_parity(scratch / "champion", model, choose_parity(roles.selection, roles.calibration))
        say(f"testing on {len(roles.test)} pictures that the search never saw")
        champion = _test(model, scores, roles.test, task.seed)
        default: _Tested | None = champion
        config = candidate.rows[0].config
        if candidate.algorithm != _DEFAULT_PATCHCORE or config != json.loads(json.dumps(default_config)):
            say("testing the untuned default PatchCore beside it")
            default_row = TrialRow(trial=-1, algorithm=_DEFAULT_PATCHCORE, config=default_config, status="complete")
            try:
                reference = fit_model(
                    scratch / "default",
                    "default-patchcore",
                    Candidate((default_row,)),
                    task,
                    normals,
                    provenance,
                    threads=threads,
                )
                reference, _, scores = reference.calibrate(calibration, rate, defects)
                default = _test(reference, scores, roles.test, task.seed)
            except (TrialError, MemoryError, RuntimeError) as error:
                default = None
                note(f"the default PatchCore could not be fitted to compare with: {error}")
        labels = np.array([not picture.is_normal for picture in roles.test])
        difference = None
        if default and (compared := paired_difference(champion.scores, default.scores, labels, seed=task.seed)):
            difference = Difference(image_auroc=compared[0], low=compared[1], high=compared[2])
        metrics = ArtifactMetrics(
            validation=validation,
            test=champion.metrics,
            default_patchcore=default.metrics if default else None,
            difference=difference,
            speed=speed,
        )
        manifest = model.manifest.model_copy(update={"metrics": metrics})
        write_manifest(scratch / "champion", manifest)
        kept = _final_scores("champion", champion, roles)
        write_final_scores(scores_file, kept + (_final_scores("default_patchcore", default, roles) if default else []))
        made = registry.register(scratch / "champion", name)
        return _champion(candidate, made, registry.open(name, made.version))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


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
