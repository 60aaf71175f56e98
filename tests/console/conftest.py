from __future__ import annotations

from typing import Any

import pytest

from autoad.console.devices import Devices, Gpu
from autoad.console.progress import Progress, View
from autoad.schema import Metrics, TrialRow


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def trial(number: int, algorithm: str = "padim", value: float | None = None, **fields: Any) -> TrialRow:
    status = fields.pop("status", "running" if value is None else "complete")
    return TrialRow(
        trial=number,
        algorithm=algorithm,
        config=fields.pop("config", {"image_size": 256}),
        status=status,
        validation=Metrics(image_auroc=value, aupro=None if value is None else value / 2),
        **fields,
    )


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def progress(clock: Clock) -> Progress:
    return Progress("image_auroc", clock)


@pytest.fixture
def busy() -> View:
    """More of everything than fits a small terminal."""
    clock = Clock()
    progress = Progress("image_auroc", clock)
    progress.name, progress.ends_at, progress.trial_limit = "bottle " * 40, 900.0, 500
    names = [f"algorithm_number_{letter}" for letter in "abcdefgh"]
    for number in range(64):
        clock.now += 5.0
        status = "failed" if number % 9 == 8 else "pruned" if number % 7 == 6 else "complete"
        value = None if status == "failed" else 0.5 + (number * 37 % 64) / 130
        config = {f"parameter_{letter}": number * 1.23456 for letter in "abcdefgh"}
        fields = {"status": status, "seconds": 5.0, "config": config, "reason": "no room\x1b[2J"}
        row = trial(number, names[number % 8], value, **fields)
        progress.hear(row, began=clock.now - 5, ended=clock.now)
    for number in range(64, 94):
        row = trial(number, names[number % 8], predicted_seconds=30.0, epochs_done=12, node=f"machine-{number % 3}")
        progress.hear(row, began=clock.now - number)
    gpus = tuple(Gpu("NVIDIA H100 80GB HBM3", 0.5, 20 * 2**30, 80 * 2**30) for _ in range(8))
    return progress.view(Devices((0.25,) * 64, 3 * 2**30, 8 * 2**30, gpus))
