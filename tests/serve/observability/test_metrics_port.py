"""The metrics port of a real server, and the limits of its process."""

import shutil
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import psutil
import pytest
import requests
import yaml
from anyio.from_thread import start_blocking_portal
from prometheus_client.parser import text_string_to_metric_families

from mlflow_deploy_plugin.core.spec.document import new_endpoint
from mlflow_deploy_plugin.core.statedir.files import METRICS
from mlflow_deploy_plugin.core.statedir.metric_files import make_metrics_folder, remove_metrics
from mlflow_deploy_plugin.serve.observability.metrics import Metrics
from mlflow_deploy_plugin.serve.observability.metrics_port import serve as serve_port
from mlflow_deploy_plugin.ship.manifests.formats import FORMATS
from mlflow_deploy_plugin.ship.manifests.served import Place
from tests.support.commands import done
from tests.support.serving import Served
from tests.support.strangers import WAYS, p99_beside
from tests.support.waiting import answers, wait_until
from tests.support.waiting import free_port as find_free_port

MODULE = "mlflow_deploy_plugin.serve.observability.metrics_port"
OK = ("flights", "champion", "flight-delay", "3", "v2", "200")


@contextmanager
def metrics_process(state_dir):
    """Yield the address of the process that serves the metrics of a state folder."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        command = [sys.executable, "-m", MODULE, str(state_dir), str(listener.fileno())]
        process = subprocess.Popen(command, pass_fds=[listener.fileno()])
        try:
            yield listener.getsockname()
        finally:
            process.terminate()
            process.wait(timeout=30)


def exchange(address, request):
    """Send a request, and return the response
    until the process closes the connection.
    """
    with socket.create_connection(address, timeout=30) as connection:
        connection.sendall(request)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def get(address, path):
    return exchange(address, f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())


def requests_by_status(page):
    families = {family.name: family for family in text_string_to_metric_families(page)}
    samples = families["onnxserve_requests"].samples if "onnxserve_requests" in families else []
    return {sample.labels["status"]: sample.value for sample in samples}


def test_port_serves_only_summed_metrics(tmp_path):
    make_metrics_folder(tmp_path)
    for worker in (Metrics(tmp_path / METRICS), Metrics(tmp_path / METRICS)):
        worker.count_request(OK, 0.1)
    try:
        with metrics_process(tmp_path) as address:
            head, _, page = get(address, "/metrics?name=any").partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200")
            assert requests_by_status(page.decode()) == {"200": 2}
            for path in (
                "/",
                "/metrics/history",
                "/metricsx",
                "/v2/health/live",
                "/invocations",
                "/v2/models/flights",
            ):
                assert get(address, path).startswith(b"HTTP/1.1 404"), path
            assert exchange(address, b"POST /metrics HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 404")
            assert exchange(address, b"\x16\x03\x01\r\n\r\n").startswith(b"HTTP/1.1 404")  # TLS
            # A head of unlimited length.
            assert exchange(address, b"GET /" + b"a" * 100_000) == b""
    finally:
        remove_metrics(tmp_path)


def test_silent_connections_before_the_key_close_no_scrape(tmp_path):
    with metrics_process(tmp_path) as address, ExitStack() as idle:
        assert get(address, "/")
        connections = [
            idle.enter_context(socket.create_connection(address, timeout=30)) for _ in range(264)
        ]
        assert get(address, "/metrics").startswith(b"HTTP/1.1 200")
        # The limit is 256 connections.
        assert [connection.recv(1) for connection in connections[:9]] == [b""] * 9


def test_scrape_that_waits_stays_before_silent_connections(tmp_path):
    answered = threading.Event()

    def page():
        answered.wait(30)
        return b"up 1"

    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        start_blocking_portal() as portal,
        ExitStack() as silent,
    ):
        served = portal.start_task_soon(serve_port, listener, page)
        address = listener.getsockname()
        with ThreadPoolExecutor(2) as scrapers:
            scrape = scrapers.submit(get, address, "/metrics")
            connections = [
                silent.enter_context(socket.create_connection(address, 30)) for _ in range(300)
            ]
            assert [client.recv(1) for client in connections[:40]] == [b""] * 40
            answered.set()
            assert scrape.result().endswith(b"up 1")
        served.cancel()


@pytest.mark.long
def test_silent_connections_before_the_key_end(tmp_path):
    with metrics_process(tmp_path) as address, ExitStack() as idle:
        assert get(address, "/")
        began = time.monotonic()
        silent, begun = (idle.enter_context(socket.create_connection(address, 30)) for _ in "12")
        begun.send(b"GET /met")
        assert (silent.recv(1), begun.recv(1)) == (b"", b"")
        assert time.monotonic() - began < 20


@pytest.mark.long
@pytest.mark.parametrize("way", WAYS)
def test_scrape_during_attacks_before_the_key(tmp_path, way):
    with metrics_process(tmp_path) as address:

        def scrape():
            assert get(address, "/metrics").startswith(b"HTTP/1.1 200")

        alone, beside = p99_beside(scrape, address, way, target="GET /metrics")
    assert beside < 5 * alone + 0.5


@dataclass(frozen=True)
class Keyed:
    """A server with two workers that requires keys, the URL of its metrics port, and a
    key.
    """

    server: Served
    url: str
    key: str

    def predict(self):
        return self.server.predict(1, 2, 3, Authorization=f"Bearer {self.key}")


@pytest.fixture
def keyed(serve, model_folders, free_port):
    key = done("keys create tester").strip()
    options = f"--name flights -w 2 --metrics-port {free_port} -C server.api_keys=true"
    server = serve(str(model_folders["stock"]), *options.split()).wait_ready()
    keyed_server = Keyed(server, f"http://127.0.0.1:{free_port}/metrics", key)
    wait_until(lambda: keyed_server.predict().ok, 60, "a worker knows the key")
    return keyed_server


def counted(url):
    return requests_by_status(requests.get(url, timeout=30).text)


@pytest.mark.long
def test_metrics_port_needs_no_key(keyed):
    server = keyed.server
    before = counted(keyed.url)["200"]
    # One of the workers may not know the key yet.
    answered = sum(keyed.predict().ok for _ in range(50))
    assert answered
    assert server.predict(1, 2, 3).status_code == 401
    assert counted(keyed.url)["200"] == before + answered
    assert requests.get(f"{server.url}/metrics", timeout=30).status_code == 401

    children = psutil.Process(server.process.pid).children(recursive=True)
    (exporter,) = [child for child in children if child.name() == "metrics_port"]
    for worker in [child for child in children if child.name() == "gunicorn"][1:]:
        worker.kill()
    exporter.kill()
    assert counted(keyed.url)["200"] == before + answered  # The scrape waits for the next process.
    assert server.end() == 0


@pytest.mark.long
@pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed")
def test_keda_query_works_in_prometheus(keyed, tmp_path):
    address = f"127.0.0.1:{find_free_port()}"
    # The operator's.
    target = {
        "targets": [keyed.url.split("/")[2]],
        "labels": {"namespace": "ml", "endpoint": "metrics"},
    }
    scraped = {
        "job_name": "pods",
        "honor_labels": True,
        "scrape_interval": "1s",
        "static_configs": [target],
    }
    (tmp_path / "prometheus.yaml").write_text(yaml.safe_dump({"scrape_configs": [scraped]}))
    options = (
        f"--config.file=prometheus.yaml --storage.tsdb.path=data --web.listen-address={address}"
    )
    scaling = {"kubernetes.requests_per_second": 5, "kubernetes.max_replicas": 9}
    spec = new_endpoint("flights", "models:/f/1", scaling)
    (text,) = FORMATS["keda"](spec, Place("ml")).values()
    (scaled,) = [
        document for document in yaml.safe_load_all(text) if document["kind"] == "ScaledObject"
    ]
    query = scaled["spec"]["triggers"][0]["metadata"]["query"]

    def rate():
        keyed.predict()
        answer = requests.get(f"http://{address}/api/v1/query", {"query": query}, timeout=30).json()
        return any(float(result["value"][1]) > 0 for result in answer["data"]["result"])

    command = ["prometheus", *options.split()]
    with (tmp_path / "log").open("wb") as log:
        prometheus = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log)
    try:
        wait_until(lambda: answers(f"http://{address}/-/ready"), 60, "Prometheus is ready")
        wait_until(rate, 60, "the rate is known")
    finally:
        prometheus.terminate()
        prometheus.wait(timeout=30)
