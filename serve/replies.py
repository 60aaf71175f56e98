"""What the data plane replies."""

from __future__ import annotations

import base64
import io
from typing import Literal

import numpy as np
from PIL import Image
from pydantic import BaseModel

from autoad.evaluation import normalize_scores
from autoad.models import Calibration, Score
from autoad.schema import Region
from autoad.serve.scorer import Answer

__all__ = ["MapFormat", "PictureReply", "ScoreReply", "TimingReply", "make_reply"]

MapFormat = Literal["none", "png", "npy"]


class PictureReply(BaseModel):
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


class TimingReply(BaseModel):
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


class ScoreReply(BaseModel):
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


def make_reply(
    answer: Answer, name: str, replica: str, request_id: str, wanted: MapFormat, read: float, total: float
) -> bytes:
    """The reply's JSON; encoding maps takes milliseconds."""
    timings = answer.timings
    reply = ScoreReply(
        model=name,
        version=answer.version,
        replica=replica,
        request_id=request_id,
        pictures=[_picture(score, answer.calibration, wanted) for score in answer.scores],
        timing_ms=TimingReply(
            read=round(read, 3),
            decode=round(max(one.decode for one in timings), 3),
            queue=round(max(one.queue for one in timings), 3),
            forward=round(max(one.forward for one in timings), 3),
            head=round(max(one.head for one in timings), 3),
            total=round(total, 3),
        ),
    )
    return reply.model_dump_json().encode()


def _picture(score: Score, calibration: Calibration, wanted: MapFormat) -> PictureReply:
    return PictureReply(
        score=score.score,
        normalized_score=score.normalized_score,
        is_anomalous=score.is_anomalous,
        regions=score.regions,
        map=_encode(score, calibration, wanted),
    )


def _encode(score: Score, calibration: Calibration, wanted: MapFormat) -> str | None:
    if wanted == "none" or score.anomaly_map is None:
        return None
    buffer = io.BytesIO()
    if wanted == "npy":
        np.save(buffer, score.anomaly_map, allow_pickle=False)
    else:
        if calibration.pixel_threshold is None or calibration.pixel_scale is None:
            return None
        normalized = normalize_scores(score.anomaly_map, calibration.pixel_threshold, calibration.pixel_scale)
        Image.fromarray((255 * normalized).astype(np.uint8)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()
