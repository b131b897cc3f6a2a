"""TensorFlow Serving's REST protocol, through `handle_request`."""

import base64
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlflow_deploy_plugin.contrib.clouds.protocols import decode_base64
from tests.support import handling, servers

RECORD = {"carrier": "AA", "distance": 100.5, "hour": 3, "late": True}


@pytest.fixture(scope="module")
def server(tmp_path_factory, model_folders, bias_folders):
    variant = servers.variant
    endpoints = {
        "mixed": {"v": variant(model_folders["mixed"], "7")},
        "tensor": {"v": variant(model_folders["tensor"])},
        "single": {
            "champion": variant(bias_folders["1"]),
            "challenger": variant(bias_folders["2"], "2", weight=0, aspects={"alias": "next"}),
        },
    }
    with servers.opened(tmp_path_factory.mktemp("tfserving") / "state", endpoints) as server:
        yield server


def ask(server, path, document=None, method="POST", **headers):
    body = b"" if document is None else document
    response = handling.ask(server, f"/v1/models/{path}", method, body, **headers)
    return response.status, json.loads(response.body)


ROWS = [[[1, 2], [3, 4]], [[5, 6], [7, 8]]]
BY_COLUMN = {"doubled": [[[2, 4], [6, 8]], [[10, 12], [14, 16]]], "total": [10, 26]}
BY_ROW = [dict(zip(BY_COLUMN, row, strict=True)) for row in zip(*BY_COLUMN.values(), strict=True)]


@pytest.mark.parametrize(
    ("document", "answer"),
    [
        ({"instances": ROWS}, {"predictions": BY_ROW}),
        ({"instances": [{"image": row} for row in ROWS]}, {"predictions": BY_ROW}),
        ({"inputs": ROWS}, {"outputs": BY_COLUMN}),
        ({"inputs": {"image": ROWS}}, {"outputs": BY_COLUMN}),
    ],
)
def test_rows_and_columns_are_answered_in_kind(server, document, answer):
    assert ask(server, "tensor:predict", document) == (200, answer)


@pytest.mark.parametrize(
    ("document", "answer"),
    [
        ({"instances": [[1, 2, 3]]}, {"predictions": [[1006]]}),
        ({"inputs": {"a": [1], "b": [2], "c": [3]}}, {"outputs": [[1006]]}),
    ],
    ids=["rows", "columns"],
)
def test_one_output_has_no_name(server, document, answer):
    assert ask(server, "single:predict", document) == (200, answer)


def test_text_may_be_plain_or_base64(server):
    status, plain = ask(
        server, "mixed:predict", {"instances": [RECORD], "signature_name": "serving_default"}
    )
    coded = {**RECORD, "carrier": {"b64": base64.b64encode(b"AA").decode()}}
    assert status == 200
    assert plain["predictions"][0]["label"] == "yes"
    assert ask(server, "mixed:predict", {"instances": [coded]}) == (200, plain)


@settings(max_examples=25)
@given(
    st.recursive(
        st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=2), inner)
    )
)
def test_base64_is_decoded_at_any_depth(document):
    def coded(value):
        if isinstance(value, str):
            return {"b64": base64.b64encode(value.encode("utf-8", "surrogatepass")).decode()}
        if isinstance(value, list):
            return [coded(v) for v in value]
        return {k: coded(v) for k, v in value.items()}

    decoded = decode_base64({"instances": coded(document)})
    assert decoded == {"instances": document}


@pytest.mark.parametrize("chosen", ["/versions/2", "/labels/challenger", "/labels/next"])
def test_version_is_chosen_by_number_or_label(server, chosen):
    predicted = ask(server, f"single{chosen}:predict", {"instances": [[1, 2, 3]]})
    assert predicted == (200, {"predictions": [[2006]]})
    _, document = ask(server, f"single{chosen}", method="GET")
    assert [entry["version"] for entry in document["model_version_status"]] == ["2"]


def test_status_lists_the_loaded_versions(server):
    entries = [
        {"version": v, "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
        for v in "12"
    ]
    kserve = {"name": "single", "ready": True}
    assert ask(server, "single", method="GET") == (200, {"model_version_status": entries, **kserve})


def test_metadata_describe_inputs_and_outputs(server):
    status, document = ask(server, "mixed/metadata", method="GET")
    signature = document["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert status == 200
    assert document["model_spec"] == {"name": "mixed", "signature_name": "", "version": "7"}
    assert {name: entry["dtype"] for name, entry in signature["inputs"].items()} == {
        "carrier": "DT_STRING",
        "distance": "DT_DOUBLE",
        "hour": "DT_INT64",
        "late": "DT_BOOL",
    }
    sizes = [{"size": "-1", "name": ""}, {"size": "2", "name": ""}]
    assert signature["outputs"]["probabilities"] == {
        "dtype": "DT_FLOAT",
        "tensor_shape": {"dim": sizes, "unknown_rank": False},
        "name": "probabilities",
    }
    assert signature["method_name"] == "tensorflow/serving/predict"


@pytest.mark.parametrize(
    ("path", "document", "status", "words"),
    [
        ("none:predict", {"instances": [1]}, 404, "'none'"),
        ("single/versions/9:predict", {"instances": [1]}, 404, "'9'"),
        ("single/labels/stable:predict", {"instances": [1]}, 404, "'stable'"),
        ("single:classify", {"examples": []}, 404, "/v1/models/single:predict"),
        ("single:predict", {"instances": [1], "inputs": [1]}, 400, "either"),
        ("single:predict", {"instances": {"a": 1}}, 400, "instances"),
        (
            "single:predict",
            {"instances": [[1, 2, 3]], "signature_name": "other"},
            400,
            "'other'",
        ),
        ("mixed:predict", {"instances": [{**RECORD, "carrier": {"b64": "%"}}]}, 400, "base64"),
        ("mixed:predict", {"instances": [{**RECORD, "carrier": {"b64": "gA=="}}]}, 400, "UTF-8"),
        ("mixed:predict", {"b64": "aGk="}, 400, "instances"),
        (
            "tensor:predict",
            {"instances": [{"image": ROWS[0]}, {"picture": ROWS[1]}]},
            400,
            "row 1",
        ),
    ],
)
def test_errors_have_tensorflow_form(server, path, document, status, words):
    answered, error = ask(server, path, document)
    assert answered == status
    assert error.keys() == {"error"}
    assert words in error["error"]


def test_content_type_is_ignored(server):
    """TensorFlow's own examples send curl's default."""
    headers = {"content_type": "application/x-www-form-urlencoded"}
    assert ask(server, "single:predict", {"instances": [[1, 2, 3]]}, **headers)[0] == 200
