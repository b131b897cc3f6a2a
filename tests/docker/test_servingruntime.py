"""The ClusterServingRuntime and the image `runtime` on a real cluster (KUBECONFIG): the
definitions of KServe accept the objects, and the pods that KServe makes of them serve.
"""

import json
import os
import subprocess

import pytest
import requests
import yaml
from click.testing import CliRunner

from mlflow_deploy_plugin.cli.commands import main
from tests.docker.conftest import built_image
from tests.support.kserve import (
    RELEASES,
    definitions,
    inference_service,
    own_runtimes,
    predictor_pod,
    selected_runtime,
)
from tests.support.services.cluster import NEEDS_CLUSTER, own_namespace
from tests.support.waiting import wait_until

pytestmark = [NEEDS_CLUSTER, pytest.mark.docker, pytest.mark.long, pytest.mark.timeout(1800)]
SMALL = {"requests": {"cpu": "500m", "memory": "256Mi"}, "limits": {"cpu": "1", "memory": "1Gi"}}
TENSOR = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1.0, 2.5]}


@pytest.fixture(scope="module")
def cluster():
    with own_namespace() as made:
        yield made


@pytest.fixture(scope="module")
def runtime_image(docker):
    with built_image("runtime", timeout=1500) as tag:
        yield tag


def rendered(image):
    command = ["render", "--for", "kserve", "--runtime", "-C", f"container.image={image}"]
    return yaml.safe_load(CliRunner().invoke(main, command).output)


def for_old_cluster(schema):
    """Return a definition without empty defaults, which Kubernetes 1.20 refuses, and
    without KServe's own webhook.
    """
    if isinstance(schema, list):
        return [for_old_cluster(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        name: for_old_cluster(value)
        for name, value in schema.items()
        if name != "conversion" and (name, value) != ("default", "")
    }


def service(format_name, **model):
    return inference_service("twice", format_name, resources=SMALL, **model)


def is_accepted(cluster, document):
    """Apply a document. The API server needs a moment to serve a new definition."""
    applied = subprocess.run(
        ["kubectl", "-n", cluster.namespace, "apply", "--server-side", "-f", "-"],
        input=json.dumps(document),
        capture_output=True,
        text=True,
        check=False,
    )
    is_new = any(text in applied.stderr for text in ("no matches for kind", "(NotFound)"))
    assert applied.returncode == 0 or is_new, applied.stderr
    return applied.returncode == 0


@pytest.mark.parametrize("release", RELEASES)
def test_servingruntime_is_accepted_by_cluster(cluster, release):
    if cluster.is_old and not os.environ.get("CUSTOM_RESOURCES"):
        # An API server 1.20 that is built with Go 1.18 or newer ends at the first
        # object of any definition, unless its reflect2 is 1.0.2 or newer.
        pytest.skip("CUSTOM_RESOURCES is not set, and this old API server may end")
    made = [for_old_cluster(definition) for definition in definitions(release)]
    names = [definition["metadata"]["name"] for definition in made]
    for definition in made:
        cluster.kubectl("create", "--validate=false", "-f", "-", given=json.dumps(definition))
    try:
        runtime = rendered("onnxserve:runtime")
        for document in (runtime, service("sklearn")):
            wait_until(lambda made=document: is_accepted(cluster, made), 60, "it is accepted")
        (stored,) = cluster.items("clusterservingruntime")
        assert stored["spec"] == runtime["spec"]
        (asking,) = cluster.items("inferenceservice")
        assert selected_runtime([stored], asking)["metadata"]["name"] == "onnxserve"
    finally:
        cluster.kubectl("delete", "crd", *names)


@pytest.mark.parametrize(
    ("runtime_name", "format_name", "user"),
    [
        ("onnxserve", "mlflow", 1000660000),  # a user id of OpenShift
        ("kserve-mlserver", "mlflow", None),
        ("kserve-sklearnserver", "sklearn", None),
        ("kserve-xgbserver", "xgboost", None),
    ],
)
def test_servingruntime_pod_serves(
    cluster, runtime_image, model_folder, runtime_name, format_name, user
):
    runtimes = {**own_runtimes(), "onnxserve": rendered(runtime_image)}
    asked = service(format_name, runtime=runtime_name, protocolVersion="v2")
    runtime = selected_runtime(list(runtimes.values()), asked)
    runtime["spec"]["containers"][0]["image"] = runtime_image
    pod = predictor_pod(runtime, asked, {"hostPath": {"path": str(model_folder)}})
    (container,) = pod["spec"]["containers"]
    container["imagePullPolicy"] = "Never"
    if user:
        container["securityContext"]["runAsUser"] = user
    cluster.apply(pod)
    try:

        def is_ready():
            (found,) = cluster.items("pod")
            (status,) = found["status"].get("containerStatuses") or [{}]
            ended = status.get("lastState", {}).get("terminated")
            assert not ended, cluster.kubectl("logs", "--previous", pod["metadata"]["name"])
            return status.get("ready") and found["status"]["podIP"]

        url = f"http://{wait_until(is_ready, 240, 'the pod is ready')}:8080"
        answer = requests.post(
            f"{url}/v2/models/twice/infer", json={"inputs": [TENSOR]}, timeout=30
        )
        assert answer.json()["outputs"][0]["data"] == [2.0, 5.0]
        page = requests.get(f"{url}/metrics", timeout=30).text
        assert 'model_infer_request_success_total{model="twice",version="None"} 1.0' in page
    finally:
        cluster.kubectl("delete", "pod", "--all", "--grace-period=1")
