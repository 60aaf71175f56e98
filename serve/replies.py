"""What the data plane replies."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from autoad.evaluation import normalize_scores
from autoad.models import Calibration, Score
from autoad.schema import MapFormat, PictureReply, ScoreReply, TimingReply
from autoad.serve.scorer import Answer

__all__ = ["make_reply"]


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
