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
    "serviceAccountName",
    "model",
}
MODEL = {"modelFormat", "runtime", "protocolVersion", "storageUri"}
STORAGE = {"container", "supportedUriFormats", "workloadType", "supportsMultiModelDownload"}
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
    _, _, service = rendered(spec({"champion": champion}, kubernetes={"replicas": 0}))
    assert service["spec"].keys() == {"predictor"}
    assert "maxReplicas" not in service["spec"]["predictor"]
    assert service["spec"]["predictor"]["minReplicas"] == 0  # Knative scales to zero.
    assert service["spec"]["predictor"]["model"]["storageUri"] == "s3://b/flights/3"

    both = {"candidate": {"model": "s3://b/flights/4", "weight": 10}, "champion": champion}
    config, _, service = rendered(spec(both, server={"insecure": True}))
    assert service["metadata"]["annotations"] == {"serving.kserve.io/deploymentMode": "Standard"}
    assert service["spec"]["predictor"]["model"]["storageUri"] == "s3://b/flights/3"
    (canary,) = service["spec"]["canary"]
    assert canary["trafficPercent"] == 10
    assert canary["predictor"].keys() == {"name", "model"}
    model = canary["predictor"]["model"]
    assert model.keys() == MODEL | {"name", "args"}
    assert model["name"] == "kserve-container"
    assert model["storageUri"] == "s3://b/flights/4"
    assert model["args"] == ["--spec", "/etc/onnxserve/canary.yaml"]
    for key, name in (("spec.yaml", "champion"), ("canary.yaml", "candidate")):
        (served,) = load_specs(config["data"][key])
        assert served.variants.keys() == {name}
        assert served.variants[name].model == "/mnt/models"


def test_storage_container_is_rendered_for_the_registry():
    environment = {"MLFLOW_TRACKING_URI": "http://mlflow:5000"}
    endpoint = spec(
        {"a": {"model": "mlflow://flights@champion"}},
        container={
            "environment": environment,
            "secrets": {"MLFLOW_TRACKING_TOKEN": "mlflow/token"},
            "secret_files": {"MLFLOW_TRACKING_SERVER_CERT_PATH": "mlflow/ca"},
        },
    )
    files = FORMATS["kserve"](endpoint, Place("ml"))
    *_, service, storage = yaml.safe_load_all("".join(files.values()))
    uri = service["spec"]["predictor"]["model"]["storageUri"]
    assert (uri, storage["kind"]) == ("mlflow://flights@champion", "ClusterStorageContainer")
    assert "namespace" not in storage["metadata"]
    assert storage["spec"].keys() == STORAGE
    assert {"prefix": "models:/"} in storage["spec"]["supportedUriFormats"]
    container = storage["spec"]["container"]
    assert container["name"] == "storage-initializer"
    assert container["command"] == ["onnxserve", "fetch"]
    assert [variable["name"] for variable in container["env"]] == [
        "MLFLOW_TRACKING_URI",
        "MLFLOW_TRACKING_TOKEN",
    ]


def test_storage_container_has_the_requirements():
    """The server checks them as well, because others may replace the container."""
    endpoint = new_endpoint("flights", "mlflow://flights/3", {"require": "gate=passed"})
    files = FORMATS["kserve"](endpoint, Place("ml"))
    *_, service, storage = yaml.safe_load_all("".join(files.values()))
    assert storage["spec"]["container"]["command"][2:] == ["--require", "gate=passed"]
    assert "storageUri" not in service["spec"]["predictor"]["model"]


@pytest.mark.parametrize(
    "parts",
    [
        {
            "variants": {"a": {"model": "s3://b/1"}, "b": {"model": "s3://b/2", "shadow": True}},
            "server": {"insecure": True},
        },
        {"variants": {"a": {"model": "s3://b/1"}, "b": {"model": "models:/x/2"}}},
        {
            "variants": {"a": {"model": "s3://b/1"}, "b": {"model": "s3://b/2"}},
            "sticky": {"header": "x-user"},
            "server": {"insecure": True},
        },
        {"variants": {"a": {"model": "s3://b/1"}, "b": {"model": "s3://b/2"}}},
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
