"""Scoring one picture and many: what is taken as a picture, order, errors, and how far ahead is read."""

from __future__ import annotations

import asyncio
import io
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from autoad.client import AsyncClient, Client, FailedPicture, _scores
from autoad.data import decode_image
from autoad.errors import (
    BusyError,
    NotFoundError,
    RefusedError,
    ServerError,
    UnreadableImageError,
    UsageError,
)
from tests.client.service import RefusalError, Service, score_of


def decoded(data: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(data)))


def test_a_score_says_what_the_server_says(client: Any, service: Service, tmp_path: Path) -> None:
    file = tmp_path / "new.png"
    file.write_bytes(b"a picture")
    score = client.score("bottle", file)
    value = score_of(b"a picture")
    assert (score.score, score.normalized_score, score.is_anomalous) == (value, value, value > 0.5)
    assert (score.picture, score.model, score.version, score.regions) == (str(file), "bottle", 1, [])
    asked = service.last("/score")
    assert (asked.body, asked.query) == (b"a picture", {"map": "none"})
    assert asked.headers["x-request-id"] == score.request_id == score.reply.request_id
    assert score.reply.replica == "r1"


def test_a_version_may_be_named(client: Any, service: Service) -> None:
    for model, version, sent in (
        ("bottle", 3, "3"),
        ("bottle/4", None, "4"),
        ("bottle@canary", None, "canary"),
        ("models:/bottle/5", None, "5"),
        ("bottle", "previous", "previous"),
    ):
        client.score(model, b"x", version)
        assert (service.last("/score").path, service.last("/score").query["version"]) == (
            "/v1/models/bottle/score",
            sent,
        )
    with pytest.raises(UsageError, match="one version must be given"):
        client.score("bottle/3", b"x", 3)


def test_a_map_is_asked_for_when_it_is_wanted(client: Any, service: Service, tmp_path: Path) -> None:
    file = tmp_path / "new.png"
    file.write_bytes(b"a picture")
    score = client.score("bottle/2", file)
    anomaly_map = score.anomaly_map()
    assert (anomaly_map.dtype, anomaly_map.shape) == (np.float32, (4, 6))
    assert (anomaly_map == np.float32(score.score)).all()
    assert service.last("/score").query == {"version": "2", "map": "npy"}
    assert service.last("/score").headers["x-request-id"] == score.request_id
    assert (score.anomaly_map() == anomaly_map).all()
    assert len(service.asked) == 2
    assert (score.normalized_map() == int(255 * score.score)).all()
    for maps, method in ((True, "anomaly_map"), ("npy", "anomaly_map"), ("png", "normalized_map")):
        before = len(service.asked)
        assert getattr(client.score("bottle", b"x", maps=maps), method)().shape == (4, 6)
        assert len(service.asked) == before + 1, "it came with the score"
    assert client.score("bottle", b"flat").anomaly_map() is None
    changed = client.score("bottle", file)
    file.write_bytes(b"another")
    with pytest.raises(UnreadableImageError, match="has changed since it was scored"):
        changed.anomaly_map()


def test_a_damaged_map_is_a_server_error(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for text, method in (("!", "anomaly_map"), ("YWJj", "anomaly_map"), ("YWJj", "normalized_map")):
        score = client.score("bottle", b"x", maps=True)
        inner = getattr(score, "_score", None) or score._one
        inner._known = {"npy": text, "png": text}
        with pytest.raises(ServerError, match="the anomaly map that the server sent is damaged"):
            getattr(score, method)()


def test_pixels_arrive_as_they_are(client: Any, service: Service) -> None:
    rng = np.random.default_rng(0)
    for shape in ((5, 7), (5, 7, 1), (5, 7, 3), (5, 7, 4)):
        array = rng.integers(0, 256, shape, np.uint8)
        assert client.score("bottle", array).picture == "picture"
        assert (decoded(service.last("/score").body) == array.squeeze()).all(), shape
        client.score("bottle", array[::-1, ::2])
        assert (decoded(service.last("/score").body) == array.squeeze()[::-1, ::2]).all()
    for mode in ("1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16"):
        source = Image.fromarray(rng.integers(0, 256, (5, 7, 3), np.uint8))
        image = Image.new("I;16", (7, 5), 40000) if mode == "I;16" else source.convert(mode)
        client.score("bottle", image)
        buffer = io.BytesIO()
        # The pixels that the server would see of this image in a file that loses nothing.
        image.save(buffer, "TIFF")
        assert (decode_image(service.last("/score").body) == decode_image(buffer.getvalue())).all(), mode
    client.score("bottle", memoryview(b"bytes"))
    assert service.last("/score").body == b"bytes"


def test_an_image_is_upright_as_its_file_would_be(client: Any, service: Service, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    file = tmp_path / "turned.png"
    array = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    Image.fromarray(array).save(file, exif=exif)
    with Image.open(file) as image:
        client.score("bottle", image)
    seen = decode_image(service.last("/score").body)
    assert seen.shape == (7, 5, 3)
    assert (seen == decode_image(file.read_bytes())).all()


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), "must be an array of uint8, from 0 to 255, but got float32"),
        (np.zeros((4, 4, 2), np.uint8), r"\[H, W\] or \[H, W, 1, 3 or 4\] \(RGB\) but got \[4, 4, 2\]"),
        (np.zeros((0, 4), np.uint8), r"but got \[0, 4\]"),
        (np.zeros(4, np.uint8), r"but got \[4\]"),
        (Image.new("F", (4, 4)), "has mode 'F': convert it to RGB"),
        (17, "must be a path, bytes, a PIL image or a NumPy array but got int"),
    ],
    ids=["floats", "two-channels", "no-rows", "one-row", "mode-f", "number"],
)
def test_what_is_no_picture_is_refused(client: Any, service: Service, picture: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        client.score("bottle", picture)
    assert service.asked == []


def test_a_file_that_cannot_be_read_is_named(client: Any, service: Service, tmp_path: Path) -> None:
    (tmp_path / "empty.png").write_bytes(b"")
    Image.new("RGB", (64, 64), "red").save(tmp_path / "cut.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:-20])
    for picture, message in (
        (tmp_path / "absent.png", "absent.png cannot be read"),
        (tmp_path / "empty.png", "empty.png is empty"),
        (b"", "picture is empty"),
    ):
        with pytest.raises(UnreadableImageError, match=message):
            client.score("bottle", picture)
    with Image.open(tmp_path / "cut.jpg") as image, pytest.raises(UnreadableImageError, match="cannot be read"):
        client.score("bottle", image)
    assert service.asked == []
    with pytest.raises(RefusedError, match="is no PNG") as raised:
        client.score("bottle", b"bad")
    assert (raised.value.status, raised.value.code) == (422, "unreadable_picture")
    with pytest.raises(NotFoundError, match="unknown model"):
        client.score("botle", b"x")


def test_an_attempt_that_is_repeated_is_the_same_request(client: Any, service: Service, waits: list[float]) -> None:
    service.fail("/score", 503, 429, 500)
    client.score("bottle", b"x")
    assert len({one.headers["x-request-id"] for one in service.asked}) == 1
    assert len(waits) == 3


# Many


def test_scores_come_in_order_whatever_the_server_answers_first(client: Any, service: Service) -> None:
    pictures = [f"{number}".encode() for number in range(30)]
    service.delay = lambda data: 0.05 * ((29 - int(data)) % 7) / 7
    scores = list(client.score_many("bottle", pictures, concurrency=5))
    assert [score.score for score in scores] == [score_of(data) for data in pictures]
    assert [score.picture for score in scores[:2]] == ["picture 1", "picture 2"]
    assert 2 <= service.most_scoring <= 5


def test_a_folder_is_scored_by_name_without_what_is_no_picture(client: Any, folder: Path) -> None:
    scores = list(client.score_many("bottle", str(folder), version=2))
    assert [Path(score.picture).relative_to(folder).as_posix() for score in scores] == [
        "test/scratch/0.png",
        *(f"train/good/{number}.png" for number in range(8)),
    ]
    assert {score.version for score in scores} == {2}
    assert scores[0].anomaly_map().shape == (4, 6)


def test_what_is_read_ahead_is_bounded(client: Any, service: Service) -> None:
    """One slow picture, an endless source, and a reader that takes its time."""
    taken = 0

    def camera() -> Iterator[bytes]:
        nonlocal taken
        while True:
            taken += 1
            yield f"{taken}".encode()

    service.delay = lambda data: 0.3 if data == b"1" else 0.0
    scores = client.score_many("bottle", camera(), concurrency=4)
    ahead = []
    for number, score in enumerate(scores, start=1):
        assert score.score == score_of(f"{number}".encode())
        ahead.append(taken - number)
        if number == 40:
            break
    scores.close()
    assert max(ahead) <= 2 * 4 + 1
    assert service.most_scoring <= 4
    time.sleep(0.1)  # what was under way arrives
    before = len(service.asked)
    time.sleep(0.1)
    assert len(service.asked) == before, "nothing goes on after the end"


def test_a_source_that_blocks_holds_up_nothing(client: Any, service: Service) -> None:
    go = threading.Event()
    threads = set()

    def camera() -> Iterator[bytes]:
        threads.add(threading.current_thread())
        yield b"1"
        yield b"2"
        assert go.wait(10)
        yield b"3"

    scores = client.score_many("bottle", camera())
    assert [next(scores).score, next(scores).score] == [score_of(b"1"), score_of(b"2")]
    go.set()
    assert [one.score for one in scores] == [score_of(b"3")]
    assert len(threads) == 1
    assert threads != {threading.main_thread()}


def test_what_a_source_raises_is_raised_at_its_turn(client: Any) -> None:
    def camera() -> Iterator[bytes]:
        yield b"1"
        raise ZeroDivisionError("no light")

    scores = client.score_many("bottle", camera())
    assert next(scores).score == score_of(b"1")
    with pytest.raises(ZeroDivisionError, match="no light"):
        next(scores)
    with pytest.raises(StopIteration):
        next(scores)


def test_an_asynchronous_source(service: Service, address: str) -> None:
    async def camera() -> AsyncIterator[bytes]:
        for number in range(5):
            await asyncio.sleep(0)
            yield f"{number}".encode()

    async def run() -> list[float]:
        async with AsyncClient(address) as client:
            return [one.score async for one in client.score_many("bottle", camera())]

    assert asyncio.run(run()) == [score_of(f"{number}".encode()) for number in range(5)]


def test_bad_pictures_are_raised_or_returned_at_their_turn(
    client: Any, service: Service, tmp_path: Path, waits: list[float]
) -> None:
    pictures: list[Any] = [b"1", b"bad", tmp_path / "absent.png", b"", b"2", b"failing", b"3"]
    scores = client.score_many("bottle", pictures)
    assert next(scores).score == score_of(b"1")
    with pytest.raises(RefusedError, match="is no PNG"):
        next(scores)

    def fail(data: bytes) -> float:
        if data == b"failing":
            raise RefusalError(500, "failed", "the server failed; its log says why")
        return 0.0

    service.delay = fail
    found = list(client.score_many("bottle", pictures, errors="return"))
    assert [isinstance(one, FailedPicture) for one in found] == [False, True, True, True, False, True, False]
    failed = [one for one in found if isinstance(one, FailedPicture)]
    assert [one.picture for one in failed] == ["picture 2", str(tmp_path / "absent.png"), "picture 4", "picture 6"]
    assert [type(one.error) for one in failed] == [
        RefusedError,
        UnreadableImageError,
        UnreadableImageError,
        ServerError,
    ]


def test_what_is_not_the_pictures_fault_ends_everything(client: Any, service: Service) -> None:
    with pytest.raises(NotFoundError):
        list(client.score_many("botle", [b"1", b"2"], errors="return"))
    with pytest.raises(UsageError, match="uint8"):
        list(client.score_many("bottle", [np.zeros((2, 2))]))
    odd, _ = client.score_many("bottle", [np.zeros((2, 2)), b"1"], errors="return")
    assert "uint8" in str(odd.error)


def test_a_server_that_has_no_room_is_waited_for(service: Service, address: str, waits: list[float]) -> None:
    service.fail("/score", *[429] * 20, headers={"Retry-After": "1"})
    with Client(address, retries=1, patience=30) as client:
        assert len(list(client.score_many("bottle", [b"1", b"2"]))) == 2
        service.fail("/score", *[429] * 2)
        with pytest.raises(BusyError):
            client.score("bottle", b"1")
    service.fail("/score", *[503] * 20)
    with Client(address, retries=1, patience=0) as client, pytest.raises(BusyError):
        list(client.score_many("bottle", [b"1"], errors="return"))


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        ("absent", "absent must be a folder; to score a picture, use score"),
        (b"bytes", "several pictures but got one bytes"),
        (np.zeros((4, 4, 3), np.uint8), "several pictures but got one ndarray"),
        (Image.new("RGB", (2, 2)), "several pictures but got one Image"),
        (7, "several pictures but got one int"),
    ],
    ids=["path", "bytes", "array", "image", "number"],
)
def test_one_picture_is_not_many(client: Any, pictures: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        client.score_many("bottle", pictures)
    assert len(list(client.score_many("bottle", np.zeros((3, 4, 4, 3), np.uint8)))) == 3


@pytest.mark.parametrize(("options"), [{"concurrency": 0}, {"concurrency": 1000}, {"errors": "ignore"}], ids=str)
def test_options_that_cannot_be_are_refused(client: Any, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(options))} must be"):
        client.score_many("bottle", [b"1"], **options)


def test_map_choices() -> None:
    choices: list[Any] = [True, False, "npy", "png"]
    assert [_scores.map_format(choice) for choice in choices] == ["npy", "none", "npy", "png"]
