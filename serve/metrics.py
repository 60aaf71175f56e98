"""What a replica counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from autoad.models import Score

__all__ = ["Metrics"]

_SECONDS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10)
_SCORES = tuple(step / 20 for step in range(1, 21))
_BATCHES = (1, 2, 4, 8, 16, 32, 64)
_MODEL = ("replica", "project", "model", "version")


class Metrics:
    """One replica's counters, in a registry of their own.

    Args:
        replica: label of every sample.
        pending: gives how many pictures wait or are being scored.
        held: gives how many bytes of models are held.
    """

    def __init__(self, replica: str, *, pending: Callable[[], int], held: Callable[[], int]) -> None:
        self._replica = replica
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "autoad_requests", "Requests by route and status.", ("replica", "route", "status"), registry=registry
        )
        self._latency = Histogram(
            "autoad_request_seconds",
            "From when the body has been read to the scores, of requests that were scored.",
            _MODEL,
            buckets=_SECONDS,
            registry=registry,
        )
        self._pictures = Counter(
            "autoad_pictures", "Pictures scored, by verdict.", (*_MODEL, "verdict"), registry=registry
        )
        self._scores = Histogram(
            "autoad_normalized_score",
            "Normalised scores; 0.5 is the threshold.",
            _MODEL,
            buckets=_SCORES,
            registry=registry,
        )
        self._batch = Histogram(
            "autoad_batch_pictures", "Pictures of a batch.", ("replica",), buckets=_BATCHES, registry=registry
        )
        self._shadow = Counter(
            "autoad_shadow_pictures",
            "Pictures that a shadow scored (its verdict agrees with the answer's or differs), dropped, or failed at.",
            (*_MODEL, "outcome"),
            registry=registry,
        )
        self._models = Counter(
            "autoad_models",
            "Models loaded, evicted for others, or failed to load.",
            ("replica", "event"),
            registry=registry,
        )
        queue = Gauge(
            "autoad_queue_pictures", "Pictures that wait or are being scored.", ("replica",), registry=registry
        )
        queue.labels(replica).set_function(pending)
        memory = Gauge("autoad_models_bytes", "Bytes of the models held.", ("replica",), registry=registry)
        memory.labels(replica).set_function(held)

    def count_request(self, route: str, status: int) -> None:
        """Count a reply."""
        self._requests.labels(self._replica, route, str(status)).inc()

    def observe_scored(self, project: str, model: str, version: int, seconds: float, scores: list[Score]) -> None:
        """Take down a request that was scored."""
        labels = (self._replica, project, model, str(version))
        self._latency.labels(*labels).observe(seconds)
        normalized = self._scores.labels(*labels)
        for score in scores:
            normalized.observe(score.normalized_score)
            verdict = "anomalous" if score.is_anomalous else "normal"
            self._pictures.labels(*labels, verdict).inc()

    def observe_batch(self, size: int) -> None:
        """Take down a batch's size."""
        self._batch.labels(self._replica).observe(size)

    def count_shadow(self, project: str, model: str, version: int, outcome: str, pictures: int = 1) -> None:
        """Count what became of pictures that a shadow was to score."""
        self._shadow.labels(self._replica, project, model, str(version), outcome).inc(pictures)

    def count_model(self, event: str) -> None:
        """Count a model that was ``loaded`` or ``evicted``, or ``failed`` to load."""
        self._models.labels(self._replica, event).inc()

    def text(self) -> bytes:
        """All of it in Prometheus's text format."""
        return generate_latest(self._registry)
