"""The state that a worker's connections share, on a loop whose time the test sets, and
the requests answered on it.
"""

import asyncio
import math
import threading
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from mlflow_deploy_plugin.serve.http.request_limits import ConnectionLimits
from mlflow_deploy_plugin.serve.http.responses import RawResponse
from mlflow_deploy_plugin.serve.http.workers.connection import HttpConnection
from mlflow_deploy_plugin.serve.http.workers.worker_app import (
    INLINE_SECONDS,
    InlinePolicy,
    WorkerApp,
)
from mlflow_deploy_plugin.serve.messages import RawRequest
from tests.support.servers import one_endpoint, variant
from tests.support.texts import PANIC, panicking_model
from tests.support.waiting import wait_until

HEAD = b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


async def listen(app):
    """Return a listener of the application, and its connections."""
    state: Any = SimpleNamespace(connections=set())
    config = SimpleNamespace(app=app)
    server = await asyncio.get_running_loop().create_server(
        lambda: HttpConnection(config, state, {}), "127.0.0.1", 0
    )
    return server, state.connections


def test_bodies_of_all_connections_together_are_bounded(serve_here, bias_folders):
    app = WorkerApp(serve_here(one_endpoint(bias_folders["1"])), may_be_inline=True, threads=1)
    app.limits = ConnectionLimits(60.0, body_bytes=100_000)

    async def talk():
        server, _ = await listen(app)
        address = server.sockets[0].getsockname()
        first, second = [await asyncio.open_connection(*address) for _ in range(2)]
        body = b'{"inputs": [[1, 2, 3]]}' + b" " * 70_000
        first[1].write(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body[:-1])
        while app.buffered_bytes < len(body) - 1:
            await asyncio.sleep(0.01)
        second[1].write(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body[:-1])
        refused = await second[0].readuntil(b"\r\n\r\n")
        assert refused.startswith(b"HTTP/1.1 503 ")
        assert b"Retry-After: 1\r\n" in refused
        first[1].write(body[-1:])
        assert (await first[0].readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        for _, writer in (first, second):
            writer.close()
        server.close()

    asyncio.run(asyncio.wait_for(talk(), 30))
    assert app.buffered_bytes == 0


@pytest.mark.parametrize("padding", [0, 100_000])
def test_a_panicking_tokenizer_gets_a_400_and_its_body_is_released(serve_here, tmp_path, padding):
    app = WorkerApp(
        serve_here(one_endpoint(panicking_model(tmp_path / "model"))), may_be_inline=True, threads=1
    )
    app.limits = ConnectionLimits(60.0, body_bytes=150_000)

    async def talk():
        server, _ = await listen(app)
        for text, status in ((PANIC, b"400"), (PANIC, b"400"), ("a text", b"200")):
            body = b'{"inputs": ["%b"]}' % text.encode() + b" " * padding
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.write(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body[:20])
            await writer.drain()
            writer.write(body[20:])
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 " + status)
            assert app.buffered_bytes == 0
            writer.close()
        server.close()

    asyncio.run(asyncio.wait_for(talk(), 60))


@pytest.mark.parametrize("padding", [0, 100_000])
def test_the_wait_for_a_thread_counts_towards_the_deadline(serve_here, bias_folders, padding):
    app = WorkerApp(serve_here(one_endpoint(bias_folders["1"])), may_be_inline=True, threads=1)
    tensor = b'{"name": "X", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}'
    body = b'{"inputs": [%b], "parameters": {"timeout": 200000}}' % tensor + b" " * padding
    head = HEAD.replace(
        b"/invocations", b"/v2/models/e/infer"
    ) + b"Content-Length: %d\r\n\r\n" % len(body)

    async def talk():
        is_over = threading.Event()
        server, connections = await listen(app)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        app.pool.submit(is_over.wait)
        writer.write(head + body)
        while not any(connection.idle_since == math.inf for connection in connections):
            await asyncio.sleep(0.01)
        arrived = time.perf_counter()
        while time.perf_counter() < arrived + 0.2:
            await asyncio.sleep(0.01)
        is_over.set()
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 504 ")
        writer.close()
        server.close()

    asyncio.run(asyncio.wait_for(talk(), 30))


@pytest.mark.long
def test_a_pyfunc_does_not_keep_other_models_from_running_inline(
    serve_here, bias_folders, tmp_path
):
    (tmp_path / "agent_beside.py").write_text(
        "class A:\n  def predict(self, data): return [1]\n_load_pyfunc = lambda path: A()"
    )
    (tmp_path / "MLmodel").write_text(
        "flavors: {python_function: {loader_module: agent_beside, code: .}}"
    )
    variants = {"e": {"v": variant(bias_folders["1"])}, "agent": {"v": variant(tmp_path, "1")}}
    app = WorkerApp(serve_here(variants), may_be_inline=True, threads=1)
    wait_until(lambda: not app.server.repository.not_ready_reason(), 60, "the side process")
    body = b'{"inputs": [[1, 2, 3]]}'
    quick, agents = (
        RawRequest(
            "POST", f"/endpoints/{name}/invocations", {"content-type": "application/json"}, body
        )
        for name in ("e", "agent")
    )

    def answered_inline(request):
        assert app.handle(replace(request, arrived=time.perf_counter())).status == 200
        return app.answer_inline(replace(request, arrived=time.perf_counter())) is not None

    wait_until(lambda: answered_inline(quick), what="an answer on the loop")
    assert not answered_inline(agents)


QUICK = INLINE_SECONDS / 20
SLOW = INLINE_SECONDS * 20
SMALL = RawRequest("POST", "/invocations", {"content-type": "application/json"}, b"x" * 100)


def took(policy, request, seconds, status=200, predicts=True):
    policy.learn(
        request,
        RawResponse(status, b"", headers={"X-Prediction-Id": "p"} if predicts else {}),
        seconds,
    )


@pytest.fixture
def policy():
    return InlinePolicy(lambda _: True)


def of_size(size, path="/invocations", **headers):
    return RawRequest("POST", path, {"content-type": "application/json", **headers}, b"x" * size)


def test_requests_of_unknown_duration_stay_off_the_loop(policy):
    assert not policy.is_quick(SMALL)
    took(policy, SMALL, QUICK)
    assert policy.is_quick(SMALL)
    assert not policy.is_quick(of_size(1000))
    assert not policy.is_quick(of_size(100, "/predict"))
    assert not policy.is_quick(
        RawRequest("POST", "/invocations", {"content-type": "text/csv"}, b"x" * 100)
    )


def test_liveness_never_waits_for_a_thread(policy):
    assert policy.is_quick(RawRequest("GET", "/ping", {}, b""))
    assert not policy.is_quick(of_size(60_000, "/ping", **{"content-encoding": "gzip"}))


def test_one_slow_answer_is_the_machine_and_several_are_the_model(policy):
    took(policy, SMALL, QUICK)
    took(policy, SMALL, SLOW)
    assert policy.is_quick(SMALL)
    for _ in range(3):
        took(policy, SMALL, SLOW)
    assert not policy.is_quick(SMALL)
    for _ in range(10):
        took(policy, SMALL, QUICK)
    assert policy.is_quick(SMALL)


def test_refusals_do_not_count_as_quick_answers(policy):
    took(policy, SMALL, QUICK, status=400)
    assert not policy.is_quick(SMALL)


def test_a_failure_that_takes_long_leaves_the_loop(policy):
    took(policy, SMALL, QUICK)
    for _ in range(4):
        took(policy, SMALL, SLOW, status=500, predicts=False)
    assert not policy.is_quick(SMALL)


@pytest.mark.parametrize(
    "path", ["/score", "/v1/models/flights/labels/champion:predict", "/what/vertex/named"]
)
def test_a_prediction_is_known_by_its_answer_wherever_it_was_asked_for(policy, path):
    took(policy, of_size(100, path), QUICK)
    assert policy.is_quick(of_size(100, path))


def test_requests_other_than_predictions_stay_off_the_loop(policy):
    load = of_size(100, "/v2/repository/models/trial/load")
    took(policy, load, QUICK, predicts=False)
    assert not policy.is_quick(load)


@pytest.mark.parametrize(
    "request_", [of_size(100_000), of_size(100, **{"content-encoding": "gzip"})]
)
def test_large_and_packed_requests_stay_off_the_loop(policy, request_):
    took(policy, request_, QUICK)
    assert not policy.is_quick(request_)


def test_predictions_that_wait_stay_off_the_loop():
    policy = InlinePolicy(lambda _: False)
    took(policy, SMALL, QUICK)
    assert not policy.is_quick(SMALL)


def test_the_remembered_durations_are_bounded(policy):
    for number in range(10_000):
        took(policy, of_size(100, path=f"/v2/models/{number}/infer"), QUICK)
    assert len(policy._seconds) <= 4096
