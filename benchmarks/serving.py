"""How much of a model's own speed is left over HTTP, side by side in one run.

    python benchmarks/serving.py FOLDER [--rounds 5] [--anomalib PYTHON]

For PatchCore with a 1 % coreset of FOLDER's pictures (MVTec AD layout), each round measures, one after the other:

- the model in process: ``Model.score_many`` over the encoded pictures, and one picture at a time;
- the same pictures over HTTP (``autoad serve``: HAProxy, Ray Serve) by ``wrk`` with 16 connections, and with one;
- with ``--anomalib`` (a Python that has anomalib and FastAPI), anomalib's own inferencer behind the simplest FastAPI
  server, likewise, with the same backbone, weights and coreset.

Medians over rounds; ratios are taken within a round. Processor time by process is read from /proc.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import psutil
import safetensors.torch

from autoad.client import Client
from autoad.data import read_dataset
from autoad.features import create_backbone
from tests.serve.factory import add_model, make_state

ROOT = Path(__file__).resolve().parent.parent
PORT, PEER_PORT = 8345, 8346
WRK = """
local files = {}
for name in io.open(os.getenv("PICTURES")):lines() do
    local file = io.open(name, "rb")
    files[#files + 1] = file:read("*a")
    file:close()
end
local next = 0
request = function()
    next = next + 1
    return wrk.format("POST", nil, {["Content-Type"] = "image/png"}, files[next % #files + 1])
end
"""


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=6, help="of each measurement")
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--anomalib", type=Path)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        state = make_state(Path(scratch) / "state")
        dataset = read_dataset(arguments.folder)
        add_model(state, dataset, "bench", "patchcore", coreset_sampling_ratio=0.01)
        pictures = [picture.path for picture in dataset.pictures if "test" in picture.path.parts][:64]
        listing = Path(scratch) / "pictures.txt"
        listing.write_text("\n".join(map(str, pictures)))
        script = Path(scratch) / "post.lua"
        script.write_text(WRK)
        rounds: list[dict[str, float]] = []
        stages: dict[str, float] = {}
        with (
            _in_process(state.data_dir / "models/default/bench/1", pictures) as measure,
            _served(state.data_dir, arguments.replicas) as tree,
            _peer(arguments.anomalib, arguments.folder, Path(scratch)) as peer,
        ):
            address = f"http://127.0.0.1:{PORT}/v1/models/bench/score"
            for number in range(arguments.rounds + 1):
                row: dict[str, float] = {}
                row["process pictures/s"] = measure("many", arguments.seconds)
                before = _processor_seconds(tree)
                row["http16 pictures/s"], _ = _wrk(script, listing, address, 16, arguments.seconds)
                used = {name: seconds - before.get(name, 0.0) for name, seconds in _processor_seconds(tree).items()}
                row["process ms"] = measure("one", arguments.seconds)
                _, row["http1 ms"] = _wrk(script, listing, address, 1, arguments.seconds)
                if peer:
                    row["peer16 pictures/s"], _ = _wrk(script, listing, peer, 16, arguments.seconds)
                    _, row["peer1 ms"] = _wrk(script, listing, peer, 1, arguments.seconds)
                if number:  # the first warms everything up
                    row |= {
                        f"cpu ms {name}": 1000 * seconds / (row["http16 pictures/s"] * arguments.seconds)
                        for name, seconds in used.items()
                    }
                    rounds.append(row)
                print(json.dumps({key: round(value, 2) for key, value in row.items()}), file=sys.stderr)
            stages = _stages(address, pictures)
    _report(rounds, stages, arguments.output)


@contextmanager
def _in_process(folder: Path, pictures: Sequence[Path]) -> Iterator[Any]:
    """A process that holds the model and measures when told to; idle otherwise."""
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom autoad.models import Model\n"
        "model = Model.load(Path(sys.argv[1]))\ndata = [Path(p).read_bytes() for p in sys.argv[2:]]\n"
        "list(model.score_many(data[:8]))\n"
        "for line in sys.stdin:\n"
        "    what, seconds = line.split()\n    times, count, start = [], 0, time.perf_counter()\n"
        "    while time.perf_counter() - start < float(seconds):\n"
        "        if what == 'many':\n            count += len(list(model.score_many(data)))\n"
        "        else:\n"
        "            begun = time.perf_counter(); model.score(data[count % len(data)]); count += 1\n"
        "            times.append(time.perf_counter() - begun)\n"
        "    took = time.perf_counter() - start\n"
        "    print(count / took if what == 'many' else 1000 * sorted(times)[len(times) // 2], flush=True)\n"
    )
    command = [sys.executable, "-c", code, str(folder), *map(str, pictures)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("no pipes")

    def measure(what: str, seconds: float) -> float:
        print(what, seconds, file=process.stdin, flush=True)
        return float(process.stdout.readline())

    try:
        yield measure
    finally:
        process.kill()
        process.wait()


@contextmanager
def _served(state: Path, replicas: int) -> Iterator[psutil.Process]:
    command = [sys.executable, "-m", "autoad.cli", "serve", "--port", str(PORT), "--replicas", str(replicas)]
    environment = os.environ | {"AUTOAD_DATA_DIR": str(state)}
    with (state / "serve.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=ROOT)
    try:
        with Client(f"http://127.0.0.1:{PORT}", retries=20) as client:
            while not client.ready():
                time.sleep(0.5)
            client.promote("bench")
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(timeout=60)


@contextmanager
def _peer(python: Path | None, folder: Path, scratch: Path) -> Iterator[str]:
    if python is None:
        yield ""
        return
    weights = scratch / "weights.safetensors"
    pyramid = create_backbone("tf_efficientnet_lite0", (0, 1, 2, 3, 4), pretrained=True)  # it holds all blocks
    safetensors.torch.save_file(pyramid.state_dict(), weights)
    script = ROOT / "benchmarks/_anomalib_server.py"
    command = [python, script, folder.resolve(), PEER_PORT, scratch, weights]
    with (scratch / "peer.log").open("wb") as log:
        process = subprocess.Popen(list(map(str, command)), stdout=log, stderr=log, cwd=scratch)
    try:
        for _ in range(600):
            if process.poll() is not None:
                raise RuntimeError((scratch / "peer.log").read_text()[-2000:])
            try:
                httpx2.get(f"http://127.0.0.1:{PEER_PORT}/health")
                break
            except httpx2.TransportError:
                time.sleep(1)
        yield f"http://127.0.0.1:{PEER_PORT}/score"
    finally:
        process.terminate()
        process.wait(timeout=60)


def _wrk(script: Path, listing: Path, address: str, connections: int, seconds: int) -> tuple[float, float]:
    """Replies a second, and the median latency in milliseconds; refuses to count errors."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}", "--latency", "--timeout", "30", "-s", script, address]
    environment = os.environ | {"PICTURES": str(listing)}
    text = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True, env=environment).stdout
    if "Non-2xx" in text or "Socket errors" in text:
        raise RuntimeError(text)
    rate = float(re.search(r"Requests/sec:\s+([\d.]+)", text)[1])  # type: ignore[index]
    value, unit = re.search(r"50%\s+([\d.]+)(us|ms|s)", text).groups()  # type: ignore[union-attr]
    return rate, float(value) * {"us": 1e-3, "ms": 1, "s": 1e3}[unit]


def _processor_seconds(root: psutil.Process) -> dict[str, float]:
    """Processor time of the server's processes by what they are."""
    used: defaultdict[str, float] = defaultdict(float)
    for process in [root, *root.children(recursive=True)]:
        try:
            name = " ".join(process.cmdline())[:200] or process.name()
            times = process.cpu_times()
        except psutil.Error:
            continue
        kind = "HAProxy" if "/haproxy" in name else "replicas" if "Scoring" in name else "Ray and control"
        used[kind] += times.user + times.system
    return dict(used)


def _stages(address: str, pictures: Sequence[Path]) -> dict[str, float]:
    """Median of each stage that replies tell, of pictures one at a time."""
    found: defaultdict[str, list[float]] = defaultdict(list)
    with httpx2.Client() as client:
        for picture in pictures:
            for stage, value in client.post(address, content=picture.read_bytes()).json()["timing_ms"].items():
                found[stage].append(value)
    return {stage: statistics.median(values) for stage, values in found.items()}


def _report(rounds: Sequence[dict[str, float]], stages: dict[str, float], output: Path | None) -> None:
    def middle(values: Sequence[float]) -> str:
        return f"{statistics.median(values):.2f} [{min(values):.2f}, {max(values):.2f}]"

    lines = [f"| | median of {len(rounds)} rounds [smallest, largest] |", "|---|---|"]
    lines += [f"| {key} | {middle([row[key] for row in rounds])} |" for key in rounds[0]]
    ratio = [row["http16 pictures/s"] / row["process pictures/s"] for row in rounds]
    lines.append(f"| HTTP at 16 / in process | {middle(ratio)} |")
    lines.append(f"| p50 overhead at 1, ms | {middle([row['http1 ms'] - row['process ms'] for row in rounds])} |")
    if "peer16 pictures/s" in rounds[0]:
        peer = [row["http16 pictures/s"] / row["peer16 pictures/s"] for row in rounds]
        lines.append(f"| HTTP at 16 / anomalib at 16 | {middle(peer)} |")
    lines += [f"| stage {stage}, ms (one at a time) | {value:.2f} |" for stage, value in stages.items()]
    print("\n".join(lines))
    if output is not None:
        output.write_text(json.dumps({"rounds": rounds, "stages": stages}, indent=1))


if __name__ == "__main__":
    main()
