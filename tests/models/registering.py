"""Small artifacts, and processes that change the registry and may die of it."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from autoad.database import Database, _models
from autoad.errors import UsageError
from autoad.models import ArtifactMetrics, Calibration, Member, Provenance, save_model, write_manifest
from autoad.models._files import VersionFiles
from autoad.models.registry import Registry
from autoad.schema import Metrics, TestMetrics
from autoad.settings import Settings

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["autoad.models.registry"])

DIED = 42


def make_artifact(folder: Path, *, value: float = 0.0, search: str = "5ea4c4", trial: int = 0) -> Path:
    """A finished artifact that nothing could load; its tensors hold ``value``."""
    member = Member(
        algorithm="dfm",
        kind="classification",
        config={},
        seed=0,
        image_size=(8, 8),
        device="cpu",
        precision="float32",
        backbone=None,
    )
    provenance = Provenance(
        code_version="1", search=search, trial=trial, dataset_hash="d" * 64, dataset_counts={}, evidence="labelled"
    )
    manifest = save_model(folder, "m", [(member, {"t": torch.tensor([value])})], provenance)
    calibration = Calibration(
        threshold=1.5, rate=0.1, rate_upper=0.25, pictures=9, scale=1.0, pixel_threshold=None, pixel_scale=None
    )
    metrics = ArtifactMetrics(
        validation=Metrics(image_auroc=0.75), test=TestMetrics(image_auroc=0.625, image_auroc_low=0.5)
    )
    write_manifest(folder, manifest.model_copy(update={"calibration": calibration, "metrics": metrics}))
    return folder


def _die(*_: object, **__: object) -> None:
    os._exit(DIED)


def _dies_after(holder: Any, name: str) -> None:
    original = getattr(holder, name)

    def replacement(*arguments: Any, **named: Any) -> None:
        original(*arguments, **named)
        _die()

    setattr(holder, name, replacement)


DEATHS: dict[str, Callable[[], None]] = {
    "before anything": lambda: setattr(_models.ModelTables, "_make_route", _die),
    "route made": lambda: _dies_after(_models.ModelTables, "_make_route"),
    "uploaded": lambda: _dies_after(VersionFiles, "upload"),
    "not moved yet": lambda: setattr(VersionFiles, "take", _die),
    "moved, not committed": lambda: _dies_after(VersionFiles, "take"),
    "route changed, not committed": lambda: setattr(_models, "utc_now", _die),
    "committed": lambda: _dies_after(_models.ModelTables, "_commit"),
    "files not removed yet": lambda: setattr(VersionFiles, "remove", _die),
}
"""Where a process ends, by ``os._exit``: nothing is cleaned up."""


@dataclasses.dataclass(frozen=True)
class Change:
    """What a process does to a registry: a method's name and its arguments."""

    method: str
    arguments: tuple[Any, ...]
    named: dict[str, Any] = dataclasses.field(default_factory=dict)


def _carry_out(settings: Settings, change: Change, death: str) -> None:
    DEATHS[death]()
    getattr(Registry(Database(settings), settings), change.method)(*change.arguments, **change.named)


def die_while(settings: Settings, change: Change, death: str) -> None:
    """Have a process carry out a change and die in the middle of it."""
    process = PROCESSES.Process(target=_carry_out, args=(settings, change, death))
    process.start()
    process.join()
    assert process.exitcode == DIED, f"it did not get as far as {death!r}"


def run_together(task: Callable[..., Any], settings: Settings, count: int, *arguments: Any) -> list[Any]:
    """What ``task(database's registry, number, *arguments)`` returned in each of several processes at once."""
    barrier, answers = PROCESSES.Barrier(count), PROCESSES.Queue()
    processes = [
        PROCESSES.Process(target=_answer, args=(task, settings, number, barrier, answers, *arguments))
        for number in range(count)
    ]
    for process in processes:
        process.start()
    found = [answers.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    answers.close()
    answers.join_thread()
    errors = [answer for answer in found if isinstance(answer, str)]
    assert not errors, errors
    return found


def _answer(
    task: Callable[..., Any], settings: Settings, number: int, barrier: Any, answers: Any, *arguments: Any
) -> None:
    try:
        database = Database(settings)
        registry = Registry(database, settings)
        barrier.wait(timeout=60)
        answers.put(task(registry, number, *arguments))
        database.close()
    except Exception as error:
        answers.put(f"process {number}: {error!r}")


def promote_in_turns(registry: Registry, number: int, rounds: int) -> list[int]:
    """Promote both versions alternately; the generations that this process made."""
    made = []
    for turn in range(rounds):
        try:
            route = registry.promote("bottle", 1 + turn % 2, reason=f"{number}.{turn}", actor=f"p{number}")
        except UsageError as error:
            if "champion already" not in str(error):
                raise
        else:
            made.append(route.generation)
    return made


def register_several(registry: Registry, number: int, folder: Path, rounds: int) -> list[tuple[int, float]]:
    """Register artifacts; their numbers and values."""
    made = []
    for turn in range(rounds):
        value = float(100 * number + turn)
        artifact = make_artifact(folder / f"{number}-{turn}", value=value, search=f"s{number}", trial=turn)
        made.append((registry.register(artifact, "bottle").version, value))
    return made


def register_the_same(registry: Registry, number: int, folder: Path) -> int:
    """Register what everybody registers."""
    return registry.register(make_artifact(folder / str(number)), "bottle").version
