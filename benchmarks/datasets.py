"""How fast a folder of many small pictures becomes a dataset on a server, and what that costs the server.

    python benchmarks/datasets.py [--pictures 10000] [--rounds 3]

Starts ``autoad serve`` as a user does, writes as many different 64 x 64 PNG files, and submits them over HTTP from this
process, on the same machine: hash all, ask what is missing, send that in packed bodies by several threads, commit. Each
round submits pictures that the server has never seen, then the same folder again. Between the two it reports how long
``/health`` took to answer meanwhile, and the resident memory of the replicas: before, at most, and after.
"""

from __future__ import annotations

import argparse
import io
import itertools
import statistics
import tempfile
import threading
import time
from pathlib import Path

import httpx2
import numpy as np
from _common import table
from PIL import Image

from autoad.client import Client
from tests.serve.deployed import Deployment, deploy


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        state = Path(scratch) / "state"
        state.mkdir()
        with deploy(state) as server:
            rows = [_round(server, Path(scratch), number, arguments) for number in range(arguments.rounds)]
    title = ["", *(f"round {number + 1}" for number in range(len(rows)))]
    print(table(title, [[key, *(f"{row[key]:,.3g}" for row in rows)] for key in rows[0]]))


def _round(server: Deployment, scratch: Path, number: int, arguments: argparse.Namespace) -> dict[str, float]:
    folder = scratch / f"pictures-{number}"
    size = _write_pictures(folder, arguments.pictures, seed=number)
    name = f"bench-{number}"
    with _Watch(server) as watch, server.connect(timeout=120) as client:
        first, sent = _submit(client, folder, name)
        again, nothing = _submit(client, folder, name)
    assert (sent, nothing) == (arguments.pictures, 0)
    row = {
        "MB": size / 1e6,
        "first submit, s": sum(first.values()),
        "pictures/s": arguments.pictures / sum(first.values()),
        **{f"first: {stage}, s": seconds for stage, seconds in first.items()},
        "second submit, s": sum(again.values()),
        "second / first": sum(again.values()) / sum(first.values()),
        **{f"second: {stage}, s": seconds for stage, seconds in again.items()},
        "/health median, ms": 1000 * statistics.median(watch.waits),
        "/health longest, ms": 1000 * max(watch.waits),
        "replicas before, MB": watch.samples[0] / 1e6,
        "replicas at most, MB": max(watch.samples) / 1e6,
        "replicas after, MB": watch.samples[-1] / 1e6,
    }
    print({key: round(value, 3) for key, value in row.items()}, flush=True)
    return row


def _write_pictures(folder: Path, count: int, seed: int) -> int:
    """Smooth 64 x 64 pictures with a little noise, all different; returns their bytes."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    size = 0
    for index in range(count):
        coarse = Image.fromarray(rng.integers(60, 196, (5, 5, 3), dtype=np.uint8)).resize((64, 64))
        pixels = np.asarray(coarse) + rng.integers(-3, 4, (64, 64, 3))
        buffer = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
        (folder / f"{index:05d}.png").write_bytes(buffer.getvalue())
        size += len(buffer.getvalue())
    return size


def _submit(client: Client, folder: Path, name: str) -> tuple[dict[str, float], int]:
    """Seconds of each stage, and how many pictures were sent."""
    began: dict[str, float] = {}
    sent = 0

    def progress(done: int, total: int, text: str) -> None:
        nonlocal sent
        stage = text.partition(" ")[0]
        began.setdefault(stage, time.perf_counter())
        if stage == "sending":
            sent = int(text.split()[1])

    client.submit_dataset(folder, name=name, progress=progress)
    began["end"] = time.perf_counter()
    stages = list(began)
    return {stage: began[after] - began[stage] for stage, after in itertools.pairwise(stages)}, sent


class _Watch:
    """Asks for ``/health`` and looks at the replicas' memory until the context ends, and once more some seconds later.

    Attributes:
        waits: seconds that each answer took.
        samples: bytes of all replicas together.
    """

    def __init__(self, server: Deployment) -> None:
        self._server = server
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self.waits: list[float] = []
        self.samples: list[int] = []

    def __enter__(self) -> _Watch:
        self._sample()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        time.sleep(3)
        self._sample()

    def _sample(self) -> None:
        self.samples.append(sum(child.memory_info().rss for child in self._server.children("replica")))

    def _look(self) -> None:
        with httpx2.Client(base_url=self._server.address, timeout=120) as client:
            while not self._stop.wait(0.05):
                started = time.perf_counter()
                client.get("/health")
                self.waits.append(time.perf_counter() - started)
                self._sample()


if __name__ == "__main__":
    main()
