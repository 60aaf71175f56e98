"""The SDK against the real application, over a real socket; the control plane asks the registry alone."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from autoad.client import Client, FailedPicture
from autoad.data import decode_image, read_dataset
from autoad.database import Database, Keys
from autoad.errors import (
    AuthenticationError,
    BusyError,
    ForbiddenError,
    NotFoundError,
    RefusedError,
    UnreadableImageError,
    UsageError,
)
from autoad.models import Model
from autoad.models.registry import Registry
from autoad.serve.auth import Authenticator
from autoad.serve.http import create_app
from autoad.serve.options import ServeOptions
from autoad.serve.scorer import Scorer
from autoad.settings import Settings
from tests.client.conftest import waits
from tests.client.service import serve as listen

__all__ = ["waits"]
Connect = Callable[..., Client]


@pytest.fixture
def keys(database: Database) -> Keys:
    return Keys(database)


@pytest.fixture
def connect(
    database: Database, registry: Registry, keys: Keys, plane: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Connect]:
    """Clients of one server."""
    for name in ("AUTOAD_SERVER", "AUTOAD_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    options = ServeOptions(replicas=1, threads=2, poll_seconds=0.02, max_queued=2)
    scorer = Scorer(registry, options, "r1")
    authenticator = Authenticator(keys, database.project, loopback=True, internal="made-up", fresh_seconds=0.05)
    settings = Settings(data_dir=tmp_path / "data")
    app = create_app(scorer, registry, plane(registry, scorer), authenticator, options, database, settings)
    clients: list[Client] = []
    with listen(app) as address:

        def client(**more: Any) -> Client:
            clients.append(Client(address, **more))
            return clients[-1]

        yield client
        for one in clients:
            one.close()


def test_a_folder_a_manifest_and_an_archive_become_the_dataset_that_they_are_here(
    connect: Connect, demo: Path, tmp_path: Path
) -> None:
    client = connect()
    local = read_dataset(demo)
    entry = client.submit_dataset(demo, name="demo", note="first")
    assert (str(entry), entry.hash, entry.layout, entry.note) == ("demo/1", local.hash, local.layout, "first")
    assert {name: entry.counts[name] for name in ("good", "defective")} == {
        name: local.counts()[name] for name in ("good", "defective")
    }
    steps: list[str] = []
    assert client.submit_dataset(demo, name="demo", progress=lambda *one: steps.append(one[2])) == entry
    assert not [step for step in steps if step.startswith("sending")], "nothing is sent twice"
    rows = [f"{picture.path},{picture.label},{picture.split},{picture.mask or ''}" for picture in local.pictures]
    manifest = tmp_path / "listed.csv"
    manifest.write_text("path,label,split,mask\n" + "\n".join(rows))
    listed = client.submit_dataset(manifest)
    assert (str(listed), listed.hash, listed.layout) == ("listed/1", local.hash, "manifest")
    with tarfile.open(tmp_path / "packed.tar.gz", "w:gz") as archive:
        archive.add(demo, arcname="pictures")
    packed = client.submit_dataset(tmp_path / "packed.tar.gz")
    assert (str(packed), packed.hash) == ("packed/1", local.hash)
    assert [one.name for one in client.datasets()] == ["demo", "listed", "packed"]
    assert client.dataset("demo") == client.dataset("demo/1") == entry
    pictures = {picture.sha256: picture.label for picture in client.dataset_pictures("demo")}
    assert pictures == {picture.sha256: picture.label for picture in local.pictures}


def test_a_picture_becomes_an_example(connect: Connect, demo: Path) -> None:
    client = connect()
    first = client.submit_dataset(demo, name="demo")
    array = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    mask = np.zeros((64, 64), bool)
    mask[8:16, 8:16] = True
    second = client.add_example("demo", array, "scratch", mask=mask, note="wrong")
    assert (second.version, second.note) == (2, "wrong")
    assert second.counts["defective"] == first.counts["defective"] + 1
    assert client.add_example("demo", array, "scratch", mask=mask).version == 2, "once more is the same"
    third = client.add_example(second, array, "Normal")
    assert (third.version, third.counts["good"]) == (3, first.counts["good"] + 1)
    assert [one.version for one in client.dataset_versions("demo").versions] == [3, 2, 1]
    with pytest.raises(RefusedError) as raised:
        client.add_example("demo", b"no picture", "good")
    assert (raised.value.status, raised.value.code) == (422, "unreadable_picture")
    with pytest.raises(NotFoundError):
        client.add_example("absent", array, "good")


def test_what_is_no_dataset_is_told_by_the_server(connect: Connect, tmp_path: Path) -> None:
    client = connect()
    folder = tmp_path / "few"
    (folder / "strange").mkdir(parents=True)
    for number in range(3):
        Image.new("RGB", (16, 16), (number, 0, 0)).save(folder / f"{number}.png")
    (folder / "strange" / "x.png").write_bytes(b"x")
    with pytest.raises(RefusedError, match="sub-folder strange must be named good"):
        client.submit_dataset(folder)
    (folder / "strange" / "x.png").unlink()
    with pytest.raises(RefusedError, match="8 different good pictures"):
        client.submit_dataset(folder)
    (tmp_path / "not.zip").write_bytes(b"no archive")
    with pytest.raises(RefusedError) as raised:
        client.submit_dataset(tmp_path / "not.zip")
    assert raised.value.code == "unsupported_media_type"


def test_a_score_is_the_models_own(connect: Connect, plant: Any) -> None:
    client = connect()
    model = Model.load(plant.folder("gravel", 1))
    expected = list(model.score_many(plant.pictures))
    scores = list(client.score_many("gravel", plant.pictures, concurrency=4))
    assert [one.score for one in scores] == [one.score for one in expected]
    assert [one.is_anomalous for one in scores] == [one.is_anomalous for one in expected]
    assert [one.regions for one in scores] == [one.regions for one in expected]
    anomaly_map = scores[1].anomaly_map()
    assert anomaly_map is not None
    assert (anomaly_map == expected[1].anomaly_map).all()
    normalized = scores[1].normalized_map()
    assert normalized is not None
    assert (normalized.dtype, normalized.shape) == (np.uint8, anomaly_map.shape)
    pixels = decode_image(plant.pictures[0])
    assert client.score("gravel", pixels).score == client.score("gravel", Image.fromarray(pixels)).score
    assert client.score("gravel", pixels).score == pytest.approx(expected[0].score, rel=1e-6)
    assert client.score("gravel@champion", plant.pictures[0]).version == 1
    assert client.score("gravel/2", plant.pictures[0]).version == 2
    found = list(client.score_many("gravel", [plant.pictures[0], b"text", io.BytesIO().read()], errors="return"))
    assert [type(one.error) for one in found if isinstance(one, FailedPicture)] == [RefusedError, UnreadableImageError]
    with pytest.raises(NotFoundError):
        client.score("absent", plant.pictures[0])


def test_models_are_promoted_and_rolled_back(connect: Connect, plant: Any) -> None:
    client = connect()
    assert client.ready()
    assert client.promote("gravel", reason="newer").route.champion == 2
    assert client.rollback("gravel", reason="older").champion == 1
    client.promote("gravel", 2, canary=0.5)
    assert client.end_canary("gravel", reason="seen").canary is None
    client.promote("gravel", 2, shadow=True)
    assert client.end_shadow("gravel").shadow is None
    history = client.model("gravel").history
    assert [line.action for line in history][:5] == ["end_shadow", "shadow", "end_canary", "canary", "rollback"]
    assert sorted(model.name for model in client.models()) == ["belt", "gravel"]
    with pytest.raises(RefusedError):
        client.delete("gravel", 1)
    with pytest.raises(NotFoundError):
        client.model("absent")


def test_a_search_waits_in_the_queue_is_found_and_cancelled(connect: Connect, demo: Path, waits: list[float]) -> None:
    client = connect()
    bottle = client.submit_dataset(demo, name="bottle")
    search = client.search(bottle, time="1h", name="first", model="flask", idempotency_key="once")
    assert (search.status, search.entry.dataset, search.entry.model) == ("queued", "bottle/1", "flask")
    assert client.search(bottle, time="1h", name="first", model="flask", idempotency_key="once").id == search.id
    with pytest.raises(RefusedError) as raised:
        client.search(bottle, time="2h", idempotency_key="once")
    assert (raised.value.status, raised.value.code) == (409, "conflict")
    second = client.search("bottle", trials=3)
    assert [one.id for one in client.searches()] == [second.id, search.id]
    assert client.find_search("first").id == search.id
    with pytest.raises(BusyError) as busy:
        client.search("bottle")
    assert busy.value.code == "search_queue_full"
    assert len(waits) == 3
    with pytest.raises(NotFoundError):
        search.leaderboard()
    with pytest.raises(NotFoundError):
        search.report("absent.html")
    with pytest.raises(UsageError, match="has no champion to promote"):
        search.promote()
    with pytest.raises(TimeoutError):
        search.wait(timeout=0.3)
    assert search.cancel().status == "cancelled"
    events = list(search.follow())
    assert (events[-1].kind, events[-1].search.status) == ("end", "cancelled")
    assert search.wait().status == "cancelled"
    with pytest.raises(NotFoundError, match="absent"):
        client.search("absent")


def test_a_key_may_what_its_scope_says_in_its_own_project(connect: Connect, keys: Keys, demo: Path) -> None:
    _, score_key = keys.create("camera", ["score"])
    _, submit_key = keys.create("engineer", ["score", "submit"])
    _, other_key = keys.create("stranger", ["score", "submit"], "other")
    camera, engineer, stranger = (connect(api_key=key) for key in (score_key, submit_key, other_key))
    with pytest.raises(AuthenticationError):
        connect().models()
    with pytest.raises(ForbiddenError):
        camera.submit_dataset(demo, name="bottle")
    bottle = engineer.submit_dataset(demo, name="bottle")
    assert bottle.actor == "engineer"
    assert camera.dataset("bottle") == bottle
    assert list(stranger.datasets()) == []
    with pytest.raises(NotFoundError):
        stranger.dataset("bottle")
    with pytest.raises(ForbiddenError):
        engineer.search(bottle, promote_when="better")
    with pytest.raises(ForbiddenError):
        engineer.promote("gravel")
