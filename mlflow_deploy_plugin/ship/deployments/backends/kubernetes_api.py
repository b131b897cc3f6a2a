"""The API server of a Kubernetes cluster, for one namespace: objects as documents, and
commands in pods.

The official client finds the cluster and the credentials, and handles the web sockets
of `port-forward`. Every request is idempotent. After 429, 5xx or a broken connection,
the request is repeated after the pause that the server requests.
"""

import json
import os
import re
import socket
import ssl
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import urlencode, urlsplit

import kubernetes
import requests
import websocket
from kubernetes.client.exceptions import ApiException
from kubernetes.config.config_exception import ConfigException
from kubernetes.config.kube_config import KUBE_CONFIG_DEFAULT_LOCATION, KubeConfigMerger
from kubernetes.stream import portforward
from requests.adapters import HTTPAdapter
from urllib3 import Retry

from mlflow_deploy_plugin.core.errors import DeploymentFailed, InvalidConfig, OnnxserveError
from mlflow_deploy_plugin.core.messages import join_names, one_line
from mlflow_deploy_plugin.ship.manifests.kubernetes_objects import CONTAINER
from mlflow_deploy_plugin.ship.manifests.served import Document

MANAGER = "onnxserve"
"""The field manager of all applied objects."""
_RESOURCES: Mapping[str, tuple[str, ...]] = {
    "ConfigMap": ("configmaps", "v1"),
    "Deployment": ("deployments", "apps/v1"),
    "HTTPRoute": (
        "httproutes",
        "gateway.networking.k8s.io/v1",
        "gateway.networking.k8s.io/v1beta1",
    ),
    "HorizontalPodAutoscaler": (
        "horizontalpodautoscalers",
        "autoscaling/v2",
        "autoscaling/v2beta2",
    ),
    "Ingress": ("ingresses", "networking.k8s.io/v1"),
    "NetworkPolicy": ("networkpolicies", "networking.k8s.io/v1"),
    "Pod": ("pods", "v1"),
    "PodDisruptionBudget": ("poddisruptionbudgets", "policy/v1", "policy/v1beta1"),
    "ReplicaSet": ("replicasets", "apps/v1"),
    "Service": ("services", "v1"),
    "ServiceAccount": ("serviceaccounts", "v1"),
    "ServiceMonitor": ("servicemonitors", "monitoring.coreos.com/v1"),
}
"""The kind of an object → its plural and API versions, newest first. All versions
accept the same document.
"""
_RETRIES = Retry(
    total=8,
    connect=1,
    read=1,
    backoff_factor=0.2,
    backoff_max=5,
    status_forcelist=(429, 500, 502, 503, 504),
    allowed_methods=None,
    raise_on_status=False,
    respect_retry_after_header=False,
)
_CONNECT_SECONDS = 5
_GET_SECONDS = 6
"""The timeouts of reads, so short that a read with one retry fails before the timeout
of the console's page.
"""
_CHANGE_SECONDS = 60
"""The timeout of changes, which wait for admission webhooks of up to 30 seconds each.
"""
_EXEC_SECONDS = 30
_STDOUT = 1
_STDERR = 2
_STATUS = 3
"""The channels of a command's web socket. The first byte of each frame is the number of
the channel.
"""
_LOADING = threading.Lock()
"""The lock for loading a configuration, because all clients share the files with keys,
and remove them at exit.
"""
_APPLY_TYPE = "application/apply-patch+yaml"
_CONFLICT_TRIES = 6
_CONFLICT = re.compile(r'conflicts? with "(?P<manager>[^"]+)"')
_OUR_MANAGERS = (MANAGER, "before-first-apply")


class ApiRefused(DeploymentFailed):
    """The API server refused a request. `status` is None if it did not answer."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status

    @property
    def may_pass(self) -> bool:
        """Return True if a retry of the request may succeed, because the API server is
        busy or restarting.
        """
        return self.status is None or self.status == 429 or self.status >= 500


@dataclass
class Cluster:
    """The cluster of a KUBECONFIG context (None: the current context), or the cluster
    of this process's pod.
    """

    namespace: str
    context: str | None = None
    _session: requests.Session = field(init=False)
    _versions: set[str] = field(default_factory=set, init=False)

    def __post_init__(self) -> None:
        self._client = _configured_client(self.context)
        configuration = self._client.configuration
        session = requests.Session()
        session.trust_env = False
        session.verify = False
        if configuration.verify_ssl:
            session.verify = configuration.ssl_ca_cert or True
        if configuration.cert_file:
            session.cert = (configuration.cert_file, configuration.key_file)
        if configuration.proxy:
            session.proxies = {"https": configuration.proxy, "http": configuration.proxy}
        for scheme in ("https://", "http://"):
            session.mount(scheme, HTTPAdapter(max_retries=_RETRIES))
        self._configuration = configuration
        self._session = session

    def get(self, kind: str, name: str) -> Document | None:
        """Return an object, or None if the cluster has no object of this name."""
        try:
            return self._get(f"{self._path(kind)}/{name}")
        except ApiRefused as error:
            if error.status == 404:
                return None
            raise

    def find(self, kind: str, labels: Mapping[str, str]) -> list[Document]:
        """Return the objects with these labels."""
        selector = ",".join(f"{key}={value}" for key, value in labels.items())
        answer = self._get(self._path(kind), {"labelSelector": selector})
        return [*answer["items"]]

    def namespace_uid(self) -> str:
        return str(self._get(f"/api/v1/namespaces/{self.namespace}")["metadata"]["uid"])

    def serves(self, kind: str) -> bool:
        return any(version in self._known_versions() for version in _RESOURCES[kind][1:])

    def apply(self, document: Document, force: bool = False) -> None:
        """Apply a document. Fields of onnxserve are always reset; fields of other
        managers only with `force`.

        Raises InvalidConfig if the namespace is missing or the cluster does not support
        the kind, and DeploymentFailed if another manager has set the fields (without
        `force`) or the API server refuses the document.
        """
        kind = document["kind"]
        name = document["metadata"]["name"]
        if not self.serves(kind):
            raise InvalidConfig(
                f"the cluster does not support {kind} ({_RESOURCES[kind][1]}), which the spec "
                "requires"
            )
        document = {**document, "apiVersion": self._version(kind)}
        try:
            self._patch(kind, name, document, _APPLY_TYPE, force=str(force).lower())
        except ApiRefused as error:
            owners = dict.fromkeys(_CONFLICT.findall(error.message))
            if not owners:
                raise
            managers = [owner for owner in owners if owner not in _OUR_MANAGERS]
            if managers:
                raise DeploymentFailed(
                    f"{kind} {name} has fields that were set by {join_names(managers)}: "
                    f"{error.message}; kubernetes.force_conflicts=true overwrites them"
                ) from None
            self._patch(kind, name, document, _APPLY_TYPE, force="true")

    def merge(self, kind: str, name: str, change: Document) -> None:
        """Change fields of an object. Raises DeploymentFailed if the API server
        refuses the change.
        """
        self._patch(kind, name, change, "application/merge-patch+json")

    def put_back(self, document: Document) -> None:
        """Restore an object to a document that was read earlier. Raises
        DeploymentFailed if the API server refuses the change.
        """
        kind = document["kind"]
        name = document["metadata"]["name"]
        metadata = document["metadata"]
        restored = {f"metadata/{key}": metadata.get(key, {}) for key in ("labels", "annotations")}
        for field_name, value in document.items():
            if field_name not in ("apiVersion", "kind", "metadata", "status"):
                restored[field_name] = value
        changes: list[Document] = [
            {"op": "add", "path": f"/{path}", "value": value} for path, value in restored.items()
        ]
        current = self.get(kind, name) or {}
        added_fields = current.keys() - document.keys() - {"status"}
        changes += [{"op": "remove", "path": f"/{field}"} for field in sorted(added_fields)]
        self._patch(kind, name, changes, "application/json-patch+json")

    def _patch(
        self,
        kind: str,
        name: str,
        change: Document | list[Document],
        content_type: str,
        **query: str,
    ) -> None:
        """Change an object. Retry if it was changed at the same time."""
        path = f"{self._path(kind)}/{name}"
        parameters = {"fieldManager": MANAGER, **query}
        for attempt in range(_CONFLICT_TRIES):
            try:
                self._send("PATCH", path, parameters, body=change, content_type=content_type)
                return
            except ApiRefused as error:
                # A conflict with another manager's fields does not pass.
                may_pass = error.status == 409 and not _CONFLICT.search(error.message)
                if not may_pass or attempt == _CONFLICT_TRIES - 1:
                    raise
                time.sleep(0.1 * 2**attempt)

    def delete(self, kind: str, name: str) -> None:
        """Delete an object with its dependents. A missing object is not an error."""
        try:
            self._send("DELETE", f"{self._path(kind)}/{name}", {"propagationPolicy": "Background"})
        except ApiRefused as error:
            if error.status != 404:
                raise

    def pod_log(self, pod: str, lines: int, previous: bool = False) -> list[str]:
        """Return the last lines of the server container's log; empty if the container
        has not started.
        """
        query = {"container": CONTAINER, "tailLines": str(lines)}
        query["previous"] = str(previous).lower()
        try:
            return self._send("GET", f"{self._path('Pod')}/{pod}/log", query).text.splitlines()
        except ApiRefused:
            return []

    def follow_log(self, pod: str, since_seconds: int) -> Iterator[str]:
        """Yield the lines that the server container logs, until it ends or the
        connection breaks.
        """
        query = {
            "container": CONTAINER,
            "follow": "true",
            "sinceSeconds": str(since_seconds),
            "timestamps": "true",
        }
        path = f"{self._path('Pod')}/{pod}/log"
        with (
            suppress(ApiRefused, requests.RequestException),
            self._send("GET", path, query, stream=True, is_endless=True) as response,
        ):
            for line in response.iter_lines():
                yield line.decode(errors="replace")

    def execute(self, pod: str, command: Sequence[str]) -> str:
        """Run a command in the server container and return its output. Reads time out
        after `_EXEC_SECONDS`.

        The official client is not used: it waits forever for a hanging node, and
        decodes each frame separately.

        Raises ApiRefused if the command cannot be run (status 403: forbidden), and
        DeploymentFailed if it fails.
        """
        query = urlencode(
            {"container": CONTAINER, "stdout": "true", "stderr": "true", "command": command},
            doseq=True,
        )
        path = f"{self._path('Pod')}/{pod}/exec?{query}"
        written = defaultdict[int, bytes](bytes)
        try:
            settings = self._configuration
            proxy = urlsplit(settings.proxy or "")
            cert_reqs = ssl.CERT_REQUIRED if settings.verify_ssl else ssl.CERT_NONE
            opened = websocket.create_connection(
                settings.host.replace("http", "ws", 1) + path,
                timeout=_EXEC_SECONDS,
                header=self._credentials(),
                subprotocols=["v4.channel.k8s.io"],
                sslopt={
                    "cert_reqs": cert_reqs,
                    "check_hostname": settings.verify_ssl,
                    "ca_certs": settings.ssl_ca_cert or requests.utils.DEFAULT_CA_BUNDLE_PATH,
                    "certfile": settings.cert_file,
                    "keyfile": settings.key_file,
                },
                http_proxy_host=proxy.hostname,
                http_proxy_port=proxy.port,
                http_no_proxy=None if proxy.hostname else ["*"],
            )
            with closing(opened) as running:
                opcode, frame = running.recv_data()
                while opcode != websocket.ABNF.OPCODE_CLOSE:
                    written[ord(frame[:1])] += frame[1:]
                    opcode, frame = running.recv_data()
            end = json.loads(written[_STATUS])
        except websocket.WebSocketBadStatusException as answer:
            raise self._refusal(answer.status_code, answer.resp_body or b"") from None
        except (websocket.WebSocketException, OSError, ValueError) as error:
            raise ApiRefused(
                f"commands cannot be run in pod {pod}: {one_line(error, 300)}"
            ) from None
        if end["status"] != "Success":
            reason = written[_STDERR].decode(errors="replace").strip().rpartition("\n")[2]
            reason = reason or end.get("message", "")
            raise DeploymentFailed(f"a command in pod {pod} failed: {one_line(reason, 300)}")
        return written[_STDOUT].decode(errors="replace")

    @contextmanager
    def forwarded(self, pod: str, port: int) -> Iterator[str]:
        """Yield a local address whose connections are forwarded to a port of a pod."""
        with socket.create_server(("127.0.0.1", 0)) as listener:

            def forward() -> None:
                """Forward each connection, until the listener is shut down."""
                with suppress(OSError):
                    while True:
                        connection, _ = listener.accept()
                        # Use one client per stream, because a client that opens a
                        # stream cannot send other requests meanwhile.
                        api = kubernetes.client.CoreV1Api(
                            kubernetes.client.ApiClient(self._configuration)
                        )
                        connect = api.connect_get_namespaced_pod_portforward
                        try:
                            opened = portforward(connect, pod, self.namespace, ports=str(port))
                            remote = opened.socket(port)
                        except ApiException:
                            connection.close()  # The caller detects the closed connection.
                            continue
                        remote.setblocking(True)
                        for source, sink in ((connection, remote), (remote, connection)):
                            threading.Thread(target=_pump, args=(source, sink), daemon=True).start()

            accepting = threading.Thread(target=forward, daemon=True)
            accepting.start()
            try:
                yield f"127.0.0.1:{listener.getsockname()[1]}"
            finally:
                with suppress(OSError):
                    listener.shutdown(socket.SHUT_RDWR)  # This ends the thread.
        accepting.join()

    def _known_versions(self) -> set[str]:
        # With cached_property, Python 3.11 would block all clusters of the process
        # during the request.
        if not self._versions:
            versions = {"v1"}
            for group in self._get("/apis")["groups"]:
                versions |= {version["groupVersion"] for version in group["versions"]}
            self._versions = versions
        return self._versions

    def _version(self, kind: str) -> str:
        versions = _RESOURCES[kind][1:]
        return next(
            (version for version in versions if version in self._known_versions()), versions[0]
        )

    def _path(self, kind: str) -> str:
        version = self._version(kind)
        root = f"/api/{version}" if "/" not in version else f"/apis/{version}"
        return f"{root}/namespaces/{self.namespace}/{_RESOURCES[kind][0]}"

    def _get(self, path: str, query: Mapping[str, str] | None = None) -> Document:
        return {**self._send("GET", path, query).json()}

    def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Document | list[Document] | None = None,
        content_type: str = "application/json",
        stream: bool = False,
        is_endless: bool = False,
    ) -> requests.Response:
        """Send a request to the API server. Raises ApiRefused if it does not answer,
        and the error for its answer if it refuses.

        Args:
            stream: True if the caller reads the answer piece by piece.
            is_endless: True if the answer may pause for any time.
        """
        accepted = {"Accept": "application/json", "Content-Type": content_type}
        headers = {**accepted, **self._credentials()}
        url = f"{self._configuration.host}{path}"
        data = None if body is None else json.dumps(body)
        read_seconds: float | None = _GET_SECONDS if method == "GET" else _CHANGE_SECONDS
        if is_endless:
            read_seconds = None
        try:
            response = self._session.request(
                method,
                url,
                params=query,
                data=data,
                headers=headers,
                stream=stream,
                timeout=(_CONNECT_SECONDS, read_seconds),
            )
        except requests.RequestException as error:
            cause = error.args[0] if error.args else error
            reason = one_line(getattr(cause, "reason", error), 300)
            raise ApiRefused(
                f"the Kubernetes API at {self._configuration.host} does not answer: {reason}"
            ) from None
        if response.ok:
            return response
        raise self._refusal(response.status_code, response.content)

    def _credentials(self) -> dict[str, str]:
        """Return the authentication headers. They are computed for each request,
        because tokens are renewed.
        """
        return {
            setting["key"]: setting["value"]
            for setting in self._configuration.auth_settings().values()
        }

    def _refusal(self, status: int, body: bytes) -> OnnxserveError:
        """Return the error for an answer of the API server: InvalidConfig if the
        namespace is missing, otherwise ApiRefused.
        """
        try:
            document = json.loads(body)
            message = document.get("message", "")
            refused_kind = document.get("details", {}).get("kind")
        except (ValueError, AttributeError):
            message = body[:300].decode(errors="replace")
            refused_kind = None
        message = one_line(message) or "no reason was given"
        if status == 404 and refused_kind == "namespaces":
            return InvalidConfig(
                f"the cluster has no namespace {self.namespace!r}: kubectl create namespace "
                f"{self.namespace}"
            )
        if status == 409:  # The message explains the conflict.
            return ApiRefused(message, status)
        if status == 401:
            summary = (
                f"the Kubernetes API at {self._configuration.host} does not accept the credentials "
                "of KUBECONFIG"
            )
        elif status == 403:
            summary = "the Kubernetes API forbids the request"
        else:
            summary = f"the Kubernetes API answered {status}"
        return ApiRefused(f"{summary}: {message}", status)


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    for end in (sink, source):
        with suppress(OSError):
            end.close()


def _configured_client(context: str | None) -> kubernetes.client.ApiClient:
    """Return a client of the configured cluster, or of this pod's cluster. Raises
    InvalidConfig without a cluster.
    """
    file = os.environ.get("KUBECONFIG")  # The client package reads KUBECONFIG only at its import.
    try:
        with _LOADING:
            return kubernetes.config.new_client_from_config(file, context)
    except (ConfigException, TypeError) as error:
        missing = error
    if not (file or context):  # Do not use the pod's cluster instead of a configured cluster.
        with suppress(ConfigException, TypeError):
            configuration = kubernetes.client.Configuration()
            kubernetes.config.load_incluster_config(configuration)
            return kubernetes.client.ApiClient(configuration)
    contexts = []
    # The file may be missing or unreadable.
    with suppress(ConfigException, KeyError, TypeError):
        configured = KubeConfigMerger(file or KUBE_CONFIG_DEFAULT_LOCATION).config
        contexts = sorted(entry["name"] for entry in configured["contexts"].value)
    if context and contexts and context not in contexts:
        raise InvalidConfig(
            f"ONNXSERVE_KUBE_CONTEXT is {context!r}, which is not a context of the Kubernetes "
            f"configuration; its contexts are {join_names(contexts, context)}"
        )
    raise InvalidConfig(
        "no Kubernetes cluster is configured: set KUBECONFIG, or create ~/.kube/config "
        f"({one_line(missing)})"
    )
