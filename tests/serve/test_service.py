"""The service as a team uses it: the deployed server, the SDK, the README's example, and what is cut or killed.

The server is killed once in an upload here, and five times with ``make faults``.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import autoad
from autoad.client import Client, Score, _uploads
from autoad.data import read_dataset
from autoad.models import Model
from tests.client.wire import Wire
from tests.ports import free_port
from tests.serve.deployed import Deployment, deploy
from tests.serve.factory import add_model, make_state

ROOT = Path(__file__).parent.parent.parent
PATIENCE = 300  # a server takes tens of seconds to start again where other tests run beside it
ROUNDS = 5
CLIENTS = 200


class Site:
    """A server that is started again where it was."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self._port = free_port()
        self.start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        self._context = deploy(self.state, "--replicas", "2", port=self._port)
        self.server: Deployment = self._context.__enter__()

    def kill(self) -> None:
        self.server.kill_all()
        self.stop()

    def stop(self) -> None:
        self._context.__exit__(None, None, None)


@pytest.fixture(scope="module")
def site(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Serves ``gravel``."""
    settings = make_state(tmp_path_factory.mktemp("service"))
    add_model(settings, read_dataset(demo), "gravel", "patchcore", image_size=128, coreset_sampling_ratio=0.01)
    made = Site(settings.data_dir)
    with Client(made.address) as client:
        client.promote("gravel")
    yield made
    made.stop()


@pytest.fixture(autouse=True)
def _settings(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOAD_SERVER", site.address)


def draw(folder: Path, count: int, seed: int) -> Path:
    """Different small pictures, in a folder."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    for number in range(count):
        Image.fromarray(random.integers(0, 256, (48, 48, 3), dtype=np.uint8)).save(folder / f"{number:04d}.png")
    return folder


def test_the_readmes_example_works_line_by_line(demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [example] = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert example.count('time="30m"') == 1  # the one thing that a test has no patience for
    example = example.replace('time="30m"', 'trials=2, algorithms=["dfm", "dfkde"]')
    shutil.copytree(demo, tmp_path / "bottle")
    shutil.copy(next((demo / "test").glob("[!g]*/*.png")), tmp_path / "image.png")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(example, "README.md", "exec"), names)
    assert names["bottle"].hash == read_dataset(tmp_path / "bottle").hash
    assert names["search"].status == "complete"
    result = names["result"]
    assert isinstance(result, Score)
    assert (result.model, result.version) == ("bottle", 1)
    assert names["event"].kind == "end"


def test_the_examples_run(demo: Path, site: Site, tmp_path: Path) -> None:
    def run(name: str, *arguments: str | Path) -> str:
        command = [sys.executable, str(ROOT / "examples" / name), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert sorted(path.name for path in (ROOT / "examples").glob("*.py")) == [
        "inspection_station.py",
        "learn_from_a_mistake.py",
    ]
    shutil.copytree(demo / "test", tmp_path / "new")
    (tmp_path / "new" / "broken.png").write_bytes(b"no picture")
    lines = run("inspection_station.py", "gravel", tmp_path / "new").splitlines()
    assert len(lines) == len(list((tmp_path / "new").rglob("*.png"))) + 1
    assert sum("broken.png" in line and "ANOMALOUS" not in line and "good" not in line for line in lines) == 1
    assert re.fullmatch(r"\d+ anomalous", lines[-1])
    with Client() as client:
        dataset = client.submit_dataset(demo, name="belt")
        wrong = draw(tmp_path / "wrong", 1, seed=7) / "0000.png"
        text = run("learn_from_a_mistake.py", "belt", wrong, "smear", "--trials", "1")
        assert "promoted: " in text
        assert client.dataset("belt").version == dataset.version + 1
        assert client.dataset("belt").counts["defective"] == dataset.counts["defective"] + 1
        assert client.score("belt", wrong).version == 1


def submit_while(
    server: str, folder: Path, name: str, happens: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> tuple[Any, float]:
    """Submit a folder in many packs; something happens when a third has arrived."""
    monkeypatch.setattr(_uploads, "PACK_BYTES", 64 * 1024)
    third = threading.Event()

    def progress(done: int, total: int, text: str) -> None:
        if text.startswith("sending") and done > total / 3:
            third.set()

    with Client(server, patience=PATIENCE) as client, ThreadPoolExecutor(1) as thread:
        submitted = thread.submit(lambda: client.submit_dataset(folder, name=name, progress=progress, parallel=2))
        assert third.wait(60)
        assert not submitted.done()
        started = time.monotonic()
        happens()
        return submitted.result(), time.monotonic() - started


def check_upload(site: Site, folder: Path, entry: Any) -> None:
    """Everything is there once, and sending it again sends nothing."""
    assert entry.hash == read_dataset(folder).hash
    kept = {path.name: path for path in (site.state / "files").rglob("*") if len(path.name) == 64}
    for picture in read_dataset(folder).pictures:
        assert hashlib.sha256(kept[picture.sha256].read_bytes()).hexdigest() == picture.sha256
    with Client(site.address) as client:
        told: list[str] = []
        assert client.submit_dataset(folder, name=entry.name, progress=lambda *one: told.append(one[2])) == entry
        assert not [text for text in told if text.startswith("sending")]
        assert [version.version for version in client.dataset_versions(entry.name).versions] == [entry.version]


def test_a_network_that_is_cut_for_ten_seconds_loses_no_picture_and_no_score(
    site: Site, demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = draw(tmp_path / "cut", 400, seed=1)
    pictures = [path.read_bytes() for path in sorted((demo / "test").rglob("*.png"))] * 20
    own = Model.load(site.state / "models/default/gravel/1")
    expected = [score.score for score in own.score_many(pictures[: len(pictures) // 20])] * 20
    wire = Wire(site.address)
    found: list[float] = []

    def score() -> None:
        with Client(wire.address, retries=0, patience=PATIENCE) as client:
            found.extend(one.score for one in client.score_many("gravel", pictures, concurrency=4))

    thread = threading.Thread(target=score)
    thread.start()
    try:
        entry, seconds = submit_while(wire.address, folder, "cut", lambda: wire.cut(10), monkeypatch)
        assert seconds > 10
        thread.join(PATIENCE)
        assert found == expected
    finally:
        wire.close()
    check_upload(site, folder, entry)


def kill_in_an_upload(site: Site, tmp_path: Path, turn: int, monkeypatch: pytest.MonkeyPatch) -> float:
    """Seconds from the death of the server until the whole dataset is there."""
    folder = draw(tmp_path / f"killed-{turn}", 400, seed=10 + turn)

    def die() -> None:
        site.kill()
        site.start()

    entry, seconds = submit_while(site.address, folder, f"killed-{turn}", die, monkeypatch)
    check_upload(site, folder, entry)
    return seconds


def test_an_upload_survives_the_death_of_the_server(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill_in_an_upload(site, tmp_path, 0, monkeypatch)


@pytest.mark.faults
def test_an_upload_survives_five_deaths(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = [kill_in_an_upload(site, tmp_path, turn, monkeypatch) for turn in range(1, 1 + ROUNDS)]
    print(f"\nserver killed in an upload: {statistics.median(seconds):.1f} s, longest {max(seconds):.1f} s")


def test_two_hundred_clients_score_at_once(site: Site, demo: Path) -> None:
    pictures = [path.read_bytes() for path in sorted((demo / "test").rglob("*.png"))[:3]]
    own = Model.load(site.state / "models/default/gravel/1")
    expected = [score.score for score in own.score_many(pictures)]

    def ask(_: int) -> list[float]:
        with autoad.Client() as client:
            return [client.score("gravel", picture).score for picture in pictures]

    with ThreadPoolExecutor(CLIENTS) as threads:
        answers = list(threads.map(ask, range(CLIENTS)))
    assert answers == [expected] * CLIENTS
