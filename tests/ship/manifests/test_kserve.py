"""Tests of specs for KServe: the fields of its objects, models that KServe downloads,
and pods that Knative accepts.
"""

import kubernetes_validate
import pytest
import yaml
from hypothesis import given, settings

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.spec.document import load_specs, new_endpoint
from mlflow_deploy_plugin.core.spec.parts import EndpointSpec
from mlflow_deploy_plugin.ship.manifests.formats import FORMATS
from mlflow_deploy_plugin.ship.manifests.served import Place
from tests.ship.manifests.test_kubernetes_objects import SPECS
from tests.support.refusals import refused

# The fields of KServe's config/crd/full (2026-08-21), for the objects that onnxserve
# writes. When this list was written, the complete output was valid for these schemas
# with unknown fields forbidden.
RUNTIME = {
    "annotations",
    "supportedModelFormats",
    "protocolVersions",
    "containers",
    "volumes",
    "imagePullSecrets",
    "nodeSelector",
    "tolerations",
}
PREDICTOR = {
    "minReplicas",
    "maxReplicas",
    "scaleMetric",
    "scaleTarget",
    "canaryTrafficPercent",
    "serviceAccountName",
    "model",
}
MODEL = {"modelFormat", "runtime", "protocolVersion", "storageUri"}
REFUSED_BY_KNATIVE = {"lifecycle", "startupProbe"}
RESTRICTED = {
    "runAsNonRoot": True,
    "seccompProfile": {"type": "RuntimeDefault"},
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
"""What Pod Security `restricted` requires of a container whose pod KServe makes."""


def rendered(endpoint):
    """Return the ConfigMap, the ServingRuntime and the InferenceService."""
    (text,) = FORMATS["kserve"](endpoint, Place("ml")).values()
    config, runtime, service = yaml.safe_load_all(text)
    assert [document["kind"] for document in (config, runtime, service)] == [
        "ConfigMap",
        "ServingRuntime",
        "InferenceService",
    ]
    return config, runtime, service


def spec(variants, **parts):
    return EndpointSpec.model_validate({"name": "flights", "variants": variants, **parts})


@settings(max_examples=10)
@given(SPECS)
def test_objects_have_only_fields_of_kserve(endpoint):
    if endpoint.kubernetes.host is not None:
        with refused(InvalidConfig, "kubernetes.host", "KServe"):
            rendered(endpoint)
        return
    config, runtime, service = rendered(endpoint)
    assert runtime["spec"].keys() <= RUNTIME
    predictor = service["spec"]["predictor"]
    assert predictor.keys() <= PREDICTOR
    assert predictor["model"].keys() <= MODEL
    assert predictor["model"]["runtime"] == runtime["metadata"]["name"]
    assert (
        predictor["model"]["modelFormat"]["name"]
        == runtime["spec"]["supportedModelFormats"][0]["name"]
    )
    (container,) = runtime["spec"]["containers"]
    assert container["name"] == "kserve-container"
    assert not container.keys() & REFUSED_BY_KNATIVE
    assert container["securityContext"] == RESTRICTED
    # There is one port, without a name.
    assert [port.keys() for port in container["ports"]] == [{"containerPort", "protocol"}]
    pod = {name: runtime["spec"][name] for name in ("containers", "volumes")}
    kubernetes_validate.validate(
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": pod},
        "1.32",
        strict=True,
    )
    kubernetes_validate.validate(config, "1.32", strict=True)


def test_followed_stage_is_in_the_served_spec():
    endpoint = new_endpoint(
        "flights", "models:/flight-delay/Production", {"kubernetes.replicas": "2"}
    )
    config, runtime, service = rendered(endpoint)
    (served,) = load_specs(config["data"]["spec.yaml"])
    assert served.variants == endpoint.variants
    assert "--spec" in runtime["spec"]["containers"][0]["args"]
    predictor = service["spec"]["predictor"]
    assert predictor["minReplicas"] == 2
    assert predictor["maxReplicas"] == 2
    assert "storageUri" not in predictor["model"]


def test_second_stored_model_is_a_canary():
    champion = {"model": "s3://b/flights/3", "weight": 90}
    config, _, service = rendered(spec({"champion": champion}))
    assert service["spec"]["predictor"]["model"]["storageUri"] == "s3://b/flights/3"
    assert "canaryTrafficPercent" not in service["spec"]["predictor"]
    (served,) = load_specs(config["data"]["spec.yaml"])
    assert served.variants["champion"].model == "/mnt/models"

    both = {"champion": champion, "candidate": {"model": "s3://b/flights/4", "weight": 10}}
    config, _, service = rendered(spec(both))
    assert service["spec"]["predictor"]["canaryTrafficPercent"] == 10
    assert service["spec"]["predictor"]["model"]["storageUri"] == "s3://b/flights/4"
    (served,) = load_specs(config["data"]["spec.yaml"])
    assert served.variants.keys() == {"candidate"}


@pytest.mark.parametrize(
    "parts",
    [
        {"variants": {"a": {"model": "s3://b/1"}, "b": {"model": "s3://b/2", "shadow": True}}},
        {"variants": {"a": {"model": "s3://b/1"}, "b": {"model": "models:/x/2"}}},
        {
            "variants": {"a": {"model": "s3://b/1"}, "b": {"model": "s3://b/2"}},
            "sticky": {"header": "x-user"},
        },
    ],
)
def test_server_splits_traffic_that_kserve_cannot(parts):
    endpoint = spec(**parts)
    config, _, service = rendered(endpoint)
    (served,) = load_specs(config["data"]["spec.yaml"])
    assert served.variants == endpoint.variants
    assert "storageUri" not in service["spec"]["predictor"]["model"]


def test_service_without_auth_is_cluster_local():
    _, _, service = rendered(new_endpoint("flights", "models:/x/1"))
    assert service["metadata"]["labels"] == {"networking.kserve.io/visibility": "cluster-local"}
    _, _, service = rendered(new_endpoint("flights", "models:/x/1", {"server.api_keys": "true"}))
    assert "labels" not in service["metadata"]
