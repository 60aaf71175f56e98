"""How near the backbone's forward pass comes to what this machine can do.

The roofline is a sum over layers of the longer of two times: that of the multiplications at the measured peak rate, and
that of reading the weights and inputs and writing the outputs once at the measured bandwidth. Normalisation,
activation and addition are fused into convolutions by any good engine and count for nothing. Two bandwidths are
measured: of a buffer much larger than all caches, and of one that the last cache holds, where a picture's maps mostly
lie. The second gives the stricter roofline.

Peak, bandwidths and forward pass are measured in turn, round by round, with the same number of threads.

    python benchmarks/roofline.py [--threads 1 2] [--rounds 15]
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable

import numpy as np
from _common import table

from autoad.features import DEFAULT_BACKBONE, available_engines, create_backbone, create_engine

import torch  # isort: skip - after autoad, which says how torch's threads wait
from torch import Tensor, nn  # isort: skip

SIZE = (256, 256)
STAGES = (1, 2, 3, 4)
PICTURES = 16
MEMORY, CACHE = 512 * 2**20, 4 * 2**20
SIDE = 3072


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer's work for one picture: multiply-adds, and how many numbers it reads and writes."""

    multiplications: int
    numbers: int


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=15)
    parsed = parser.parse_args()
    layers = count()
    print(
        f"{DEFAULT_BACKBONE}, {SIZE[0]} x {SIZE[1]}: {len(layers)} layers, "
        f"{sum(layer.multiplications for layer in layers) / 1e6:.0f} million multiply-adds, "
        f"{sum(layer.numbers for layer in layers) / 1e6:.1f} million numbers read and written"
    )
    precisions = ["float32"]
    if "bfloat16" in available_engines()["openvino"]:
        precisions.append("bfloat16")
    rows = [
        row
        for threads in parsed.threads
        for precision in precisions
        for row in measure(layers, threads, precision, parsed.rounds)
    ]
    print(
        table(
            [
                *("threads", "precision", "streams", "peak, Gflop/s", "memory, GB/s", "cache, GB/s"),
                *("forward, ms", "Gflop/s", "roofline by memory, ms", "share", "roofline by cache, ms", "share"),
            ],
            rows,
        )
    )


def count() -> list[Layer]:
    """The convolutions and linear layers of the backbone, by the shapes of one picture."""
    layers: list[Layer] = []

    def note(module: nn.Module, given: tuple[Tensor, ...], result: Tensor) -> None:
        weights = module.weight
        assert isinstance(weights, Tensor)
        positions = result.numel() // weights.shape[0]
        layers.append(Layer(positions * weights.numel(), given[0].numel() + weights.numel() + result.numel()))

    network = create_backbone(DEFAULT_BACKBONE, STAGES, pretrained=True)
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(note)
    with torch.inference_mode():
        network(torch.zeros(1, 3, *SIZE))
    return layers


def measure(layers: list[Layer], threads: int, precision: str, rounds: int) -> list[list[object]]:
    """A row for each sensible number of streams."""
    torch.set_num_threads(threads)
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    pictures = np.random.default_rng(0).integers(0, 256, (PICTURES, *SIZE, 3), dtype=np.uint8)
    engines = {
        streams: create_engine(
            DEFAULT_BACKBONE, STAGES, SIZE, engine="openvino", precision=precision, threads=threads, streams=streams
        )
        for streams in sorted({1, threads})
    }
    square = torch.randn(SIDE, SIDE).to(dtype)
    wide = torch.randn(1, 512, 48, 48).to(dtype).contiguous(memory_format=torch.channels_last)
    kernel = torch.randn(512, 512, 3, 3).to(dtype).contiguous(memory_format=torch.channels_last)
    buffers = [torch.zeros(size // 4) for size in (MEMORY, CACHE * threads)]
    work: dict[str, tuple[float, Callable[[], object]]] = {
        "product": (2 * SIDE**3, lambda: square @ square),
        "convolution": (2 * kernel.numel() * 48 * 48, lambda: torch.conv2d(wide, kernel, padding=1)),
        "memory": (MEMORY, lambda: buffers[0].sum()),
        "cache": (32 * CACHE * threads, lambda: [buffers[1].sum() for _ in range(32)]),
    }
    for streams, engine in engines.items():
        work[f"forward {streams}"] = (PICTURES, lambda engine=engine: engine(pictures))  # type: ignore[misc]
    rates: dict[str, list[float]] = {name: [] for name in work}
    with torch.inference_mode():
        for _ in range(rounds + 1):
            for name, (amount, run) in work.items():
                started = time.perf_counter()
                run()
                rates[name].append(amount / (time.perf_counter() - started))
    median = {name: statistics.median(values[1:]) for name, values in rates.items()}  # the first round warms up
    peak = max(median["product"], median["convolution"])
    rows: list[list[object]] = []
    for streams in engines:
        seconds = 1 / median[f"forward {streams}"]
        shown: list[object] = []
        for bandwidth in (median["memory"], median["cache"]):
            least = sum(
                max(2 * layer.multiplications / peak, layer.numbers * dtype.itemsize / bandwidth) for layer in layers
            )
            shown += [f"{1000 * least:.2f}", f"{least / seconds:.0%}"]
        flops = 2 * sum(layer.multiplications for layer in layers) / seconds
        rows.append(
            [
                *(threads, precision, streams, f"{peak / 1e9:.0f}"),
                *(f"{median[name] / 1e9:.1f}" for name in ("memory", "cache")),
                *(f"{1000 * seconds:.2f}", f"{flops / 1e9:.0f}", *shown),
            ]
        )
        print(*rows[-1], {name: f"{value:.3g}" for name, value in median.items()}, flush=True)
    return rows


if __name__ == "__main__":
    main()
