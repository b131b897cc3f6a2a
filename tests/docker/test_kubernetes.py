"""The manifests on a real cluster, whose pods judge the captured rows of a real server.

Pods must reach all services: MLflow and PostgreSQL listen on docker0's address.
AWS_ENDPOINT_URL must name such an address of the S3 API, and kubectl must be configured
for the cluster.
"""

from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient

from mlflow_deploy_plugin.core.store.monitor_tables import Monitors
from tests.support.services.cluster import NEEDS_CLUSTER, own_namespace
from tests.support.services.s3 import NEEDS_S3
from tests.support.waiting import wait_until

MANIFESTS = Path(__file__).parents[2] / "docker" / "kubernetes"
SECONDS = 240

pytestmark = [
    NEEDS_CLUSTER,
    *NEEDS_S3,
    pytest.mark.docker,
    pytest.mark.postgresql,
    pytest.mark.long,
    pytest.mark.timeout(1800),
]


@pytest.fixture
def cluster(two_days):
    """Yield a namespace whose pods end before the services that they use."""
    with own_namespace() as made:
        made.secret("onnxserve", two_days.settings)
        yield made


def shipped(name, image):
    """Return the shipped manifest with another image, and its other documents."""
    manifest, *around = yaml.safe_load_all((MANIFESTS / name).read_text())
    spec = manifest["spec"]
    pods = spec["jobTemplate"]["spec"] if manifest["kind"] == "CronJob" else spec
    (container,) = pods["template"]["spec"]["containers"]
    container["image"] = image
    return manifest, around


def test_cronjob_judges_due_windows_once(two_days, cluster, controller_image):
    manifest, _ = shipped("monitor-cronjob.yaml", controller_image)
    name = manifest["metadata"]["name"]
    manifest["spec"] |= {"schedule": "* * * * *"}
    manifest["spec"]["jobTemplate"]["spec"]["backoffLimit"] = 1
    cluster.apply(manifest)
    first = wait_until(lambda: cluster.items("job"), SECONDS, "the schedule's first job")[0][
        "metadata"
    ]["name"]
    cluster.kubectl("patch", "cronjob", name, "-p", '{"spec": {"suspend": true}}')

    assert cluster.end_of(first) == "Complete", cluster.logs(first)
    assert two_days.verdicts("daily") == ["no drift", "drift"]
    registry = MlflowClient(two_days.mlflow.url)
    for window in Monitors(two_days.store).windows("flights", "daily"):
        assert registry.get_run(window.run_id).data.tags["onnxserve.verdict"] == window.verdict

    assert cluster.job("again", manifest) == "Complete", cluster.logs("again")
    assert cluster.logs("again") == ["flights: monitor daily: no window is due"]
