"""What calibration makes of a model's scores, by a model whose scores are known."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from autoad.algorithms import Inputs, Prediction
from autoad.data import Picture
from autoad.errors import CalibrationError
from autoad.models import Calibration, Manifest, Model, read_manifest, write_manifest
from autoad.models.model import Part
from tests.models.registering import make_artifact

SIZE = (8, 8)
NORMALS = range(20, 120, 5)


class Brightest:
    """Scores a picture by its brightest red, and a pixel by its red."""

    needs = SimpleNamespace(image_size=SIZE, backbone=None, stages=())

    def __init__(self, *, maps: bool = True) -> None:
        self._maps = maps

    def predict(self, inputs: Inputs) -> Prediction:
        assert inputs.images is not None
        red = inputs.images[..., 0].float()
        return Prediction(red.amax((1, 2)), red if self._maps else None)


def model_of(folder: Path, *, maps: bool = True) -> Model:
    manifest = read_manifest(make_artifact(folder)).model_copy(update={"calibration": None})
    return Model(manifest, [Part(cast(Any, Brightest(maps=maps)), None)])


def encoded(brightest: int, size: int = 1, floor: int = 0) -> bytes:
    """A picture with a square of one red on another."""
    pixels = np.full((*SIZE, 3), floor, dtype=np.uint8)
    pixels[2 : 2 + size, 3 : 3 + size] = brightest
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def defect(folder: Path, brightest: int, *, mask: bool = True) -> Picture:
    """A picture with a defect of 3 x 3 pixels on a ground as bright as many a normal picture's brightest."""
    data = encoded(brightest, 3, 40)
    file, mask_file = folder / f"{brightest}.png", folder / f"{brightest}_mask.png"
    file.write_bytes(data)
    marked = np.zeros(SIZE, dtype=np.uint8)
    marked[2:5, 3:6] = 255
    Image.fromarray(marked).save(mask_file)
    return Picture(file, hashlib.sha256(data).hexdigest(), "scratch", mask_file if mask else None)


@pytest.fixture
def normals() -> list[bytes]:
    return [encoded(brightest) for brightest in NORMALS]


def test_conformal_thresholds_say_what_they_promise_and_what_they_realise(tmp_path: Path, normals: list[bytes]) -> None:
    model, calibration, scores = model_of(tmp_path).calibrate(normals, 0.1)
    assert scores.tolist() == list(NORMALS)
    assert model.manifest.calibration == calibration
    # The second largest of twenty guarantees 2 / 21, and realises more than the bound in one of ten sets.
    assert (calibration.method, calibration.threshold, calibration.rate) == ("conformal", 110.0, 0.1)
    assert calibration.rate_upper == pytest.approx(stats.beta.ppf(0.9, 2, 19))
    assert calibration.smallest_rate == 1 / 21
    assert (calibration.pixel_method, calibration.pixel_threshold, calibration.pixel_rate) == ("conformal", 110.0, 0.1)
    assert calibration.pixel_rate_upper == calibration.rate_upper
    with pytest.raises(CalibrationError, match="needs at least 99 calibration pictures but got 20"):
        model.calibrate(normals, 0.01)


def test_f1_max_parts_defects_from_normals_and_says_how_many_of_these_lie_above(
    tmp_path: Path, normals: list[bytes]
) -> None:
    defects = [defect(tmp_path, brightest) for brightest in (112, 150, 200)]
    model, calibration, _ = model_of(tmp_path).calibrate(normals, 0.1, defects)
    # Three found beside one false alarm (115): midway between 110 and 112.
    assert (calibration.method, calibration.threshold, calibration.rate) == ("f1-max", 111.0, 1 / 20)
    assert calibration.rate_upper is not None
    assert stats.binom.cdf(1, 20, calibration.rate_upper) == pytest.approx(0.1)
    # Of 27 marked pixels none lies below 112; above 111 there is one pixel of a normal picture.
    assert (calibration.pixel_method, calibration.pixel_threshold, calibration.pixel_rate) == ("f1-max", 111.0, 1 / 20)
    assert calibration.pixel_rate_upper == calibration.rate_upper
    assert [model.score(picture.read()).is_anomalous for picture in defects] == [True] * 3
    assert [score.regions != [] for score in model.score_many(normals)] == [value > 111 for value in NORMALS]


def test_pixels_of_defective_pictures_outside_the_mask_are_normal(tmp_path: Path) -> None:
    """The marked pixels are darker than the ground around them."""
    picture = defect(tmp_path, 39)
    _, calibration, _ = model_of(tmp_path).calibrate([encoded(20)] * 9, 0.1, [picture])
    assert calibration.threshold == 30.0, "midway between 20 and the ground's 40"
    # Above 29.5 the 9 marked pixels are found with the 55 around them, and nothing else finds any.
    assert calibration.pixel_threshold == 29.5
    assert calibration.pixel_rate == 0


@pytest.mark.parametrize("maps", [True, False])
def test_without_masks_or_maps_there_is_no_f1_of_pixels(tmp_path: Path, normals: list[bytes], maps: bool) -> None:
    defects = [defect(tmp_path, brightest, mask=False) for brightest in (150, 200)]
    _, calibration, _ = model_of(tmp_path, maps=maps).calibrate(normals, 0.1, defects)
    assert (calibration.method, calibration.threshold, calibration.rate) == ("f1-max", 132.5, 0.0)
    if maps:
        assert (calibration.pixel_method, calibration.pixel_threshold) == ("conformal", 110.0)
        assert calibration.pixel_rate_upper == pytest.approx(stats.beta.ppf(0.9, 2, 19))
    else:
        assert calibration.model_dump(include={"pixel_method", "pixel_threshold", "pixel_rate", "pixel_scale"}) == {
            "pixel_method": None, "pixel_threshold": None, "pixel_rate": None, "pixel_scale": None
        }  # fmt: skip


def test_f1_max_without_a_defect_is_refused(tmp_path: Path, normals: list[bytes]) -> None:
    with pytest.raises(CalibrationError, match="needs at least one labelled defect but got none"):
        model_of(tmp_path).calibrate(normals, 0.1, [])


def test_the_model_card_says_what_the_thresholds_promise(tmp_path: Path, normals: list[bytes]) -> None:
    def card(model: Model) -> str:
        write_manifest(tmp_path, model.manifest)
        assert Manifest.model_validate_json((tmp_path / "manifest.json").read_bytes()) == model.manifest
        return (tmp_path / "README.md").read_text()

    conformal, _, _ = model_of(tmp_path).calibrate(normals, 0.1)
    assert (
        "- threshold: 110 (conformal, 20 calibration pictures, which can guarantee 4.8% at the least); at most 10.0% "
        "of good pictures lie above it on average; by this calibration at most 18.1% of good ones (90 % bound)\n"
        "- threshold of pixels: 110 (conformal); at most 10.0% of good pictures have any region on average; by this "
        "calibration at most 18.1% of good ones (90 % bound)\n"
    ) in card(conformal)
    best, _, _ = model_of(tmp_path).calibrate(normals, 0.1, [defect(tmp_path, 112)])
    assert "- threshold: 111 (f1-max, 20 calibration pictures, " in card(best)
    assert "5.0% of the calibration pictures lie above it; by this calibration at most 18.1% of good ones" in card(best)
    assert "labelled defects of the F1 chose the trial too, but nothing was fitted on them" in card(best)


def test_a_model_that_was_saved_before_the_bound_was_known_is_read(tmp_path: Path) -> None:
    make_artifact(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    old = {"threshold", "rate", "pictures", "scale", "pixel_threshold", "pixel_scale"}
    manifest["calibration"] = {name: value for name, value in manifest["calibration"].items() if name in old}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    calibration = read_manifest(tmp_path).calibration
    assert calibration == Calibration(
        threshold=1.5, rate=0.1, pictures=9, scale=1.0, pixel_threshold=None, pixel_scale=None, method="conformal"
    )
    assert (calibration.rate_upper, calibration.smallest_rate) == (None, 0.1)
    assert calibration.facts == {
        "threshold": "1.5 (conformal, 9 calibration pictures, which can guarantee 10.0% at the least); at most 10.0% "
        "of good pictures lie above it on average"
    }
