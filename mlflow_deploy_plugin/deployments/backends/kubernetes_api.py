"""The API server of a Kubernetes cluster, for one namespace: objects as documents, and commands within pods.

The official client finds the cluster and the credentials, and speaks the web sockets of `port-forward`. Every request
is idempotent: after 429, 5xx or a cut connection it is repeated, after the pause that the server names.
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

from mlflow_deploy_plugin.errors import DeploymentFailed, InvalidConfig, OnnxserveError
from mlflow_deploy_plugin.manifests import CONTAINER, Document
from mlflow_deploy_plugin.messages import join_names, one_line

MANAGER = "onnxserve"
"""The field manager of all that is applied."""
_RESOURCES: Mapping[str, tuple[str, ...]] = {
    "ConfigMap": ("configmaps", "v1"),
    "Deployment": ("deployments", "apps/v1"),
    "HTTPRoute": ("httproutes", "gateway.networking.k8s.io/v1", "gateway.networking.k8s.io/v1beta1"),
    "HorizontalPodAutoscaler": ("horizontalpodautoscalers", "autoscaling/v2", "autoscaling/v2beta2"),
    "Ingress": ("ingresses", "networking.k8s.io/v1"),
    "NetworkPolicy": ("networkpolicies", "networking.k8s.io/v1"),
    "Pod": ("pods", "v1"),
    "PodDisruptionBudget": ("poddisruptionbudgets", "policy/v1", "policy/v1beta1"),
    "ReplicaSet": ("replicasets", "apps/v1"),
    "Service": ("services", "v1"),
    "ServiceAccount": ("serviceaccounts", "v1"),
    "ServiceMonitor": ("servicemonitors", "monitoring.coreos.com/v1"),
}
"""Kind → its plural and the API versions that it may have, the newest first; their documents are the same."""
_RETRIES = Retry(
    total=8,
    connect=1,
    read=1,
    backoff_factor=0.2,
    backoff_max=5,
    status_forcelist=(429, 500, 502, 503, 504),
    allowed_methods=None,
    raise_on_status=False,
)
_CONNECT_SECONDS, _GET_SECONDS = 5, 6
"""Twice as long until a cluster that hangs is known to: less than the console waits for its page."""
_CHANGE_SECONDS = 60
"""Admission webhooks may take half a minute each."""
_EXEC_SECONDS = 30
_STDOUT, _STDERR, _STATUS = 1, 2, 3
"""The channels of a command's web socket: the first byte of each frame."""
_LOADING = threading.Lock()
"""The lock of loading a configuration: all clients share, and in the end remove, the files with keys."""
_CONFLICT_TRIES = 6
_CONFLICT = re.compile(r'conflicts? with "(?P<manager>[^"]+)"')
_OUR_MANAGERS = (MANAGER, "before-first-apply")


class ApiRefused(DeploymentFailed):
    """The API server refused a request; `status` is None if it did not answer."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status

    @property
    def may_pass(self) -> bool:
        """Return True if the same request may be accepted later: the API server is busy or restarting."""
        return self.status is None or self.status == 429 or self.status >= 500


@dataclass
class Cluster:
    """The cluster of a context of KUBECONFIG (None: the current one), or the one that this process runs in as a pod."""

    namespace: str
    context: str | None = None
    _session: requests.Session = field(init=False)
    _versions: set[str] = field(default_factory=set, init=False)

    def __post_init__(self) -> None:
        self._client = _configured_client(self.context)
        self._configuration = self._client.configuration
        self._session = requests.Session()
        self._session.trust_env = False
        self._session.verify = (self._configuration.ssl_ca_cert or True) if self._configuration.verify_ssl else False
        if self._configuration.cert_file:
            self._session.cert = (self._configuration.cert_file, self._configuration.key_file)
        if self._configuration.proxy:
            self._session.proxies = {"https": self._configuration.proxy, "http": self._configuration.proxy}
        for scheme in ("https://", "http://"):
            self._session.mount(scheme, HTTPAdapter(max_retries=_RETRIES))

    def get(self, kind: str, name: str) -> Document | None:
        try:
            return self._get(f"{self._path(kind)}/{name}")
        except ApiRefused as error:
            if error.status == 404:
                return None
            raise

    def find(self, kind: str, labels: Mapping[str, str]) -> list[Document]:
        selector = ",".join(f"{key}={value}" for key, value in labels.items())
        return [*self._get(self._path(kind), {"labelSelector": selector})["items"]]

    def namespace_uid(self) -> str:
        return str(self._get(f"/api/v1/namespaces/{self.namespace}")["metadata"]["uid"])

    def serves(self, kind: str) -> bool:
        return any(version in self._known_versions() for version in _RESOURCES[kind][1:])

    def apply(self, document: Document, force: bool = False) -> None:
        """Apply a document. Our own fields are taken back; the fields of others only with `force`.

        Raises InvalidConfig if the namespace is missing or the cluster does not know the kind, and DeploymentFailed if
        others have set its fields (without `force`) or the API server refuses it.
        """
        kind, name = document["kind"], document["metadata"]["name"]
        if not self.serves(kind):
            raise InvalidConfig(f"the cluster knows no {kind} ({_RESOURCES[kind][1]}), which the spec asks for")
        document = {**document, "apiVersion": self._version(kind)}
        try:
            self._patch(kind, name, document, "application/apply-patch+yaml", force=str(force).lower())
        except ApiRefused as error:
            owners = dict.fromkeys(_CONFLICT.findall(error.message))
            if not owners:
                raise
            if others := [owner for owner in owners if owner not in _OUR_MANAGERS]:
                raise DeploymentFailed(
                    f"{kind} {name} has fields that {join_names(others)} has set: {error.message}; "
                    "kubernetes.force_conflicts=true takes them over"
                ) from None
            self._patch(kind, name, document, "application/apply-patch+yaml", force="true")

    def merge(self, kind: str, name: str, change: Document) -> None:
        """Change fields of an object. Raises DeploymentFailed as `apply`."""
        self._patch(kind, name, change, "application/merge-patch+json")

    def put_back(self, document: Document) -> None:
        """Restore an object as it was when it was read. Raises DeploymentFailed as `apply`."""
        metadata, kind = document["metadata"], document["kind"]
        content = {f"/metadata/{name}": metadata.get(name, {}) for name in ("labels", "annotations")}
        left_out = ("apiVersion", "kind", "metadata", "status")
        content |= {f"/{name}": value for name, value in document.items() if name not in left_out}
        changes = [{"op": "add", "path": path, "value": value} for path, value in content.items()]
        new = (self.get(kind, metadata["name"]) or {}).keys() - document.keys() - {"status"}
        changes += [{"op": "remove", "path": f"/{name}"} for name in sorted(new)]
        self._patch(kind, metadata["name"], changes, "application/json-patch+json")

    def _patch(self, kind: str, name: str, change: Document | list[Document], content_type: str, **query: str) -> None:
        """Change an object, again if it was changed at the same moment."""
        path = f"{self._path(kind)}/{name}"
        for attempt in range(_CONFLICT_TRIES):
            try:
                self._send("PATCH", path, {"fieldManager": MANAGER, **query}, body=change, content_type=content_type)
                return
            except ApiRefused as error:
                if error.status != 409 or _CONFLICT.search(error.message) or attempt == _CONFLICT_TRIES - 1:
                    raise
                time.sleep(0.1 * 2**attempt)

    def delete(self, kind: str, name: str) -> None:
        """Delete an object with its dependents; a missing object is not an error."""
        try:
            self._send("DELETE", f"{self._path(kind)}/{name}", {"propagationPolicy": "Background"})
        except ApiRefused as error:
            if error.status != 404:
                raise

    def pod_log(self, pod: str, lines: int, previous: bool = False) -> list[str]:
        """Return the last lines of our container's log; none if it has not begun."""
        query = {"container": CONTAINER, "tailLines": str(lines), "previous": str(previous).lower()}
        try:
            return self._send("GET", f"{self._path('Pod')}/{pod}/log", query).text.splitlines()
        except ApiRefused:
            return []

    def follow_log(self, pod: str, since_seconds: int) -> Iterator[str]:
        """Yield the lines that our container writes, until it ends or the connection is cut."""
        query = {"container": CONTAINER, "follow": "true", "sinceSeconds": str(since_seconds), "timestamps": "true"}
        path = f"{self._path('Pod')}/{pod}/log"
        with (
            suppress(ApiRefused, requests.RequestException),
            self._send("GET", path, query, stream=True, is_endless=True) as response,
        ):
            for line in response.iter_lines():
                yield line.decode(errors="replace")

    def execute(self, pod: str, command: Sequence[str]) -> str:
        """Run a command in our container and return its output.

        The official client would wait without end for a node that hangs, and decodes each frame alone. Raises
        ApiRefused if the command cannot be run (status 403: it is forbidden), and DeploymentFailed if it ends with an
        error.
        """
        query = urlencode({"container": CONTAINER, "stdout": "true", "stderr": "true", "command": command}, doseq=True)
        path, written = f"{self._path('Pod')}/{pod}/exec?{query}", defaultdict[int, bytes](bytes)
        try:
            with closing(self._web_socket(path)) as running:
                while (frame := running.recv_data())[0] != websocket.ABNF.OPCODE_CLOSE:
                    channel, text = frame[1][:1], frame[1][1:]
                    written[ord(channel)] += text
            end = json.loads(written[_STATUS])
        except websocket.WebSocketBadStatusException as answer:
            raise self._refusal(answer.status_code, answer.resp_body or b"") from None
        except (websocket.WebSocketException, OSError, ValueError) as error:
            raise ApiRefused(f"no command can be run in pod {pod}: {one_line(error, 300)}") from None
        if end["status"] != "Success":
            last = written[_STDERR].decode(errors="replace").strip().rpartition("\n")[2] or end.get("message", "")
            raise DeploymentFailed(f"a command in pod {pod} has failed: {one_line(last, 300)}")
        return written[_STDOUT].decode(errors="replace")

    def _web_socket(self, path: str) -> websocket.WebSocket:
        """Open a web socket to the API server, whose reads end after `_EXEC_SECONDS`."""
        settings = self._configuration
        proxy = urlsplit(settings.proxy or "")
        return websocket.create_connection(
            settings.host.replace("http", "ws", 1) + path,
            timeout=_EXEC_SECONDS,
            header=self._credentials(),
            subprotocols=["v4.channel.k8s.io"],
            sslopt={
                "cert_reqs": ssl.CERT_REQUIRED if settings.verify_ssl else ssl.CERT_NONE,
                "check_hostname": settings.verify_ssl,
                "ca_certs": settings.ssl_ca_cert or requests.utils.DEFAULT_CA_BUNDLE_PATH,
                "certfile": settings.cert_file,
                "keyfile": settings.key_file,
            },
            http_proxy_host=proxy.hostname,
            http_proxy_port=proxy.port,
            http_no_proxy=None if proxy.hostname else ["*"],
        )

    @contextmanager
    def forwarded(self, pod: str, port: int) -> Iterator[str]:
        """Yield the address of a socket of this machine whose connections lead to a port of a pod."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            accepting = threading.Thread(target=self._forward, args=(listener, pod, port), daemon=True)
            accepting.start()
            try:
                yield f"127.0.0.1:{listener.getsockname()[1]}"
            finally:
                with suppress(OSError):
                    listener.shutdown(socket.SHUT_RDWR)  # wakes the thread
        accepting.join()

    def _forward(self, listener: socket.socket, pod: str, port: int) -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                # an API of its own for each stream: until that is open, the API can send nothing else
                api = kubernetes.client.CoreV1Api(kubernetes.client.ApiClient(self._configuration))
                try:
                    opened = portforward(
                        api.connect_get_namespaced_pod_portforward, pod, self.namespace, ports=str(port)
                    )
                except ApiException:
                    connection.close()  # the caller sees that there is no answer
                    continue
                remote = opened.socket(port)
                remote.setblocking(True)
                for source, sink in ((connection, remote), (remote, connection)):
                    threading.Thread(target=_pump, args=(source, sink), daemon=True).start()

    def _known_versions(self) -> set[str]:
        # no cached_property: Python 3.11 lets all clusters of a process wait for the one it asks
        if not self._versions:
            groups = self._get("/apis")["groups"]
            self._versions = {"v1", *(version["groupVersion"] for group in groups for version in group["versions"])}
        return self._versions

    def _version(self, kind: str) -> str:
        known = _RESOURCES[kind][1:]
        return next((version for version in known if version in self._known_versions()), known[0])

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
        headers = {"Accept": "application/json", "Content-Type": content_type, **self._credentials()}
        url, data = f"{self._configuration.host}{path}", None if body is None else json.dumps(body)
        timeout = _CONNECT_SECONDS, None if is_endless else _GET_SECONDS if method == "GET" else _CHANGE_SECONDS
        try:
            response = self._session.request(
                method, url, params=query, data=data, headers=headers, stream=stream, timeout=timeout
            )
        except requests.RequestException as error:
            why = one_line(getattr(error.args[0], "reason", error) if error.args else error, 300)
            raise ApiRefused(f"the Kubernetes API at {self._configuration.host} does not answer: {why}") from None
        if response.ok:
            return response
        raise self._refusal(response.status_code, response.content)

    def _credentials(self) -> dict[str, str]:
        """Return the headers that authenticate a request, for each one: the token of a cloud or a pod is renewed."""
        return {one["key"]: one["value"] for one in self._configuration.auth_settings().values()}

    def _refusal(self, status: int, body: bytes) -> OnnxserveError:
        try:
            document = json.loads(body)
            message, missing = document.get("message", ""), document.get("details", {}).get("kind")
        except (ValueError, AttributeError):
            message, missing = body[:300].decode(errors="replace"), None
        message = one_line(message) or "it gives no reason"
        if status == 404 and missing == "namespaces":
            return InvalidConfig(
                f"there is no namespace {self.namespace!r} in the cluster: kubectl create namespace {self.namespace}"
            )
        said = {
            401: f"the Kubernetes API at {self._configuration.host} does not accept the credentials of KUBECONFIG",
            403: "the Kubernetes API forbids it",
            409: "",
        }.get(status, f"the Kubernetes API answered {status}")
        return ApiRefused(f"{said}: {message}" if said else message, status)


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    for one in (sink, source):
        with suppress(OSError):
            one.close()


def _configured_client(context: str | None) -> kubernetes.client.ApiClient:
    """Return the client of the configured cluster, otherwise of this pod's. Raises InvalidConfig if there is none."""
    file = os.environ.get("KUBECONFIG")  # the client itself would read it once, when it is imported
    try:
        with _LOADING:
            return kubernetes.config.new_client_from_config(file, context)
    except (ConfigException, TypeError) as error:
        missing = error
    if not (file or context):  # another cluster than the one that is named would be a surprise
        with suppress(ConfigException, TypeError):
            configuration = kubernetes.client.Configuration()
            kubernetes.config.load_incluster_config(configuration)
            return kubernetes.client.ApiClient(configuration)
    known: list[str] = []
    with suppress(ConfigException, KeyError, TypeError):  # it cannot be read
        merged = KubeConfigMerger(file or KUBE_CONFIG_DEFAULT_LOCATION)
        known = sorted(one["name"] for one in merged.config["contexts"].value)
    if context and known and context not in known:
        raise InvalidConfig(
            f"ONNXSERVE_KUBE_CONTEXT names the context {context!r}, which the Kubernetes configuration does not have; "
            f"it has {join_names(known, context)}"
        )
    raise InvalidConfig(
        f"no Kubernetes cluster is configured: set KUBECONFIG, or make ~/.kube/config ({one_line(missing)})"
    )
