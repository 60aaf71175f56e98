"""Engines that several models share.

A factory has a hundred product variants and one backbone. Models that use the same backbone, weights, image size,
engine and precision share one instance for each *deepest stage* they need: it gives all stages up to that one, and so
it computes nothing that any of them could do without. Features are the same to the last bit whichever stages are asked
for along with them, so a model scores as it does alone (with torch on the CPU, by as many threads).
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence

from autoad.features.backbones import feature_shapes
from autoad.features.engines import Engine, create_engine

__all__ = ["EnginePool"]

_Key = tuple[str, int, tuple[int, int], str, str]


class EnginePool:
    """Opens engines; one that nobody holds any more is gone.

    Args:
        threads: CPU threads of each engine; None for all.
        streams: pictures that it computes side by side, see :func:`create_engine`.
    """

    def __init__(self, *, threads: int | None = None, streams: int | None = None) -> None:
        self._threads = threads
        self._streams = streams
        self._engines: weakref.WeakValueDictionary[_Key, Engine] = weakref.WeakValueDictionary()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._engines)

    def open(
        self, backbone: str, stages: Sequence[int], image_size: tuple[int, int], *, engine: str, precision: str
    ) -> Engine:
        """An engine that gives at least ``stages``.

        Raises:
            UsageError: the machine has no such engine, or the backbone no such stage or size.
            WeightsError: the weights cannot be reached.
        """
        every = sorted(feature_shapes(backbone, image_size))
        given = tuple(stage for stage in every if stage <= max(stages))
        key = (backbone, max(stages), image_size, engine, precision)
        with self._lock:  # whoever comes second waits rather than compiles the same
            found = self._engines.get(key)
            if found is None:
                found = create_engine(
                    backbone,
                    given if set(stages) <= set(given) else stages,
                    image_size,
                    engine=engine,
                    precision=precision,
                    threads=self._threads,
                    streams=self._streams,
                )
                self._engines[key] = found
            return found
