"""A hundred models on one replica, round-robin, beside one model on the same replica.

    python benchmarks/many_models.py FOLDER [--models 100] [--rounds 3]

Half are PatchCore with a 1 % coreset, half DFM, of FOLDER's pictures (MVTec AD layout): copies of two that were fitted,
which a server loads one by one all the same. Each round measures pictures a second by 16 threads of one of the
product's clients against one model of each kind, then against all in turn. The replica's resident memory is read with
these two loaded, and with all, beside what the heads take on disk. Last the replica is killed, and its successor's
first score timed.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from autoad.client import Client
from autoad.data import read_dataset
from autoad.database import Database
from autoad.models import read_manifest, write_manifest
from autoad.models.registry import Registry
from tests.serve.deployed import Deployment, deploy
from tests.serve.factory import add_model, make_state

CLIENTS = 16


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--models", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        state = make_state(Path(scratch) / "state")
        dataset = read_dataset(arguments.folder)
        database = Database(state)
        registry = Registry(database, state)
        fitted = [
            registry.open(one.name, one.version)
            for one in (
                add_model(state, dataset, "fitted-patchcore", "patchcore", coreset_sampling_ratio=0.01),
                add_model(state, dataset, "fitted-dfm", "dfm"),
            )
        ]
        names = [f"model-{number}" for number in range(arguments.models)]
        for number, name in enumerate(names):
            _copy(registry, fitted[number % 2], name, Path(scratch) / "copy")
        database.close()
        heads = sum((fitted[number % 2] / "model.safetensors").stat().st_size for number in range(len(names)))
        pictures = [picture.read() for picture in dataset.pictures if "test" in picture.path.parts][:64]
        with deploy(state.data_dir, "--replicas", "1") as server:
            one = names[:2]
            _send(server, one, pictures, 2)
            alone = _memory(server)
            _send(server, names, pictures, len(names) / 4)
            every = _memory(server)
            rows = []
            for _ in range(arguments.rounds):
                rows.append(
                    (_send(server, one, pictures, arguments.seconds), _send(server, names, pictures, arguments.seconds))
                )
            starts = [_restart(server, names[0], pictures[0]) for _ in range(arguments.rounds)]
    ratios = [many / single for single, many in rows]
    print(f"one of each kind: {statistics.median(single for single, _ in rows):.1f} pictures/s")
    print(f"{arguments.models} models: {statistics.median(many for _, many in rows):.1f} pictures/s")
    print(f"ratio: {statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]")
    print(f"resident memory: {alone:.0f} MB with two, {every:.0f} MB with all; heads take {heads / 1e6:.0f} MB on disk")
    print(f"killed replica to the next first score: {', '.join(f'{seconds:.1f}' for seconds in starts)} s")


def _copy(registry: Registry, folder: Path, name: str, scratch: Path) -> None:
    """Register a copy of an artifact as another search's."""
    shutil.copytree(folder, scratch)
    manifest = read_manifest(scratch)
    provenance = manifest.provenance.model_copy(update={"search": name})
    write_manifest(scratch, manifest.model_copy(update={"name": name, "provenance": provenance}))
    registry.register(scratch, name)


def _send(server: Deployment, names: Sequence[str], pictures: Sequence[bytes], seconds: float) -> float:
    """Pictures a second, over all clients; every version by number, for nothing is promoted."""
    turn = itertools.count()
    done = itertools.count()
    deadline = time.perf_counter() + seconds

    client = Client(server.address)

    def ask() -> None:
        while time.perf_counter() < deadline:
            number = next(turn)
            client.score(names[number % len(names)], pictures[number % len(pictures)], 1)
            next(done)

    threads = [threading.Thread(target=ask) for _ in range(CLIENTS)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rate = next(done) / (time.perf_counter() - started)
    client.close()
    return rate


def _memory(server: Deployment) -> float:
    """The replica's resident memory, in megabytes."""
    return float(max(child.memory_info().rss for child in server.children("replica")) / 1e6)


def _restart(server: Deployment, name: str, picture: bytes) -> float:
    """Seconds from a kill to a score by the replica that takes the dead one's place."""
    server.kill("replica")
    killed = time.perf_counter()
    with Client(server.address, retries=0, timeout=30) as client:
        while True:
            try:
                client.score(name, picture, 1)
                return time.perf_counter() - killed
            except Exception:
                time.sleep(0.05)


if __name__ == "__main__":
    main()
