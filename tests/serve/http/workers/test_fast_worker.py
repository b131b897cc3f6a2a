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
import time
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import requests

from mlflow_deploy_plugin.core.spec.parts import ServerSpec
from mlflow_deploy_plugin.core.statedir.files import read_workers
from mlflow_deploy_plugin.serve.client.rows import encode_rows
from mlflow_deploy_plugin.serve.http.app import ServerApp
from tests.support.handling import ask_wsgi
from tests.support.servers import gunicorn, one_endpoint, opened, variant
from tests.support.traffic import Traffic
from tests.support.waiting import wait_until

JSON = "application/json"
ROW = b'{"inputs": [[1, 2, 3]]}'
V2_ROW = (
    b'{"id": "mine", "inputs": [{"name": "X", "shape": [1, 3], "datatype": "FP32", '
    b'"data": [1, 2, 3]}]}'
)
V2_HEAD = (
    b'{"inputs": [{"name": "X", "shape": [9999, 3], "datatype": "FP32", "parameters": '
    b'{"binary_data_size": 119988}}]}'
)
V2_FIELDS = {"Inference-Header-Content-Length": str(len(V2_HEAD))}
FRAME, ARROW, _ = encode_rows(np.zeros((9999, 3)))
ODD = "Flüge\r\nX-Evil: yes"
OF_THE_CONNECTION = {"date", "server", "connection", "keep-alive"}


def ask_worker(running, method, path, headers, body):
    host, port = running.address
    connection = http.client.HTTPConnection(host, port, timeout=30)
    with contextlib.closing(connection):
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        fields = {name.lower(): value for name, value in response.getheaders()}
        return response.status, fields, response.read()


@pytest.fixture(scope="module")
def both(tmp_path_factory, bias_folders):
    """Yield a server, and the WSGI application of its endpoints in this process."""
    endpoints = {name: {"v": variant(bias_folders[v], v)} for name, v in (("e", "1"), ("f", "2"))}
    endpoints["odd"] = {"v": variant(bias_folders["3"], "3\r\n\r\nHTTP/1.1 200 OK", model=ODD)}
    with (
        gunicorn(tmp_path_factory.mktemp("fast"), endpoints) as running,
        opened(tmp_path_factory.mktemp("here"), endpoints) as server,
    ):
        yield running, ServerApp(server)


TABLE = b'{"dataframe_split": {"columns": ["a", "b", "c"], "data": [[1, 2, 3], [4, 5, null]]}}'
CASES = [
    *product(
        ("GET", "HEAD", "OPTIONS", "DELETE", "BREW"),
        ("/ping", "/version", "/v2", "/v2/models/e", "/v2/models/none/ready", "/predict", "/no"),
        [{}],
        [b""],
    ),
    *product(
        ["GET"],
        ("/ping?a=b", "/p%69ng", "/p%FFng", "/%", "/v2/models/a%0Ab/ready", "/v2//ping", "/#x"),
        [{}],
        [b""],
    ),
    *product(
        ["POST"],
        ("/invocations", "/endpoints/odd/invocations", "/endpoints/g/invocations"),
        [{"Content-Type": JSON}],
        [ROW, TABLE, b"{", b"", b'{"inputs": [' + b"[1, 2, 3]," * 20_000 + b"[1, 2, 3]]}"],
    ),
    ("POST", "/predict", {"Content-Type": JSON}, b'{"a": 1, "b": 2, "c": 3}'),
    ("POST", "/predict/batch", {"Content-Type": "text/csv"}, b"a,b,c\n1,2,3\n"),
    ("POST", "/invocations", {"Content-Type": ARROW}, FRAME),
    ("POST", "/invocations", {}, ROW),
    ("POST", "/v2/models/e/infer", {}, V2_ROW),
    ("POST", "/v2/models/f/versions/2/infer", {}, V2_ROW),
    ("POST", "/v2/models/e/infer", V2_FIELDS, V2_HEAD + 9999 * bytes(12)),
    ("POST", "/v2/models/f/versions/9/infer", {}, V2_ROW),
    ("POST", "/invocations", {"Content-Type": JSON, "X-Event-Time": "yesterday"}, ROW),
    ("POST", "/invocations", {"Content-Type": JSON, "X-Request-Id": "a b"}, b"{"),
    ("POST", "/invocations", {"Content-Type": JSON, "X_Request_Id": "underscored"}, ROW),
    ("POST", "/invocations", {"Content-Type": JSON, "Content-Encoding": "gzip"}, ROW),
]


@pytest.mark.parametrize(("method", "path", "headers", "body"), CASES)
def test_worker_and_wsgi_answer_alike(both, method, path, headers, body):
    running, app = both
    sent = {"X-Request-Id": "mine", "Content-Length": str(len(body)), **headers}
    host = ":".join(map(str, running.address))
    answers = [
        ask_worker(running, method, path, sent, body),
        ask_wsgi(app, method, path, {"Host": host, **sent}, body),
    ]
    for _, fields, _ in answers:
        for name in OF_THE_CONNECTION:
            fields.pop(name, None)
        for name in ("x-prediction-id", "x-request-id"):  # These differ if they are new.
            if len(fields.get(name, "")) == 32:
                fields.pop(name)
    assert answers[0] == answers[1]
    assert answers[0][0] < 500


@pytest.mark.parametrize("path", ["/v2/models/a%0Ab/ready", "/v2//health", "/v2/../ping"])
def test_odd_path_has_error_form_of_protocol(both, path):
    status, _, body = ask_worker(both[0], "GET", path, {}, b"")
    assert (status, list(json.loads(body))) == (400, ["error"])


@contextlib.contextmanager
def load(url):
    """Yield clients that send requests until the end, which must all be answered."""
    clients = [Traffic(url, 3) for _ in range(6)]
    for client in clients:
        client.start()
    try:
        yield clients
    finally:
        for client in clients:
            client.stop()
    assert {outcome for client in clients for outcome in client.answers} == {("1", 200)}


def wait_for_answers(clients):
    """Wait until every client has some more answers."""
    before = [client.answers.total() for client in clients]
    wait_until(
        lambda: all(
            client.answers.total() > count + 10
            for client, count in zip(clients, before, strict=True)
        ),
        what="answers",
    )


def has_ended(pid):
    return not Path(f"/proc/{pid}").exists()


def other_workers(state_dir, than):
    return {worker.pid for worker in read_workers(state_dir)} - than


@pytest.mark.long
def test_sigterm_to_worker_fails_no_request(tmp_path, bias_folders):
    with gunicorn(tmp_path, one_endpoint(bias_folders["1"]), ServerSpec(workers=2)) as running:
        wait_until(lambda: len(read_workers(tmp_path)) == 2)
        with load(running.url) as clients:
            for _ in range(2):
                wait_for_answers(clients)
                before = other_workers(tmp_path, set())
                ended = min(before)
                os.kill(ended, signal.SIGTERM)
                wait_until(partial(has_ended, ended), what="its end")
                wait_until(partial(other_workers, tmp_path, before), what="its successor")
            wait_for_answers(clients)


@pytest.mark.long
def test_only_worker_is_replaced_without_unready_answer(tmp_path, bias_folders):
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


def test_tls_clients_are_answered_and_plain_clients_refused(encrypted):
    with socket.create_connection(encrypted.address, timeout=10) as plain:
        plain.sendall(b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n")
        with contextlib.suppress(OSError):
            assert b"200" not in plain.recv(100)
    for rows in (1, 20_000):
        response = encrypted.post(json={"inputs": [[1, 2, 3]] * rows})
        assert response.json()["predictions"] == [[1006.0]] * rows
    assert "Traceback" not in encrypted.log.read_text()


@pytest.mark.long
def test_handshake_begun_before_sigterm_is_finished(tmp_path, bias_folders, certificate):
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
def test_busy_worker_is_kept_until_gunicorn_is_killed(tmp_path, bias_folders):
    with gunicorn(
        tmp_path, one_endpoint(bias_folders["1"]), ServerSpec(request_timeout_seconds=1)
    ) as running:
        before = other_workers(tmp_path, set())
        began = time.monotonic()
        with load(running.url):
            wait_until(
                lambda: time.monotonic() - began > 4, what="more than the arbiter's patience"
            )
            assert other_workers(tmp_path, set()) == before
        running.process.kill()
        (worker,) = before
        wait_until(partial(has_ended, worker), what="the worker's end")
