from __future__ import annotations

import copy
import re
import tomllib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import ray
import yaml

from autoad.serve.auth import is_loopback
from autoad.serve.options import ServeOptions
from tests.cluster_files.kuberay import RAY_SERVICE

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # of Ray's, when it defines these very classes
    from ray.serve.schema import HTTPOptionsSchema, ServeApplicationSchema, ServeDeploySchema

ROOT = Path(__file__).parents[2]
FILE = ROOT / "cluster" / "rayservice.yaml"
KUBERNETES = "1.33"


@pytest.fixture
def service() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(FILE.read_text())
    return copy.deepcopy(loaded)  # aliases become copies, so that a test may change one of them


def check_service(service: dict[str, Any]) -> None:
    """KubeRay's own fields here, all of Kubernetes' by its published schemas, without tolerance for unknown fields."""
    jsonschema.Draft202012Validator(RAY_SERVICE).validate(service)
    cluster = service["spec"]["rayClusterConfig"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        template = {"apiVersion": "v1", "kind": "PodTemplate", "template": group["template"]}
        kubernetes_validate.validate(template, KUBERNETES, strict=True)


def check_serve_config(text: str) -> ServeDeploySchema:
    """Ray's own check, and that there is no key that Ray would ignore without a word."""
    given = yaml.safe_load(text)
    schema = ServeDeploySchema.model_validate(given)
    assert set(given) <= set(ServeDeploySchema.model_fields)
    assert set(given["http_options"]) <= set(HTTPOptionsSchema.model_fields)
    for application in given["applications"]:
        assert set(application) <= set(ServeApplicationSchema.model_fields)
    return schema


def test_it_is_a_ray_service(service: dict[str, Any]) -> None:
    check_service(service)


def _worker(service: dict[str, Any]) -> dict[str, Any]:
    container: dict[str, Any] = service["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["template"]["spec"][
        "containers"
    ][0]
    return container


@pytest.mark.parametrize(
    "spoil",
    [
        lambda service: service["spec"].update(serveConfig={}),
        lambda service: service["spec"].pop("rayClusterConfig"),
        lambda service: service.update(apiVersion="ray.io/v1alpha1"),
        lambda service: service["spec"]["rayClusterConfig"]["authOptions"].update(mode="tokens"),
        lambda service: service["spec"]["rayClusterConfig"]["headGroupSpec"]["rayStartParams"].update({"num-cpus": 0}),
        lambda service: service["spec"]["rayClusterConfig"]["workerGroupSpecs"][0].update(minReplicas="2"),
        lambda service: _worker(service).update(imagePullPolice="Always"),
        lambda service: _worker(service)["ports"][0].update(containerPort="8000"),
        lambda service: _worker(service)["readinessProbe"]["httpGet"].pop("port"),
        lambda service: _worker(service)["env"].append({"value": "x"}),
        lambda service: _worker(service)["securityContext"].update(allowPrivilegeEscalation="no"),
    ],
)
def test_the_check_notices_mistakes(service: dict[str, Any], spoil: Callable[[dict[str, Any]], Any]) -> None:
    spoil(service)
    with pytest.raises(jsonschema.ValidationError):
        check_service(service)


def test_ray_takes_the_serve_configuration(service: dict[str, Any]) -> None:
    schema = check_serve_config(service["spec"]["serveConfigV2"])
    (application,) = schema.applications
    assert (application.import_path, application.route_prefix) == ("autoad.serve.app:build", "/")
    with pytest.raises(AssertionError):
        check_serve_config(service["spec"]["serveConfigV2"].replace("route_prefix", "route_prefx"))


@pytest.mark.parametrize("where", ["cluster/rayservice.yaml", "serve/config.yaml"])
def test_the_application_takes_its_options_and_knows_where_it_listens(where: str) -> None:
    """With another host in its options than Serve listens on, a server would take every client for a local one."""
    loaded = yaml.safe_load((ROOT / where).read_text())
    schema = check_serve_config(loaded["spec"]["serveConfigV2"] if "spec" in loaded else yaml.safe_dump(loaded))
    (application,) = schema.applications
    assert application.import_path == "autoad.serve.app:build"
    options = ServeOptions.model_validate(application.args)
    assert (options.host, options.port) == (schema.http_options.host, schema.http_options.port)
    assert is_loopback(options.host) == (where == "serve/config.yaml")


def test_every_process_of_the_cluster_needs_the_token(service: dict[str, Any]) -> None:
    cluster = service["spec"]["rayClusterConfig"]
    assert cluster["authOptions"]["mode"] == "token"
    minor = tuple(int(part) for part in cluster["rayVersion"].split("."))
    assert minor >= (2, 52, 0), "the first that knows tokens"


def test_versions_are_those_that_were_tested(service: dict[str, Any]) -> None:
    pins = dict(re.findall(r"^(\S+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    cluster = service["spec"]["rayClusterConfig"]
    assert cluster["rayVersion"] == pins["ray"]
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    images = re.findall(r"image: (\S+)", FILE.read_text())
    assert sorted(set(images)) == [f"REGISTRY/autoad:{version}", f"REGISTRY/autoad:{version}-cuda"]


def test_no_secret_is_in_the_file_and_pods_are_confined(service: dict[str, Any]) -> None:
    cluster = service["spec"]["rayClusterConfig"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    assert len(groups) == 3
    for group in groups:
        spec = group["template"]["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        (container,) = spec["containers"]
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert [source["secretRef"]["name"] for source in container["envFrom"]] == ["autoad"]
        assert {entry["name"] for entry in container["env"]} <= set(_serve_switches())
        assert {"readinessProbe", "livenessProbe"} <= set(container)
        assert container["resources"]["requests"]["memory"] == container["resources"]["limits"]["memory"]
        assert container["volumeMounts"][0]["mountPath"] == "/var/lib/autoad"
    served = {port["name"]: port["containerPort"] for port in _worker(service)["ports"]}
    assert served["serve"] == yaml.safe_load(service["spec"]["serveConfigV2"])["http_options"]["port"]


def _serve_switches() -> set[str]:
    """The environment variables that this version of Ray Serve reads."""
    source = (Path(ray.__file__).parent / "serve" / "_private" / "constants.py").read_text()
    return set(re.findall(r'"(RAY_SERVE_[A-Z0-9_]+)"', source))


def test_the_head_neither_serves_nor_computes(service: dict[str, Any]) -> None:
    assert service["spec"]["excludeHeadPodFromServeSvc"] is True
    cluster = service["spec"]["rayClusterConfig"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert cluster["enableInTreeAutoscaling"] is True
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    served = next(iter(yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]))["args"]
    assert cluster["workerGroupSpecs"][0]["minReplicas"] >= 2, "one machine may go"
    assert served["replicas"] >= 2
