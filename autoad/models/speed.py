"""What scoring costs, measured in a process of its own.

A fresh process holds nothing but the model, so its largest resident memory is what a deployment needs.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from autoad.errors import ArtifactError
from autoad.schema import Speed

__all__ = ["measure_speed"]


def measure_speed(folder: Path, pictures: Sequence[Path], *, threads: int) -> Speed:
    """Latency, throughput and peak memory of a saved model.

    Args:
        folder: the model.
        pictures: files to score, one after another.
        threads: CPU threads.

    Raises:
        ArtifactError: the process that was to measure it failed; carries the end of what it printed.
    """
    command = [sys.executable, "-m", "autoad.models.speed", str(folder), str(threads), *map(str, pictures)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode != 0:
        raise ArtifactError(f"the model {str(folder)!r} could not be measured: {done.stderr.strip()[-500:]}")
    return Speed.model_validate_json(done.stdout.splitlines()[-1])


def _main(folder: str, threads: str, *pictures: str) -> None:
    from autoad.models.model import Model

    model = Model.load(Path(folder), threads=int(threads))
    data = [Path(picture).read_bytes() for picture in pictures]
    model.score(data[0])
    times = []
    for picture in data:
        started = time.perf_counter()
        model.score(picture)
        times.append(time.perf_counter() - started)
    started = time.perf_counter()
    for _ in model.score_many(data):
        pass
    throughput = len(data) / (time.perf_counter() - started)
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    speed = Speed(
        latency_ms=round(1000 * statistics.median(times), 2),
        pictures_per_second=round(throughput, 2),
        peak_memory_mb=round(kilobytes / (2**20 if sys.platform == "darwin" else 2**10), 1),
    )
    print(json.dumps(speed.model_dump()))


if __name__ == "__main__":
    _main(*sys.argv[1:])
