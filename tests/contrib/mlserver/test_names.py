"""Every recorded request, answered by this server with `server.v2_names: mlserver`."""

import json
import re

import pytest
import yaml

from mlflow_deploy_plugin.contrib.mlserver import names
from mlflow_deploy_plugin.core.errors import InvalidRequest
from mlflow_deploy_plugin.core.spec.parts import ServerSpec
from mlflow_deploy_plugin.serve.protocols.content import MOST_CONTAINERS, dump_json
from mlflow_deploy_plugin.serve.protocols.v2 import HEADER_LENGTH_KEY, OCTETS
from projects.mlserver import aspects
from projects.mlserver.record import answer_of_call
from projects.mlserver.sent_requests import FOUR, PD, infer, tensor
from tests.contrib.mlserver.conftest import CODE, FORMS, MAKERS, MODELS, read_recordings
from tests.serve.grpc.conftest import calling
from tests.support import handling, servers
from tests.support.refusals import refused

FORM_CASES = ["onnx", pytest.param("original", marks=pytest.mark.long)]
_MODEL = re.compile(r"/v[12]/models/([\w-]+)")


def of_form(recordings, form):
    """Return the recordings for the models of a form, and for no model."""
    chosen = []
    for recording in recordings:
        match = _MODEL.match(recording["path"])
        if match is None or match[1] in (*FORMS[form], "unknown"):
            chosen.append(recording)
    return chosen


def compare(server, recordings, allowed):
    """Return the differences that are not allowed, by the names of requests, and the
    rows of the table that no answer needs.
    """
    wrong = {}
    unused = set(allowed)
    for recording in recordings:
        theirs = aspects.aspects_of(recording["answer"])
        ours = aspects.aspects_of(aspects.send(server, recording))
        found, used = aspects.differences(recording, theirs, ours, allowed)
        unused -= used
        if found:
            wrong[recording["name"]] = found
    return wrong, {row.reason for row in unused}


@pytest.mark.parametrize("form", FORM_CASES)
def test_mlserver_recordings_are_answered_equally(served, form):
    allowed = aspects.MLSERVER + aspects.OF_FORM[form]
    recordings = of_form(read_recordings("mlserver"), form)
    assert compare(served(form), recordings, allowed) == ({}, set())


@pytest.mark.parametrize("form", FORM_CASES)
def test_kserve_recordings_are_answered_equally_for_mlserver_names(served, form, monkeypatch):
    recordings = of_form(read_recordings("kserve"), form)
    usual = [recording for recording in recordings if not recording["variables"]]
    assert compare(served(form), usual, aspects.KSERVE) == ({}, set())
    monkeypatch.setenv("PREDICT_PROBA", "true")
    others = [recording for recording in recordings if recording["variables"]]
    wrong, _ = compare(served(form), others, ())
    assert len(others) == 3
    assert wrong == {}


def test_recordings_have_enough_models_and_requests():
    names = {folder.name for folder in MODELS.iterdir()}
    assert len(names) >= 12
    assert names == {*FORMS["onnx"], *FORMS["original"]}
    assert len(read_recordings("mlserver")) >= 40


CALLED = {
    "onnx": ("iris", "names", "widths", "flights", "xgb-binary", "lgb-binary", "cat-classes"),
    "original": (*CODE, "mlflow-array"),
}


@pytest.fixture
def called(tmp_path):
    """A server process with the models of the recorded calls."""
    endpoints = {}
    for form, models in CALLED.items():
        for name in models:
            MAKERS[form](name, tmp_path / name)
            endpoints[name] = {"v": servers.variant(tmp_path / name)}
    with calling(tmp_path / "state", endpoints, v2_names="mlserver") as called:
        yield called


@pytest.mark.long
def test_mlserver_calls_are_answered_equally(called):
    port = called.address.rpartition(":")[2]
    wrong = {}
    unused = set(aspects.GRPC)
    for recording in read_recordings("grpc"):
        theirs = aspects.call_aspects(recording["answer"])
        ours = aspects.call_aspects(answer_of_call(port, recording)["answer"])
        found, used = aspects.differences(recording, theirs, ours, aspects.GRPC)
        unused -= used
        if found:
            wrong[recording["name"]] = found
    usual = read_recordings("mlserver")[0]
    answer = called.http.post(usual["path"], json=usual["body"])
    assert (wrong, unused) == ({}, set())
    assert answer.json() == usual["answer"]["body"]
    assert answer.headers["Ce-Id"] == usual["body"]["id"]


def ask(server, sent):
    """Return the status, the headers and the body of the answer to a request."""
    answer = aspects.send(server, sent)
    return answer["status"], answer["headers"], answer["body"]


def columns_of(*sizes):
    """Return tensors a, b, … with these numbers of rows."""
    return [
        {"name": name, "shape": [size], "datatype": "FP64", "data": [1.0] * size}
        for name, size in zip("abcd", sizes, strict=False)
    ]


MANY = [
    {"name": f"c{index}", "shape": [1], "datatype": "FP64", "data": [1]} for index in range(10_001)
]


@pytest.mark.parametrize(
    ("model", "body", "place"),
    [
        ("iris", {"inputs": [], "parameters": PD}, "0"),
        ("iris", {"inputs": [*FOUR, *FOUR]}, "input-0"),
        ("iris", {"inputs": columns_of(1, 2, 1, 1), "parameters": PD}, "'b'"),
        (
            "iris",
            {"inputs": [*columns_of(1), tensor([["x"]], "b", "BYTES")], "parameters": PD},
            "'a'",
        ),
        (
            "iris",
            {"inputs": [*columns_of(1), {**FOUR[0], "shape": [], "data": [1]}], "parameters": PD},
            "input-0",
        ),
        ("iris", {"inputs": MANY}, "c10000"),
        ("flights", {"inputs": MANY}, "c10000"),
        ("iris", {"inputs": FOUR, "outputs": [{"name": "predict"}] * 5}, "5"),
        ("iris", {"inputs": FOUR, "outputs": [1]}, "None"),
        ("iris", {"inputs": FOUR, "outputs": {"name": "predict"}}, "object"),
        ("lgb-binary", {"inputs": FOUR, "outputs": "predict"}, "string"),
        ("iris", {"inputs": FOUR, "outputs": [{"name": "predict", "parameters": 1}]}, "outputs[0]"),
    ],
)
def test_requests_that_do_not_fit_mlserver_are_refused(served, model, body, place):
    sent = {"method": "POST", "path": f"/v2/models/{model}/infer", "body": body}
    status, _, answer = ask(served("onnx"), sent)
    assert (status, place in answer["error"]) == (400, True)


def test_more_rows_than_in_json_are_refused_for_mlserver(served):
    size = MOST_CONTAINERS + 1
    entries = [
        {
            "name": name,
            "shape": [size],
            "datatype": "INT8",
            "parameters": {"binary_data_size": size},
        }
        for name in "abcd"
    ]
    text = dump_json({"inputs": entries, "parameters": PD})
    headers = {HEADER_LENGTH_KEY: str(len(text)), "content-type": OCTETS}
    body = text + bytes(4 * size)
    answer = handling.ask(served("onnx"), "/v2/models/iris/infer", body=body, **headers)
    assert answer.status == 400
    with refused(InvalidRequest, str(MOST_CONTAINERS)):
        names.read_records([{"a": [1] * size}])


def test_columns_of_different_datatypes_become_one_array_for_mlserver(served):
    first, *others = columns_of(1, 1, 1, 1)
    mixed = [{**first, "datatype": "INT64", "data": [1]}, *others]
    sent = infer("", "iris", mixed, parameters=PD)
    same = infer("", "iris", [tensor([[1.0] * 4])])
    outputs = [ask(served("onnx"), request)[2]["outputs"] for request in (sent, same)]
    assert outputs[0] == outputs[1]


def test_binary_output_has_the_name_of_mlserver(served):
    wanted = {"name": "predict", "parameters": {"binary_data": True}}
    sent = infer("", "iris", FOUR, [wanted])
    response = handling.ask(served("onnx"), sent["path"], body=sent["body"])
    length = int(response.headers["Inference-Header-Content-Length"])
    (output,) = json.loads(response.body[:length])["outputs"]
    assert output["parameters"] == {"content_type": "np", "binary_data_size": 24}
    assert len(response.body) == length + 24


@pytest.mark.parametrize("id_", ["x" * 100_000, "\u00e4"])
def test_unusual_id_is_not_in_headers_of_mlserver(served, id_):
    status, headers, body = ask(served("onnx"), infer("", "iris", FOUR, id=id_))
    assert (status, body["id"]) == (200, id_)
    assert re.fullmatch("[0-9a-f]{32}", headers["ce-id"])


def test_namespace_is_in_headers_of_mlserver(tmp_path, monkeypatch):
    file = tmp_path / "namespace"
    file.write_text("flights\n")
    monkeypatch.setattr(names, "_NAMESPACE", file)
    monkeypatch.setenv("MLSERVER_SERVER_NAME", "late")
    names._namespace.cache_clear()
    headers = names.cloud_event("iris", "q1")
    names._namespace.cache_clear()
    assert headers["Ce-Namespace"] == "flights"
    assert headers["Ce-Source"] == "io.seldon.serving.deployment.late.flights"


SKLEARN = "mlserver_sklearn.SKLearnModel"
DECLARED = {
    "name": "a",
    "datatype": "FP64",
    "shape": [-1, 4],
    "parameters": {"content_type": "np"},
}
"""A tensor that settings declare."""


@pytest.fixture(scope="module")
def odd_server(tmp_path_factory):
    """A server of the model `iris` with settings that are not as they should be."""
    root = tmp_path_factory.mktemp("odd")
    MAKERS["onnx"]("iris", root / "iris")
    file = root / "iris" / "MLmodel"
    document = yaml.safe_load(file.read_text())
    endpoints = {}
    for name, settings in {
        "list": [1],
        "path": [],
        "number": {"implementation": 5, "parameters": "x", "versions": 5},
        "large": {
            "implementation": SKLEARN,
            "inputs": [{"name": "a", "datatype": "FP64", "shape": [10**30]}],
        },
        "texts": {
            "implementation": SKLEARN,
            "platform": b"\xff",
            "inputs": [1, {"name": "a", "datatype": "FP64", "shape": ["x"]}],
            "parameters": {"version": "1\nX-Other: 1", "content_type": ["pd"], "extra": "x"},
        },
        "declared": {
            "implementation": SKLEARN,
            "versions": ["sklearn/1.9"],
            "inputs": [DECLARED],
            "parameters": {"extra": {"predict_fn": "predict_proba"}},
        },
    }.items():
        folder = root / name
        folder.mkdir()
        for part in (root / "iris").iterdir():
            if part.is_file():
                (folder / part.name).write_bytes(part.read_bytes())
        (folder / "MLmodel").write_text(
            yaml.safe_dump({**document, "metadata": {"mlserver": settings}})
        )
        # The version of a folder without a registered version is its digest.
        version = {"path": "4bfead35"}.get(name, "1")
        endpoints[name] = {"v": servers.variant(folder, version)}
    spec = ServerSpec.model_validate({"v2_names": "mlserver"})
    with servers.opened(root / "state", endpoints, spec) as server:
        yield server


@pytest.mark.parametrize(
    ("model", "output", "version"),
    [
        ("list", "output-1", "1"),
        ("path", "output-1", None),
        ("number", "predict", None),
        ("texts", "predict", None),
        ("declared", "predict_proba", None),
    ],
)
def test_settings_of_mlserver_may_be_odd(odd_server, model, output, version):
    status, _, answer = ask(odd_server, infer("", model, FOUR))
    assert status == 200
    assert (answer["outputs"][0]["name"], answer.get("model_version")) == (output, version)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("texts", {"inputs": [], "parameters": {"content_type": "['pd']"}}),
        (
            "declared",
            {
                "versions": ["sklearn/1.9"],
                "inputs": [DECLARED],
            },
        ),
    ],
)
def test_metadata_of_mlserver_have_only_declared_tensors(odd_server, model, expected):
    status, _, answer = ask(odd_server, {"method": "GET", "path": f"/v2/models/{model}"})
    assert status == 200
    assert answer | expected == answer


def test_metadata_that_json_cannot_have_are_refused_for_mlserver(odd_server):
    status, _, answer = ask(odd_server, {"method": "GET", "path": "/v2/models/large"})
    assert (status, "MLmodel" in answer["error"]) == (400, True)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([[1, 2]], []),
        ([{"a": 1}, {"a": 2}], [{"a": 1}, {"a": 2}]),
        ([[{"a": 1}], [{"a": 2}, {"a": 3}]], [{"a": 1}, {"a": 2}, {"a": 3}]),
        ([{"a": [1, 2], "b": {"0": 3, "1": 4}}], [{"a": 1, "b": 3}, {"a": 2, "b": 4}]),
    ],
)
def test_records_of_kserve_are_rows_for_mlserver_names(rows, expected):
    assert names.read_records(rows) == expected


@pytest.mark.parametrize("rows", [[{"a": 1}, [1]], [{"a": [1, 2], "b": [1]}], [{"a": 1}, 5]])
def test_uneven_records_are_refused_for_mlserver_names(rows):
    with pytest.raises(InvalidRequest):
        names.read_records(rows)


def test_openapi_document_has_no_output_names_for_mlserver(served):
    path = "/v2/models/iris/docs/dataplane.json"
    document = ask(served("onnx"), {"method": "GET", "path": path})[2]
    content = document["paths"]["/v2/models/iris/infer"]["post"]["responses"]["200"]["content"]
    assert content["application/json"]["schema"] == {
        "type": ["object", "null"],
        "additionalProperties": True,
    }
