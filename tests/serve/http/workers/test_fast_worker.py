"""The worker sends the same responses as the WSGI application, and loses no request
when it ends or is killed.
"""

import contextlib
import http.client
import json
import os
import signal
import socket
import ssl
import threading
import time
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import requests

from mlflow_deploy_plugin.core.spec.parts import ServerSpec
from mlflow_deploy_plugin.core.statedir.files import read_workers
from mlflow_deploy_plugin.serve.http.app import ServerApp
from tests.support.handling import ask_wsgi
from tests.support.servers import gunicorn, one_endpoint, opened, variant
from tests.support.waiting import wait_until

JSON = "application/json"
ROW = b'{"inputs": [[1, 2, 3]]}'
V2_ROW = (
    b'{"id": "mine", "inputs": [{"name": "X", "shape": [1, 3], "datatype": "FP32", '
    b'"data": [1, 2, 3]}]}'
)
ODD = "Flüge\r\nX-Evil: yes"
OF_THE_CONNECTION = {"date", "server", "connection", "keep-alive"}
Answer = tuple[int, dict[str, str], bytes]


@dataclass(frozen=True)
class Both:
    """A server, and the WSGI application of the same endpoints in this process."""

    running: Any
    app: ServerApp

    def ask(
        self, method: str, path: str, headers: dict[str, str], body: bytes = b""
    ) -> list[Answer]:
        """Return the responses of both for an unchanged path."""
        host, _, port = self.running.url.removeprefix("http://").partition(":")
        full_headers = {
            "Host": f"{host}:{port}",
            "X-Request-Id": "mine",
            "Content-Length": str(len(body)),
            **headers,
        }
        connection = http.client.HTTPConnection(host, int(port), timeout=30)
        with contextlib.closing(connection):
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in full_headers.items():
                connection.putheader(name, value)
            connection.endheaders(body)
            response = connection.getresponse()
            got = {name.lower(): value for name, value in response.getheaders()}
            answered = response.status, got, response.read()
        return [
            (
                status,
                {name: value for name, value in fields.items() if name not in OF_THE_CONNECTION},
                content,
            )
            for status, fields, content in (
                answered,
                ask_wsgi(self.app, method, path, full_headers, body),
            )
        ]


@pytest.fixture(scope="module")
def both(tmp_path_factory, bias_folders):
    endpoints = {name: {"v": variant(bias_folders[v], v)} for name, v in (("e", "1"), ("f", "2"))}
    endpoints["odd"] = {"v": variant(bias_folders["3"], "3\r\n\r\nHTTP/1.1 200 OK", model=ODD)}
    with (
        gunicorn(tmp_path_factory.mktemp("fast"), endpoints) as running,
        opened(tmp_path_factory.mktemp("here"), endpoints) as server,
    ):
        yield Both(running, ServerApp(server))


CASES = [
    *(
        (method, path, {}, b"")
        for method, path in product(
            ("GET", "HEAD", "OPTIONS", "DELETE", "TRACE", "BREW"),
            (
                "/ping",
                "/health",
                "/version",
                "/v2",
                "/v2/health/live",
                "/v2/health/ready",
                "/v2/models/e",
                "/v2/models/e/versions/1",
                "/v2/models/e/ready",
                "/v2/models/none/ready",
                "/invocations",
                "/predict",
                "/nowhere",
                "/openapi.json",
            ),
        )
    ),
    *(
        ("GET", path, {}, b"")
        for path in (
            "/ping?a=b",
            "/p%69ng",
            "/p%C3%AFng",
            "/p%FFng",
            "/%",
            "/ping/",
            "/v2/models/",
            "/v2/models/a%0Ab/ready",
        )
    ),
    *(
        ("GET", path, {}, b"")
        for path in ("//ping", "/v2//ping", "/a/../ping", "/%2e%2e/ping", "/v2/a%00", "/ping#x")
    ),
    *(
        ("POST", path, {"Content-Type": content_type}, body)
        for path, (content_type, body) in product(
            (
                "/invocations",
                "/predict",
                "/predict/batch",
                "/endpoints/f/invocations",
                "/endpoints/g/invocations",
            ),
            (
                (JSON, ROW),
                (JSON + "; charset=utf-8", ROW),
                (JSON + "; charset=latin-1", ROW),
                (
                    JSON,
                    (
                        b'{"dataframe_split": {"columns": ["a", "b", "c"], "data": [[1, 2, 3], [4, '
                        b"5, null]]}}"
                    ),
                ),
                (JSON, b'{"dataframe_records": [{"a": 1, "b": 2, "c": 3}]}'),
                (JSON, b'{"a": 1, "b": 2, "c": 3}'),
                (JSON, b"[[1, 2, 3]]"),
                (JSON, b"{"),
                (JSON, b""),
                (JSON, b"[" * 2000),
                (JSON, '{"inputs": "\u00fc"}'.encode()),
                (JSON, b"\xff\xfe"),
                (JSON, b'{"inputs": [[1, 2, 3], [1, 2, 3]]}'),
                (JSON, b'{"inputs": [' + b"[1, 2, 3]," * 20_000 + b"[1, 2, 3]]}"),
                ("text/csv", b"a,b,c\n1,2,3\n"),
                ("text/plain", b"x"),
                ("", ROW),
            ),
        )
    ),
    *(
        ("POST", f"/v2/models/{name}/infer", {"Content-Type": JSON}, body)
        for name, body in product(("e", "f/versions/2", "f/versions/9", "g"), (V2_ROW, b"{}", b"{"))
    ),
    ("POST", "/invocations", {"Content-Type": JSON, "X-Event-Time": "yesterday"}, ROW),
    ("POST", "/invocations", {"Content-Type": JSON, "X-Request-Id": "a b"}, b"{"),
    ("POST", "/invocations", {"Content-Type": JSON, "X_Request_Id": "underscored"}, ROW),
    ("POST", "/invocations", {"Content-Type": JSON, "Content-Encoding": "gzip"}, ROW),
    ("POST", "/invocations", {"Content-Type": JSON, "X-Multi": "1"}, ROW),
]


@pytest.mark.parametrize(("method", "path", "headers", "body"), CASES)
def test_the_worker_and_the_wsgi_application_answer_the_same(both, method, path, headers, body):
    fast, wsgi = both.ask(method, path, headers, body)
    for answered in (fast, wsgi):  # These headers differ between responses.
        if "x-prediction-id" in answered[1]:
            assert len(answered[1].pop("x-prediction-id")) == 32
        if len(answered[1].get("x-request-id", "")) == 32:
            answered[1].pop("x-request-id")
    assert fast == wsgi
    assert fast[0] < 500


def test_the_methods_of_a_path_are_in_the_allow_header(both):
    for path, allowed in (("/ping", "GET, HEAD, OPTIONS"), ("/v2/models/e/infer", "POST, OPTIONS")):
        assert both.ask("OPTIONS", path, {}) == [(204, {"allow": allowed}, b"")] * 2
        for status, headers, _ in both.ask("DELETE", path, {}):
            assert status == 405
            assert headers["allow"] == allowed


@pytest.mark.parametrize("path", ["/v2/models/a%0Ab/ready", "/v2//health", "/v2/../ping"])
def test_an_odd_path_is_refused_in_the_form_of_its_protocol(both, path):
    for status, _, body in both.ask("GET", path, {}):
        assert status == 400
        assert list(json.loads(body)) == ["error"]


def test_a_name_with_line_ends_begins_neither_a_header_nor_a_metric(both):
    for status, headers, _ in both.ask(
        "POST", "/endpoints/odd/invocations", {"Content-Type": JSON}, ROW
    ):
        assert status == 200
        assert headers["x-model-name"] == "Fl%C3%BCge%0D%0AX-Evil: yes"
        assert headers["x-model-version"] == "3%0D%0A%0D%0AHTTP/1.1 200 OK"
        assert "x-evil" not in headers
    for _, _, page in both.ask("GET", "/metrics", {}):
        assert all(
            line.startswith(("#", "onnxserve_", "ml_"))
            for line in page.decode().split("\n")
            if line
        )


class Load:
    """Clients that send requests one after the other on kept connections, until they
    are stopped.
    """

    def __init__(self, url: str, clients: int = 6, pause: float = 0.005) -> None:
        self.statuses: list[int] = []
        self._pause = pause
        self.broken: list[str] = []
        self._host, _, self._port = url.removeprefix("http://").partition(":")
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(clients)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def wait_for(self, more: int) -> None:
        enough = len(self.statuses) + more
        wait_until(lambda: len(self.statuses) >= enough, what="answers")

    def _ask(self) -> None:
        connection = http.client.HTTPConnection(self._host, int(self._port), timeout=60)
        while not self._stop.wait(self._pause):
            try:
                connection.request("POST", "/invocations", ROW, {"Content-Type": JSON})
                response = connection.getresponse()
                response.read()
                self.statuses.append(response.status)
            except (OSError, http.client.HTTPException) as error:
                self.broken.append(repr(error))
                connection.close()
        connection.close()


def has_ended(pid):
    return not Path(f"/proc/{pid}").exists()


def other_workers(state_dir, than):
    return {worker.pid for worker in read_workers(state_dir)} - than


@pytest.fixture
def load(tmp_path, bias_folders):
    """Yield the load on a server with two workers, whose state folder is `tmp_path`."""
    with gunicorn(tmp_path, one_endpoint(bias_folders["1"]), ServerSpec(workers=2)) as running:
        wait_until(lambda: len(read_workers(tmp_path)) == 2)
        with Load(running.url) as load:
            load.wait_for(50)
            yield load


@pytest.mark.long
def test_a_worker_ended_by_sigterm_under_load_fails_no_request(load, tmp_path):
    for _ in range(2):
        before = other_workers(tmp_path, set())
        ended = min(before)
        os.kill(ended, signal.SIGTERM)
        wait_until(partial(has_ended, ended), what="its end")
        wait_until(partial(other_workers, tmp_path, before), what="its successor")
        load.wait_for(50)
    assert load.broken == []
    assert set(load.statuses) == {200}


@pytest.mark.long
def test_killing_a_worker_breaks_only_the_requests_it_was_answering(load, tmp_path):
    before = other_workers(tmp_path, set())
    os.kill(min(before), signal.SIGKILL)
    wait_until(lambda: other_workers(tmp_path, before), what="its successor")
    load.wait_for(50)
    assert set(load.statuses) == {200}
    assert len(load.broken) <= 6, load.broken


@pytest.mark.long
def test_the_only_worker_is_replaced_by_one_that_is_heard_when_it_has_loaded(
    tmp_path, bias_folders
):
    # Loading takes a while.
    variants = {f"v{n}": variant(bias_folders["1"], str(n)) for n in range(1, 60)}
    with gunicorn(tmp_path, {"e": variants}) as running:
        (killed,) = other_workers(tmp_path, set())
        os.kill(killed, signal.SIGKILL)
        statuses = set()

        def is_replaced():
            # The worker may not be replaced yet.
            with contextlib.suppress(requests.ConnectionError):
                statuses.add(running.get("/ping").status_code)
            return bool(other_workers(tmp_path, {killed}))

        wait_until(is_replaced)
    assert statuses == {200}


@pytest.fixture(scope="module")
def encrypted(tmp_path_factory, bias_folders, certificate):
    """Yield a TLS server; its `trusted` is the certificate."""
    state_dir = tmp_path_factory.mktemp("encrypted")
    cert, key = certificate
    spec = ServerSpec(threads=2, certfile=str(cert), keyfile=str(key))
    with gunicorn(state_dir, one_endpoint(bias_folders["1"]), spec) as running:
        yield running


def test_tls_is_spoken_with_the_spec_s_certificate(encrypted):
    with requests.Session() as session:
        for body in (ROW, b'{"inputs": [' + b"[1, 2, 3]," * 20_000 + b"[1, 2, 3]]}"):
            response = session.post(
                encrypted.url + "/invocations",
                data=body,
                headers={"Content-Type": JSON},
                timeout=30,
                verify=encrypted.trusted,
            )
            assert response.json()["predictions"][-1] == [1006.0]
    address = encrypted.address
    with socket.create_connection(
        address, timeout=10
    ) as plain:  # A client without TLS does no harm.
        plain.sendall(b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n")
        with contextlib.suppress(OSError):
            assert b"200" not in plain.recv(100)
    context = ssl.create_default_context(cafile=encrypted.trusted)
    with (
        socket.create_connection(address, timeout=10) as opened,
        context.wrap_socket(opened, server_hostname="127.0.0.1") as wrapped,
    ):
        wrapped.sendall(b"GET /ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert wrapped.recv(12) == b"HTTP/1.1 200"
    assert "Traceback" not in encrypted.log.read_text()


def test_unfinished_tls_handshakes_do_not_delay_other_clients(encrypted):
    """No thread waits for them, so that other clients are answered before their time
    limit.
    """
    with contextlib.ExitStack() as clients:
        address = encrypted.address
        begun = [
            clients.enter_context(socket.create_connection(address, timeout=10)) for _ in range(8)
        ]
        for client in begun:
            client.sendall(b"\x16\x03\x01\x02\x00\x01")  # a part of a ClientHello
        response = encrypted.get("/ping", timeout=60)
        assert response.status_code == 200
        for client in begun:
            client.setblocking(False)
            with pytest.raises(BlockingIOError):
                client.recv(1)


@pytest.mark.long
def test_a_handshake_that_sigterm_meets_half_way_is_finished_and_its_request_answered(
    tmp_path, bias_folders, certificate
):
    cert, key = certificate
    spec = ServerSpec(certfile=str(cert), keyfile=str(key))
    received = ssl.MemoryBIO()
    sent = ssl.MemoryBIO()
    client = ssl.create_default_context(cafile=str(cert)).wrap_bio(
        received, sent, server_hostname="127.0.0.1"
    )
    with gunicorn(tmp_path, one_endpoint(bias_folders["1"]), spec) as running:
        address = running.address
        with socket.create_connection(address, timeout=30) as connection:
            with contextlib.suppress(ssl.SSLWantReadError):
                client.do_handshake()
            connection.sendall(sent.read())
            received.write(connection.recv(65536))
            running.process.send_signal(signal.SIGTERM)
            wait_until(
                lambda: socket.socket().connect_ex(address) != 0, 30, "the listener is closed"
            )
            client.do_handshake()
            client.write(b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n")
            connection.sendall(sent.read())
            answer = b""
            while b"\r\n\r\n" not in answer and (piece := connection.recv(65536)):
                received.write(piece)
                with contextlib.suppress(ssl.SSLWantReadError):
                    answer += client.read(65536)
            assert answer.startswith(b"HTTP/1.1 200")


@pytest.mark.long
def test_a_worker_under_full_load_is_not_taken_for_dead_and_does_not_outlive_gunicorn(
    tmp_path, bias_folders
):
    with gunicorn(
        tmp_path, one_endpoint(bias_folders["1"]), ServerSpec(request_timeout_seconds=1)
    ) as running:
        before = other_workers(tmp_path, set())
        began = time.monotonic()
        with Load(running.url, clients=3, pause=0) as load:
            wait_until(
                lambda: time.monotonic() - began > 4, what="more than the arbiter's patience"
            )
            assert other_workers(tmp_path, set()) == before
        assert load.broken == []
        assert set(load.statuses) == {200}
        running.process.kill()
        (worker,) = before
        wait_until(partial(has_ended, worker), what="the worker's end")
