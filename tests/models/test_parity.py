from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from autoad.data import Picture, read_dataset
from autoad.errors import ArtifactError
from autoad.models import Model, Score, parity, read_manifest
from autoad.models.parity import choose_parity, read_parity, write_parity

Make = Callable[..., list[Picture]]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Makes files that count as pictures; nobody decodes them."""

    def pictures(prefix: str, count: int, *, size: int = 100, **fields: Any) -> list[Picture]:
        made = []
        for number in range(count):
            data = f"{prefix} {number} ".encode().ljust(size, b".")
            path = tmp_path / f"{prefix}-{number}"
            path.write_bytes(data)
            made.append(Picture(path, hashlib.sha256(data).hexdigest(), **fields))
        return made

    return pictures


@pytest.mark.parametrize(
    ("selection", "calibration", "expected"),
    [
        (200, 200, (32, 32)),
        (200, 5, (59, 5)),
        (10, 200, (10, 54)),
        (20, 10, (20, 10)),
        (0, 100, (0, 64)),
        (40, 30, (34, 30)),
    ],
)
def test_at_most_64_pictures_half_of_each_role(
    make: Make, selection: int, calibration: int, expected: tuple[int, int]
) -> None:
    selected, calibrated = make("s", selection), make("c", calibration)
    chosen = choose_parity(selected, calibrated)
    roles = Counter(role for role, _, _ in chosen)
    assert (roles["selection"], roles["calibration"]) == expected
    assert len({picture.sha256 for _, picture, _ in chosen}) == len(chosen), "each once"
    for role, picture, data in chosen:
        assert picture in (selected if role == "selection" else calibrated)
        assert hashlib.sha256(data).hexdigest() == picture.sha256


def test_the_choice_depends_on_the_pictures_alone_and_is_spread_over_them(make: Make) -> None:
    selected, calibrated = make("s", 320), make("c", 320)
    chosen = choose_parity(selected, calibrated)
    assert chosen == choose_parity(selected[::-1], calibrated[::-1])
    order = sorted(picture.sha256 for picture in selected)
    places = sorted(order.index(picture.sha256) for role, picture, _ in chosen if role == "selection")
    assert (places[0], places[-1]) == (0, 319)
    assert max(np.diff(places)) <= 11, "every tenth"


def test_drawn_defects_stay_out(make: Make) -> None:
    real, drawn = make("s", 3), make("d", 30, synthetic=True, label="scratch")
    chosen = choose_parity([*drawn, *real], make("c", 4))
    assert {picture for role, picture, _ in chosen if role == "selection"} == set(real)


def test_large_pictures_are_fewer_and_of_both_roles(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity, "_MOST_BYTES", 20_000)
    selected, calibrated = make("s", 3, size=1000), make("c", 60, size=1000)
    chosen = choose_parity(selected, calibrated)
    assert sum(len(data) for _, _, data in chosen) == 20_000
    assert Counter(role for role, _, _ in chosen) == {"selection": 3, "calibration": 17}
    monkeypatch.setattr(parity, "_MOST_BYTES", 1)
    assert Counter(role for role, _, _ in choose_parity(selected, calibrated)) == {"selection": 3, "calibration": 13}


class Oracle:
    """Stands in for a model: answers that follow from the bytes, with maps of an odd size or none."""

    def __init__(self, *, maps: bool) -> None:
        self._maps = maps

    def score_many(self, pictures: Iterable[bytes]) -> Iterator[Score]:
        for data in pictures:
            rng = np.random.default_rng(list(data))
            anomaly_map = rng.normal(size=(10, 13)).astype(np.float32) if self._maps else None
            score = float(rng.normal())
            yield Score(score, 0.5, score > 0, anomaly_map, None)


@pytest.mark.parametrize("maps", [True, False])
def test_what_is_written_is_read_to_the_last_bit(make: Make, tmp_path: Path, maps: bool) -> None:
    pictures = choose_parity(make("s", 5, label="crack"), make("c", 5))
    model = cast(Model, Oracle(maps=maps))
    write_parity(tmp_path, model, pictures)
    found = read_parity(tmp_path)
    expected = list(model.score_many(data for _, _, data in pictures))
    assert len(found) == len(expected) == 10
    for entry, (role, picture, data), score in zip(found, pictures, expected, strict=True):
        assert (entry.sha256, entry.role, entry.label, entry.data) == (picture.sha256, role, picture.label, data)
        assert (entry.score, entry.is_anomalous) == (score.score, score.is_anomalous)
        if score.anomaly_map is None:
            assert entry.anomaly_map is None
        else:
            assert entry.anomaly_map is not None
            rows = [score.anomaly_map[y, x] for y in (0, 4, 8) for x in (0, 4, 8, 12)]
            assert entry.anomaly_map.shape == (3, 4)
            assert entry.anomaly_map.dtype == np.float32
            assert entry.anomaly_map.ravel().tolist() == rows
    assert {entry.is_anomalous for entry in found} == {True, False}


def test_a_missing_or_damaged_set_is_named(make: Make, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"parity\.parquet.*FileNotFoundError.*search again"):
        read_parity(tmp_path)
    write_parity(tmp_path, cast(Model, Oracle(maps=True)), choose_parity(make("s", 4), make("c", 4)))
    whole = (tmp_path / "parity.parquet").read_bytes()
    for damaged in (b"", b"text", whole[: len(whole) // 2]):
        (tmp_path / "parity.parquet").write_bytes(damaged)
        with pytest.raises(ArtifactError, match=r"parity\.parquet"):
            read_parity(tmp_path)


def test_a_searchs_artifact_carries_what_its_model_says_and_no_test_picture(
    searched: dict[str, Any], state: Path, demo: Path
) -> None:
    folder = Path(searched["champion"]["model"])
    entries = read_parity(folder)
    roles = json.loads((state / "searches" / searched["search_id"] / "roles.json").read_text())["role_of"]
    by_sha256 = {picture.sha256: picture for picture in read_dataset(demo).pictures}
    assert Counter(roles.values())["test"] == 30
    assert {entry.role for entry in entries} == {"selection", "calibration"}
    for entry in entries:
        assert roles[hashlib.sha256(entry.data).hexdigest()] == entry.role
        assert by_sha256[entry.sha256].label == entry.label
    wanted = Counter(role for role in roles.values() if role in {"selection", "calibration"})
    assert wanted.total() <= 64
    assert Counter(entry.role for entry in entries) == wanted, "so few that all are taken"
    calibration = read_manifest(folder).calibration
    assert calibration is not None
    assert calibration.threshold in [entry.score for entry in entries if entry.role == "calibration"]
    model = Model.load(folder, threads=1)
    some = entries[::6]
    for entry, score in zip(some, model.score_many(entry.data for entry in some), strict=True):
        assert (entry.score, entry.is_anomalous) == (score.score, score.is_anomalous)
        assert (entry.anomaly_map is None) == (score.anomaly_map is None)
        if score.anomaly_map is not None:
            np.testing.assert_array_equal(entry.anomaly_map, score.anomaly_map[::4, ::4])
