"""The Helm chart on a real cluster: the store is migrated, controllers judge, and
endpoints answer and follow values.
"""

from functools import partial

import pytest

from tests.docker.conftest import run_docker
from tests.ship.manifests.test_helm import NEEDS_HELM, template
from tests.support.services.cluster import NEEDS_CLUSTER, own_namespace
from tests.support.services.postgresql import postgresql_server
from tests.support.waiting import wait_until

pytestmark = [
    NEEDS_CLUSTER,
    NEEDS_HELM,
    pytest.mark.docker,
    pytest.mark.postgresql,
    pytest.mark.long,
    pytest.mark.timeout(1800),
]


@pytest.fixture
def model_image(image, model_folder):
    """Return an image with a model, so that no registry is needed."""
    tag = f"{image}-model"
    (model_folder.parent / "Dockerfile").write_text(f"FROM {image}\nCOPY model /model\n")
    run_docker("build", "-q", "-t", tag, str(model_folder.parent))
    yield tag
    run_docker("rmi", "-f", tag, check=False)


@pytest.fixture
def cluster(gateway, model_image, controller_image):
    with postgresql_server(gateway) as store_url, own_namespace() as made:
        made.secret("onnxserve", {"ONNXSERVE_STORE_URI": store_url})
        yield made


def test_chart_runs_and_new_weights_keep_the_pods(cluster, model_image, controller_image):
    def documents(variants):
        pod = {"image": model_image, "cpus": 0.5, "memory_bytes": 512 * 1024**2}
        endpoint = {"variants": variants, "container": pod, "kubernetes": {"replicas": 2}}
        # Helm keeps the chart's default (a core per pod) if this map is empty.
        resources = {"requests": {"cpu": "100m"}}
        controller = {"enabled": True, "image": controller_image, "resources": resources}
        values = {"endpoints": {"flights": endpoint}, "controller": controller}
        # replaced by the cluster's own
        made = [item for item in template(values) if item["metadata"].pop("namespace")]
        return {f"{item['kind']}/{item['metadata']['name']}": item for item in made}

    def ready(name):
        (deployment,) = cluster.items("deployment", f"--field-selector=metadata.name={name}")
        return bool(deployment["status"].get("readyReplicas") == 2)

    champion = {"model": "/model", "weight": 90}
    whole = documents({"champion": champion})
    cluster.apply(whole.pop("Job/shipped-migration"))  # Helm runs this hook first
    assert cluster.end_of("shipped-migration") == "Complete", cluster.logs("shipped-migration")
    for document in whole.values():
        cluster.apply(document)
    for name in ("flights", "shipped-controller"):
        wait_until(partial(ready, name), 300, f"two pods of {name}")

    pods = [
        pod["metadata"]["name"]
        for pod in cluster.items("pod", "-l=app.kubernetes.io/instance=flights")
    ]
    cluster.apply(
        documents({"champion": champion, "next": {"model": "/model", "weight": 10}})[
            "ConfigMap/flights"
        ]
    )
    wanted = ["exec", pods[0], "--", "cat", "/var/lib/onnxserve/server/wanted.json"]
    wait_until(
        lambda: '"next"' in cluster.kubectl(*wanted), 180, "the kubelet's look at the ConfigMap"
    )
    assert pods == [
        pod["metadata"]["name"]
        for pod in cluster.items("pod", "-l=app.kubernetes.io/instance=flights")
    ]
