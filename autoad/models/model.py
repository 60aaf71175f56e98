"""The one scoring path: from a picture's bytes to its verdict."""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Self, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from autoad.algorithms import Detector, Inputs, Runtime, get_algorithm, upsample
from autoad.data import Picture, decode_image, load_mask, resize_image
from autoad.errors import ArtifactError, UnreadableImageError, UsageError
from autoad.evaluation import (
    BestF1,
    Threshold,
    conformal_threshold,
    find_regions,
    measured_threshold,
    normalize_scores,
    score_scale,
)
from autoad.features import EnginePool, SharedEngine, as_tensors, find_weights
from autoad.models.artifact import Calibration, Manifest, Member, Standard, load_tensors, read_manifest
from autoad.schema import Region

__all__ = ["Answer", "Model", "Part", "Score"]

Answer: TypeAlias = tuple[float, npt.NDArray[np.float32] | None]
"""Raw score and anomaly map ``[H, W]`` of one picture, before calibration; None for algorithms without a map."""

_CHUNK = 8


@dataclasses.dataclass(frozen=True)
class Score:
    """What a model says of one picture.

    Attributes:
        score: raw score; higher is more anomalous.
        normalized_score: in [0, 1], increasing with the raw score, 0.5 at the threshold.
        is_anomalous: whether the raw score is greater than the threshold.
        anomaly_map: ``[H, W]`` float32 at the model's image size; None for algorithms without a map.
        regions: connected parts of the map above the pixel threshold, in pixels of the original picture, most
            anomalous first; None without a map.
    """

    score: float
    normalized_score: float
    is_anomalous: bool
    anomaly_map: npt.NDArray[np.float32] | None
    regions: list[Region] | None


@dataclasses.dataclass(frozen=True)
class Part:
    """A member at work.

    Attributes:
        detector: fitted.
        engine: what runs the backbone; other models may hold the same one. None for algorithms on pixels.
    """

    detector: Detector
    engine: SharedEngine | None

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the pictures that it takes."""
        return self.detector.needs.image_size

    def measure(self, pixels: npt.NDArray[np.uint8], features: Mapping[int, npt.NDArray[np.float32]]) -> Answer:
        """What the detector says of one picture.

        The engine may have run several pictures at once, of several models (its features do not depend on the batch);
        the detector takes one at a time, so that a score is the same to the last bit whatever was asked along with it.

        Args:
            pixels: ``[H, W, 3]``, at its image size.
            features: by stage, ``[h, w, C]``; stages that the member does not need are ignored.
        """
        needs = self.detector.needs
        wanted = {stage: features[stage][None] for stage in needs.stages} if needs.backbone is not None else {}
        inputs = Inputs(needs.image_size, as_tensors(wanted), torch.from_numpy(pixels[None]))
        prediction = self.detector.predict(inputs)
        anomaly_map = None if prediction.maps is None else prediction.maps[0].cpu().numpy()
        return float(prediction.scores[0]), anomaly_map


class Model:
    """A saved model, ready to score.

    Decoding, resizing, the backbone's engine, the detector with its smoothing, and calibration all happen here and
    nowhere else: what is evaluated, reported and served is what this class computes, one picture at a time.

    Args:
        manifest: what was saved.
        parts: its members at work, in the manifest's order.
    """

    def __init__(self, manifest: Manifest, parts: Sequence[Part]) -> None:
        self.manifest = manifest
        self.parts = tuple(parts)

    @classmethod
    def load(cls, folder: Path, *, threads: int | None = None, engines: EnginePool | None = None) -> Self:
        """Load a model from its folder.

        Args:
            folder: where it was saved.
            threads: CPU threads of the backbone's engine and of compiled networks; None for all.
            engines: where models that use the same backbone in the same way share one engine; it decides the threads.

        Raises:
            ArtifactError: the folder is no saved model, is damaged, or was evaluated with weights, an engine or a
                device that this machine does not have.
            WeightsError: the backbone's weights cannot be reached.
        """
        manifest = read_manifest(folder)
        tensors = load_tensors(folder, manifest)
        pool = EnginePool(threads=threads) if engines is None else engines
        return cls(manifest, [_load_part(folder, *one, pool) for one in zip(manifest.members, tensors, strict=True)])

    @property
    def name(self) -> str:
        """The model's name."""
        return self.manifest.name

    @property
    def compiles(self) -> bool:
        """Whether a part has networks that are compiled, which take as much memory as its tensors once more."""
        return any(part.detector.compiles for part in self.parts)

    def with_manifest(self, manifest: Manifest) -> Self:
        """The same detectors under another manifest (another calibration)."""
        return type(self)(manifest, self.parts)

    def prepare(self, image: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.uint8], ...]:
        """A decoded picture ``[H, W, 3]`` at the image size of each part."""
        sizes = {part.image_size for part in self.parts}
        resized = {size: resize_image(image, size) for size in sizes}
        return tuple(resized[part.image_size] for part in self.parts)

    def combine(self, answers: Sequence[Answer]) -> Answer:
        """The model's answer from its members', in their order.

        The only member's is taken as it is. Several are averaged in units of their :class:`autoad.models.Standard`;
        maps, of the members that have one, at the size of the largest.
        """
        if self.manifest.combine == "single":
            return answers[0]
        return _average(answers, [member.standard for member in self.manifest.members if member.standard])

    def judge(self, answer: Answer, size: tuple[int, int]) -> Score:
        """What calibration makes of a raw answer; ``size`` is the original picture's height and width.

        Raises:
            ArtifactError: the model was saved but never calibrated, or the score is no finite number: a verdict on it
                would be "normal".
        """
        score, anomaly_map = answer
        calibration = self.manifest.calibration
        if calibration is None:
            raise ArtifactError(f"the model {self.name!r} was never calibrated; search again to get a finished one")
        if not math.isfinite(score):
            raise ArtifactError(f"the model {self.name!r} gives the score {score} to a picture; promote another one")
        regions = None
        if anomaly_map is not None and calibration.pixel_threshold is not None:
            regions = find_regions(anomaly_map, calibration.pixel_threshold, size)
        return Score(
            score=score,
            normalized_score=float(normalize_scores(np.float64(score), calibration.threshold, calibration.scale)),
            is_anomalous=score > calibration.threshold,
            anomaly_map=anomaly_map,
            regions=regions,
        )

    def predict(self, images: Sequence[npt.NDArray[np.uint8]]) -> list[Answer]:
        """Raw score and anomaly map of decoded pictures ``[H, W, 3]``, before calibration."""
        prepared = [self.prepare(image) for image in images]
        seen: dict[tuple[int, tuple[int, int]], Mapping[int, npt.NDArray[np.float32]]] = {}
        answers: list[list[Answer]] = [[] for _ in images]
        for place, part in enumerate(self.parts):
            key = id(part.engine), part.image_size
            if part.engine is not None and key not in seen:
                seen[key] = part.engine(np.stack([pixels[place] for pixels in prepared]))
            features = seen.get(key, {})
            for index, pixels in enumerate(prepared):
                own = {stage: maps[index] for stage, maps in features.items()}
                answers[index].append(part.measure(pixels[place], own))
        return [self.combine(its) for its in answers]

    def calibrate(
        self, pictures: Sequence[bytes], rate: float, defects: Sequence[Picture] | None = None
    ) -> tuple[Self, Calibration, npt.NDArray[np.float64]]:
        """Learn the thresholds from normal pictures that the model was not fitted on.

        Args:
            pictures: encoded normal pictures.
            rate: false-positive rate that conformal thresholds guarantee.
            defects: None for conformal thresholds; or defective pictures, for those of the best F1 between them and
                ``pictures``. The pixel threshold stays conformal where no mask marks anything.

        Returns:
            The model with its calibration, that calibration, and the pictures' raw scores ``[N]``.

        Raises:
            CalibrationError: so small a rate needs more pictures, or there is no defective picture.
        """
        image_f1, pixel_f1 = (None, None) if defects is None else self._count_defects(defects)
        scores, peaks = [], []
        for _, (score, anomaly_map) in self._answers(pictures):
            scores.append(score)
            if image_f1 is not None:
                image_f1.add([score])
            if anomaly_map is not None:
                peaks.append(float(anomaly_map.max()))
                if pixel_f1 is not None:
                    pixel_f1.add(anomaly_map.ravel())
        image = _threshold(scores, rate, image_f1)
        pixel = _threshold(peaks, rate, pixel_f1) if peaks else None
        calibration = Calibration(
            threshold=image.value,
            rate=image.rate,
            pictures=image.n,
            scale=score_scale(scores),
            pixel_threshold=None if pixel is None else pixel.value,
            pixel_scale=None if pixel is None else score_scale(peaks),
            method="conformal" if image_f1 is None else "f1-max",
            rate_upper=image.rate_upper,
            pixel_method=None if pixel is None else "conformal" if pixel_f1 is None else "f1-max",
            pixel_rate=None if pixel is None else pixel.rate,
            pixel_rate_upper=None if pixel is None else pixel.rate_upper,
        )
        calibrated = self.with_manifest(self.manifest.model_copy(update={"calibration": calibration}))
        return calibrated, calibration, np.array(scores)

    def _count_defects(self, defects: Sequence[Picture]) -> tuple[BestF1, BestF1 | None]:
        """What is to be found by scores of pictures, and by pixels; None for these where none is marked."""
        scores: list[float] = []
        marked: list[npt.NDArray[np.float32]] = []
        clear: list[npt.NDArray[np.float32]] = []
        answers = self._answers(picture.read() for picture in defects)
        for picture, (_, (score, anomaly_map)) in zip(defects, answers, strict=True):
            scores.append(score)
            if anomaly_map is None:
                continue
            mask = load_mask(picture, (anomaly_map.shape[0], anomaly_map.shape[1]))
            if mask is not None:
                marked.append(anomaly_map[mask])
                clear.append(anomaly_map[~mask])
        pixels = None
        if any(len(part) for part in marked):
            pixels = BestF1(np.concatenate(marked))
            for part in clear:
                pixels.add(part)
        return BestF1(scores), pixels

    def score(self, data: bytes) -> Score:
        """Score one encoded picture.

        Raises:
            UnreadableImageError: the bytes are no picture.
            ArtifactError: the model was saved but never calibrated.
        """
        return next(self.score_many([data]))

    def score_many(self, pictures: Iterable[bytes]) -> Iterator[Score]:
        """Score encoded pictures in order, a few at a time; each gets exactly the score that it gets alone.

        Raises:
            UnreadableImageError: the bytes of one are no picture; those before it have been scored.
            ArtifactError: the model was saved but never calibrated.
        """
        for size, answer in self._answers(pictures):
            yield self.judge(answer, size)

    def _answers(self, pictures: Iterable[bytes]) -> Iterator[tuple[tuple[int, int], Answer]]:
        """Original size and raw answer of each picture; one chunk is decoded while the one before it is computed."""
        left = iter(pictures)
        pool = ThreadPoolExecutor(max_workers=2)
        waiting: deque[Future[npt.NDArray[np.uint8]]] = deque()
        failure: UnreadableImageError | None = None
        try:
            while failure is None:
                waiting.extend(
                    pool.submit(decode_image, data) for data in itertools.islice(left, 2 * _CHUNK - len(waiting))
                )
                chunk: list[npt.NDArray[np.uint8]] = []
                while waiting and len(chunk) < _CHUNK and failure is None:
                    try:
                        chunk.append(waiting.popleft().result())
                    except UnreadableImageError as error:
                        failure = error
                if chunk:
                    sizes = [(image.shape[0], image.shape[1]) for image in chunk]
                    yield from zip(sizes, self.predict(chunk), strict=True)
                elif failure is None:
                    return
            raise failure
        finally:
            pool.shutdown(cancel_futures=True)


def _average(answers: Sequence[Answer], standards: Sequence[Standard]) -> Answer:
    """The mean of several detectors' answers to one picture, each in units of its standard.

    Maps, of those that have one, are brought to the size of the largest, bilinearly.
    """
    score = statistics.fmean(
        (score - standard.center) / standard.spread for (score, _), standard in zip(answers, standards, strict=True)
    )
    maps = [
        (anomaly_map - np.float32(standard.map_center)) / np.float32(standard.map_spread)
        for (_, anomaly_map), standard in zip(answers, standards, strict=True)
        if anomaly_map is not None and standard.map_center is not None and standard.map_spread is not None
    ]
    if not maps:
        return score, None
    size = max((one.shape for one in maps), key=math.prod)
    total = np.zeros(size, dtype=np.float32)
    for one in maps:
        total += one if one.shape == size else upsample(torch.from_numpy(one[None]), (size[0], size[1]))[0].numpy()
    return score, total / np.float32(len(maps))


def _load_part(folder: Path, member: Member, tensors: dict[str, torch.Tensor], engines: EnginePool) -> Part:
    if member.device == "cuda" and not torch.cuda.is_available():
        raise ArtifactError(f"the model {str(folder)!r} was evaluated on a GPU and this machine has none")
    try:
        algorithm = get_algorithm(member.algorithm)
        config = algorithm.Config(**member.config)
        detector = algorithm(config, seed=member.seed, runtime=Runtime(member.device, member.precision))
        detector.load_tensors(tensors)
        if member.precision == "float32":  # what was evaluated in bfloat16, before networks were compiled, stays so
            detector.compile(threads=engines.threads, streams=engines.streams)
    except (TypeError, KeyError, UsageError, RuntimeError) as error:
        raise ArtifactError(
            f"the saved model {str(folder)!r} does not fit {member.algorithm} of this autoad ({error})"
        ) from error
    return Part(detector, _open_engine(folder, member, engines))


def _threshold(scores: Sequence[float], rate: float, best: BestF1 | None) -> Threshold:
    """Conformal, or that of the best F1."""
    return conformal_threshold(scores, rate) if best is None else measured_threshold(best.threshold, scores)


def _open_engine(folder: Path, member: Member, engines: EnginePool) -> SharedEngine | None:
    backbone = member.backbone
    if backbone is None:
        return None
    weights = find_weights(backbone.name)
    if weights.sha256 != backbone.weights_sha256:
        raise ArtifactError(
            f"the model {str(folder)!r} was evaluated with {backbone.name} weights {backbone.weights_sha256[:12]} but "
            f"this machine has {weights.sha256[:12]} ({weights.source}); "
            "put the right ones into the folder that AUTOAD_WEIGHTS_DIR names"
        )
    try:
        return engines.open(
            backbone.name, backbone.stages, member.image_size, engine=backbone.engine, precision=backbone.precision
        )
    except UsageError as error:
        raise ArtifactError(
            f"the model {str(folder)!r} was evaluated with {backbone.engine} in {backbone.precision}, which this "
            f"machine cannot run ({error})"
        ) from error
