"""A hundred models on one replica, round-robin, beside one model on the same replica.

    python benchmarks/many_models.py FOLDER [--models 100] [--rounds 3]

Half are PatchCore with a 1 % coreset and a blur of their own, half DFM with a share of variance of their own, all of
FOLDER's pictures (MVTec AD layout); they share one engine. Each round measures pictures a second by 16 threads of the
product's client against one model, then against all in turn; the replica's resident memory is read with one model
loaded, and with all, beside what their heads take on disk. A last pass kills the replica and times the first score of
its successor.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from autoad.client import Connection
from autoad.data import read_dataset
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
        names = [f"model-{number}" for number in range(arguments.models)]
        heads = 0
        for number, name in enumerate(names):
            if number % 2:
                entry = add_model(state, dataset, name, "dfm", pca_level=0.9 + 0.0009 * number)
            else:
                entry = add_model(
                    state, dataset, name, "patchcore", coreset_sampling_ratio=0.01, sigma=3 + 0.01 * number
                )
            heads += (state.data_dir / f"models/default/{name}/{entry.version}/model.safetensors").stat().st_size
        pictures = [picture.read() for picture in dataset.pictures if "test" in picture.path.parts][:64]
        with deploy(state.data_dir, "--replicas", "1") as server:
            one = names[:1]
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
    print(f"one model: {statistics.median(single for single, _ in rows):.1f} pictures/s")
    print(f"{arguments.models} models: {statistics.median(many for _, many in rows):.1f} pictures/s")
    print(f"ratio: {statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]")
    print(f"resident memory: {alone:.0f} MB with one, {every:.0f} MB with all; heads take {heads / 1e6:.0f} MB on disk")
    print(f"killed replica to the next first score: {', '.join(f'{seconds:.1f}' for seconds in starts)} s")


def _send(server: Deployment, names: Sequence[str], pictures: Sequence[bytes], seconds: float) -> float:
    """Pictures a second, over all clients; every version by number, for nothing is promoted."""
    turn = itertools.count()
    done = itertools.count()
    deadline = time.perf_counter() + seconds

    def ask() -> None:
        with Connection(server.address) as client:
            while time.perf_counter() < deadline:
                number = next(turn)
                path = f"/v1/models/{names[number % len(names)]}/score"
                client.send(path, pictures[number % len(pictures)], version=1)
                next(done)

    threads = [threading.Thread(target=ask) for _ in range(CLIENTS)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return next(done) / (time.perf_counter() - started)


def _memory(server: Deployment) -> float:
    """The replica's resident memory, in megabytes."""
    return float(max(child.memory_info().rss for child in server.children("replica")) / 1e6)


def _restart(server: Deployment, name: str, picture: bytes) -> float:
    """Seconds from a kill to a score by the replica that takes the dead one's place."""
    server.kill("replica")
    killed = time.perf_counter()
    with Connection(server.address, retries=0, timeout=30) as client:
        while True:
            try:
                client.send(f"/v1/models/{name}/score", picture, version=1)
                return time.perf_counter() - killed
            except Exception:
                time.sleep(0.05)


if __name__ == "__main__":
    main()
