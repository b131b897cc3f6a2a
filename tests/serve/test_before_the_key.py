"""Work before the key: the cost of a stranger at each route and port, and the time that
a caller waits next to strangers.

A route of the table is in the tests without a line here.
"""

import gzip
import socket
import time
import tracemalloc
from contextlib import ExitStack

import grpc
import psutil
import pytest
import requests
from werkzeug.test import run_wsgi_app

from mlflow_deploy_plugin.core.spec.parts import ServerSpec
from mlflow_deploy_plugin.core.statedir.files import read_workers
from mlflow_deploy_plugin.core.statedir.models import KeyEntry
from mlflow_deploy_plugin.serve.http.app import ServerApp
from mlflow_deploy_plugin.serve.http.request_limits import HANDSHAKES, ConnectionLimits
from mlflow_deploy_plugin.serve.http.routes import list_routes
from tests.serve.http.listener import play, until, worker_app
from tests.support.handling import ROW, ask, wsgi_environ
from tests.support.keys import write_keys
from tests.support.servers import gunicorn, one_endpoint, opened
from tests.support.strangers import WAYS, p99, strangers
from tests.support.waiting import free_port

TARGETS = {
    (route.method, route.path.format(endpoint="e", version="1", label="v", job="j"))
    for route in list_routes()
}
REQUESTS = {
    "no key": ({}, ROW),
    "wrong key": ({"authorization": "Bearer wrong"}, ROW),
    "gzip": ({"content-encoding": "gzip"}, gzip.compress(bytes(16_000_000))),
    "unknown encoding": ({"content-encoding": "odd"}, ROW),
}
KEY = {"authorization": "Bearer infer"}
ENTRIES = {
    "infer": KeyEntry(name="infer", scopes=("infer",)),
    "expired": KeyEntry(name="expired", scopes=("infer",), expires_at=1.0),
}
PLACES = 10
PING = b"GET /ping HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer infer\r\n\r\n"
PONG = b"\r\n\r\n\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory, bias_folders):
    spec = ServerSpec(api_keys=True, model_control_mode="explicit")
    folder = tmp_path_factory.mktemp("keyed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
        with opened(folder, one_endpoint(bias_folders["1"]), spec) as server:
            write_keys(folder, ENTRIES)
            yield server


@pytest.mark.parametrize("way", REQUESTS)
def test_work_before_the_key_is_bounded(server, way):
    headers, body = REQUESTS[way]

    def refuse(method, path):
        began = time.thread_time()
        status = ask(server, path, method, body, host="localhost", **headers).status
        assert status in (200, 401), path
        return time.thread_time() - began

    for target in TARGETS:
        seconds = min(refuse(*target) for _ in range(3))
        tracemalloc.start()
        refuse(*target)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert (seconds < 0.001, peak < 64_000) == (True, True), (target, seconds, peak)


def test_caller_learns_of_unknown_encodings(server):
    headers, body = REQUESTS["unknown encoding"]
    assert ask(server, body=body, **headers, **KEY).status == 415


def test_request_before_the_key_has_no_span(server):
    sampled = {"traceparent": f"00-{'4b' * 16}-{'0f' * 8}-01"}
    assert "traceparent" not in ask(server, **sampled).headers
    assert "traceparent" in ask(server, **sampled, **KEY).headers


def test_refusals_before_the_key_count_by_reason(server):
    ask(server)
    ask(server, **REQUESTS["wrong key"][0])
    for reason in (b"no_key", b"wrong_key"):
        counted = b'onnxserve_refused_requests_total{endpoint="",reason="%b"}' % reason
        assert counted in server.metrics.page()


def test_body_before_the_key_is_not_awaited(server):
    app = ServerApp(server)

    async def talk(opened):
        for method, path in TARGETS:
            sent = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n["
            client = await opened.connect(sent.encode())
            status = (await opened.read(client, at_least=12))[9:12]
            assert status in (b"200", b"401"), path
            # An input that is read would be a 500.
            environ = wsgi_environ(method, path, {"Host": "x", "Content-Length": "9"}, None)
            assert run_wsgi_app(app, environ)[1][:3] == status.decode(), path

    play(worker_app(server), talk)


def test_dripping_head_before_the_key_pauses_reading(server):
    async def talk(opened):
        client = await opened.connect(b"")
        await until(lambda: opened.connections)
        (connection,) = opened.connections
        for number, byte in enumerate(PING[:5], 1):
            await opened.send(client, bytes([byte]))
            await until(lambda number=number: len(connection._buffer) == number)
        assert connection._is_paused
        await opened.send(client, PING[5:])
        assert (await opened.read(client, PONG)).startswith(b"HTTP/1.1 200")

    play(worker_app(server), talk)


def test_strangers_before_the_key_leave_callers_their_places(server):
    app = worker_app(server)
    app.limits = ConnectionLimits(60.0, connections=PLACES)
    server.auth.require(KEY, "infer")

    async def talk(opened):
        caller = await opened.connect(PING)
        assert (await opened.read(caller, PONG)).startswith(b"HTTP/1.1 200")
        silent = [await opened.connect(b"") for _ in range(2 * PLACES)]
        assert await opened.read(silent[0]) == b""
        opened.tick(11)
        assert [await opened.read(client) for client in silent] == [b""] * len(silent)
        await opened.send(caller, PING)
        assert (await opened.read(caller, PONG)).startswith(b"HTTP/1.1 200")

    play(app, talk)


def test_connection_of_an_expired_key_before_the_key_gives_way(server):
    app = worker_app(server)
    app.limits = ConnectionLimits(60.0, connections=2)

    async def talk(opened):
        opened.tick(-20)  # The caller has been idle for longer.
        caller = await opened.connect(PING)
        assert (await opened.read(caller, PONG)).startswith(b"HTTP/1.1 200")
        opened.tick(10)
        expired = await opened.connect(PING.replace(b"infer", b"expired"))
        assert (await opened.read(expired, PONG)).startswith(b"HTTP/1.1 200")
        await opened.connect(b"")
        assert await opened.read(expired) == b""
        await opened.send(caller, PING)
        assert (await opened.read(caller, PONG)).startswith(b"HTTP/1.1 200")

    play(app, talk)


@pytest.fixture(scope="module")
def ports(tmp_path_factory, bias_folders, certificate):
    """Return two servers with keys, of which the second has TLS, and a gRPC port."""
    cert, key = map(str, certificate)
    grpc_port = free_port()
    with ExitStack() as servers:
        running = []
        for fields in ({"grpc_port": grpc_port}, {"certfile": cert, "keyfile": key}):
            folder = tmp_path_factory.mktemp("ports")
            write_keys(folder, ENTRIES)
            spec = ServerSpec(api_keys=True, **fields)
            served = gunicorn(folder, one_endpoint(bias_folders["1"]), spec)
            running.append(servers.enter_context(served))
        yield *running, ("127.0.0.1", grpc_port)


def worker_of(running):
    return psutil.Process(read_workers(running.state_dir)[0].pid)


@pytest.mark.long
def test_silent_handshakes_before_the_key_give_way(ports):
    _, encrypted, _ = ports
    worker = worker_of(encrypted)
    files = worker.num_fds()
    with ExitStack() as clients:
        silent = [
            clients.enter_context(socket.create_connection(encrypted.address, timeout=30))
            for _ in range(HANDSHAKES + 20)
        ]
        assert encrypted.post(data=ROW, headers=KEY).status_code in (200, 415)
        assert [client.recv(1) for client in silent[:20]] == [b""] * 20
        assert worker.num_fds() <= files + HANDSHAKES + 5
        assert [client.recv(1) for client in silent] == [b""] * len(silent)


def health(channel):
    check = channel.unary_unary("/grpc.health.v1.Health/Check")
    return check(b"", timeout=30, metadata=list(KEY.items()))


@pytest.mark.long
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("port", ["http", "https", "grpc"])
def test_caller_during_attacks_before_the_key(ports, port, way):
    plain, encrypted, grpc_address = ports
    is_tls = port == "https"
    running = plain
    if is_tls:
        running = encrypted
    address = running.address
    if port == "grpc":
        address = grpc_address
    worker = worker_of(running)
    with (
        requests.Session() as session,
        grpc.insecure_channel(":".join(map(str, grpc_address))) as channel,
    ):
        session.headers = {**KEY, "Content-Type": "application/json"}

        def call():
            url = f"{running.url}/invocations"
            assert session.post(url, data=ROW, verify=running.trusted or True).status_code == 200
            if port == "grpc":
                health(channel)

        def used():
            return sum(worker.cpu_times()[:2])

        call()
        began = used()
        alone = p99(call)
        of_caller = used() - began
        size = worker.memory_info().rss
        with strangers(address, way, is_tls=is_tls) as counted:
            began = used()
            beside = p99(call)
            cost = used() - began - of_caller
            grown = worker.memory_info().rss - size
    cost /= max(40, sum(counted[0].values()))
    assert beside < 5 * alone + 0.5
    # A handshake takes 1.5 ms, and a stranger is told of an unread body.
    assert cost < (0.01 if is_tls else 0.002)
    assert grown < 50_000_000
