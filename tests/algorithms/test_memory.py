"""What a detector takes, measured in processes of their own, beside what it says that it will take.

That is what is in use at once; a heap with holes holds more.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from autoad.algorithms import ALGORITHMS
from autoad.algorithms._memory import SCRATCH

Case = tuple[str, dict[str, Any], int]

CASES: list[Case] = [
    ("patchcore", {"image_size": 128, "coreset_sampling_ratio": 0.25}, 64),
    ("patchcore", {"image_size": 256, "coreset_sampling_ratio": 0.05}, 32),
    ("padim", {"image_size": 256, "n_features": 60}, 10),
    ("padim", {"image_size": 128, "n_features": 150}, 40),
    ("dfm", {"image_size": 256, "pooling_kernel_size": 1, "stage": 2}, 96),
    ("dfm", {"image_size": 256, "pooling_kernel_size": 4, "stage": 1}, 160),
    ("dfkde", {"image_size": 256, "stages": [1, 2]}, 48),
    ("dfkde", {"image_size": 256, "stages": [1]}, 64),
    ("ganomaly", {"image_size": 64, "n_features": 32, "epochs": 1}, 32),
    ("ganomaly", {"image_size": 96, "n_features": 48, "epochs": 1}, 16),
    ("cflow", {"image_size": 128, "stages": [2, 3], "epochs": 1}, 8),
    ("cflow", {"image_size": 256, "stages": [2], "fiber_batch_size": 4096, "epochs": 1}, 4),
    ("stfpm", {"image_size": 128, "epochs": 1}, 4),
    ("stfpm", {"image_size": 256, "epochs": 1}, 4),
    ("reverse_distillation", {"image_size": 128, "batch_size": 8, "epochs": 1}, 8),
    ("reverse_distillation", {"image_size": 256, "batch_size": 4, "epochs": 1}, 4),
]
"""Algorithm, configuration, pictures."""


_TIMES = 3
"""How often a case is measured at most."""

Measured = dict[str, list[dict[str, float]]]


def measure(cases: list[Case]) -> list[dict[str, float]]:
    """MiB that fitting and predicting took, and were said to take."""
    script = Path(__file__).with_name("_measure_memory.py")
    done = subprocess.run(
        [sys.executable, str(script)],
        input=json.dumps(cases),
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": str(64 << 10)},
        capture_output=True,
        text=True,
        check=True,
        timeout=600,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == len(cases)
    return lines


@pytest.fixture(scope="module")
def measured() -> Measured:
    """By case: all of them, once."""
    return {json.dumps(case): [found] for case, found in zip(CASES, measure(CASES), strict=True)}


def test_every_algorithm_is_measured_at_two_sizes() -> None:
    assert sorted(name for name, _, _ in CASES) == sorted(2 * ALGORITHMS)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[1]['image_size']}")
@pytest.mark.parametrize("what", ["fit", "predict"])
def test_what_is_predicted_is_what_is_taken(case: Case, what: str, measured: Measured) -> None:
    found = measured[json.dumps(case)]
    # One measurement may be too large: while it lasts, the kernel may take pages of mapped files back.
    while not _near(found, what) and len(found) < _TIMES:
        found += measure([case])
    assert all(one["inputs"] > 0 for one in found)
    assert _near(found, what), found


def _near(found: list[dict[str, float]], what: str) -> bool:
    taken, predicted = [one[what] for one in found], found[0][f"{what}_predicted"]
    return min(taken) / 2 <= predicted <= 2 * max(taken) + SCRATCH / 2**20
