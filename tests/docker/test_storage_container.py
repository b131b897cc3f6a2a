"""The rendered ClusterStorageContainer in pods of a real cluster (KUBECONFIG), as the
init container that KServe makes of it.
"""

import mlflow
import mlflow.onnx
import pytest
import yaml

from mlflow_deploy_plugin.core.spec.document import new_endpoint
from mlflow_deploy_plugin.ship.manifests.formats import FORMATS
from mlflow_deploy_plugin.ship.manifests.served import Place
from tests.docker.conftest import BASE_IMAGE
from tests.support.models import adder
from tests.support.refusals import mentions
from tests.support.services.cluster import NEEDS_CLUSTER, own_namespace
from tests.support.tracking import DEFAULT_EXPERIMENT
from tests.support.waiting import wait_until

pytestmark = [NEEDS_CLUSTER, pytest.mark.docker, pytest.mark.long]


@pytest.fixture(scope="module")
def container(tracking_uri, image):
    with mlflow.start_run(experiment_id=DEFAULT_EXPERIMENT):
        options = {"name": "m", "registered_model_name": "flights", "pip_requirements": []}
        mlflow.onnx.log_model(adder(1), **options)
    config = {
        "container.image": image,
        "container.environment.MLFLOW_TRACKING_URI": tracking_uri,
    }
    endpoint = new_endpoint("flights", "mlflow://flights/1", config)
    *_, text = FORMATS["kserve"](endpoint, Place()).values()
    return yaml.safe_load(text)["spec"]["container"]


@pytest.fixture(scope="module")
def cluster():
    with own_namespace() as made:
        yield made


@pytest.mark.parametrize(
    ("name", "uri", "changes", "names"),
    [
        ("version", "mlflow://flights/1", {}, []),
        ("gone", "models:/flights@gone", {}, ["alias gone"]),
        ("unset", "models:/flights/1", {"env": []}, ["MLFLOW_TRACKING_URI is not set"]),
        ("full", "models:/flights/1", {"volumeMounts": []}, ["/mnt/models", "denied"]),
    ],
)
def test_storage_container_copies_or_ends_with_a_line(
    cluster, container, name, uri, changes, names
):
    mounts = {"volumeMounts": [{"name": "models", "mountPath": "/mnt/models"}]}
    added = {
        "args": [uri, "/mnt/models"],
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
    runtime = {
        "name": "kserve-container",
        "image": BASE_IMAGE,
        "command": ["cat", "/mnt/models/MLmodel"],
        "securityContext": {"runAsUser": 20001},
    }
    pod = {
        "restartPolicy": "Never",
        "initContainers": [{**container, **added, **mounts, **changes}],
        "containers": [{**runtime, **mounts}],
        "volumes": [{"name": "models", "emptyDir": {}}],
    }
    cluster.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": pod})

    def ended():
        (made,) = cluster.items("pod", f"--field-selector=metadata.name={name}")
        return made["status"]["phase"] in ("Succeeded", "Failed") and made["status"]

    (initializer,) = wait_until(ended, 120, "the pod has ended")["initContainerStatuses"]
    state = initializer["state"]["terminated"]
    lines = state.get("message", "").splitlines()
    assert (state["exitCode"], len(lines)) == ((1, 1) if names else (0, 0))
    assert mentions("".join(lines), *names)
    if not names:
        assert "onnx" in yaml.safe_load(cluster.kubectl("logs", name))["flavors"]
