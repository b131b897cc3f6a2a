"""The client with a real model in a server, and with servers that are busy, slow,
closed or not onnxserve.
"""

import asyncio
import random
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import numpy as np
import orjson
import pandas as pd
import pyarrow as pa
import pytest
import requests

from mlflow_deploy_plugin.core.errors import (
    DeadlineExceeded,
    InvalidConfig,
    InvalidRequest,
    NotFound,
    NotReady,
    OnnxserveError,
    ScopeMissing,
    TooManyRequests,
    Unauthenticated,
)
from mlflow_deploy_plugin.serve.client.client import AsyncClient, Client, Prediction, RetryPolicy
from tests.support.models import mixed_model
from tests.support.waiting import free_port as find_free_port
from tests.support.waiting import wait_until

FRAME = pd.DataFrame(
    {"carrier": ["UA", "AA"], "distance": [1400.0, -4000.0], "hour": [17, 9], "late": [True, False]}
)
DAY = "2013-07-01T00:00:00"
OK = (200, {"X-Prediction-Id": "p1"}, b'{"predictions": [1.5]}', 0.0)
FAST = RetryPolicy(first_pause_seconds=0.001)
Served = Callable[[str], str]
COLUMNS = {str(name): FRAME[name].to_numpy() for name in FRAME}


def values_of(prediction):
    return np.asarray(prediction).tolist()


@pytest.fixture
def flights(served):
    return Client(served("flights"))


@pytest.mark.parametrize(
    "rows",
    [
        FRAME,
        FRAME.set_axis(range(4), axis=1),
        pa.Table.from_pandas(FRAME),
        COLUMNS,
        {name: FRAME[name].tolist() for name in FRAME},
        {name: FRAME[name] for name in FRAME},
        FRAME.to_dict("records"),
        FRAME.to_numpy().tolist(),
        {"dataframe_split": {"columns": list(FRAME), "data": FRAME.to_numpy().tolist()}},
    ],
    ids=[
        "frame",
        "positions",
        "arrow",
        "arrays",
        "lists",
        "series",
        "records",
        "rows",
        "a form of MLflow's",
    ],
)
def test_all_kinds_of_rows_get_equal_predictions(flights, rows):
    prediction = flights.predict(rows, request_id="r-1")

    assert values_of(prediction) == ["yes", "no"]
    assert len(prediction) == 2
    assert len(prediction.id) == 32
    told = (prediction.model, prediction.version, prediction.request_id)
    assert told == ("mixed", "m-1", "r-1")


def test_one_record_is_one_row(flights):
    assert values_of(flights.predict(FRAME.iloc[0].to_dict())) == ["yes"]


def test_array_gets_outputs_by_name(served):
    images = np.arange(8, dtype=np.float32).reshape(2, 2, 2)

    prediction = Client(served("images")).predict(images)

    expected = {"doubled": 2 * images, "total": np.array([6.0, 22.0], np.float32)}
    np.testing.assert_equal(prediction.values, expected)
    with pytest.raises(TypeError, match="doubled, total"):
        np.asarray(prediction)


def test_infer_answers_all_outputs(flights, served):
    every = flights.infer(COLUMNS).values
    subset = flights.infer(COLUMNS, ["probabilities"]).values
    image = Client(served("images"), "images").infer({"image": np.ones((1, 2, 2), np.float32)})

    assert list(every) == ["label", "probabilities"]
    assert every["label"].tolist() == ["yes", "no"]
    np.testing.assert_equal(subset, {"probabilities": every["probabilities"]})
    assert image.values["total"].tolist() == [4.0]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (object(), "cannot predict on object"),
        (pa.chunked_array([[1, 2]]), "cannot predict on ChunkedArray"),
        ([{"a": object()}], "the input cannot be sent as JSON"),
    ],
)
def test_unsendable_rows_are_refused(rows, message):
    with pytest.raises(InvalidRequest) as refused:
        Client("http://127.0.0.1:1").predict(rows)
    assert refused.value.message.startswith(message)
    assert refused.value.status is None


@pytest.mark.parametrize(
    ("labels", "taken"),
    [(["yes", "no"], 2), (FRAME["late"], 2), ({1: None}, 1), ("yes", 1), (np.float32(0.5), 1)],
)
def test_labels_reach_their_prediction(flights, labels, taken):
    def accepted():
        page = requests.get(f"{flights.url}/metrics", timeout=10).text
        counted = re.findall(r'feedback_labels_total\{.*outcome="accepted".*\} (.+)', page)
        return sum(map(float, counted))

    prediction = flights.predict(FRAME)
    before = accepted()

    assert flights.feedback(prediction, labels) == taken
    assert accepted() == before + taken
    assert flights.feedback(prediction.id, labels) == taken


def test_prediction_without_id_takes_no_labels(flights):
    with pytest.raises(InvalidRequest, match="X-Prediction-Id"):
        flights.feedback(Prediction(np.ones(1)), [1])


def test_dtype_without_datatype_is_refused(flights):
    with pytest.raises(InvalidRequest, match="complex128"):
        flights.infer({"x": np.ones(1, complex)})


def test_metadata_and_readiness_are_per_endpoint(flights, served):
    images = Client(served("images"), "images")
    other = Client(served("images"), "other")
    absent = Client(f"http://127.0.0.1:{find_free_port()}", retries=FAST)
    assert flights.metadata()["name"] == "flights"
    assert [entry["name"] for entry in images.metadata()["inputs"]] == ["image"]
    ready = [client.ready() for client in (flights, images, other, absent)]
    assert ready == [True, True, False, False]
    with pytest.raises(NotFound, match="'other'"):
        other.predict(np.ones((1, 2, 2)))
    with pytest.raises(NotReady, match=r"http://127\.0\.0\.1"):
        absent.predict([[1]])


def test_hidden_index_needs_the_endpoint_name(scripted):
    server = scripted((403, {}, b'{"message": "the key shop is for infer"}', 0))
    with pytest.raises(ScopeMissing, match="the key shop is for infer") as refused:
        Client(server.url).infer({"x": np.zeros((1, 1), np.float32)})
    assert "Client(URL, NAME)" in refused.value.message
    assert refused.value.status == 403


def test_an_explanation_has_arrays(scripted):
    document = {"columns": ["a"], "values": [[0.5]], "base_values": [1.0], "outputs": ["y"]}
    server = scripted((200, {}, orjson.dumps(document), 0.0))

    explanation = Client(server.url, "e").explain([[1.0]], seed=3, version="7")

    assert explanation["values"].shape == (1, 1)
    assert explanation["columns"] == ["a"]
    ((path, _, body),) = server.asked
    assert path == "/endpoints/e/explain"
    assert orjson.loads(body) == {"inputs": [[1.0]], "params": {"seed": 3, "version": "7"}}


@pytest.mark.parametrize("only_json", [False, True])
def test_server_without_arrow_is_asked_in_json(scripted, only_json):
    server = scripted(*[(415, {}, b'{"detail": "no"}', 0.0)] * (not only_json), OK)
    client = Client(server.url, only_json=only_json)

    assert values_of(client.predict(FRAME)) == [1.5]
    assert values_of(client.predict(np.ones((1, 2)))) == [1.5]

    kinds = [headers["Content-Type"] for _, headers, _ in server.asked]
    arrow = "application/vnd.apache.arrow.stream"
    assert kinds == [arrow] * (not only_json) + ["application/json"] * 2
    assert orjson.loads(server.asked[-1][2]) == {"inputs": [[1.0, 1.0]]}


def test_call_sends_event_time_and_headers(scripted):
    server = scripted(OK)
    client = Client(server.url, headers={"Authorization": "Bearer x"})

    client.predict([[1]], params={"top": 3}, event_time=datetime(2013, 7, 1, tzinfo=UTC))

    (_, headers, body) = server.asked[0]
    assert headers["X-Event-Time"] == "2013-07-01T00:00:00+00:00"
    assert headers["Authorization"] == "Bearer x"
    assert orjson.loads(body) == {"inputs": [[1]], "params": {"top": 3}}


@pytest.mark.parametrize(
    ("column", "values"),
    [
        (pd.to_datetime(["2013-07-01"]), [DAY]),
        ([1, "x"], [1, "x"]),
        ([{"b": 1}], [{"b": 1}]),
    ],
    ids=["dates", "mixed types", "objects"],
)
def test_rows_without_arrow_type_are_json(scripted, column, values):
    server = scripted(OK)
    Client(server.url).predict(pd.DataFrame({"a": column}))
    assert orjson.loads(server.asked[0][2]) == {
        "dataframe_split": {"columns": ["a"], "data": [[value] for value in values]}
    }


def test_tensors_of_several_lengths_are_json(scripted):
    server = scripted(OK)
    Client(server.url).predict({"a": np.ones(2), "b": np.ones(1)})
    assert orjson.loads(server.asked[0][2]) == {"inputs": {"a": [1.0, 1.0], "b": [1.0]}}


@pytest.mark.parametrize("status", [429, 503])
def test_busy_server_is_asked_again(scripted, status):
    server = scripted((status, {}, b"{}", 0.0), (status, {"Retry-After": "0"}, b"{}", 0.0), OK)

    assert values_of(Client(server.url, retries=FAST).predict([[1]])) == [1.5]
    assert len(server.asked) == 3


@pytest.mark.parametrize(
    ("refusal", "attempts", "error", "words"),
    [
        (
            (429, {"Retry-After": "0"}, b'{"message": "5 a second"}'),
            4,
            TooManyRequests,
            "5 a second",
        ),
        ((503, {"Retry-After": "60"}, b'{"error": "loading"}'), 1, NotReady, "loading"),
        ((500, {}, b"<html>"), 1, OnnxserveError, "status 500.*no JSON"),
        ((502, {}, b"<html>"), 1, OnnxserveError, "status 502.*no JSON"),
        ((301, {}, b"<html>"), 1, OnnxserveError, "status 301.*no JSON"),
        ((401, {}, b'{"error": "no"}'), 1, Unauthenticated, "no"),
        ((403, {}, b'{"error": "no"}'), 1, ScopeMissing, "no"),
        ((404, {}, b'{"error": "no"}'), 1, NotFound, "no"),
    ],
)
def test_last_refusal_is_raised(scripted, refusal, attempts, error, words):
    status, headers, body = refusal
    server = scripted((status, {"X-Request-Id": "r-9", **headers}, body, 0.0))
    with pytest.raises(error, match=words) as refused:
        Client(server.url, timeout_seconds=50, retries=FAST).predict([[1]])
    assert (refused.value.status, refused.value.request_id) == (status, "r-9")
    assert refused.value.retry_after == (float(headers["Retry-After"]) if headers else None)
    assert len(server.asked) == attempts


def test_timed_out_request_is_not_repeated(scripted):
    server = scripted((*OK[:3], 60.0))

    with pytest.raises(DeadlineExceeded, match=r"http://.*/invocations within 0\.2 s"):
        Client(server.url, timeout_seconds=0.2).predict([[1]])
    wait_until(lambda: server.asked, what="the request is read")
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    "ask",
    [
        lambda client: client.predict([[1]]),
        lambda client: client.infer({"x": np.zeros((1, 1))}),
        lambda client: client.explain([[1]]),
        lambda client: client.metadata(),
        lambda client: Client(client.url).metadata(),
    ],
    ids=["predict", "infer", "explain", "metadata", "index"],
)
def test_answer_of_unknown_form_is_an_error(scripted, ask):
    kinds = {
        "text/html": b"<html>",
        "application/json": b"[[1]]",
        "application/vnd.apache.arrow.stream": b"<html>",
    }
    id_header = {"X-Request-Id": "r-9"}
    server = scripted(
        *(
            (200, {"Content-Type": kind, **id_header}, content, 0.0)
            for kind, content in kinds.items()
        )
    )
    for kind in kinds:
        with pytest.raises(OnnxserveError, match=rf"status 200 .*\({kind}\)") as refused:
            ask(Client(server.url, "e"))
        assert refused.value.status == 200
        assert refused.value.request_id == "r-9"


@pytest.mark.parametrize("request_id", ["a\nb", "→"])
def test_invalid_request_id_is_refused(flights, request_id):
    with pytest.raises(InvalidRequest, match="cannot be sent"):
        flights.predict([{"carrier": "AA"}], request_id=request_id)


@pytest.mark.parametrize(
    "url", ["localhost:8123", "ftp://x", "http://", "", "http://[x", "http://x:99999"]
)
def test_invalid_url_is_refused(url):
    with pytest.raises(InvalidConfig, match="http://HOST:PORT is expected"):
        Client(url)


def test_pauses_double_and_follow_retry_after():
    policy = RetryPolicy(first_pause_seconds=1, max_pause_seconds=5)
    generator = random.Random(1)

    pauses = [
        [policy.pause_seconds(attempt, None, generator) for _ in range(500)] for attempt in range(4)
    ]

    assert [round(max(sample)) for sample in pauses] == [1, 2, 4, 5]
    assert min(map(min, pauses)) < 0.1
    assert all(3 <= policy.pause_seconds(0, 3, generator) <= 3.3 for _ in range(100))


def test_threads_share_a_client(flights):
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: values_of(flights.predict(FRAME)), range(16)))
    assert answers == [["yes", "no"]] * 16


def test_asyncio_client_asks_concurrently(served):
    async def ask():
        async with AsyncClient(served("flights"), timeout_seconds=20) as client:
            assert await client.ready()
            assert (await client.metadata())["name"] == "flights"
            assert "probabilities" in (await client.infer(COLUMNS)).values
            with pytest.raises(InvalidRequest):
                await client.explain(FRAME)
            predictions = await asyncio.gather(*(client.predict(FRAME) for _ in range(20)))
            assert await client.feedback(predictions[0], ["yes", "no"]) == 2
            return predictions

    assert [values_of(answer) for answer in asyncio.run(ask())] == [["yes", "no"]] * 20


@pytest.mark.long
def test_client_survives_a_server_restart(serve, tmp_path, free_port):
    model = mixed_model(tmp_path / "flights")
    arguments = (str(model), "-p", str(free_port))
    with Client(f"http://127.0.0.1:{free_port}") as client:
        for _ in range(2):
            server = serve(*arguments).wait_ready()
            assert values_of(client.predict(FRAME)) == ["yes", "no"]
            assert client.infer(COLUMNS).values["label"].tolist() == ["yes", "no"]
            server.end()
        with pytest.raises(NotReady):
            client.predict(FRAME)


def test_client_imports_neither_mlflow_nor_pandas():
    heavy = "{'mlflow', 'pandas', 'flask', 'pyarrow'}"
    code = (
        f"import sys, mlflow_deploy_plugin.serve.client.client; print({heavy} & set(sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert ran.stdout.strip() == "set()"
