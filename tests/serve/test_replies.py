from __future__ import annotations

import base64
import io
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from autoad.models import Calibration, Score
from autoad.schema import Region
from autoad.serve.batching import Timing
from autoad.serve.replies import ScoreReply, make_reply
from autoad.serve.scorer import Answer

CALIBRATION = Calibration(threshold=10.0, rate=0.1, pictures=20, scale=2.0, pixel_threshold=4.0, pixel_scale=0.5)
MAP = np.random.default_rng(0).normal(4, 2, (24, 32)).astype(np.float32)
REGION = Region(x=1, y=2, width=3, height=4, area=7, score=9.5)
SCORES = [Score(12.5, 0.75, True, MAP, [REGION]), Score(1.0, 0.1, False, None, None)]


def reply(wanted: Any, *, scores: list[Score] = SCORES, calibration: Calibration = CALIBRATION) -> dict[str, Any]:
    timings = [Timing(decode=1.23456, queue=0.1, forward=5.0, head=2.0), Timing(decode=0.5, queue=9.0, forward=1.0)]
    body = make_reply(Answer(3, scores, timings, calibration), "gravel", "r1", "line-1", wanted, 0.25, 12.3456)
    ScoreReply.model_validate_json(body)
    parsed: dict[str, Any] = json.loads(body)
    return parsed


def test_the_reply_says_who_answered_and_where_the_time_went() -> None:
    found = reply("none")
    assert {key: found[key] for key in ("model", "version", "replica", "request_id")} == {
        "model": "gravel",
        "version": 3,
        "replica": "r1",
        "request_id": "line-1",
    }
    assert found["timing_ms"] == {
        "read": 0.25,
        "decode": 1.235,
        "queue": 9.0,
        "forward": 5.0,
        "head": 2.0,
        "total": 12.346,
    }
    region = {"x": 1, "y": 2, "width": 3, "height": 4, "area": 7, "score": 9.5}
    assert found["pictures"] == [
        {"score": 12.5, "normalized_score": 0.75, "is_anomalous": True, "regions": [region], "map": None},
        {"score": 1.0, "normalized_score": 0.1, "is_anomalous": False, "regions": None, "map": None},
    ]


def test_a_score_comes_through_json_to_the_last_bit() -> None:
    values = [float(np.float32(0.1)), 1 / 3, 1e-300, 123456789.123456789]
    scores = [Score(value, value, False, None, None) for value in values]
    assert [one["score"] for one in reply("none", scores=scores)["pictures"]] == values


def test_npy_is_the_very_map() -> None:
    first, second = reply("npy")["pictures"]
    decoded = np.load(io.BytesIO(base64.b64decode(first["map"], validate=True)), allow_pickle=False)
    assert decoded.dtype == np.float32
    assert decoded.shape == MAP.shape
    assert decoded.tobytes() == MAP.tobytes()
    assert second["map"] is None


def test_png_has_its_middle_at_the_pixel_threshold() -> None:
    first, second = reply("png")["pictures"]
    image = Image.open(io.BytesIO(base64.b64decode(first["map"])))
    assert (image.format, image.mode, image.size) == ("PNG", "L", (32, 24))
    levels = np.asarray(image)
    assert second["map"] is None
    assert (levels[MAP <= 4.0] <= 127).all()
    assert (levels[MAP >= 4.05] >= 128).all()
    z = (MAP.astype(np.float64) - 4.0) / 0.5
    assert np.array_equal(levels, np.floor(255 * (1 + z / (1 + np.abs(z))) / 2))
    assert levels.min() < 20
    assert levels.max() > 235


@pytest.mark.parametrize("missing", [{"pixel_threshold": None}, {"pixel_scale": None}])
def test_without_a_pixel_threshold_there_is_no_png(missing: dict[str, Any]) -> None:
    calibration = CALIBRATION.model_copy(update=missing)
    assert reply("png", calibration=calibration)["pictures"][0]["map"] is None
    assert reply("npy", calibration=calibration)["pictures"][0]["map"] is not None
