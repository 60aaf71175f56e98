from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from autoad.serve.exposition import Exposition


def replica(name: str, pictures: int) -> bytes:
    registry = CollectorRegistry()
    counter = Counter("autoad_pictures", "Pictures scored.", ["replica"], registry=registry)
    counter.labels(name).inc(pictures)
    seconds = Histogram("autoad_seconds", "Seconds.", ["replica"], buckets=[1, 2], registry=registry)
    seconds.labels(name).observe(1.5)
    return generate_latest(registry)


def test_replicas_become_one_document_with_each_family_once() -> None:
    both = Exposition()
    both.take("a", replica("a", 3))
    both.take("b", replica("b", 4))
    both.take("a", replica("a", 5))  # the last word counts
    text = both.text().decode()
    assert text.count("# TYPE autoad_pictures_total counter") == 1
    samples = {
        (sample.name, sample.labels["replica"]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.labels.get("le") in (None, "2.0")
    }
    assert samples["autoad_pictures_total", "a"] == 5
    assert samples["autoad_pictures_total", "b"] == 4
    assert samples["autoad_seconds_bucket", "b"] == 1


def test_a_replica_that_says_nothing_is_left_out() -> None:
    now = 0.0
    both = Exposition(lambda: now)
    both.take("a", replica("a", 3))
    now = 20.0
    both.take("b", replica("b", 4))
    now = 35.0
    text = both.text().decode()
    assert 'replica="b"' in text
    assert 'replica="a"' not in text


def test_a_project_sees_its_own_models_and_what_is_nobodys() -> None:
    registry = CollectorRegistry()
    pictures = Counter("autoad_pictures", "Pictures scored.", ["replica", "project", "model"], registry=registry)
    seconds = Histogram("autoad_seconds", "Seconds.", ["replica", "project"], buckets=[1, 2], registry=registry)
    requests = Counter("autoad_requests", "Requests.", ["replica"], registry=registry)
    for project in ("mine", "theirs"):
        pictures.labels("a", project, f"model-of-{project}").inc()
        seconds.labels("a", project).observe(1.5)
    requests.labels("a").inc()
    said = Exposition()
    said.take("a", generate_latest(registry))
    everything, mine, nobodys = (said.text(project).decode() for project in (None, "mine", "other"))
    assert everything.count("theirs") == mine.count("mine") > 4
    assert mine.splitlines() == [line for line in everything.splitlines() if "theirs" not in line]
    assert nobodys.splitlines() == [line for line in mine.splitlines() if "mine" not in line]
    assert 'autoad_requests_total{replica="a"} 1.0' in nobodys
