"""The part of KubeRay's RayService (ray.io/v1) that cluster/rayservice.yaml uses, as a closed JSON schema.

Written by hand from KubeRay's published field reference: its CustomResourceDefinition comes in no package that a test
can install. A field that is not listed here fails, right or wrong; pod templates are opaque here and checked against
Kubernetes' own schemas instead. What only the operator's admission checks know is not validated.
"""

from __future__ import annotations

from typing import Any

__all__ = ["RAY_SERVICE"]


def _closed(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": required, "additionalProperties": False, "properties": properties}


_STRING = {"type": "string", "minLength": 1}
_COUNT = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
_PARAMETERS = {"type": "object", "additionalProperties": {"type": "string"}}
_TEMPLATE = {"type": "object"}

_HEAD = _closed(
    ["rayStartParams", "template"],
    rayStartParams=_PARAMETERS,
    template=_TEMPLATE,
    serviceType={"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
    enableIngress={"type": "boolean"},
)
_WORKERS = _closed(
    ["groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"],
    groupName=_STRING,
    replicas=_COUNT,
    minReplicas=_COUNT,
    maxReplicas=_COUNT,
    numOfHosts=_COUNT,
    idleTimeoutSeconds=_COUNT,
    rayStartParams=_PARAMETERS,
    template=_TEMPLATE,
)
_AUTOSCALER = _closed(
    [],
    version={"enum": ["v1", "v2"]},
    idleTimeoutSeconds=_COUNT,
    upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
    resources={"type": "object"},
)
_CLUSTER = _closed(
    ["rayVersion", "authOptions", "headGroupSpec", "workerGroupSpecs"],
    rayVersion=_STRING,
    authOptions=_closed(["mode"], mode={"enum": ["token", "disabled"]}, secretName=_STRING),
    enableInTreeAutoscaling={"type": "boolean"},
    autoscalerOptions=_AUTOSCALER,
    headGroupSpec=_HEAD,
    workerGroupSpecs={"type": "array", "minItems": 1, "items": _WORKERS},
)
RAY_SERVICE = _closed(
    ["apiVersion", "kind", "metadata", "spec"],
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayService"},
    # The names of services and pods that KubeRay derives from it must fit into 63 characters.
    metadata=_closed(["name"], name={"type": "string", "pattern": "^[a-z]([-a-z0-9]{0,40}[a-z0-9])?$"}),
    spec=_closed(
        ["serveConfigV2", "rayClusterConfig"],
        serveConfigV2=_STRING,
        rayClusterConfig=_CLUSTER,
        upgradeStrategy=_closed(["type"], type={"enum": ["NewCluster", "None", "NewClusterWithIncrementalUpgrade"]}),
        rayClusterDeletionDelaySeconds=_COUNT,
        excludeHeadPodFromServeSvc={"type": "boolean"},
    ),
)
