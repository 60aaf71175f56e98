"""Where trials run: a Ray instance of our own."""

from __future__ import annotations

import dataclasses
import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray

__all__ = ["Workers", "local_ray"]


@dataclasses.dataclass(frozen=True)
class Workers:
    """How many trials run at once, and what each may use."""

    count: int
    gpus_each: float = 0.0


@contextmanager
def local_ray(workers: Workers) -> Iterator[Path]:
    """A Ray instance of our own that listens on loopback only and leaves nothing behind; yields its folder."""
    # A Unix socket's path must stay below 108 characters, so this cannot lie in the data folder.
    folder = tempfile.mkdtemp(prefix="autoad-ray-")
    try:
        ray.init(
            address="local",
            num_cpus=workers.count,
            num_gpus=None if workers.gpus_each else 0,
            object_store_memory=200 * 2**20,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=folder,
        )
        yield Path(folder)
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
