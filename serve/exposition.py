"""The metrics of all replicas as one Prometheus document."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families

__all__ = ["Exposition"]

_KEPT_SECONDS = 15.0


class Exposition:
    """What replicas last said, each with its ``replica`` label.

    A replica that has said nothing for a while is left out: it has gone. Prometheus takes care of counters that end.

    Args:
        clock: seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._said: dict[str, tuple[float, bytes]] = {}
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def take(self, replica: str, text: bytes) -> None:
        """Keep what a replica said."""
        self._said[replica] = (self._clock(), text)

    def text(self) -> bytes:
        """One document: each family once, with the samples of all replicas."""
        return generate_latest(self._registry)

    def collect(self) -> Iterable[Metric]:
        """What prometheus_client asks for."""
        oldest = self._clock() - _KEPT_SECONDS
        self._said = {replica: said for replica, said in self._said.items() if said[0] >= oldest}
        families: dict[str, Metric] = {}
        for family in self._families():
            known = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            known.samples.extend(family.samples)
        return families.values()

    def _families(self) -> Iterator[Metric]:
        for _, text in self._said.values():
            yield from text_string_to_metric_families(text.decode())
