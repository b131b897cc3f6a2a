"""Requests and responses of `/invocations` in every format, by the function and by a
real server.
"""

import json

import numpy as np
import pyarrow as pa
import pytest

from mlflow_deploy_plugin.serve.protocols import arrow
from tests.support.bodies import arrow_stream
from tests.support.handling import ask
from tests.support.refusals import mentions
from tests.support.servers import one_endpoint, opened

TABLE = pa.table({"a": [1.0, 4.0], "b": [2.0, 5.0], "c": [3.0, None]})


BODIES = {
    "application/json": b'{"inputs": [[1, 2, 3], [4, 5, null]]}',
    "text/csv": b"a,b,c\n1,2,3\n4,5,\n",
    arrow.STREAM: arrow_stream(TABLE),
    "application/jsonl": b'{"a":1,"b":2,"c":3}\n{"a":4,"b":5,"c":null}\n',
    "application/x-ndjson; charset=utf-8": b"[1,2,3]\n[4,5,null]\n",
}
READ = {
    "application/json": lambda body: [row[0] for row in json.loads(body)["predictions"]],
    arrow.STREAM: lambda body: pa.ipc.open_stream(body).read_all()["prediction"].to_pylist(),
    arrow.FILE: lambda body: pa.ipc.open_file(body).read_all()["prediction"].to_pylist(),
    **dict.fromkeys(
        ("application/jsonl", "application/x-ndjson"),
        lambda body: [json.loads(line)[0] for line in body.splitlines()],
    ),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory, model_folders):
    state_dir = tmp_path_factory.mktemp("formats") / "state"
    with opened(state_dir, one_endpoint(model_folders["single"])) as server:
        yield server


def check(response, form):
    assert response.status == 200, response.body
    assert response.content_type == form
    assert {"X-Model-Version", "X-Prediction-Id", "X-Request-Id"} <= response.headers.keys()
    first, second = READ[form](response.body)
    assert first == 6.0
    assert second is None or np.isnan(second)


@pytest.mark.parametrize("path", ["/invocations", "/endpoints/e/invocations"])
@pytest.mark.parametrize("given", BODIES)
def test_body_is_answered_in_kind(server, given, path):
    bare = given.partition(";")[0]
    check(
        ask(server, path, body=BODIES[given], content_type=given),
        bare if bare in READ else "application/json",
    )


@pytest.mark.parametrize("given", BODIES)
@pytest.mark.parametrize("wanted", READ)
def test_accept_chooses_the_format(server, given, wanted):
    accept = f"text/html, {wanted};q=0.9, */*;q=0.1"
    check(ask(server, body=BODIES[given], content_type=given, accept=accept), wanted)


@pytest.mark.parametrize(
    "accept",
    [
        "*/*",
        "application/x-npy",
        "application/vnd.apache.parquet",
        "text/html,application/xhtml+xml",
        "",
        "application/xml;q=",
        "x" * 5000,
    ],
)
def test_unknown_accept_is_answered_in_kind(server, accept):
    for form in (arrow.STREAM, "application/json"):
        check(ask(server, body=BODIES[form], content_type=form, accept=accept), form)


@pytest.mark.parametrize(
    "given", ["application/xml", "application/vnd.apache.parquet", "application/x-npy"]
)
def test_unknown_content_type_is_refused(server, given):
    response = ask(server, body=b"<x/>", content_type=given)
    assert response.status == 415
    taken = ("application/json", "text/csv", arrow.STREAM, "application/jsonl")
    assert mentions(json.loads(response.body)["message"], *taken)


def test_errors_are_always_json(server):
    body = arrow_stream(pa.table({"a": [1.0]}))
    response = ask(server, body=body, content_type=arrow.STREAM)
    assert response.status == 400
    assert response.content_type == "application/json"
    assert mentions(json.loads(response.body)["message"], "'b', 'c'")
