"""Tests of the API server's errors as one-line messages, and of retries.
tests/docker/test_kubernetes_target.py uses a real cluster.
"""

import base64
import hashlib
import json
import os
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import yaml

from mlflow_deploy_plugin.core.errors import DeploymentFailed, InvalidConfig
from mlflow_deploy_plugin.ship.deployments.backends import kubernetes_api
from mlflow_deploy_plugin.ship.deployments.backends.kubernetes_api import ApiRefused, Cluster
from tests.support.clusters import kubeconfig
from tests.support.refusals import refused

APIS = {"groups": [{"versions": [{"groupVersion": one}]} for one in ("apps/v1", "policy/v1beta1")]}
SERVICE = {"kind": "Service", "metadata": {"name": "flights"}}
STDOUT = b"\1"
STATUS = b"\3"
"""The channels of a command in a pod."""
CUT = 0
"""The status of an answer that never comes, because the connection is cut."""


class ScriptedApi:
    """An API server that answers `/apis` as Kubernetes 1.20 does, and any other request
    with the next answer of the script.
    """

    def __init__(self):
        self.script = []
        self.frames = []
        """The frames that a web socket receives, each beginning with its channel."""
        self.asked = []
        self.bodies = []

    def next_answer(self, path):
        if path == "/apis":
            return (200, APIS)
        if self.script:
            return self.script.pop(0)
        return (200, {})


@pytest.fixture
def api(tmp_path, monkeypatch):
    made = ScriptedApi()

    class Handler(BaseHTTPRequestHandler):
        def answer(self):
            made.bodies.append(self.rfile.read(int(self.headers.get("Content-Length") or 0)))
            if self.path != "/apis":
                made.asked.append(f"{self.command} {self.path}")
            if self.headers.get("Upgrade") == "websocket" and made.frames:
                self.stream()
                return
            status, body = made.next_answer(self.path)
            if status == CUT:
                return
            content = json.dumps(body).encode()
            self.send_response(status)
            if status == 429:
                self.send_header("Retry-After", "0")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def stream(self):
            # RFC 6455
            key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
            self.send_response(101)
            self.send_header("Upgrade", "websocket")
            self.send_header("Connection", "Upgrade")
            self.send_header(
                "Sec-WebSocket-Accept",
                base64.b64encode(hashlib.sha1(key.encode()).digest()).decode(),  # noqa: TID251 - RFC 6455
            )
            self.send_header("Sec-WebSocket-Protocol", "v4.channel.k8s.io")
            self.end_headers()
            for frame in made.frames:
                self.wfile.write(bytes([0x82, len(frame)]) + frame)
            if made.frames[-1].startswith(STATUS):
                self.wfile.write(bytes([0x88, 0]))

        do_GET = do_PATCH = do_DELETE = answer  # noqa: N815

        def log_message(self, *_):
            pass

    at_once = kubernetes_api._RETRIES.new(backoff_factor=0)
    monkeypatch.setattr(kubernetes_api, "_RETRIES", at_once)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv(
            "KUBECONFIG", str(kubeconfig(tmp_path, f"http://127.0.0.1:{server.server_port}"))
        )
        yield made
        server.shutdown()


def conflict(*managers):
    """Return the response of an API server in which other managers own fields of an
    applied document.
    """
    if len(managers) == 1:
        return 409, {
            "message": (
                f'Apply failed with 1 conflict: conflict with "{managers[0]}" using v1: .spec.type'
            )
        }
    causes = "\n".join(
        f'conflicts with "{manager}" using v1:\n- .spec.type' for manager in managers
    )
    return 409, {"message": f"Apply failed with {len(managers)} conflicts: {causes}"}


@pytest.mark.parametrize(
    ("method", "call"),
    [
        ("GET", lambda cluster: cluster.get("Service", "flights")),
        ("PATCH", lambda cluster: cluster.apply(SERVICE)),
        ("DELETE", lambda cluster: cluster.delete("Service", "flights")),
    ],
)
def test_busy_or_broken_api_is_retried(api, method, call):
    api.script = [(429, {}), (500, {}), (CUT, {}), (503, {}), (200, SERVICE)]
    call(Cluster("ml"))
    assert [line.split()[0] for line in api.asked] == [method] * 5


def test_newest_supported_version_is_used(api):
    cluster = Cluster("ml")
    cluster.apply(
        {"kind": "PodDisruptionBudget", "apiVersion": "policy/v1", "metadata": {"name": "f"}}
    )
    path = "/apis/policy/v1beta1/namespaces/ml/poddisruptionbudgets/f"
    assert api.asked == [f"PATCH {path}?fieldManager=onnxserve&force=false"]
    with refused(InvalidConfig, "ServiceMonitor", "monitoring.coreos.com/v1"):
        cluster.apply({"kind": "ServiceMonitor", "metadata": {"name": "f"}})


def test_fields_of_other_managers_need_force(api):
    cluster = Cluster("ml")
    for owners in (["onnxserve"], ["onnxserve", "before-first-apply"]):
        api.script = [conflict(*owners), (200, {})]
        api.asked = []
        cluster.apply(SERVICE)
        assert [request.rpartition("force=")[2] for request in api.asked] == ["false", "true"]
    api.script = [conflict("onnxserve", "kubectl-edit")]
    names = ("Service flights", "kubectl-edit", ".spec.type", "kubernetes.force_conflicts=true")
    with refused(DeploymentFailed, *names):
        cluster.apply(SERVICE)


def test_object_is_restored_without_cluster_fields(api):
    metadata = {"name": "flights", "uid": "1", "resourceVersion": "7", "labels": {"app": "f"}}
    api.script = [(200, {**SERVICE, "metadata": metadata, "spec": {}, "ours": False, "status": {}})]
    Cluster("ml").put_back(
        {**SERVICE, "metadata": metadata, "spec": {"type": "ClusterIP"}, "status": {"a": 1}}
    )
    service = "/api/v1/namespaces/ml/services/flights"
    assert api.asked == [f"GET {service}", f"PATCH {service}?fieldManager=onnxserve"]
    *added, removed = json.loads(api.bodies[-1])
    assert removed == {"op": "remove", "path": "/ours"}
    assert {operation["path"]: operation["value"] for operation in added} == {
        "/metadata/labels": {"app": "f"},
        "/metadata/annotations": {},
        "/spec": {"type": "ClusterIP"},
    }


def test_concurrently_changed_object_is_applied_again(api):
    api.script = [(409, {"message": "the object has been modified"})] * 2
    Cluster("ml").apply(SERVICE)
    assert len(api.asked) == 3


@pytest.mark.parametrize(
    ("answer", "kind", "names"),
    [
        (
            (
                404,
                {
                    "message": 'namespaces "ml" not found',
                    "details": {"name": "ml", "kind": "namespaces"},
                },
            ),
            InvalidConfig,
            ["'ml'", "kubectl create namespace ml"],
        ),
        (
            (403, {"message": 'services is forbidden: User "u" cannot patch'}),
            DeploymentFailed,
            ["forbids", 'services is forbidden: User "u"'],
        ),
        ((401, {"message": "Unauthorized"}), DeploymentFailed, ["KUBECONFIG"]),
        ((422, {"message": "spec.ports: Required value"}), DeploymentFailed, ["422", "spec.ports"]),
    ],
)
def test_refusal_names_its_cause(api, answer, kind, names):
    api.script = [answer]
    with refused(kind, *names):
        Cluster("ml").apply(SERVICE)


def test_namespace_has_a_uid(api):
    api.script = [
        (200, {"metadata": {"uid": "f1"}}),
        (403, {"message": 'namespaces "ml" is forbidden'}),
    ]
    assert Cluster("ml").namespace_uid() == "f1"
    with refused(DeploymentFailed, "forbids", 'namespaces "ml"'):
        Cluster("ml").namespace_uid()
    assert api.asked == ["GET /api/v1/namespaces/ml"] * 2


def test_configured_context_is_used(api):
    assert Cluster("ml", "x").get("Service", "flights") == {}
    with refused(InvalidConfig, "ONNXSERVE_KUBE_CONTEXT", "'y'", "contexts are x"):
        Cluster("ml", "y")


def test_missing_object_is_none_and_deletable(api):
    api.script = [(404, {"message": "not found"})] * 2
    cluster = Cluster("ml")
    assert cluster.get("Service", "flights") is None
    cluster.delete("Service", "flights")


@pytest.mark.parametrize(
    ("content", "context"), [(None, None), ("current-context: none\n", None), ("", "elsewhere")]
)
def test_missing_cluster_error_names_the_kubeconfig(tmp_path, monkeypatch, content, context):
    if content is not None:
        (tmp_path / "config").write_text(content)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    with refused(InvalidConfig, "no Kubernetes cluster", "KUBECONFIG", "~/.kube/config"):
        Cluster("ml", context)


def test_character_split_over_two_frames_is_decoded(api):
    text = "möglich".encode()
    api.frames = [STDOUT + text[:2], STDOUT + text[2:], STATUS + b'{"status": "Success"}']
    assert Cluster("ml").execute("flights-1", ["cat", "note"]) == "möglich"


def test_cut_connection_of_a_command_is_an_error(api):
    api.frames = [STDOUT + b"half"]
    with refused(ApiRefused, "pod flights-1", "lost"):
        Cluster("ml").execute("flights-1", ["cat", "note"])


def test_forbidden_command_is_refused(api):
    message = 'pods "flights-1" is forbidden: User "u" cannot create resource "pods/exec"'
    api.script = [(403, {"message": message})]
    with refused(ApiRefused, "forbids", message) as raised:
        Cluster("ml").execute("flights-1", ["true"])
    assert (raised.value.status, raised.value.may_pass) == (403, False)


def test_absent_api_server_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path, "http://127.0.0.1:9")))
    with refused(ApiRefused, "Kubernetes API", "http://127.0.0.1:9", "does not answer") as raised:
        Cluster("ml").get("Service", "flights")
    assert raised.value.may_pass


def test_concurrent_readers_share_one_key_file(tmp_path, monkeypatch):
    file = kubeconfig(tmp_path, "https://127.0.0.1:1")
    config = yaml.safe_load(file.read_text())
    config["users"][0]["user"] = {"client-key-data": base64.b64encode(os.urandom(32)).decode()}
    file.write_text(yaml.safe_dump(config))
    (tmp_path / "keys").mkdir()
    made = tempfile.mkstemp

    def slowly(*args, **options):
        time.sleep(0.05)  # A pause as on a slow disk lets other threads run first.
        return made(*args, **options)

    monkeypatch.setenv("KUBECONFIG", str(file))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "keys"))
    monkeypatch.setattr(tempfile, "mkstemp", slowly)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(Cluster, ["ml"] * 4))
    assert len(list((tmp_path / "keys").iterdir())) == 1
