"""`metrics.k8s.io/v1beta1` for a cluster without metrics-server: the CPU of its pods, as their Docker engine reports
it.

An autoscaler asks the API server, which forwards the request to the address of an APIService's Service: this process.
"""

import json
import ssl
import subprocess
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

from tests.support.services.cluster import Cluster
from tests.support.waiting import wait_until

_GROUP, _VERSION = "metrics.k8s.io", "v1beta1"
_SAMPLES = 6
"""Each sample takes about two and a half seconds, in total 15 s as in metrics-server."""


class _Measured:
    """The CPU of the server's container in each pod of a namespace."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._shares: dict[str, deque[tuple[float, float]]] = defaultdict(lambda: deque(maxlen=_SAMPLES))
        self.has_ended = threading.Event()

    def run(self) -> None:
        form = ["docker", "stats", "--no-stream", "--format", "{{.Name}} {{.CPUPerc}}"]
        while not self.has_ended.is_set():
            began = time.time()
            for line in subprocess.run(form, capture_output=True, text=True, check=False).stdout.splitlines():
                name, percent = line.split()
                kind, container, pod, namespace, *_ = [*name.split("_"), "", "", ""]
                if (kind, container, namespace) == ("k8s", "onnxserve", self._namespace) and percent != "--":
                    self._shares[pod].append((began, float(percent.rstrip("%")) / 100))

    def items(self) -> list[dict[str, Any]]:
        now, found = time.time(), []
        for pod, samples in list(self._shares.items()):
            begun, shares = zip(*samples, strict=True)
            if now - begun[-1] > 10:
                continue  # The container has ended.
            metadata = {"name": pod, "namespace": self._namespace, "labels": {}}
            usage = {"cpu": f"{round(1e9 * sum(shares) / len(shares))}n", "memory": "0"}
            found.append(
                {
                    "metadata": metadata,
                    "timestamp": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
                    "window": f"{now - begun[0]:.1f}s",
                    "containers": [{"name": "onnxserve", "usage": usage}],
                }
            )
        return found


@contextmanager
def pod_metrics(cluster: Cluster, address: str, folder: Path) -> Iterator[None]:
    """Serve the CPU of the cluster's namespace, on an address of this machine that Services accept as an endpoint."""
    measured = _Measured(cluster.namespace)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = urlsplit(self.path)
            selected = dict(
                one.split("=") for one in parse_qs(asked.query).get("labelSelector", [""])[0].split(",") if one
            )
            document: dict[str, Any] = {
                "kind": "APIResourceList",
                "apiVersion": "v1",
                "groupVersion": f"{_GROUP}/{_VERSION}",
            }
            document["resources"] = [
                {"name": "pods", "namespaced": True, "kind": "PodMetrics", "verbs": ["get", "list"]}
            ]
            if asked.path.endswith("/pods"):
                instance = selected.get("app.kubernetes.io/instance", "")
                items = [one for one in measured.items() if one["metadata"]["name"].startswith(f"{instance}-")]
                document = {
                    "kind": "PodMetricsList",
                    "apiVersion": f"{_GROUP}/{_VERSION}",
                    "metadata": {},
                    "items": items,
                }
            body = json.dumps(document).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    key, certificate = folder / "metrics.key", folder / "metrics.crt"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=metrics", "-days", "2"]
    subprocess.run([*made, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    server = ThreadingHTTPServer((address, 0), Handler)
    server.socket = tls.wrap_socket(server.socket, server_side=True)
    port = server.server_address[1]
    service = {"apiVersion": "v1", "metadata": {"name": "pod-metrics"}}
    documents = [
        {**service, "kind": "Service", "spec": {"ports": [{"port": 443, "targetPort": port}]}},
        {**service, "kind": "Endpoints", "subsets": [{"addresses": [{"ip": address}], "ports": [{"port": port}]}]},
        {
            "apiVersion": "apiregistration.k8s.io/v1",
            "kind": "APIService",
            "metadata": {"name": f"{_VERSION}.{_GROUP}"},
            "spec": {
                "group": _GROUP,
                "version": _VERSION,
                "service": {"namespace": cluster.namespace, "name": "pod-metrics"},
                "insecureSkipTLSVerify": True,
                "groupPriorityMinimum": 100,
                "versionPriority": 100,
            },
        },
    ]
    threads = [threading.Thread(target=run, daemon=True) for run in (server.serve_forever, measured.run)]
    for one in threads:
        one.start()
    cluster.kubectl("apply", "-f", "-", given=yaml.safe_dump_all(documents))
    try:
        available = ["get", "apiservice", f"{_VERSION}.{_GROUP}", "-o", "jsonpath={.status.conditions[0].status}"]
        wait_until(lambda: cluster.kubectl(*available) == "True", 60, "the API server asks for metrics")
        yield
    finally:
        cluster.kubectl("delete", "apiservice", f"{_VERSION}.{_GROUP}")
        measured.has_ended.set()
        server.shutdown()
        for one in threads:
            one.join()
        server.server_close()
