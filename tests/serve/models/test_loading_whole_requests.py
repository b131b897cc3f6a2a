"""A request to a graph without a batch dimension is one row, and it is never batched
with other requests.
"""

import json
import os
import re
from typing import Any

import pytest

from mlflow_deploy_plugin.core.spec.parts import ServerSpec
from mlflow_deploy_plugin.core.statedir.files import SPOOL, read_state, worker_file
from mlflow_deploy_plugin.core.statedir.models import WorkerState
from tests.support.bodies import v2_tensor
from tests.support.handling import ask
from tests.support.models import write_model
from tests.support.servers import opened, variant
from tests.support.spool import read_segment

GRAPHS = {
    "fixed": "g (float[3,2] x) => (float[3,2] y) { y = Neg(x) }",
    "pair": (
        "g (float[N,2] a, float[M,2] b) => (float[N,M] y) { c = Transpose<perm = [1, 0]>(b) \n"
        " y = MatMul(a, c) }"
    ),
    "scalar": (
        "g (float s, string[2] t) => (float y, string[2] u) { y = Neg(s) \n u = Identity(t) }"
    ),
    "nothing": "g () => (float[2] y) <float[2] c = {1, 2}> { y = Identity(c) }",
}
REASONS = {
    "fixed": "its input 'x' has the fixed first size 3",
    "pair": "the first dimensions of its inputs are not the same: 'a' (N), 'b' (M)",
    "scalar": "its input 's' is a scalar",
    "nothing": "it has no inputs",
}
INPUTS: dict[str, dict[str, Any]] = {
    "fixed": {"x": [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]},
    "pair": {"a": [[1.0, 2.0]], "b": [[1.0, 1.0], [2.0, 0.0], [0.0, 2.0]]},
    "scalar": {"s": 2.5, "t": ["p", "q"]},
    "nothing": {},
}
ANSWERS: dict[str, dict[str, Any]] = {
    "fixed": {"y": [[-1.0, -2.0], [-3.0, -4.0], [-5.0, -6.0]]},
    "pair": {"y": [[3.0, 2.0, 4.0]]},
    "scalar": {"y": -2.5, "u": ["p", "q"]},
    "nothing": {"y": [1.0, 2.0]},
}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Serve each graph at an endpoint with its name, with batching and capture."""
    root = tmp_path_factory.mktemp("whole")
    folders = {name: write_model(root / name, graph) for name, graph in GRAPHS.items()}
    endpoints = {name: {"main": variant(folder)} for name, folder in folders.items()}
    with opened(root / "state", endpoints, ServerSpec(max_batch_size=8)) as server:
        yield server


def told(server, path, body=None):
    response = ask(server, path, "GET") if body is None else ask(server, path, body=body)
    assert response.status == 200, response.body
    return json.loads(response.body)


def captured(server):
    """Return the last captured request."""
    (segment,) = (server.repository.state_dir / SPOOL).glob("*.seg")
    return read_segment(segment)[0][-1]


def batch_rows(server, name):
    counted = rf'^onnxserve_batch_rows_sum{{.*"{name}".*}} (.+)$'
    return sum(map(float, re.findall(counted, server.metrics.page().decode(), re.MULTILINE)))


@pytest.mark.parametrize("name", GRAPHS)
def test_protocols_answer_for_whole_requests(server, name):
    document = {"inputs": INPUTS[name]}
    answers = ANSWERS[name]
    assert told(server, f"/endpoints/{name}/invocations", document) == {"predictions": answers}
    batch = told(server, f"/endpoints/{name}/predict/batch", document)
    only = next(iter(answers.values()))
    assert batch["count"] == 1
    assert batch["predictions"] == (only if len(answers) == 1 else answers)
    if name == "fixed":
        assert told(server, "/predict", INPUTS[name])["prediction"] == only
        features = {"features": INPUTS[name]["x"]}
        assert told(server, "/predict", features)["prediction"] == only


@pytest.mark.parametrize("name", GRAPHS)
def test_missing_batch_dimension_is_reported(server, name):
    assert server.repository.select_variant(name).loaded.batcher is None
    reason = f"none: {REASONS[name]}"
    assert told(server, f"/v2/models/{name}")["parameters"] == {"batch_dimension": reason}
    config = told(server, f"/v2/models/{name}/config")
    assert config["max_batch_size"] == 0
    assert config["parameters"] == {"batch_dimension": {"string_value": reason}}
    state = read_state(worker_file(server.repository.state_dir, os.getpid()), WorkerState)
    assert state is not None
    assert state.endpoints[name]["main"].no_batch == REASONS[name]


@pytest.mark.parametrize("name", GRAPHS)
def test_pages_are_served(server, name):
    for path in (
        f"/endpoints/{name}",
        f"/endpoints/{name}/docs",
        f"/endpoints/{name}/openapi.json",
    ):
        assert ask(server, path, "GET").status == 200, path


@pytest.mark.parametrize("name", ["fixed", "pair", "scalar"])
def test_whole_request_is_one_logged_row(server, name):
    before = batch_rows(server, name)

    told(server, f"/endpoints/{name}/invocations", {"inputs": INPUTS[name]})

    assert batch_rows(server, name) == before + 1
    request = captured(server)
    assert {key: array.tolist() for key, array in request.feeds.items()} == {
        key: [value] for key, value in INPUTS[name].items()
    }
    assert {key: array.tolist() for key, array in request.outputs.items()} == {
        key: [value] for key, value in ANSWERS[name].items()
    }


TABLES = [
    ("text/csv", b"s,t\n1,2\n"),
    ("application/jsonl", b'{"s": 1, "t": "a"}\n'),
    ("application/jsonl", b"[1, 2]\n[3, 4]\n"),
    ("application/json", b'{"dataframe_split": {"columns": ["s"], "data": [[1]]}}'),
    ("application/json", b'{"dataframe_records": [{"s": 1, "t": "a"}]}'),
    ("application/json", b'{"instances": [{"x": [1, 2]}]}'),
    ("application/json", b'{"inputs": 1}'),
    ("application/json", b'{"inputs": []}'),
]


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("accept", ["application/json", "application/vnd.apache.arrow.stream"])
def test_tables_are_never_server_errors(server, name, accept):
    paths = (f"/endpoints/{name}/invocations", f"/endpoints/{name}/predict/batch")
    for content_type, body in TABLES:
        for path in (*paths, f"/v1/models/{name}:predict"):
            response = ask(server, path, body=body, content_type=content_type, accept=accept)
            assert response.status < 500, (path, body, response.body)


def test_empty_rows_are_accepted(server):
    empty = v2_tensor("a", "FP32", [], [0, 2])
    full = v2_tensor("b", "FP32", [1, 2], [1, 2])
    (output,) = told(server, "/v2/models/pair/infer", {"inputs": [empty, full]})["outputs"]
    assert output["shape"] == [0, 1]
    assert output["data"] == []


def test_one_row_graph_is_a_row(tmp_path, serve_here):
    folder = write_model(tmp_path / "one", "g (float[1,2] x) => (float[1,2] y) { y = Neg(x) }")
    server = serve_here({"one": {"main": variant(folder)}})
    assert told(server, "/predict", {"x": [1.0, 2.0]})["prediction"] == [-1.0, -2.0]
    assert captured(server).feeds["x"].tolist() == [[1.0, 2.0]]
    assert "fixed first size 1" in told(server, "/v2/models/one")["parameters"]["batch_dimension"]
