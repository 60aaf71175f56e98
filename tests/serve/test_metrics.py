from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from autoad.models import Score
from autoad.serve.metrics import Metrics


def samples(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """Values by name and labels, without the replica's."""
    return {
        (sample.name, *(value for label, value in sorted(sample.labels.items()) if label != "replica")): sample.value
        for family in text_string_to_metric_families(metrics.text().decode())
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def score(normalized: float) -> Score:
    return Score(2 * normalized, normalized, normalized > 0.5, None, None)


def test_what_is_counted_comes_out() -> None:
    waiting = 7
    metrics = Metrics("r1", pending=lambda: waiting, held=lambda: 4096)
    metrics.count_request("/v1/models/{name}/score", 200)
    metrics.count_request("/v1/models/{name}/score", 200)
    metrics.count_request("none", 404)
    metrics.observe_scored("plant", "bottle", 3, 0.02, [score(0.2), score(0.9), score(0.95)])
    metrics.observe_batch(5)
    metrics.count_shadow("plant", "bottle", 4, "agree")
    metrics.count_shadow("plant", "bottle", 4, "dropped", 6)
    metrics.count_model("loaded")
    found = samples(metrics)
    assert found["autoad_requests_total", "/v1/models/{name}/score", "200"] == 2
    assert found["autoad_requests_total", "none", "404"] == 1
    assert found["autoad_pictures_total", "bottle", "plant", "anomalous", "3"] == 2
    assert found["autoad_pictures_total", "bottle", "plant", "normal", "3"] == 1
    assert found["autoad_request_seconds_count", "bottle", "plant", "3"] == 1
    assert found["autoad_request_seconds_bucket", "0.02", "bottle", "plant", "3"] == 1
    assert found["autoad_request_seconds_bucket", "0.01", "bottle", "plant", "3"] == 0
    assert found["autoad_normalized_score_bucket", "0.5", "bottle", "plant", "3"] == 1
    assert found["autoad_normalized_score_bucket", "0.95", "bottle", "plant", "3"] == 3
    assert found["autoad_batch_pictures_bucket", "4.0"] == 0
    assert found["autoad_batch_pictures_bucket", "8.0"] == 1
    assert found["autoad_shadow_pictures_total", "bottle", "agree", "plant", "4"] == 1
    assert found["autoad_shadow_pictures_total", "bottle", "dropped", "plant", "4"] == 6
    assert found["autoad_models_total", "loaded"] == 1
    assert found[("autoad_queue_pictures",)] == 7
    assert found[("autoad_models_bytes",)] == 4096
    waiting = 0
    assert samples(metrics)[("autoad_queue_pictures",)] == 0


def test_every_sample_names_its_replica() -> None:
    metrics = Metrics("r1", pending=lambda: 0, held=lambda: 0)
    metrics.count_request("none", 404)
    metrics.observe_batch(1)
    families = list(text_string_to_metric_families(metrics.text().decode()))
    assert len(families) >= 8
    assert {sample.labels["replica"] for family in families for sample in family.samples} == {"r1"}


def test_replicas_of_one_process_do_not_share_counters() -> None:
    one, other = (Metrics(name, pending=lambda: 0, held=lambda: 0) for name in ("r1", "r2"))
    one.count_model("loaded")
    assert samples(one)["autoad_models_total", "loaded"] == 1
    assert ("autoad_models_total", "loaded") not in samples(other)
