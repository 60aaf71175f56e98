"""Engines that several models share.

A factory has a hundred product variants and one backbone. Models that use the same backbone, weights, image size,
engine and precision share one instance for each *deepest stage* they need: deeper layers would cost the others time.
Features are the same to the last bit whichever stages are asked for with them, so a model scores as it does alone
(torch's, unlike OpenVINO's, depend on the number of threads).
An instance gives the stages that somebody has needed and no others, because each one's map has to be reordered and
copied; whoever needs another has it compiled anew.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from autoad.features.engines import Engine, create_engine
from autoad.features.weights import find_weights

__all__ = ["EnginePool", "SharedEngine"]

_Key = tuple[str, str, int, tuple[int, int], str, str]


class SharedEngine:
    """An engine that may come to give more stages, but never fewer."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    @property
    def stages(self) -> tuple[int, ...]:
        """Of which it gives maps now."""
        return self.engine.stages

    def __call__(self, images: NDArray[np.uint8]) -> dict[int, NDArray[np.float32]]:
        """See :class:`autoad.features.Engine`."""
        return self.engine(images)


class EnginePool:
    """Opens engines; one that nobody holds any more is gone.

    Attributes:
        threads: CPU threads of each engine, and of each network that a model compiles beside it; None for all.
        streams: pictures that it computes side by side, see :func:`create_engine`.
    """

    def __init__(self, *, threads: int | None = None, streams: int | None = None) -> None:
        self.threads = threads
        self.streams = streams
        self._engines: weakref.WeakValueDictionary[_Key, SharedEngine] = weakref.WeakValueDictionary()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._engines)

    def open(
        self, backbone: str, stages: Sequence[int], image_size: tuple[int, int], *, engine: str, precision: str
    ) -> SharedEngine:
        """An engine that gives ``stages`` and perhaps others.

        Raises:
            UsageError: the machine has no such engine, or the backbone no such stage or size.
            WeightsError: the weights cannot be reached.
        """
        key = (backbone, find_weights(backbone).sha256, max(stages), image_size, engine, precision)
        with self._lock:  # whoever comes second waits rather than compiles the same
            shared = self._engines.get(key)
            if shared is None or not set(stages) <= set(shared.stages):
                made = create_engine(
                    backbone,
                    sorted({*stages, *(() if shared is None else shared.stages)}),
                    image_size,
                    engine=engine,
                    precision=precision,
                    threads=self.threads,
                    streams=self.streams,
                )
                if shared is None:
                    shared = self._engines[key] = SharedEngine(made)
                else:
                    shared.engine = made
            return shared
