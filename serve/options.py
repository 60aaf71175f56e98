"""What the Serve application can be told: the command line's options, or ``args`` in Serve's configuration file."""

from __future__ import annotations

import os
from typing import Self

from pydantic import BaseModel, ByteSize, ConfigDict, Field, model_validator

__all__ = ["ServeOptions"]


def _default_replicas() -> int:
    return min(2, os.cpu_count() or 1)


class ServeOptions(BaseModel):
    """Options of a server.

    Limits hold for each replica by itself: two replicas take twice the rate.

    Attributes:
        host: where the server listens.
        port: at which.
        replicas: processes that score, at least; two, so that one can die.
        max_replicas: most of them, when there is much to do; ``replicas`` unless told otherwise.
        threads: CPU threads of a replica; its share of the cores unless told otherwise.
        gpus: of a replica.
        max_batch: most pictures that one forward pass takes.
        max_queue: most pictures that wait in a replica; more are refused with 429.
        max_pictures: of one request.
        max_request_bytes: of one request's body.
        max_held_bytes: of bodies that a replica holds at once, whoever sent them; more are refused with 429. At least
            one request's.
        max_pixels: of one picture.
        max_shadow: most pictures that wait to be scored by shadows, of no more bytes than one request; others are
            dropped and counted.
        rate: pictures a second for each API key; None for no limit.
        models_memory: bytes of models that a replica holds; None for its share of half the free memory.
        poll_seconds: after how long a replica knows of a change of a route.
        preload: most champions that a new replica loads before it is ready.
        max_dataset_files: most files of a dataset, masks included.
        project_bytes: most bytes of all pictures and masks that a project's datasets hold; each counts once.
        max_archive_bytes: most bytes of an archive, packed and unpacked.
        max_searches: most searches that run at once, of all projects; with 0 this server starts none.
        max_queued: most searches of a project that wait; more are refused with 429.
        max_streams: most clients that follow a search at a replica at once; more are refused with 429.
        search_address: ``HOST:PORT`` of the Ray cluster on which searches run; empty for this machine alone.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=1, le=65535)
    replicas: int = Field(default_factory=_default_replicas, ge=1)
    max_replicas: int = Field(default=0, ge=0)
    threads: int = Field(default=0, ge=0)
    gpus: float = Field(default=0.0, ge=0)
    max_batch: int = Field(default=16, ge=1)
    max_queue: int = Field(default=256, ge=1)
    max_pictures: int = Field(default=64, ge=1)
    max_request_bytes: ByteSize = Field(default=ByteSize(64 * 2**20), gt=0)
    max_held_bytes: ByteSize = Field(default=ByteSize(2**30), gt=0)
    max_pixels: int = Field(default=50_000_000, ge=1)
    max_shadow: int = Field(default=64, ge=0)
    rate: float | None = Field(default=None, gt=0)
    models_memory: ByteSize | None = None
    poll_seconds: float = Field(default=0.15, gt=0, le=0.2)
    preload: int = Field(default=32, ge=0)
    max_dataset_files: int = Field(default=100_000, ge=1, le=1_000_000)
    project_bytes: ByteSize = Field(default=ByteSize(100 * 10**9), gt=0)
    max_archive_bytes: ByteSize = Field(default=ByteSize(8 * 10**9), gt=0)
    max_searches: int = Field(default=1, ge=0)
    max_queued: int = Field(default=20, ge=1)
    max_streams: int = Field(default=64, ge=1)
    search_address: str = Field(default="", max_length=300)

    @model_validator(mode="after")
    def _fill_in(self) -> Self:
        if self.max_replicas < self.replicas:
            object.__setattr__(self, "max_replicas", self.replicas)
        if self.max_held_bytes < self.max_request_bytes:  # or the largest request would be told to come again for ever
            object.__setattr__(self, "max_held_bytes", self.max_request_bytes)
        if not self.threads:
            object.__setattr__(self, "threads", max(1, (os.cpu_count() or 1) // self.replicas))
        return self
