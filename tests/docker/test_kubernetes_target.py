"""`-t onnxserve:/kubernetes/NAMESPACE` on a real cluster (KUBECONFIG), with images of
this machine's Docker engine.

Pods follow an MLflow server on docker0's address.
"""

import base64
import itertools
import os
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import mlflow
import mlflow.onnx
import pytest
import requests
import yaml
from click.testing import CliRunner
from mlflow import MlflowClient
from mlflow.deployments import BaseDeploymentClient, get_deploy_client
from mlflow.exceptions import MlflowException

from mlflow_deploy_plugin.cli.commands import main
from mlflow_deploy_plugin.promote.rollouts.leadership import reached_places
from mlflow_deploy_plugin.ship.deployments.lifecycle import open_deployments
from mlflow_deploy_plugin.ship.deployments.server_metrics import ServerMetrics
from tests.docker.conftest import ROOT, load, run_docker
from tests.support.models import FAILING, adder, parse_graph
from tests.support.refusals import mentions
from tests.support.services.cluster import NEEDS_CLUSTER, Cluster, own_namespace
from tests.support.services.mlflow_server import MlflowServer
from tests.support.tracking import DEFAULT_EXPERIMENT, tracking_at
from tests.support.traffic import Traffic
from tests.support.waiting import wait_until

pytestmark = [NEEDS_CLUSTER, pytest.mark.docker, pytest.mark.long]
KUBECONFIG = os.environ.get("KUBECONFIG", "")
ROW = {"inputs": [[1.0]]}
ANSWER = str(b'{"predictions":{"y":[[2.0]]}}')
ANSWER_OF_VERSION_2 = ANSWER.replace("2.0", "3.0")


@pytest.fixture(scope="module")
def cluster():
    with own_namespace() as made:
        yield made


@pytest.fixture(scope="module")
def registry(gateway, new_database, tmp_path_factory):
    """Run an MLflow server that pods reach, with the model `adder`.

    Versions 1 and 2 add their number. Version 3 adds 1, and fails in one of five
    requests of `Traffic`.
    """
    server = MlflowServer(tmp_path_factory.mktemp("registry"), gateway)
    new_database(server.folder)
    try:
        server.start()
        with tracking_at(server.url):
            for graph in (adder(1), adder(2), parse_graph(FAILING)):
                with mlflow.start_run(experiment_id=DEFAULT_EXPERIMENT):
                    options = {"name": "adder", "registered_model_name": "adder"}
                    mlflow.onnx.log_model(graph, pip_requirements=["onnxruntime"], **options)
            MlflowClient().set_registered_model_alias("adder", "live", "1")
        yield server
    finally:
        server.kill()


@pytest.fixture(scope="module", autouse=True)
def surroundings(registry, tmp_path_factory):
    """Use a separate store for this module, and set the registry like a user."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONNXSERVE_HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("MLFLOW_TRACKING_URI", registry.url)
        patch.setenv("ONNXSERVE_READY_TIMEOUT_SECONDS", "180")
        patch.setenv("ONNXSERVE_POLL_SECONDS", "0.5")
        mlflow.set_tracking_uri(None)
        yield


@pytest.fixture(scope="module")
def client(cluster):
    return get_deploy_client(f"onnxserve:/kubernetes/{cluster.namespace}")


@dataclass(frozen=True)
class Endpoint:
    """An endpoint of two pods, and its Service's address,
    which this machine reaches.
    """

    name: str
    client: BaseDeploymentClient
    cluster: Cluster
    url: str

    def predict(self):
        answer = requests.post(f"{self.url}/invocations", json=ROW, timeout=10)
        assert answer.ok, answer.text
        return float(answer.json()["predictions"]["y"][0][0])

    def pods(self):
        all_pods = self.cluster.items("pod", "-l", f"app.kubernetes.io/instance={self.name}")
        return {
            pod["metadata"]["name"]
            for pod in all_pods
            if "deletionTimestamp" not in pod["metadata"]
        }

    def kill(self, pod):
        self.cluster.kubectl("delete", "pod", pod, "--grace-period=0", "--force")

    def is_whole(self, without=""):
        """Return True if two pods serve, and the killed pod is gone."""
        workers = self.client.get_deployment(self.name)["workers"]
        return len(workers) == 2 and without not in self.pods()

    def update(self, **fields):
        config = {name.replace("__", "."): value for name, value in fields.items()}
        self.client.update_deployment(self.name, config=config)

    def refused(self, **fields):
        """Return the one-line error of a failing update, after which the same pods
        serve the same version.
        """
        before = self.pods()
        with pytest.raises(MlflowException) as error:
            self.update(**fields)
        assert self.predict() == 2.0
        assert self.pods() & before == before
        wait_until(lambda: self.pods() == before, 60, "the pods of the failed update are gone")
        assert "\n" not in str(error.value)
        return str(error.value)


_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def create(client, cluster, image):
    made = []

    def make(**config):
        name = f"f{next(_numbers)}"
        fields = {"container.image": image, "kubernetes.replicas": 2, **config}
        client.create_deployment(name, "models:/adder@live", config=fields)
        made.append(name)
        (service,) = cluster.items(
            "service", f"--field-selector=metadata.name={name}", f"--kubeconfig={KUBECONFIG}"
        )
        return Endpoint(name, client, cluster, f"http://{service['spec']['clusterIP']}:8080")

    yield make
    for name in made:
        with suppress(MlflowException):  # The test may have deleted the deployment.
            client.delete_endpoint(name)


@pytest.fixture(scope="module")
def endpoint(create):
    return create()


def test_create_list_predict_and_logs(endpoint, client, cluster):
    assert endpoint.predict() == 2.0
    # through a port-forward
    assert client.predict(endpoint.name, {"inputs": [[1.0]]})["predictions"] == {"y": [[2.0]]}
    deployment = client.get_deployment(endpoint.name)
    assert deployment["state"] == "running"
    assert deployment["version"] == "1"
    assert len(deployment["workers"]) == 2
    assert deployment["url"] == f"http://{endpoint.name}.{cluster.namespace}.svc:8080"
    assert [entry["name"] for entry in client.list_deployments()] == [endpoint.name]
    lines = CliRunner().invoke(main, ["logs", endpoint.name]).output
    assert all(f"{pod}: " in lines for pod in endpoint.pods())


def test_traffic_and_model_changes_keep_the_pods(endpoint, client):
    pods = endpoint.pods()
    client.create_deployment("challenger", "models:/adder/2", endpoint=endpoint.name)
    begun = time.monotonic()
    client.update_endpoint(endpoint.name, {"traffic": {endpoint.name: 50, "challenger": 50}})
    seconds = time.monotonic() - begun
    assert {endpoint.predict() for _ in range(40)} == {2.0, 3.0}
    assert endpoint.pods() == pods
    assert seconds < 30  # kubelet's own refresh takes up to 90

    with pytest.raises(MlflowException, match=r"adder .*version 9"):
        client.update_deployment("challenger", "models:/adder/9", endpoint=endpoint.name)
    assert {endpoint.predict() for _ in range(40)} == {2.0, 3.0}
    client.update_endpoint(endpoint.name, {"traffic": {endpoint.name: 100, "challenger": 0}})
    client.delete_deployment("challenger", endpoint=endpoint.name)
    assert endpoint.pods() == pods


@pytest.fixture
def traffic(endpoint):
    asking = Traffic(endpoint.url)
    asking.start()
    yield asking
    asking.stop()


def test_rolling_update_fails_no_request(endpoint):
    before = endpoint.pods()
    with load(endpoint.url, ROW) as answers:
        endpoint.update(server__threads=5)
    assert not before & endpoint.pods()
    assert list(answers) == [ANSWER]


@pytest.mark.release
def test_killed_pod_fails_only_requests_in_flight(endpoint):
    killed = min(endpoint.pods())
    with load(endpoint.url, ROW) as answers:
        endpoint.kill(killed)
        wait_until(lambda: endpoint.is_whole(without=killed), 120, "two pods serve again")
    # Until the Service forgets the pod, connections are refused, and may be retried.
    ended = [number for answer, number in answers.items() if "Refused" not in answer]
    assert sum(ended) - answers[ANSWER] <= 4  # Each of the four clients awaited one answer.
    with load(endpoint.url, ROW) as answers:
        wait_until(lambda: answers[ANSWER] > 100, what="one hundred answers")
    assert list(answers) == [ANSWER]


@pytest.mark.release
def test_endpoint_of_a_drained_node_comes_back(endpoint, client, cluster):
    nodes = [node["metadata"]["name"] for node in cluster.items("node")]
    selector = f"--pod-selector=app.kubernetes.io/instance={endpoint.name}"
    drain = ["drain", *nodes, selector, "--delete-emptydir-data", "--ignore-daemonsets"]
    try:
        with (
            load(endpoint.url, ROW) as answers,
            pytest.raises(AssertionError, match="disruption budget"),
        ):
            cluster.kubectl(*drain, "--timeout=20s")
        assert list(answers) == [ANSWER]
        assert client.get_deployment(endpoint.name)["state"] == "running"
        cluster.kubectl(*drain, "--disable-eviction")
        assert mentions(client.get_deployment(endpoint.name)["reason"], "unschedulable")
        states = {row["name"]: row["state"] for row in client.list_deployments()}
        assert states[endpoint.name] == "starting"
        with pytest.raises(requests.ConnectionError):
            endpoint.predict()
    finally:
        for node in nodes:
            cluster.kubectl("uncordon", node)
    wait_until(endpoint.is_whole, 120, "two pods serve again")
    assert client.get_deployment(endpoint.name)["version"] == "1"
    assert endpoint.predict() == 2.0


def test_unservable_update_is_undone(endpoint, monkeypatch):
    message = endpoint.refused(container__memory_bytes=70_000_000)
    assert mentions(message, "OOMKilled", "container.memory_bytes is 70M")
    assert mentions(endpoint.refused(container__secrets__A="missing/key"), "secret", '"missing"')
    monkeypatch.setenv("ONNXSERVE_READY_TIMEOUT_SECONDS", "15")
    message = endpoint.refused(container__cpus=900)
    assert mentions(message, "unschedulable", "Insufficient cpu", "ONNXSERVE_READY_TIMEOUT_SECONDS")


def test_endpoint_is_stopped_started_and_deleted(create, client, cluster):
    made = create(**{"kubernetes.replicas": 1, "kubernetes.max_replicas": 3, "container.cpus": 0.5})
    label = ["-l", f"app.kubernetes.io/instance={made.name}"]
    assert len(cluster.items("hpa", *label)) == 1
    made.update(kubernetes__max_replicas="")
    assert cluster.items("hpa", *label) == []
    runner = CliRunner()
    assert runner.invoke(main, ["stop", made.name]).exit_code == 0
    assert made.pods() == set()
    assert client.get_deployment(made.name)["state"] == "stopped"
    assert runner.invoke(main, ["start", made.name]).exit_code == 0
    assert made.predict() == 2.0
    client.delete_deployment(made.name)
    kinds = "deployment,service,configmap,serviceaccount,networkpolicy,pdb,hpa,replicaset,pod"
    wait_until(lambda: cluster.items(kinds, *label) == [], 60, "no object remains")


def kubeconfig_of(cluster, account, folder):
    """Return the path of a configuration with the token of a ServiceAccount."""
    metadata = {"name": account, "annotations": {"kubernetes.io/service-account.name": account}}
    kind = "kubernetes.io/service-account-token"
    cluster.apply({"apiVersion": "v1", "kind": "Secret", "type": kind, "metadata": metadata})
    secret = ["get", "secret", account, "-o", "jsonpath={.data.token}"]
    token = wait_until(lambda: cluster.kubectl(*secret), 30, "the token")
    config = yaml.safe_load(Path(KUBECONFIG).read_text())
    config["users"][0]["user"] = {"token": base64.b64decode(token).decode()}
    (folder / "config").write_text(yaml.safe_dump(config))
    return str(folder / "config")


def test_shipped_controller_role_suffices_for_rollouts(
    endpoint, cluster, traffic, tmp_path, monkeypatch
):
    account, *rights = yaml.safe_load_all(
        (ROOT / "docker" / "kubernetes" / "rollouts.yaml").read_text()
    )
    cluster.apply(account)
    config = kubeconfig_of(cluster, account["metadata"]["name"], tmp_path)
    with monkeypatch.context() as patch, open_deployments(lambda line: None) as deployments:
        patch.setenv("KUBECONFIG", config)
        failures: list[str] = []
        assert list(reached_places(deployments, failures.append)) == []
    (line,) = failures
    assert mentions(line, f"onnxserve:/kubernetes/{cluster.namespace}", "other controllers")

    for document in rights:
        cluster.apply(document)
    monkeypatch.setenv("KUBECONFIG", config)
    options = [
        "--steps",
        "50,100",
        "--every",
        "1s",
        "--min-requests",
        "10",
        "--abort-on",
        "error_rate>1%",
        "--wait",
    ]
    done = CliRunner().invoke(main, ["rollout", "start", endpoint.name, "--to", "2", *options])
    assert done.exit_code == 0, done.output
    back = CliRunner().invoke(main, ["rollback", endpoint.name, "--to", "1"])
    assert back.exit_code == 0, back.output
    assert set(traffic.answers) == {("1", 200), ("2", 200)}


@pytest.mark.release
def test_rollout_with_a_killed_pod_counts_correctly(create):
    endpoint = create()
    command = ["rollout", "start", endpoint.name, "--to", "2", "--steps", "50,100", "--every"]
    command += ["20s", "--abort-on", "error_rate>1%,p99>5s", "--min-requests", "50", "--wait"]
    with (
        load(endpoint.url, ROW) as answers,
        subprocess.Popen([sys.executable, "-m", "mlflow_deploy_plugin.cli", *command]) as rollout,
    ):
        wait_until(lambda: answers[ANSWER_OF_VERSION_2], 300, "version 2 answers")
        endpoint.kill(min(endpoint.pods()))
        assert rollout.wait(400) == 0
    MlflowClient().set_registered_model_alias("adder", "live", "1")
    with open_deployments(lambda line: None) as deployments:
        events = deployments.store.events(endpoint.name, actions=["rollout.step", "rollout.end"])
        steps = [event.detail for event in events if event.detail.get("criteria")]
    for role, answer in (("candidate", ANSWER_OF_VERSION_2), ("current", ANSWER)):
        assert [step[role]["errors"] for step in steps] == [0, 0]
        counted = sum(step[role]["requests"] for step in steps)
        # No request to the killed pod is counted twice.
        assert 50 <= counted <= answers[answer]


def test_metrics_of_pods_with_api_keys_are_readable(create, image, tmp_path):
    keys = CliRunner().invoke(main, ["keys", "export"])
    (tmp_path / "keys.json").write_text(keys.stdout)
    (tmp_path / "Dockerfile").write_text(f"FROM {image}\nCOPY keys.json /keys.json\n")
    tag = f"{image}-keys"
    run_docker("build", "-q", "-t", tag, str(tmp_path))
    try:
        where = {"container.image": tag, "container.environment.ONNXSERVE_KEYS_FILE": "/keys.json"}
        made = create(**where, **{"server.api_keys": True})
        assert requests.get(f"{made.url}/metrics", timeout=10).status_code == 401
        with open_deployments(lambda line: None) as deployments:
            observed = deployments.get_endpoint(made.name)
            metrics = deployments.server_metrics(observed)
            history = deployments.server_history(observed, "hour")
        assert set(metrics) == set(history) == made.pods()
        assert {type(value) for value in history.values()} == {list}
        assert {type(value) for value in metrics.values()} == {ServerMetrics}
    finally:
        run_docker("rmi", "-f", tag, check=False)


def test_role_of_the_guide_suffices(create, cluster, tmp_path, monkeypatch):
    block = (ROOT / "docs" / "kubernetes.md").read_text().split("```yaml\n")[1].split("```")[0]
    role = yaml.safe_load(block)
    cluster.kubectl("create", "serviceaccount", "deployer")
    config = kubeconfig_of(cluster, "deployer", tmp_path)
    monkeypatch.setenv("KUBECONFIG", config)
    with pytest.raises(MlflowException, match=r'forbids .*: deployments\.apps "f\d+".*"system:'):
        create()

    monkeypatch.undo()
    cluster.apply(role)
    subject = f"--serviceaccount={cluster.namespace}:deployer"
    cluster.kubectl(
        "create", "rolebinding", "deployer", f"--role={role['metadata']['name']}", subject
    )
    monkeypatch.setenv("KUBECONFIG", config)
    made = create(**{"kubernetes.replicas": 1})
    assert made.client.predict(made.name, {"inputs": [[1.0]]})["predictions"] == {"y": [[2.0]]}
    assert made.client.get_deployment(made.name)["version"] == "1"

    rights = [rule for rule in role["rules"] if "pods/exec" not in rule["resources"]]
    monkeypatch.undo()
    cluster.apply({**role, "rules": rights})
    monkeypatch.setenv("KUBECONFIG", config)
    made.update(server__threads=5)  # only readiness shows that it is served
    deployment = made.client.get_deployment(made.name)
    assert deployment["state"] == "running"
    assert deployment["version"] == ""
