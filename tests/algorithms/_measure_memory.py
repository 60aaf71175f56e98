"""Measures how much anonymous memory detectors add to a process: cases on stdin, a line of JSON for each on stdout.

Each case runs in a forked child, so that none finds memory that another has left behind. To be run with
``MALLOC_MMAP_THRESHOLD_`` set: tensors in mappings of their own are given back whole, whereas the heap may hold many
times what is in use, depending on where its free pieces happen to lie.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import sys
from pathlib import Path
from typing import Any, Self

import safetensors.torch
import torch

from autoad.algorithms import Inputs, Needs, get_algorithm
from autoad.features import feature_shapes


def status(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


class Growth:
    """Context manager; ``mb`` is by how much anonymous memory had grown at most.

    The kernel's own high-water mark, which misses nothing; pages of files, which it counts too, only ever come on.
    """

    def __enter__(self) -> Self:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the mark falls to what is resident now
        self._before, self._files = status("VmRSS"), status("RssFile")
        return self

    def __exit__(self, *_: object) -> None:
        self.mb = (status("VmHWM") - self._before - (status("RssFile") - self._files)) / 2**20


def create_inputs(count: int, needs: Needs) -> Inputs:
    random = torch.Generator().manual_seed(count)
    features = {}
    if needs.backbone is not None:
        shapes = feature_shapes(needs.backbone, needs.image_size)
        for stage in needs.stages:
            features[stage] = torch.randn(count, *shapes[stage], generator=random).half().permute(0, 3, 1, 2)
    size = (count, *needs.image_size, 3)
    images = torch.randint(0, 256, size, dtype=torch.uint8, generator=random) if needs.images else None
    return Inputs(needs.image_size, features, images)


def measure(name: str, config: dict[str, Any], count: int) -> dict[str, float]:
    algorithm = get_algorithm(name)
    detector = algorithm(algorithm.Config(**config))
    shapes = {}
    if detector.needs.backbone is not None:
        known = feature_shapes(detector.needs.backbone, detector.needs.image_size)
        shapes = {stage: known[stage] for stage in detector.needs.stages}
    predicted = detector.footprint(count, count, shapes)
    before = status("RssAnon")
    inputs = create_inputs(count, detector.needs)
    given = status("RssAnon") - before
    with Growth() as fit:
        for _ in detector.fit(inputs):
            pass
    saved = safetensors.torch.save(detector.tensors())
    del detector
    loaded = algorithm(algorithm.Config(**config))
    with Growth() as predict:
        loaded.load_tensors(safetensors.torch.load(saved))
        kept = loaded.predict(inputs)
    assert len(kept.scores) == count
    return {
        "inputs": given / 2**20,
        "fit": fit.mb,
        "fit_predicted": predicted.fit / 2**20,
        "predict": predict.mb,
        "predict_predicted": predicted.predict / 2**20,
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    for case in json.load(sys.stdin):
        child = os.fork()
        if child == 0:
            print(json.dumps(measure(*case)), flush=True)
            os._exit(0)
        if os.waitpid(child, 0)[1] != 0:
            sys.exit(f"{case} failed")
