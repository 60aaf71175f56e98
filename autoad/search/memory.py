"""How much memory a trial takes: predicted, measured, and bounded."""

from __future__ import annotations

import ctypes
import math
import re
import resource
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import torch

from autoad.algorithms import Inputs, Runtime, get_algorithm
from autoad.errors import TrialMemoryError
from autoad.features import feature_shapes
from autoad.search.sweep import EVALUATION_SIZE
from autoad.settings import get_settings

__all__ = ["MemoryGuard", "copied_bytes", "free_memory", "predict_memory", "release_free_memory"]

_Item = TypeVar("_Item")

_SAMPLING_SECONDS = 0.01
_MAPS, _STATUS, _MACHINE = Path("/proc/self/maps"), Path("/proc/self/status"), Path("/proc/meminfo")
_GROUP = Path("/sys/fs/cgroup")
_KEPT_FREE = 0.1
_EXHAUSTED = re.compile(
    r"allocate memory|not enough memory|out of memory|bad_alloc|could not create a (primitive|memory)"
)
"""How the allocators of torch and oneDNN word it; they raise plain RuntimeErrors."""


def predict_memory(
    algorithm: str,
    config: Mapping[str, Any],
    *,
    train: int,
    selection: int,
    runtime: Runtime | None = None,
    gathered: bool = False,
) -> int:
    """Bytes that a trial will take at most beyond what its worker holds between trials; nothing is computed.

    An estimate, right within a factor of two: what the detector takes while it fits or predicts, and what measuring
    its maps takes. Features that are mapped from the store's files cost nothing.

    Args:
        algorithm: its name.
        config: its hyperparameters, with or without ``epochs``.
        train: number of training pictures.
        selection: number of selection pictures.
        runtime: where the detector computes.
        gathered: whether the pictures' features lie scattered over the store, so that they have to be copied.

    Raises:
        UsageError: the configuration cannot be, or the backbone cannot take pictures of that size.
    """
    detector_type = get_algorithm(algorithm)
    detector = detector_type(detector_type.Config(**config), runtime=runtime)
    needs = detector.needs
    shapes = {}
    if needs.backbone is not None:
        known = feature_shapes(needs.backbone, needs.image_size)
        shapes = {stage: known[stage] for stage in needs.stages}
    footprint = detector.footprint(train, selection, shapes)
    copies = 0
    if gathered:
        pixels = 3 * math.prod(needs.image_size) if needs.images else 0
        copies = (train + selection) * (pixels + 2 * sum(math.prod(shape) for shape in shapes.values()))
    # Maps at the size of evaluation, those of pictures with masks, their normal pixels, and these sorted.
    maps = 4 * selection * math.prod(EVALUATION_SIZE)
    measuring = 4 * maps if footprint.maps else 0
    return copies + max(footprint.fit, footprint.predict + measuring)


def free_memory() -> int:
    """Bytes that trials on this machine may take together: what is free, of a container's limit too, less a tenth.

    ``AUTOAD_MEMORY_LIMIT`` lowers it.
    """
    found = re.search(r"^MemAvailable:\s+(\d+) kB", _MACHINE.read_text(), re.MULTILINE)
    free = math.inf if found is None else 1024 * int(found[1])
    try:  # a container's own limit; its root has these files, another group of the host's has none here
        most, used = ((_GROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
        free = min(free, math.inf if most == "max" else int(most) - int(used))
    except (OSError, ValueError):
        pass
    if math.isinf(free):
        raise OSError(f"{_MACHINE} must say MemAvailable but does not: autoad needs a Linux kernel")
    limit = get_settings().memory_limit
    free = (1 - _KEPT_FREE) * free
    return int(free if limit is None else min(free, limit))


def copied_bytes(inputs: Inputs) -> int:
    """Bytes of those inputs that are no map of a file."""
    tensors = (*inputs.features.values(), *(() if inputs.images is None else (inputs.images,)))
    files = [
        (int(line[1], 16), int(line[2], 16))
        for line in re.finditer(r"^(\w+)-(\w+) .* /", _MAPS.read_text(), re.MULTILINE)
    ]
    return sum(t.nbytes for t in tensors if not any(start <= t.data_ptr() < end for start, end in files))


def release_free_memory() -> None:
    """Give memory that the process has freed back to the system, where its C library can."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _status(name: str) -> int:
    """A size from the kernel's account of this process, in bytes."""
    found = re.search(rf"^{name}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    if found is None:
        raise OSError(f"{_STATUS} must say {name} but does not: autoad needs a Linux kernel of version 4.7 or newer")
    return 1024 * int(found[1])


class MemoryGuard:
    """Measures the anonymous memory that a trial adds to its process, and keeps it below a limit.

    A context manager that may be entered again and again: memory is watched, and bounded, only inside. The bound is the
    kernel's limit on the data of the process (``RLIMIT_DATA``), set anew on each entry and restored on each exit, so
    that an allocation beyond it fails, where the process would otherwise be killed or the machine run out of memory. It
    counts what is reserved, not what is touched, and nothing of mapped files or of a GPU.

    Args:
        limit: bytes that the trial may add; None for as many as the machine has.
        already: bytes that it has added before.
        explain: completes "TRIAL ran out of memory: " when it has.
    """

    def __init__(self, limit: int | None, already: int, explain: Callable[[], str]) -> None:
        self._ceiling = None if limit is None else _status("VmData") + limit - already
        self._base = _status("RssAnon") - already
        self._peak = self._base
        self._explain = explain

    @property
    def peak(self) -> int:
        """Most bytes that the trial had added at any time so far."""
        return self._peak - self._base

    def each(self, items: Iterator[_Item]) -> Iterator[_Item]:
        """The items, each computed inside."""
        while True:
            with self:
                try:
                    item = next(items)
                except StopIteration:
                    return
            yield item

    def __enter__(self) -> None:
        self._sample()
        self._ended = threading.Event()
        self._sampler = threading.Thread(target=self._watch, daemon=True)
        self._sampler.start()
        self._before = resource.getrlimit(resource.RLIMIT_DATA)
        if self._ceiling is not None:
            soft, hard = self._before
            lowest = min(limit for limit in (self._ceiling, soft, hard) if limit != resource.RLIM_INFINITY)
            resource.setrlimit(resource.RLIMIT_DATA, (max(0, lowest), hard))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        resource.setrlimit(resource.RLIMIT_DATA, self._before)
        self._ended.set()
        self._sampler.join()
        self._sample()
        if error is not None and _is_exhaustion(error):
            raise TrialMemoryError(f"ran out of memory: {self._explain()}") from error

    def _watch(self) -> None:
        while not self._ended.wait(_SAMPLING_SECONDS):
            self._sample()

    def _sample(self) -> None:
        self._peak = max(self._peak, _status("RssAnon"))


def _is_exhaustion(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return type(error) is RuntimeError and _EXHAUSTED.search(str(error)) is not None
