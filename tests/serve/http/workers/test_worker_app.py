"""The state that a worker's connections share, on a loop whose time the test sets, and
the requests answered on it.
"""

import math
import threading
import time
from dataclasses import replace

import pytest

from mlflow_deploy_plugin.serve.http.request_limits import ConnectionLimits
from mlflow_deploy_plugin.serve.http.responses import RawResponse
from mlflow_deploy_plugin.serve.http.workers.worker_app import (
    INLINE_SECONDS,
    InlinePolicy,
)
from mlflow_deploy_plugin.serve.messages import RawRequest
from tests.serve.http.listener import play, until, worker_app
from tests.support.servers import one_endpoint, variant
from tests.support.texts import PANIC, panicking_model
from tests.support.waiting import wait_until

HEAD = b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


@pytest.fixture
def app(serve_here, bias_folders):
    return worker_app(serve_here(one_endpoint(bias_folders["1"])))


def sized(body, path=b"/invocations"):
    """Return the head of a request with this body."""
    return HEAD.replace(b"/invocations", path) + b"Content-Length: %d\r\n\r\n" % len(body)


def test_bodies_of_all_connections_are_bounded(app):
    app.limits = ConnectionLimits(60.0, body_bytes=100_000)
    body = b'{"inputs": [[1, 2, 3]]}' + b" " * 70_000

    async def talk(opened):
        first = await opened.connect(sized(body) + body[:-1])
        await until(lambda: app.buffered_bytes == len(body) - 1)
        second = await opened.connect(sized(body) + body[:40_000])
        refused = await opened.read(second)
        assert refused.startswith(b"HTTP/1.1 503 ")
        assert b"Retry-After: 1\r\n" in refused
        await opened.send(first, body[-1:])
        assert (await opened.read(first, b"}")).startswith(b"HTTP/1.1 200 ")

    play(app, talk)
    assert app.buffered_bytes == 0


@pytest.mark.parametrize("padding", [0, 100_000])
def test_body_of_panicking_tokenizer_is_released(serve_here, tmp_path, padding):
    app = worker_app(serve_here(one_endpoint(panicking_model(tmp_path / "model"))))
    app.limits = ConnectionLimits(60.0, body_bytes=150_000)

    async def talk(opened):
        for text, status in ((PANIC, b"400"), (PANIC, b"400"), ("a text", b"200")):
            body = b'{"inputs": ["%b"]}' % text.encode() + b" " * padding
            client = await opened.connect(sized(body) + body[:20])
            await opened.send(client, body[20:])
            assert (await opened.read(client, b"}")).startswith(b"HTTP/1.1 " + status)
            assert app.buffered_bytes == 0

    play(app, talk)


@pytest.mark.parametrize("padding", [0, 100_000])
def test_wait_for_thread_counts_towards_deadline(app, padding):
    tensor = b'{"name": "X", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}'
    body = b'{"inputs": [%b], "parameters": {"timeout": 200000}}' % tensor + b" " * padding
    is_over = threading.Event()
    app.pool.submit(is_over.wait)  # the only thread

    async def talk(opened):
        client = await opened.connect(sized(body, b"/v2/models/e/infer") + body)
        await until(lambda: any(each.idle_since == math.inf for each in opened.connections))
        arrived = time.perf_counter()
        await until(lambda: time.perf_counter() > arrived + 0.2)
        is_over.set()
        assert (await opened.read(client, b"}")).startswith(b"HTTP/1.1 504 ")

    play(app, talk)


@pytest.mark.long
def test_other_models_run_inline_with_a_pyfunc(serve_here, bias_folders, tmp_path):
    (tmp_path / "agent_beside.py").write_text(
        "class A:\n  def predict(self, data): return [1]\n_load_pyfunc = lambda path: A()"
    )
    (tmp_path / "MLmodel").write_text(
        "flavors: {python_function: {loader_module: agent_beside, code: .}}"
    )
    variants = {"e": {"v": variant(bias_folders["1"])}, "agent": {"v": variant(tmp_path, "1")}}
    app = worker_app(serve_here(variants))
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


def test_quick_requests_of_one_class_run_inline(policy):
    assert not policy.is_quick(SMALL)
    took(policy, SMALL, QUICK)
    assert policy.is_quick(SMALL)
    others = (
        of_size(1000),
        of_size(100, "/predict"),
        RawRequest("POST", "/invocations", {"content-type": "text/csv"}, b"x" * 100),
    )
    assert not any(policy.is_quick(other) for other in others)


def test_liveness_always_runs_inline(policy):
    assert policy.is_quick(RawRequest("GET", "/ping", {}, b""))
    assert not policy.is_quick(of_size(60_000, "/ping", **{"content-encoding": "gzip"}))


def test_several_slow_answers_leave_the_loop(policy):
    took(policy, SMALL, QUICK)
    took(policy, SMALL, SLOW)
    assert policy.is_quick(SMALL)  # A single slow answer may be due to the machine.
    for _ in range(3):
        took(policy, SMALL, SLOW)
    assert not policy.is_quick(SMALL)
    for _ in range(10):
        took(policy, SMALL, QUICK)
    assert policy.is_quick(SMALL)


def test_slow_failures_leave_the_loop(policy):
    took(policy, SMALL, QUICK)
    for _ in range(4):
        took(policy, SMALL, SLOW, status=500, predicts=False)
    assert not policy.is_quick(SMALL)


@pytest.mark.parametrize(
    ("request_", "outcome"),
    [
        (SMALL, {"status": 400}),
        (of_size(100, "/v2/repository/models/trial/load"), {"predicts": False}),
        (of_size(100_000), {}),
        (of_size(100, **{"content-encoding": "gzip"}), {}),
    ],
    ids=["refused", "no prediction", "large", "compressed"],
)
def test_request_is_not_run_inline(policy, request_, outcome):
    took(policy, request_, QUICK, **outcome)
    assert not policy.is_quick(request_)


def test_predictions_that_wait_are_not_run_inline():
    policy = InlinePolicy(lambda _: False)
    took(policy, SMALL, QUICK)
    assert not policy.is_quick(SMALL)


def test_remembered_durations_are_bounded(policy):
    for number in range(10_000):
        took(policy, of_size(100, path=f"/v2/models/{number}/infer"), QUICK)
    assert len(policy._seconds) <= 4096
