"""Tests of the number of pods and of their MLflow URI.
tests/docker/test_kubernetes_target.py uses a real cluster.
"""

from copy import deepcopy

import pytest

from mlflow_deploy_plugin.core.errors import AlreadyExists, DeploymentFailed, InvalidConfig
from mlflow_deploy_plugin.core.settings import Settings
from mlflow_deploy_plugin.core.spec.document import new_endpoint
from mlflow_deploy_plugin.ship.deployments.backends import kubernetes
from mlflow_deploy_plugin.ship.deployments.backends.kubernetes import (
    KubernetesBackend,
    pod_count,
    pod_environment,
)
from mlflow_deploy_plugin.ship.deployments.backends.kubernetes_api import ApiRefused
from mlflow_deploy_plugin.ship.manifests.served import Document
from tests.support.refusals import refused


@pytest.mark.parametrize(
    ("uri", "model", "config", "found"),
    [
        ("http://mlflow:5000", "models:/f/1", {}, {"MLFLOW_TRACKING_URI"}),
        (
            "http://127.0.0.1:5000",
            "models:/f/1",
            {"container.environment.MLFLOW_TRACKING_URI": "http://m:5000"},
            set(),
        ),
        (
            "https://user:password@mlflow",
            "models:/f/1",
            {"container.secrets.MLFLOW_TRACKING_URI": "mlflow/uri"},
            set(),
        ),
        ("sqlite:///mlflow.db", "/model", {}, set()),  # The model is in the image.
    ],
)
def test_pods_get_only_a_reachable_tracking_uri(monkeypatch, uri, model, config, found):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert set(pod_environment(new_endpoint("f", model, config))) == found


def test_separate_registry_uri_is_passed_to_pods(monkeypatch):
    elsewhere = new_endpoint(
        "f", "models:/f/1", {"container.environment.MLFLOW_TRACKING_URI": "http://inside:5000"}
    )
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://outside:5000")
    assert "MLFLOW_REGISTRY_URI" not in pod_environment(elsewhere)
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "http://registry:5000")
    assert pod_environment(elsewhere)["MLFLOW_REGISTRY_URI"] == "http://registry:5000"


def test_pods_keep_the_mlflow_of_the_first_command():
    variables = [
        {"name": "MLFLOW_TRACKING_URI", "value": "http://mlflow:5000/$$a"},
        {"name": "MLFLOW_REGISTRY_URI", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
        {"name": "AWS_REGION", "value": "eu"},
    ]
    containers = [{"name": "onnxserve", "env": variables}, {"name": "injected", "env": []}]
    deployment = {"spec": {"template": {"spec": {"containers": containers}}}}
    assert pod_environment(new_endpoint("f", "models:/f/1"), deployment) == {
        "MLFLOW_TRACKING_URI": "http://mlflow:5000/$a"
    }


@pytest.mark.parametrize(
    ("model", "config"),
    [
        ("models:/f/1", {"container.secrets.MLFLOW_TRACKING_URI": "mlflow/uri"}),
        ("/model", {}),  # The model is in the image.
    ],
)
def test_later_commands_add_no_unneeded_tracking_uri(monkeypatch, model, config):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    deployment = {"spec": {"template": {"spec": {"containers": [{"name": "onnxserve"}]}}}}
    assert pod_environment(new_endpoint("f", model, config), deployment) == {}
    assert set(pod_environment(new_endpoint("f", "models:/f/1"), deployment)) == {
        "MLFLOW_TRACKING_URI"
    }


def test_registry_unreachable_from_pods_is_refused(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:5000")
    with refused(InvalidConfig, "the pods", "MLflow", "http://localhost:5000", "-C container"):
        pod_environment(new_endpoint("f", "models:/f/Production"))


@pytest.mark.parametrize(
    ("config", "asked_before", "now", "found"),
    [
        ({}, None, None, 3),
        ({}, "3", 7, 7),  # The user or the user's autoscaler has scaled the Deployment.
        ({"kubernetes.replicas": "5"}, "3", 7, 5),
        ({"kubernetes.force_conflicts": "true"}, "3", 7, 3),
        ({}, "3", 0, 3),  # The endpoint was stopped.
        ({}, None, 7, 3),  # The autoscaler of onnxserve has set the replicas.
        ({"kubernetes.max_replicas": "9", "container.cpus": "1"}, "3", 7, 7),
        ({"kubernetes.max_replicas": "9", "container.cpus": "1"}, None, 12, 12),
        # The user's autoscaler changes the replicas later.
        ({"kubernetes.replicas": "0"}, None, None, 1),
        ({"kubernetes.replicas": "0"}, "3", 7, 7),
    ],
)
def test_scaled_pods_stay_until_the_spec_changes(config, asked_before, now, found):
    annotations = {} if asked_before is None else {"onnxserve/replicas": asked_before}
    running = {"metadata": {"annotations": annotations}, "spec": {"replicas": now}}
    assert (
        pod_count(new_endpoint("f", "models:/f/1", config), None if now is None else running)
        == found
    )


class StubCluster:
    """An empty cluster that supports all kinds."""

    def __init__(self, *_):
        pass

    def serves(self, kind):
        return True

    def get(self, kind, name):
        return None

    def find(self, kind, labels):
        return []

    def put_back(self, document): ...


class ScalingCluster(StubCluster):
    """A cluster whose autoscaler adds a pod while pods are listed, and which refuses a
    Deployment with replicas.
    """

    replicas = 1

    def get(self, kind, name):
        deployment = {"replicas": self.replicas, "template": {"spec": {"containers": []}}}
        if kind == "Deployment":
            return {"kind": kind, "metadata": {}, "spec": deployment}
        return None

    def find(self, kind, labels):
        self.replicas += 1
        return []

    def apply(self, document, force):
        if document["kind"] == "Deployment":
            raise DeploymentFailed(f"replicas {document['spec']['replicas']}")


def test_update_keeps_pods_added_by_an_autoscaler(monkeypatch):
    monkeypatch.setattr(kubernetes, "Cluster", ScalingCluster)
    config = {
        "kubernetes.max_replicas": "9",
        "container.cpus": "1",
        "kubernetes.force_conflicts": "true",
    }
    with pytest.raises(DeploymentFailed, match="replicas 2"):
        KubernetesBackend(Settings(), "ml").apply(new_endpoint("f", "/model", config), print)


class ClosedCluster(StubCluster):
    """A cluster that forbids this user to read one kind."""

    def __init__(self, forbidden):
        self.forbidden = forbidden

    def get(self, kind, name):
        if kind == self.forbidden:
            raise ApiRefused(f"the Kubernetes API forbids it: {kind}", 403)


def test_edit_role_need_not_access_custom_resources(monkeypatch):
    for kind in ("HTTPRoute", "ServiceMonitor"):
        monkeypatch.setattr(kubernetes, "Cluster", lambda *_, kind=kind: ClosedCluster(kind))
        KubernetesBackend(Settings(), "ml").remove("f")

    monkeypatch.setattr(kubernetes, "Cluster", lambda *_: ClosedCluster("Ingress"))
    with pytest.raises(ApiRefused, match="forbids it: Ingress"):
        KubernetesBackend(Settings(), "ml").remove("f")


class SharedCluster(StubCluster):
    """A cluster with objects of another owner,
    which refuses the last applied object.
    """

    def __init__(self, owner=""):
        metadata: Document = {"name": "f"}
        if owner:
            metadata["annotations"] = {"onnxserve/owner": owner}
        pod = {"replicas": 2, "template": {"spec": {"containers": []}}}
        self.objects = {
            "ConfigMap": {
                "kind": "ConfigMap",
                "metadata": metadata,
                "data": {"spec.yaml": "of another"},
            },
            "Deployment": {"kind": "Deployment", "metadata": metadata, "spec": pod},
        }

    def get(self, kind, name):
        return deepcopy(self.objects.get(kind))

    def apply(self, document, force):
        if document["kind"] == "NetworkPolicy":
            raise DeploymentFailed("the NetworkPolicy is refused")
        self.objects[document["kind"]] = document

    def put_back(self, document):
        self.objects[document["kind"]] = document

    def delete(self, kind, name):
        del self.objects[kind]


def test_failed_takeover_restores_the_objects(monkeypatch):
    cluster = SharedCluster()
    before = deepcopy(cluster.objects)
    monkeypatch.setattr(kubernetes, "Cluster", lambda *_: cluster)
    backend = KubernetesBackend(Settings(), "ml")
    with refused(DeploymentFailed, "NetworkPolicy"):
        backend.apply(new_endpoint("f", "/model", {"kubernetes.force_conflicts": "true"}), print)
    assert {"Service", *before} < set(cluster.objects)
    backend.remove("f")  # `create` calls this after a failure.
    assert cluster.objects == before


SPEC = new_endpoint("f", "/model")


@pytest.mark.parametrize(
    "ask",
    [
        lambda backend: backend.observe(SPEC),
        lambda backend: backend.server_pages(SPEC, "/metrics", 1.0),
        lambda backend: backend.place("f"),
        lambda backend: backend.stop("f"),
        lambda backend: list(backend.logs("f", 10, False)),
        lambda backend: backend.reached(SPEC).__enter__(),
    ],
    ids=["observe", "server_pages", "place", "stop", "logs", "reached"],
)
@pytest.mark.parametrize(
    ("owner", "whose"), [("sqlite:///b.db on b", "sqlite:///b.db on b"), ("", "no store")]
)
def test_pods_of_another_owner_are_refused(monkeypatch, ask, owner, whose):
    monkeypatch.setattr(kubernetes, "Cluster", lambda *_: SharedCluster(owner))
    with refused(InvalidConfig, "Deployment 'f'", "namespace ml", whose):
        ask(KubernetesBackend(Settings(), "ml"))


def test_objects_of_another_owner_are_kept(monkeypatch):
    cluster = SharedCluster("sqlite:///b.db on b")
    before = deepcopy(cluster.objects)
    monkeypatch.setattr(kubernetes, "Cluster", lambda *_: cluster)
    with refused(AlreadyExists, "ConfigMap 'f'", "sqlite:///b.db on b"):
        KubernetesBackend(Settings(), "ml").apply(SPEC, print)
    KubernetesBackend(Settings(), "ml").remove("f")
    assert cluster.objects == before


class RestartingCluster:
    """A cluster with one pod, whose log breaks twice, and which repeats earlier lines
    after a reconnect.
    """

    def __init__(self, *_):
        self.logs = [["1 loading", "2 ready"], [], ["2 ready", "3 answered"]]

    def get(self, kind, name):
        """Return the pod until its log has ended."""
        return {} if kind == "Pod" and self.logs else None

    def find(self, kind, labels):
        return [{"metadata": {"name": "f-1"}}]

    def pod_log(self, pod, lines):
        return ["starting"]

    def follow_log(self, pod, since_seconds):
        yield from self.logs.pop(0)


def test_broken_log_is_followed_without_gaps_or_repeats(monkeypatch):
    monkeypatch.setattr(kubernetes, "Cluster", RestartingCluster)
    monkeypatch.setattr(kubernetes, "_POLL_SECONDS", 0)
    lines = list(KubernetesBackend(Settings(), "ml").logs("f", 10, True))
    assert lines == ["f-1: starting", "f-1: loading", "f-1: ready", "f-1: answered"]
