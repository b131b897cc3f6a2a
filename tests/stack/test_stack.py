"""The stack of docker/compose.yaml at work: TLS, gRPC, a killed server, the loop,
alerts, traces, logs, dashboards.

The tests depend on each other in this order.
"""

import math
import re
import signal
import socket
import ssl
import threading
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain

import grpc
import numpy as np
import pytest
import requests
from mlflow import MlflowClient
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tests.stack.native import NativeStack
from tests.stack.test_dashboards import DASHBOARDS, targets
from tests.support.ecs import read_line
from tests.support.tracking import tracking_at
from tests.support.waiting import answers, wait_until

pytestmark = [pytest.mark.long, pytest.mark.stack]

MOVED = 3.0
"""The shift of the columns, whose mean is 0 in the reference."""


@dataclass
class Traffic:
    """Clients that send requests through nginx, and the true labels afterwards."""

    stack: NativeStack
    mean: float = 0.0
    ended: threading.Event = field(default_factory=threading.Event)
    answers: Counter[int] = field(default_factory=Counter)
    versions: Counter[str] = field(default_factory=Counter)
    latest: deque[str] = field(default_factory=lambda: deque(maxlen=200))
    """The versions of the latest responses."""

    def ask(self):
        """Send about twenty requests per second. After the shift, a row is late if it
        is above the new mean.
        """
        rng = np.random.default_rng(1)
        with requests.Session() as session:
            while not self.ended.wait(0.05):
                rows = rng.normal(self.mean, 1, (5, 2)).astype(np.float32)
                answer = self.stack.predict(rows.tolist(), session=session)
                self.answers[answer.status_code] += 1
                if not answer.ok:
                    continue
                self.versions[answer.headers["X-Model-Version"]] += 1
                self.latest.append(answer.headers["X-Model-Version"])
                prediction_id = answer.headers["X-Prediction-Id"]
                truth = rows.sum(axis=1) > 2 * self.mean
                labels = [
                    {"prediction_id": prediction_id, "row": row, "label": int(late)}
                    for row, late in enumerate(truth)
                ]
                answer = self.stack.post("/feedback", {"feedback": labels}, session=session)
                assert answer.status_code == 202, answer.text


@pytest.fixture(scope="module")
def traffic(stack):
    callers = Traffic(stack)
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(callers.ask)
        yield callers
        callers.ended.set()
    asking.result()


def test_strangers_are_refused(stack, traffic):
    assert stack.predict([[1.0, 2.0]], key="onnxserve_nobody").status_code == 401
    answered = stack.predict([[1.0, 2.0]])
    assert answered.json()["predictions"] == [1]
    certificate = str(stack.secrets / "tls.crt")
    assert requests.get(f"{stack.door}/metrics", verify=certificate, timeout=10).status_code == 404
    console = f"https://{stack.addresses['nginx']}:5443/onnxserve"
    assert requests.get(console, verify=certificate, timeout=10).status_code == 401
    account = ("admin", (stack.secrets / "admin_password").read_text())
    assert "flights" in requests.get(console, auth=account, verify=certificate, timeout=30).text


def test_nginx_stores_no_body_before_the_key(stack, traffic):
    tls = ssl.create_default_context(cafile=str(stack.secrets / "tls.crt"))
    nginx = stack.addresses["nginx"]
    head = "POST /invocations HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n"
    with ExitStack() as opened:
        for _ in range(16):
            plain = opened.enter_context(socket.create_connection((nginx, 8443), 20))
            stranger = opened.enter_context(tls.wrap_socket(plain, server_hostname=nginx))
            stranger.sendall(head.encode() + b"x" * 10_000)
            assert stranger.recv(65536).startswith(b"HTTP/1.1 401")
        assert [*(stack.folder / "nginx" / "tmp" / "body").iterdir()] == []
        silent = [socket.create_connection((nginx, 8443), 20) for _ in range(1000)]
        for connection in silent:
            opened.enter_context(connection).sendall(b"\x16")  # of a handshake
        assert stack.predict([[1.0, 2.0]]).ok


def test_errors_of_nginx_are_json(stack, traffic):
    answer = requests.get(
        stack.door + "/" + "x" * 9_000, verify=str(stack.secrets / "tls.crt"), timeout=10
    )
    assert (answer.status_code, answer.json()["error_code"]) == (414, "BAD_REQUEST")


def test_grpc_passes_nginx(stack, traffic):
    credentials = grpc.ssl_channel_credentials((stack.secrets / "tls.crt").read_bytes())
    request = service_pb2.ModelInferRequest(model_name="flights")
    request.inputs.add(name="X", datatype="FP32", shape=[1, 2]).contents.fp32_contents.extend(
        [1.0, 2.0]
    )
    key = [("authorization", f"Bearer {stack.key}")]
    with grpc.secure_channel(stack.door.removeprefix("https://"), credentials) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        assert stub.ServerReady(service_pb2.ServerReadyRequest(), metadata=key, timeout=10).ready
        answer = stub.ModelInfer(request, metadata=key, timeout=10)
        with pytest.raises(grpc.RpcError) as refused:
            stub.ModelInfer(request, timeout=10)
        # about a single server, like HTTP's /v2/repository
        with pytest.raises(grpc.RpcError) as blocked:
            stub.RepositoryIndex(service_pb2.RepositoryIndexRequest(), metadata=key, timeout=10)
    assert [output.name for output in answer.outputs] == ["label", "probabilities"]
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert blocked.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_killed_server_costs_no_request(stack, traffic):
    statuses = Counter()
    ended = threading.Event()

    label = {
        "prediction_id": stack.predict([[1.0, 2.0]]).headers["X-Prediction-Id"],
        "row": 0,
        "label": 1,
    }

    def ask(path, document):
        with requests.Session() as session:
            while not ended.is_set():
                statuses[stack.post(path, document, session=session).status_code] += 1

    def wait_for_more(what):
        enough = statuses.total() + 300
        wait_until(lambda: statuses.total() > enough, what=what)

    with ThreadPoolExecutor(4) as callers:
        asking = [callers.submit(ask, "/invocations", {"inputs": [[1.0, 2.0]]}) for _ in range(2)]
        asking += [callers.submit(ask, "/feedback", label) for _ in range(2)]
        for number in (signal.SIGKILL, signal.SIGTERM):
            wait_for_more("requests of both servers")
            stack.kill("server-b", number)
            wait_for_more("requests of one server")
            stack.start("server-b")
            stack.wait_for("server-b", lambda: answers(stack.url("server-b", 8080, "/ping")))
        wait_for_more("requests of both servers again")
        ended.set()
    assert [future.result() for future in asking] == [None] * 4
    assert statuses.keys() == {200, 202}
    print(f"{statuses.total()} requests by four callers, of which 0 failed")  # noqa: T201


def test_log_lines_are_ecs(stack, traffic):
    answer = stack.predict([[1.0, 2.0]], X_Request_Id="this-one")
    assert answer.ok
    for name in ("server-a", "server-b", "nginx"):
        lines = stack.log(name).read_text().splitlines()
        # startup messages, and nginx's own error log
        other = r"onnxserve: |\d{4}/\d\d/\d\d .* \[(error|warn)\] "
        fields = [read_line(line) for line in lines[:-1] if not re.match(other, line)]
        assert {record["service.name"] for record in fields} == {
            "nginx" if name == "nginx" else "onnxserve"
        }
        durations = [
            record["event.duration"]
            for record in fields
            if record.get("http.response.status_code") == 200
        ]
        assert all(0 <= duration < 60e9 for duration in durations), name
        assert len(durations) > 100


def test_drift_is_announced_by_controller_and_prometheus(stack, traffic, alerts):
    traffic.mean = MOVED
    wait_until(
        lambda: alerts.titles("controller"),
        300,
        f"the controller tells; {_last(stack, 'controller')}",
    )
    assert alerts.titles("controller")[0].startswith("onnxserve: flights: Alarm: monitor ")

    def fired():
        received = list(
            chain.from_iterable(message["alerts"] for message in alerts.got.get("/alerts", ()))
        )
        return [alert for alert in received if alert["labels"]["alertname"] == "MonitorAlarm"]

    alert = wait_until(fired, 120, f"Alertmanager tells; {_last(stack, 'prometheus')}")[0]
    assert alert["labels"]["endpoint"] == "flights"
    assert alert["labels"]["severity"] == "warning"
    assert alert["annotations"]["runbook_url"] == "docs/runbook.md#monitoralarm"


def test_retrained_version_is_gated_promoted_and_served(stack, traffic, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", (stack.secrets / "admin_password").read_text())
    with tracking_at(stack.url("mlflow", 5000)):
        client = MlflowClient()
        try:
            wait_until(lambda: "onnxserve.gate" in _tags(client, "2"), 240, "version 2 is gated")
        except AssertionError:
            pytest.fail(stack.execute("controller", "onnxserve", "audit", "history", "flights"))
        client.set_registered_model_alias("flights", "challenger", "2")
        for name in ("server-a", "server-b"):  # like a person who edits docker/stack/endpoints.yaml
            spec = stack.mounted(name, "/etc/onnxserve/endpoints.yaml")
            spec.write_text(
                spec.read_text()
                .replace("weight: 100", "weight: 80")
                .replace("weight: 0", "weight: 20")
            )
        wait_until(lambda: traffic.versions["2"] > 20, 240, "the challenger answers")
        query = (
            'count(sum by (version) (rate(onnxserve_requests_total{endpoint="flights"}[30s])) > 0)'
        )
        wait_until(
            lambda: [sample["value"][1] for sample in _ask(stack, query)] == ["2"],
            60,
            "Prometheus sees both",
        )
        client.set_registered_model_alias("flights", "champion", "2")
        wait_until(
            lambda: traffic.latest.count("2") == traffic.latest.maxlen,
            240,
            "only the champion answers",
        )
    assert set(traffic.answers) == {200}
    score = 2 * MOVED + 1.0  # above the new and the old threshold
    assert stack.predict([[score / 2, score / 2]]).headers["X-Model-Version"] == "2"
    assert stack.predict([[0.5, 0.5]]).json()["predictions"] == [0]


@pytest.mark.parametrize("file", DASHBOARDS, ids=lambda file: file.stem)
def test_prometheus_answers_dashboard_queries(file, stack, traffic):
    for title, target in targets(file):
        query = target["expr"].replace("$endpoint", ".+").replace("$__rate_interval", "1m")
        series = _ask(stack, query)
        if file.stem == "gpu" and not series:  # this machine has no GPU
            continue
        values = [float(sample["value"][1]) for sample in series]
        assert values, (title, query)
        assert any(math.isfinite(value) for value in values), (title, query, series)
        if "vector(0)" not in query:
            labels = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            assert labels <= series[0]["metric"].keys(), (title, series[0])


def _ask(stack, query):
    answer = requests.get(
        stack.url("prometheus", 9090, "/api/v1/query"), {"query": query}, timeout=30
    ).json()
    assert answer["status"] == "success", answer
    return answer["data"]["result"]


def _tags(client, version):
    versions = [
        entry
        for entry in client.search_model_versions("name = 'flights'")
        if entry.version == version
    ]
    return versions[0].tags if versions else {}


def _last(stack, name):
    return stack.log(name).read_text()[-2000:]
