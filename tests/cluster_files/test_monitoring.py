from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from autoad.models import Score
from autoad.serve.metrics import Metrics

ROOT = Path(__file__).parents[2]
GRAFANA = ROOT / "cluster" / "grafana"
DASHBOARD: dict[str, Any] = json.loads((GRAFANA / "dashboard.json").read_text())
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]


def promtool(*arguments: object) -> subprocess.CompletedProcess[str]:
    program = shutil.which("promtool", path=str(Path(sys.executable).parent)) or shutil.which("promtool")
    assert program is not None, "these tests need promtool: make machines"
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, check=False)


def expression(panel: dict[str, Any], target: int = 0, **chosen: str) -> str:
    """What Grafana sends to Prometheus for a target, with these values chosen in the dashboard's lists."""
    text: str = panel["targets"][target]["expr"].replace("$__rate_interval", "1m")
    for variable in DASHBOARD["templating"]["list"]:
        text = text.replace(f"${variable['name']}", chosen.get(variable["name"], variable["allValue"]))
    assert "$" not in text
    return text


EXPRESSIONS = [
    (panel["title"], expression(panel, number)) for panel in PANELS for number in range(len(panel["targets"]))
]


def test_prometheus_takes_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "autoad.key").write_text("autoad_0_0")
    file = tmp_path / "prometheus.yml"
    file.write_text((ROOT / "cluster" / "prometheus.yml").read_text())
    done = promtool("check", "config", file)
    assert done.returncode == 0, done.stdout + done.stderr
    file.write_text(file.read_text().replace("metrics_path", "metrics_paths"))
    assert promtool("check", "config", file).returncode != 0


def test_prometheus_takes_the_configuration_for_kubernetes(tmp_path: Path) -> None:
    """Debian's promtool was built without Kubernetes, so that discovery is checked here and replaced for it."""
    config = yaml.safe_load((ROOT / "cluster" / "prometheus-kubernetes.yml").read_text())
    (ray,) = [job for job in config["scrape_configs"] if "kubernetes_sd_configs" in job]
    assert ray.pop("kubernetes_sd_configs") == [{"role": "pod", "namespaces": {"own_namespace": True}}]
    ray["static_configs"] = [{"targets": ["127.0.0.1:8080"]}]
    file = tmp_path / "prometheus.yml"
    file.write_text(yaml.safe_dump(config))
    done = promtool("check", "config", "--syntax-only", file)
    assert done.returncode == 0, done.stdout + done.stderr
    service = yaml.safe_load((ROOT / "cluster" / "rayservice.yaml").read_text())
    worker = service["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]
    ports = {port["name"]: port["containerPort"] for port in worker["ports"]}
    assert "metrics" in ports, "by this name it is found"
    (own,) = [job for job in config["scrape_configs"] if job["job_name"] == "autoad"]
    assert own["static_configs"] == [{"targets": [f"{service['metadata']['name']}-serve-svc:{ports['serve']}"]}]


def test_every_expression_is_promql(tmp_path: Path) -> None:
    file = tmp_path / "rules.yml"

    def check(expressions: list[str]) -> subprocess.CompletedProcess[str]:
        rules = [{"record": f"test:{number}", "expr": text} for number, text in enumerate(expressions)]
        file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
        return promtool("check", "rules", file)

    expressions = [text for _, text in EXPRESSIONS]
    done = check(expressions)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(expressions)} rules found" in done.stdout
    assert check([*expressions, "sum(rate(autoad_requests_total)"]).returncode != 0


def test_every_metric_and_label_is_one_that_the_service_has() -> None:
    metrics = Metrics("a", pending=lambda: 0, held=lambda: 0)
    metrics.count_request("score", 200)
    metrics.observe_scored("p", "m", 1, 0.01, [Score(0.5, 0.5, False, None, None)])
    metrics.observe_batch(2)
    metrics.count_shadow("p", "m", 2, "differs")
    metrics.count_model("loaded")
    families = list(text_string_to_metric_families(metrics.text().decode()))
    labels = {sample.name: set(sample.labels) for family in families for sample in family.samples}
    queries = [variable["query"]["query"] for variable in DASHBOARD["templating"]["list"]]
    for text in [*(text for _, text in EXPRESSIONS), *queries]:
        used = re.findall(r"\b(autoad_\w+)(?:\{([^}]*)\})?", text)
        assert used
        for name, selector in used:
            assert set(re.findall(r"(\w+)=", selector)) <= labels[name], text
            for grouping in re.findall(r"by \(([^)]*)\)", text):
                assert set(grouping.split(", ")) <= labels[name], text
    shown = {
        re.sub("_(bucket|sum|count)$", "", name) for _, text in EXPRESSIONS for name in re.findall(r"autoad_\w+", text)
    }
    made = {name for name in labels if not name.endswith("_created")}
    assert {re.sub("_(bucket|sum|count)$", "", name) for name in made} == shown, "nothing is counted that nobody sees"


SERIES = [
    ('autoad_requests_total{route="score",status="200",replica="a"}', "0+90x20"),
    ('autoad_requests_total{route="score",status="503",replica="a"}', "0+10x20"),
    ('autoad_pictures_total{project="p",model="m",version="1",replica="a",verdict="normal"}', "0+54x20"),
    ('autoad_pictures_total{project="p",model="m",version="1",replica="a",verdict="anomalous"}', "0+6x20"),
    ('autoad_pictures_total{project="p",model="m",version="2",replica="a",verdict="anomalous"}', "0+20x20"),
    ('autoad_pictures_total{project="p",model="m",version="2",replica="b",verdict="anomalous"}', "0+10x20"),
    ('autoad_shadow_pictures_total{project="p",model="m",version="3",replica="a",outcome="differs"}', "0+15x20"),
    ('autoad_queue_pictures{replica="a"}', "3+0x20"),
    ('autoad_models_bytes{replica="a"}', "5+0x20"),
    ("autoad_batch_pictures_sum", "0+96x20"),
    ("autoad_batch_pictures_count", "0+12x20"),
    *(
        (f'autoad_request_seconds_bucket{{project="p",model="m",version="1",le="{limit}"}}', f"0+{count}x20")
        for limit, count in (("0.01", 50), ("0.02", 100), ("+Inf", 100))
    ),
    *(
        (f'autoad_normalized_score_bucket{{project="p",model="m",version="1",le="{limit}"}}', f"0+{count}x20")
        for limit, count in (("0.5", 30), ("+Inf", 60))
    ),
]


@pytest.mark.parametrize(
    ("title", "target", "labels", "value"),
    [
        ("Requests per second", 0, "{}", 100 / 15),
        ("Failed requests", 0, "{}", 0.1),
        ("95 % answered within", 0, "{}", 0.019),  # 90 % of the way through the second bucket
        ("Latency", 0, '{model="m"}', 0.01),
        ("Latency", 2, '{model="m"}', 0.0198),
        ("Anomalous pictures", 0, "{}", 36 / 90),
        ("Anomaly rate", 0, '{model="m", version="1"}', 0.1),
        ("Anomaly rate", 0, '{model="m", version="2"}', 1.0),
        ("Shadow", 0, '{model="m", version="3", outcome="differs"}', 1.0),
        ("Batch size", 0, "{}", 8.0),
        ("Queue", 0, '{replica="a"}', 3.0),
        ("Errors", 0, '{route="score", status="503"}', 10 / 15),
        ("Memory of models", 0, '{replica="a"}', 5.0),
    ],
)
def test_panels_show_what_they_say(tmp_path: Path, title: str, target: int, labels: str, value: float) -> None:
    (panel,) = [panel for panel in PANELS if panel["title"] == title]
    wanted = expression(panel, target)
    # Others of the same panel are left out by their labels; promtool compares floats bit by bit.
    matched = f"round(({wanted}) * 1e6)"
    others = [row for row in SERIES if title != "Anomaly rate" or labels.split('version="')[1][0] in row[0]]
    test = {
        "evaluation_interval": "15s",
        "tests": [
            {
                "interval": "15s",
                "input_series": [{"series": name, "values": values} for name, values in others],
                "promql_expr_test": [
                    {
                        "expr": matched,
                        "eval_time": "5m",
                        "exp_samples": [{"labels": labels, "value": round(value * 1e6)}],
                    }
                ],
            }
        ],
    }
    file = tmp_path / "test.yml"
    file.write_text(yaml.safe_dump(test))
    done = promtool("test", "rules", file)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_dashboard_is_whole() -> None:
    assert {"Latency", "Errors", "Queue", "Batch size", "Anomaly rate", "Shadow"} <= {
        panel["title"] for panel in PANELS
    }
    (heatmap,) = [panel for panel in PANELS if panel["type"] == "heatmap"]
    assert heatmap["targets"][0]["format"] == "heatmap"
    assert heatmap["repeat"] == "version"
    ids = [panel["id"] for panel in PANELS]
    assert len(set(ids)) == len(ids)
    places = [panel["gridPos"] for panel in PANELS]
    assert all(place["x"] + place["w"] <= 24 for place in places)
    for one, other in combinations(places, 2):
        apart = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        assert apart or one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
    for panel in PANELS:
        assert panel["description"]
        letters = [target["refId"] for target in panel["targets"]]
        assert len(set(letters)) == len(letters)


def test_the_dashboard_asks_the_provisioned_source() -> None:
    (source,) = yaml.safe_load((GRAFANA / "provisioning" / "datasources" / "prometheus.yaml").read_text())[
        "datasources"
    ]
    used = {panel["datasource"]["uid"] for panel in PANELS}
    used |= {target["datasource"]["uid"] for panel in PANELS for target in panel["targets"]}
    used |= {variable["datasource"]["uid"] for variable in DASHBOARD["templating"]["list"]}
    assert used == {source["uid"]}
    (provider,) = yaml.safe_load((GRAFANA / "provisioning" / "dashboards" / "autoad.yaml").read_text())["providers"]
    assert provider["type"] == "file"
    assert provider["options"]["path"] in (ROOT / "docs" / "cluster.md").read_text()
