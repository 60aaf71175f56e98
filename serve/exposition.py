"""The metrics of all replicas as one Prometheus document."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

__all__ = ["Exposition"]

_KEPT_SECONDS = 30.0  # six reports


class Exposition:
    """What replicas last said, each with its ``replica`` label.

    A replica that has said nothing for a while is left out: it has gone. Prometheus takes care of counters that end.

    Args:
        clock: seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._said: dict[str, tuple[float, bytes]] = {}

    def take(self, replica: str, text: bytes) -> None:
        """Keep what a replica said, and forget those that have gone."""
        now = self._clock()
        for silent in [one for one, (at, _) in self._said.items() if at < now - _KEPT_SECONDS]:
            del self._said[silent]
        self._said[replica] = (now, text)

    def text(self, project: str | None = None) -> bytes:
        """One document: each family once, with the samples of all replicas. May be called from another thread.

        Args:
            project: samples that belong to another project's models are left out; None for all samples.
        """
        oldest = self._clock() - _KEPT_SECONDS
        texts = [text for at, text in list(self._said.values()) if at >= oldest]
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Joined(texts, project))
        return generate_latest(registry)


class _Joined(Collector):
    """What several replicas said, less what is said of other projects."""

    def __init__(self, texts: list[bytes], project: str | None) -> None:
        self._texts = texts
        self._project = project

    def collect(self) -> Iterable[Metric]:
        """What prometheus_client asks for."""
        families: dict[str, Metric] = {}
        for text in self._texts:
            for family in text_string_to_metric_families(text.decode()):
                known = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                known.samples.extend(
                    sample
                    for sample in family.samples
                    if self._project is None or sample.labels.get("project", self._project) == self._project
                )
        return families.values()
