"""The data plane below every protocol: deadlines, batches, the cache, limits, and a
clean shutdown.
"""

import shutil
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from queue import SimpleQueue

import numpy as np
import orjson
import pytest

from mlflow_deploy_plugin.core.errors import DeadlineExceeded, InvalidRequest
from mlflow_deploy_plugin.serve.http import encodings
from mlflow_deploy_plugin.serve.http.routes import handle_request_async
from mlflow_deploy_plugin.serve.inference.dataplane import InferRequest
from mlflow_deploy_plugin.serve.messages import RawRequest
from mlflow_deploy_plugin.serve.spool.frames import segments
from mlflow_deploy_plugin.serve.spool.spool_reader import read_batches
from tests.support import handling
from tests.support.bodies import v2_tensor
from tests.support.models import write_model
from tests.support.raising import raise_it
from tests.support.servers import variant, want
from tests.support.spool import read_spool
from tests.support.waiting import wait_until

ROW = {"a": 1.0, "b": 2.0, "c": 3.0}
NOISY = "noisy (float[N,1] X) => (float[N,1] y) { noise = RandomNormalLike(X) y = Add(X, noise) }"


@pytest.fixture
def serve(serve_here, bias_folders):
    """Serve version 1 of the single model at endpoint e, with these fields of the
    spec's server.
    """
    return lambda **server: serve_here({"e": {"e": variant(bias_folders["1"])}}, server)


def ask(server, body=None, path="/invocations", **headers):
    document = {"dataframe_records": [ROW]} if body is None else body
    return handling.ask(server, path, body=document, **headers)


def v2(rows=1, **parameters):
    inputs = [v2_tensor("X", "FP32", [1.0, 2.0, 3.0] * rows, [rows, 3])]
    return {"inputs": inputs, "parameters": parameters}


def infer(server, **more):
    request = InferRequest("id", {"X": np.ones((1, 3), np.float32)}, **more)
    return server.dataplane.infer(server.repository.select_variant("e"), request)


def sample(server, name, **labels):
    """Return the sum of the values of a metric over the series with these labels."""
    wanted = [f'{key}="{value}"' for key, value in labels.items()]
    lines = server.metrics.page().decode().splitlines()
    series = [
        line
        for line in lines
        if line.startswith(name + "{") and all(text in line for text in wanted)
    ]
    return sum(float(line.rsplit(" ", 1)[1]) for line in series)


def test_cpu_neither_batches_nor_caches_by_default(serve):
    server = serve()
    assert server.repository.select_variant("e").loaded.batcher is None
    assert "X-Cache" not in ask(server).headers
    assert sample(server, "onnxserve_batch_rows_count", endpoint="e") == 1


def test_batched_callers_get_their_own_answers(serve):
    server = serve(max_batch_size=16, max_queue_delay_microseconds=20_000)

    def one(number):
        answer = ask(server, {"dataframe_records": [{**ROW, "a": float(number)}]})
        return orjson.loads(answer.body)["predictions"]

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(one, range(200)))

    assert answers == [[[1005.0 + number]] for number in range(200)]
    assert sample(server, "onnxserve_batch_rows_sum", endpoint="e") == 200
    assert sample(server, "onnxserve_batch_rows_count", endpoint="e") < 150
    assert len(read_spool(server.capture.spool)) == 200


@pytest.mark.parametrize("batching", [{}, {"max_batch_size": 8}], ids=["alone", "batched"])
def test_late_request_is_not_computed(serve, batching):
    server = serve(default_timeout_microseconds=1_000_000, **batching)
    runs = sample(server, "onnxserve_batch_rows_count", endpoint="e")

    with pytest.raises(DeadlineExceeded):
        infer(server, arrived=0.0)

    assert sample(server, "onnxserve_batch_rows_count", endpoint="e") == runs
    assert infer(server).outputs["y"].tolist() == [[1003.0]]


def test_v2_request_may_shorten_its_timeout(serve):
    server = serve(max_batch_size=8)
    late = ask(server, v2(timeout=1), "/v2/models/e/infer")
    assert (late.status, "deadline passed" in orjson.loads(late.body)["error"]) == (504, True)
    for timeout in (0, 30_000_000):
        assert ask(server, v2(timeout=timeout), "/v2/models/e/infer").status == 200


@pytest.mark.parametrize("timeout", [-1, 1.5, "soon", True, [1]])
def test_invalid_timeout_is_refused(serve, timeout):
    server = serve()
    with pytest.raises(InvalidRequest, match="number of microseconds"):
        infer(server, parameters={"timeout": timeout})


def test_repeated_refusal_is_captured_once(serve):
    server = serve(max_batch_size=8)
    assert ask(server, {"dataframe_records": [{"a": "x"}]}, x_onnxserve_repeated="1").status == 400
    assert ask(server, v2(timeout=1), "/v2/models/e/infer", x_onnxserve_repeated="1").status == 504
    (failed,) = failures(server)
    assert failed.statuses.tolist() == [504]


@pytest.mark.parametrize("batch", [1, 8])
def test_captured_failure_has_id_time_and_reason(serve, batch):
    server = serve(max_batch_size=batch)
    headers = {"x_request_id": "bad", "x_event_time": "2013-07-01T12:30:00Z"}
    name = "a" * 100_000
    document = {"dataframe_split": {"columns": [name, name], "data": [[1, 2]]}}
    assert ask(server, document, **headers).status == 400
    (failed,) = failures(server)
    assert (failed.rows, failed.statuses.tolist(), failed.feeds) == (1, [400], {})
    assert bytes(failed.request_ids.content) == b"bad"
    assert failed.event_times.tolist() == [1_372_681_800_000_000]
    (reason,) = reasons(server)
    assert reason["_column"] == name[:100]
    assert len(reason["_message"]) == 500


FLIGHT = {"carrier": "AA", "distance": 7.5, "hour": 3, "late": True}
CSV = {"content_type": "text/csv"}


def infer_inputs(**values):
    kinds = {"carrier": "BYTES", "distance": "FP64", "hour": "INT64", "late": "BOOL"}
    row = {**FLIGHT, **values}
    return {"inputs": [v2_tensor(n, kinds[n], [row[n]]) for n in row]}


def failures(server):
    """Return the captured batches of refused requests, oldest first."""
    batches = chain.from_iterable(
        read_batches(path).batches for path in segments(server.capture.spool)
    )
    return [batch for batch in batches if batch.is_failed]


def reasons(server):
    """Return the captured texts of each failure, oldest first."""
    return [
        {name: texts[row] for name, texts in batch.outputs.items()}
        for batch in failures(server)
        for row in range(len(batch.offsets))
    ]


LINES = {"content_type": "application/jsonl"}


@pytest.mark.parametrize(
    ("path", "headers", "body", "column"),
    [
        ("/invocations", {}, {"instances": [{**FLIGHT, "hour": "x"}]}, "hour"),
        ("/invocations", {}, {"dataframe_split": {"columns": ["hour"], "data": [[1]]}}, "carrier"),
        ("/invocations", CSV, b"carrier,distance,hour,late\nAA,7.5,x,true\n", "hour"),
        ("/invocations", LINES, orjson.dumps({**FLIGHT, "distance": "x"}), "distance"),
        ("/invocations", LINES, b'{"carrier": "AA"}', "distance"),
        ("/v2/models/e/infer", {}, infer_inputs(hour="x"), "hour"),
        ("/v2/models/e/infer", {}, {"inputs": infer_inputs()["inputs"][:3]}, "late"),
        ("/invocations", {}, b"{", None),
    ],
)
def test_captured_failure_has_code_message_and_column(
    serve_here, model_folders, path, headers, body, column
):
    server = serve_here({"e": {"e": variant(model_folders["mixed"])}})
    answered = orjson.loads(ask(server, body, path, **headers).body)
    (reason,) = reasons(server)
    assert reason == {
        "_error_code": "BAD_REQUEST",
        "_message": answered.get("message") or answered["error"],
        "_column": column,
    }


@pytest.mark.parametrize(
    "hidden", [{"drop": ["carrier"]}, {"mask": ["carrier"]}, {"mask": ["prediction", "carrier"]}]
)
def test_captured_failure_has_no_hidden_value(serve_here, model_folders, hidden):
    server = serve_here({"e": {"e": variant(model_folders["mixed"])}}, **hidden)
    bodies = [
        ({"dataframe_records": [{**FLIGHT, "carrier": 4711_4711_4711}]}, {}, "carrier"),
        ({"dataframe_records": [{**FLIGHT, "distance": "far away"}]}, {}, "distance"),
        ({"dataframe_records": [["secret"]]}, {}, None),
        ({"dataframe_split": {"columns": [*FLIGHT], "data": [["secret"]]}}, {}, None),
        ({"dataframe_split": {"columns": ["secret", "secret"], "data": [[1, 2]]}}, {}, None),
        (b"secret,7.5\nAA,8\n", CSV, "carrier"),
    ]
    for body, headers, _ in bodies:
        assert ask(server, body, **headers).status == 400
    assert reasons(server) == [
        {"_error_code": "BAD_REQUEST", "_message": None, "_column": column} for *_, column in bodies
    ]
    captured = b"".join(path.read_bytes() for path in segments(server.capture.spool))
    assert not any(value in captured for value in (b"471147114711", b"far away", b"secret"))


def test_cached_answer_is_captured_and_counted(serve):
    server = serve(response_cache_bytes=1_000_000)

    answers = [ask(server), ask(server), ask(server, v2(), "/v2/models/e/infer")]

    assert [answer.headers["X-Cache"] for answer in answers] == ["miss", "hit", "hit"]
    assert answers[0].body == answers[1].body
    assert len({answer.headers["X-Prediction-Id"] for answer in answers}) == 3
    assert sample(server, "onnxserve_requests_total", endpoint="e", status="200") == 3
    assert sample(server, "onnxserve_batch_rows_count", endpoint="e") == 1
    outputs = [request.outputs["y"].tolist() for request in read_spool(server.capture.spool)]
    assert outputs == [[[1006.0]]] * 3


def test_cache_distinguishes_folders_of_one_name(serve_here, bias_folders, tmp_path):
    endpoints = {}
    for name, number in ("a1", "b2"):
        folder = shutil.copytree(bias_folders[number], tmp_path / name / "model")
        endpoints[name] = {name: variant(folder, "unknown")}
    server = serve_here(endpoints, {"response_cache_bytes": 1_000_000})
    for name, answer in (("a", 1006.0), ("b", 2006.0)):
        for found in ("miss", "hit"):
            response = ask(server, v2(), f"/v2/models/{name}/infer")
            assert orjson.loads(response.body)["outputs"][0]["data"] == [answer]
            assert response.headers["X-Cache"] == found


def test_random_answers_are_not_cached(serve_here, tmp_path):
    folder = write_model(tmp_path / "noisy", NOISY)
    server = serve_here({"e": {"e": variant(folder)}}, {"response_cache_bytes": 1_000_000})
    answers = [ask(server, {"inputs": [[1.0]]}) for _ in range(2)]
    assert answers[0].status == 200, answers[0].body
    assert answers[0].body != answers[1].body
    assert "X-Cache" not in answers[1].headers


def test_rate_limit_answers_429_only_for_predictions(serve):
    server = serve(rate_limit="2/minute", rate_limit_header="X-API-Key")

    answers = [ask(server, x_api_key=key) for key in ("k", "k", "k", "other")]

    assert [answer.status for answer in answers] == [200, 200, 429, 200]
    assert orjson.loads(answers[2].body)["error_code"] == "REQUEST_LIMIT_EXCEEDED"
    assert 1 <= int(answers[2].headers["Retry-After"]) <= 60
    for path in ("/ping", "/health", "/metrics"):
        assert handling.ask(server, path, "GET", x_api_key="k").status == 200
    assert sample(server, "onnxserve_refused_requests_total", reason="rate") == 1


def test_failed_requests_leave_the_concurrency_limit(serve):
    server = serve(max_concurrent_requests=1)
    for _ in range(3):
        assert ask(server, {"nonsense": 1}).status == 400
        assert ask(server, path="/endpoints/none/invocations").status == 404
    server.limits.acquire()
    refused = ask(server)
    assert refused.status == 429
    assert refused.headers["Retry-After"] == "1"
    server.limits.release()
    assert ask(server).status == 200


BODIES = [
    ("/invocations", {"dataframe_records": [ROW]}),
    ("/endpoints/e/invocations", {"inputs": [[1.0, 2.0, 3.0]] * 3}),
    ("/predict", ROW),
    ("/v2/models/e/versions/1/infer", v2(1, timeout=60_000_000)),
    ("/v2/models/e/infer", v2(1, timeout=-5)),
    ("/invocations", {"nonsense": 1}),
]


def ask_later(server, path, body, **headers):
    """Send a request as the event loop does; return None if it must use the general
    path.
    """
    answers = SimpleQueue()
    fields = {"content-type": "application/json", "x-request-id": "r", **headers}
    if not handle_request_async(
        server, RawRequest("POST", path, fields, orjson.dumps(body), "192.0.2.1"), answers.put
    ):
        return None
    return answers.get(timeout=30)


@pytest.mark.parametrize(("path", "body"), BODIES)
def test_event_loop_and_thread_answers_are_equal(serve, path, body):
    server = serve(max_batch_size=8, max_concurrent_requests=1)

    ask_later(server, path, body)
    later = ask_later(server, path, body)
    plain = ask(server, body, path, x_request_id="r")

    assert later is not None
    for answer in (later, plain):
        answer.headers.pop("X-Prediction-Id", "")
    for part in ("status", "body", "content_type", "headers"):
        assert getattr(later, part) == getattr(plain, part)
    assert sample(server, "onnxserve_requests_total", status=str(plain.status)) == 3


def test_compression_without_memory_answers_503(serve, monkeypatch):
    monkeypatch.setitem(encodings._ENCODERS, "gzip", lambda body: raise_it(MemoryError()))
    server = serve(max_batch_size=8)
    large = {"dataframe_records": [ROW] * 3000}
    forms = ["gzip"] * 3 + [""]  # Two threads deliver responses.
    answers = [ask_later(server, "/invocations", large, **{"accept-encoding": f}) for f in forms]
    assert [answer and answer.status for answer in answers] == [503, 503, 503, 200]


@pytest.mark.parametrize(
    ("fields", "path", "headers"),
    [
        ({}, "/invocations", {}),
        ({"max_batch_size": 8}, "/ping", {}),
        ({"max_batch_size": 8}, "/endpoints/none/invocations", {}),
        ({"max_batch_size": 8}, "/v2/models/e/versions/9/infer", {}),
        ({"max_batch_size": 8}, "/invocations", {"content-encoding": "gzip"}),
        ({"max_batch_size": 8, "response_cache_bytes": 10_000}, "/predict", {}),
    ],
)
def test_unbatchable_requests_leave_the_event_loop(serve, fields, path, headers):
    assert ask_later(serve(**fields), path, ROW, **headers) is None


@pytest.mark.redis
def test_event_loop_does_not_wait_for_redis(serve, redis_url, monkeypatch):
    monkeypatch.setenv("ONNXSERVE_REDIS_URL", redis_url)
    server = serve(max_batch_size=8, rate_limit="2/minute", response_cache_bytes=0)
    assert ask_later(server, "/predict", ROW) is None
    assert [ask(server, ROW, "/predict").status for _ in range(3)] == [200, 200, 429]


def test_event_loop_is_rate_limited(serve):
    server = serve(max_batch_size=8, rate_limit="1/minute")
    answers = [ask_later(server, "/predict", ROW) for _ in range(2)]
    assert [answer.status for answer in answers if answer] == [200, 429]
    assert answers[1] is not None
    assert int(answers[1].headers["Retry-After"]) >= 1


def test_batcher_threads_end_with_their_version(serve, bias_folders, tmp_path):
    server = serve(max_batch_size=8)
    assert ask_later(server, "/predict", ROW)
    batcher = server.repository.select_variant("e").loaded.batcher
    assert batcher is not None
    want(tmp_path / "state-0", 2, {"e": {"e": variant(bias_folders["2"], "2")}})

    wait_until(
        lambda: not any(thread.is_alive() for thread in batcher._threads),
        what="the end of the threads",
    )
    assert ask_later(server, "/predict", ROW)


FAR = [FLIGHT, {**FLIGHT, "hour": 24}, {**FLIGHT, "hour": 25, "carrier": "ZZ"}]


@pytest.fixture
def replies(serve_here, model_folders):
    """Return the server of a guarded model, and its replies to rows outside and to a
    row inside.
    """

    def replies(then):
        endpoints = {"e": {"e": variant(model_folders["guarded"])}}
        server = serve_here(endpoints, {"max_batch_size": 8}, guard={"then": then})
        return server, [
            ask(server, {"dataframe_records": FAR}),
            ask_later(server, "/invocations", {"dataframe_records": FAR}),
            ask(server, {"dataframe_records": [FLIGHT]}),
        ]

    return replies


def test_row_outside_is_flagged(replies):
    server, answers = replies("flag")
    assert [answer.status for answer in answers] == [200] * 3
    flagged = "hour; rows=2"
    assert [answer.headers.get("X-Guard") for answer in answers] == [flagged, flagged, None]
    assert sample(server, "onnxserve_guard_rows_total", endpoint="e", version="1") == 4
    guards = [entry.outputs.get("_guard") for entry in read_spool(server.capture.spool)]
    assert guards.pop() is None
    assert [guard.tolist() for guard in guards] == [["", "hour", "carrier,hour"]] * 2


def test_row_outside_is_refused(replies):
    server, answers = replies("refuse")
    assert [answer.status for answer in answers] == [422, 422, 200]
    assert [batch.statuses.tolist() for batch in failures(server)] == [[422] * 2]
    assert {reason["_column"] for reason in reasons(server)} == {"carrier"}
