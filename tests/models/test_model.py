from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from autoad.data import decode_image
from autoad.errors import ArtifactError, UnreadableImageError, WeightsError
from autoad.models import Calibration, Model, draw_heatmap, read_manifest, write_manifest


@pytest.fixture(scope="module")
def folder(searched: dict[str, Any]) -> Path:
    return Path(searched["champion"]["model"])


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return Model.load(folder, threads=1)


@pytest.fixture(scope="module")
def pictures(demo: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted((demo / "test").glob("*/*.png"))[::6]]


def test_a_picture_scores_the_same_alone_among_others_and_after_reloading(
    folder: Path, model: Model, pictures: list[bytes]
) -> None:
    together = list(model.score_many(pictures))
    for data, among in zip(pictures, together, strict=True):
        alone = model.score(data)
        assert alone.score == among.score
        assert alone.is_anomalous == among.is_anomalous
        assert (alone.anomaly_map is None) == (among.anomaly_map is None)
        if alone.anomaly_map is not None and among.anomaly_map is not None:
            np.testing.assert_array_equal(alone.anomaly_map, among.anomaly_map)
    assert len({score.score for score in together}) == len(pictures)
    again = Model.load(folder, threads=1)
    assert [score.score for score in again.score_many(reversed(pictures))] == [s.score for s in reversed(together)]


def test_a_process_that_scores_imports_only_what_it_needs(
    folder: Path, model: Model, pictures: list[bytes], demo: Path, state: Path
) -> None:
    """A timm network, a hub and SciPy's statistics take seconds, and all that is asked of them is kept."""
    picture = sorted((demo / "test").glob("*/*.png"))[0]
    script = (
        "import sys; from pathlib import Path; from autoad.models import Model\n"
        "score = Model.load(Path(sys.argv[1]), threads=1).score(Path(sys.argv[2]).read_bytes())\n"
        "print(score.score, *sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, folder, picture],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"AUTOAD_DATA_DIR": str(state)},
    )
    score, *imported = done.stdout.split()
    assert float(score) == model.score(pictures[0]).score
    assert "torch" in imported
    assert {"timm", "torchvision", "sklearn", "skimage", "ray", "sqlalchemy"}.isdisjoint(imported)


def test_the_threshold_keeps_its_promise_on_the_calibration_pictures(
    folder: Path, model: Model, searched: dict[str, Any], state: Path, demo: Path
) -> None:
    from autoad.data import read_dataset

    roles = json.loads((state / "searches" / searched["search_id"] / "roles.json").read_text())["role_of"]
    data = [p.read() for p in read_dataset(demo).pictures if roles[p.sha256] == "calibration"]
    calibration = read_manifest(folder).calibration
    assert calibration is not None
    assert calibration.pictures == len(data)
    scores = np.array([score.score for score in model.score_many(data)])
    assert (scores > calibration.threshold).sum() <= calibration.rate * (len(data) + 1)
    assert calibration.threshold in scores


def test_the_artifact_holds_no_code(folder: Path) -> None:
    assert sorted(os.listdir(folder)) == ["README.md", "manifest.json", "model.safetensors", "parity.parquet"]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["schema_version"] == 2
    assert len(manifest["members"]) == 1
    assert manifest["metrics"]["test"]["image_auroc"] is not None


def test_what_is_no_picture_is_refused_by_name(model: Model) -> None:
    with pytest.raises(UnreadableImageError):
        model.score(b"")
    with pytest.raises(UnreadableImageError):
        model.score(b"GIF89a and then nothing")


def edit(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_text())
        change(manifest)
        (folder / "manifest.json").write_text(json.dumps(manifest))

    return apply


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (edit(lambda m: m.update(schema_version=99)), "schema version 99 but this autoad reads up to 2"),
        (edit(lambda m: m.pop("members")), "at members"),
        (edit(lambda m: m.update(members=[])), "at members"),
        (edit(lambda m: m["members"][0]["config"].update(temperature=3)), "does not fit"),
        (edit(lambda m: m["members"][0].update(device="cuda")), "evaluated on a GPU"),
        (edit(lambda m: m["members"][0].update(algorithm="patchcor")), "patchcor"),
    ],
)
def test_an_artifact_that_cannot_be_what_it_was_is_refused(
    folder: Path, tmp_path: Path, change: Callable[[Path], None], message: str
) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    change(tmp_path / "copy")
    with pytest.raises(ArtifactError, match=message):
        Model.load(tmp_path / "copy")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("weights_sha256", "0" * 64, "but this machine has"),
        ("engine", "tpu", "which this machine cannot run"),
        ("name", "tf_efficientnet_lite9", "tf_efficientnet_lite9"),
    ],
)
def test_another_backbone_is_refused(folder: Path, tmp_path: Path, field: str, value: str, message: str) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["members"][0]["backbone"] is not None, "the champion of the small search uses a backbone"
    shutil.copytree(folder, tmp_path / "copy")
    edit(lambda m: m["members"][0]["backbone"].update({field: value}))(tmp_path / "copy")
    with pytest.raises((ArtifactError, WeightsError), match=message):
        Model.load(tmp_path / "copy")


def test_an_uncalibrated_model_does_not_score(folder: Path, tmp_path: Path, pictures: list[bytes]) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    write_manifest(tmp_path / "copy", read_manifest(folder).model_copy(update={"calibration": None}))
    with pytest.raises(ArtifactError, match="never calibrated"):
        Model.load(tmp_path / "copy").score(pictures[0])


def test_a_heatmap_colours_only_what_lies_above_the_threshold() -> None:
    image = np.full((40, 60, 3), 100, dtype=np.uint8)
    anomaly_map = np.zeros((20, 30), dtype=np.float32)
    anomaly_map[:10] = 5.0
    calibration = Calibration(threshold=1.0, rate=0.05, pictures=20, scale=9.0, pixel_threshold=2.0, pixel_scale=0.1)
    drawn = np.asarray(draw_heatmap(image, anomaly_map, calibration))
    assert drawn.shape == image.shape
    np.testing.assert_array_equal(drawn[25:], image[25:])
    top = drawn[:15].reshape(-1, 3).astype(int)
    assert (top[:, 0] > top[:, 2] + 40).all(), "red outweighs blue"
    assert (top[:, 1] < top[:, 0] - 50).all(), "far above the threshold it is red, not yellow"


def test_pictures_are_read_only_a_few_ahead_and_those_before_a_bad_one_are_scored(
    model: Model, pictures: list[bytes]
) -> None:
    read = 0

    def count() -> Iterator[bytes]:
        nonlocal read
        for data in pictures * 8:
            read += 1
            yield data

    next(iter(model.score_many(count())))
    assert read < 20 < len(pictures) * 8
    answers = model.score_many([*pictures[:3], b"no picture", pictures[3]])
    assert [next(answers).score for _ in range(3)] == [model.score(data).score for data in pictures[:3]]
    with pytest.raises(UnreadableImageError):
        next(answers)


def test_files_get_the_usual_permissions(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    for path in folder.iterdir():
        assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_pictures_of_any_size_and_mode_are_scored(model: Model, tmp_path: Path) -> None:
    for size, mode in (((31, 97), "L"), ((400, 300), "RGBA"), ((64, 64), "P")):
        path = tmp_path / f"{mode}.png"
        Image.new(mode, size, 128).save(path)
        result = model.score(path.read_bytes())
        assert np.isfinite(result.score)
        assert decode_image(path.read_bytes()).shape == (size[1], size[0], 3)
