"""The Open Inference Protocol V2 through `handle_request`."""

import json
import struct
import tracemalloc

import numpy as np
import pytest

from mlflow_deploy_plugin.serve.messages import RawRequest
from mlflow_deploy_plugin.serve.protocols import large_json
from tests.support.bodies import v2_tensor
from tests.support.handling import handle
from tests.support.servers import opened, variant

X = v2_tensor("X", "FP32", [1, 2, 3, 4, 5, 6], [2, 3])
Y = v2_tensor("y", "FP32", [6.0, 15.0], [2, 1])
SIX = np.arange(1, 7, dtype="<f4").tobytes()
HEADER_LENGTH = "inference-header-content-length"


@pytest.fixture(scope="module", params=[large_json.LARGE_BYTES, 0], ids=["exact", "fast"])
def server(request, tmp_path_factory, model_folders):
    """A server that reads requests by the exact reader, or as large ones."""
    variants = {kind: {"v": variant(folder, "7")} for kind, folder in model_folders.items()}
    with (
        pytest.MonkeyPatch.context() as patch,
        opened(tmp_path_factory.mktemp("v2") / "state", variants) as server,
    ):
        patch.setattr(large_json, "LARGE_BYTES", request.param)
        patch.setattr(large_json, "_COLUMN_BYTES", 1)
        yield server


def ask(server, document, model="single", binary=None, **more):
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    headers = {} if binary is None else {HEADER_LENGTH: str(len(body))}
    fields = {name.replace("_", "-"): value for name, value in more.items()}
    return handle(
        server,
        RawRequest("POST", f"/v2/models/{model}/infer", headers | fields, body + (binary or b"")),
    )


def outputs(response):
    assert response.status == 200, response.body
    return json.loads(response.body)["outputs"]


def error(response):
    assert response.status == 400, response.body
    document = json.loads(response.body)
    assert list(document) == ["error"]
    return str(document["error"])


def column(name, datatype, *values):
    return v2_tensor(name, datatype, list(values))


def columns(**changed):
    """Return a request to the mixed model, one row by columns."""
    tensors = {
        "carrier": column("carrier", "BYTES", "AA"),
        "distance": column("distance", "FP64", 0.0),
        "hour": column("hour", "INT64", 0),
        "late": column("late", "BOOL", False),
    }
    return {"inputs": [tensor for tensor in (tensors | changed).values() if tensor]}


def test_answer_has_names_shapes_and_datatypes(server):
    response = ask(server, {"id": "mine", "inputs": [X]})
    assert response.status == 200
    assert response.content_type == "application/json"
    assert json.loads(response.body) == {
        "model_name": "single",
        "model_version": "7",
        "id": "mine",
        "outputs": [Y],
    }
    assert response.headers["X-Request-Id"] == "mine"
    assert response.headers["X-Prediction-Id"]


@pytest.mark.parametrize(("named", "told"), [({}, "header"), ({"id": "body"}, "body")])
def test_answer_has_the_id_of_its_request(server, named, told):
    response = ask(server, {**named, "inputs": [X]}, x_request_id="header")
    assert json.loads(response.body)["id"] == told
    assert response.headers["X-Request-Id"] == "header"


@pytest.mark.parametrize(
    "change",
    [
        {"data": [[1, 2, 3], [4, 5, 6]]},
        {"datatype": "INT8"},
        {"datatype": "UINT64"},
        {"parameters": {"anything": 1}},
        {"parameters": None},
    ],
)
def test_numbers_of_any_datatype_become_floats(server, change):
    assert outputs(ask(server, {"inputs": [X | change], "parameters": {"priority": 3}})) == [Y]


TUTORIALS = ["input-0", "predict", "input-1"]
"""The documentation and codecs of KServe, Seldon and MLServer name the only input of
any model so.
"""


@pytest.mark.parametrize("name", TUTORIALS)
def test_only_tensor_may_have_a_tutorial_name(server, name):
    assert outputs(ask(server, {"inputs": [X | {"name": name}]})) == [Y]
    assert outputs(ask(server, {"inputs": [binary(name, "FP32", [2, 3], 24)]}, binary=SIX)) == [Y]


@pytest.mark.parametrize(
    ("model", "tensor", "others", "told"),
    [
        ("single", X | {"name": "predict"}, [column("a", "FP32", 1, 2)], "'predict'"),
        ("single", column("predict", "FP32", 1, 2), [], "'predict'"),
        ("mixed", X | {"name": "predict"}, [], "'predict'"),
        ("tensor", v2_tensor("predict", "FP32", [1, 2, 3, 4], [1, 4]), [], "[any, 2, 2]"),
    ],
)
def test_ambiguous_tutorial_name_is_refused(server, model, tensor, others, told):
    assert told in error(ask(server, {"inputs": [tensor, *others]}, model))


def test_base64_content_type_is_decoded(server):
    def carrier(text):
        return column("carrier", "BYTES", text) | {"parameters": {"content_type": "base64"}}

    plain = outputs(ask(server, columns(), "mixed"))
    assert outputs(ask(server, columns(carrier=carrier("QUE=")), "mixed")) == plain
    assert "'carrier'" in error(ask(server, columns(carrier=carrier("/9j/")), "mixed"))


def test_signature_columns_are_tensors(server):
    one_by_one = [
        v2_tensor("a", "INT32", [1, 4]),
        v2_tensor("b", "FP64", [[2], [5]], [2, 1]),
        v2_tensor("c", "FP32", [3.0, 6.0], [2, 1]),
    ]
    assert outputs(ask(server, {"inputs": one_by_one})) == [Y]
    label, probabilities = outputs(ask(server, columns(), "mixed"))
    assert label == v2_tensor("label", "BYTES", ["yes"])
    chances = pytest.approx([0.2689414, 0.7310586], abs=1e-6)
    assert (probabilities["shape"], probabilities["data"]) == ([1, 2], chances)


@pytest.mark.parametrize(
    ("model", "tensor", "answer"),
    [
        ("stock", X, [6.5, 15.5]),
        ("tensor", v2_tensor("image", "FP32", [1, 2, 3, 4], [1, 2, 2]), [2.0, 4.0, 6.0, 8.0]),
    ],
)
def test_models_without_columns_take_graph_tensors(server, model, tensor, answer):
    assert outputs(ask(server, {"inputs": [tensor]}, model))[0]["data"] == answer


def test_null_is_a_missing_number(server):
    (answer,) = outputs(ask(server, {"inputs": [X | {"data": [1, None, 3, 4, 5, 6]}]}))
    assert answer["data"] == [None, 15.0]


def test_null_fields_are_ignored(server):
    nothing = dict.fromkeys(["id", "parameters", "outputs"])
    assert outputs(ask(server, {**nothing, "inputs": [X]})) == [Y]


def test_surrogate_in_a_string_is_refused(server):
    document = columns(
        carrier=column("carrier", "BYTES", "\ud800"),
        distance=column("distance", "FP64", float("nan")),
    )
    assert error(ask(server, document, "mixed"))


@pytest.mark.parametrize("names", [["probabilities"], ["probabilities", "label"]])
def test_requested_outputs_are_answered_in_order(server, names):
    document = {**columns(), "outputs": [{"name": name} for name in names]}
    assert [output["name"] for output in outputs(ask(server, document, "mixed"))] == names


def binary(name, datatype, shape, size):
    return {
        "name": name,
        "shape": shape,
        "datatype": datatype,
        "parameters": {"binary_data_size": size},
    }


def test_tensors_may_be_bytes_after_the_json(server):
    tensors = [
        binary("carrier", "BYTES", [2], 14),
        column("distance", "FP64", 0, 0),
        binary("hour", "INT16", [2, 1], 4),
        binary("late", "BOOL", [2], 2),
    ]
    blob = struct.pack("<I2sI4s", 2, b"AA", 4, "ÄÖ".encode()) + bytes(4) + b"\x00\x01"
    document = {
        "inputs": tensors,
        "outputs": [{"name": "label", "parameters": {"binary_data": True}}],
    }
    response = ask(server, document, "mixed", blob, content_type="application/octet-stream")
    assert response.content_type == "application/octet-stream", response.body
    length = int(response.headers["Inference-Header-Content-Length"])
    (label,) = json.loads(response.body[:length])["outputs"]
    assert label == binary("label", "BYTES", [2], 14)
    assert response.body[length:] == struct.pack("<I3sI3s", 3, b"yes", 3, b"yes")


def test_request_may_want_all_outputs_as_bytes(server):
    document = {
        "inputs": [binary("X", "FP32", [2, 3], 24)],
        "parameters": {"binary_data_output": True},
    }
    response = ask(server, document, binary=SIX)
    assert response.body[int(response.headers["Inference-Header-Content-Length"]) :] == struct.pack(
        "<2f", 6, 15
    )
    document["outputs"] = [{"name": "y", "parameters": {"binary_data": False}}]
    assert outputs(ask(server, document, binary=SIX)) == [Y]


BIG = 2**62
TENSOR_CASES = {
    "too few elements": ({"data": [1, 2]}, "2 elements"),
    "a huge shape": ({"shape": [BIG, BIG]}, str(BIG * BIG)),
    "a shape beyond 64 bits": ({"shape": [2**64]}, "an array of sizes"),
    "a negative size": ({"shape": [-1, 3]}, "an array of sizes"),
    "another rank": ({"shape": [6]}, "[any, 3]"),
    "partly nested": ({"data": [[1, 2, 3], 4, 5, 6]}, "nested as its shape"),
    "too large for FP16": ({"datatype": "FP16", "data": [1e6, 2, 3, 4, 5, 6]}, "does not fit FP16"),
    "a datatype that is none": ({"datatype": ["FP32"]}, "FP32"),
    "a boolean size": ({"shape": [True, 6]}, "an array of sizes"),
    "an empty tensor of another width": ({"shape": [0, 2], "data": []}, "no rows"),
    "rows without elements": ({"shape": [BIG, 0], "data": []}, "empty"),
    "elements without rows": ({"shape": [0, 2**62, 2**62], "data": []}, "empty"),
    "too many dimensions": ({"shape": [3] * 100_000}, "100000 dimensions"),
    "another width": ({"shape": [3, 2]}, "[any, 3]"),
    "ragged": ({"data": [[1, 2, 3], [4, 5]]}, "ragged"),
    "nested too deeply": (
        {"data": [[[1], [2], [3]], [[4], [5], [6]]]},
        "element 0",
    ),
    "nested otherwise": ({"data": [[1, 2], [3, 4], [5, 6]]}, "nested as its shape"),
    "a string among numbers": (
        {"data": [1, 2, "far", 4, 5, 6]},
        "element 2",
    ),
    "a boolean among numbers": ({"data": [1, True, 3, 4, 5, 6]}, "element 1"),
    "no array": ({"data": 5}, "an array"),
    "a fraction in integers": (
        {"datatype": "INT32", "data": [1.5, 2, 3, 4, 5, 6]},
        "element 0",
    ),
    "a null in integers": (
        {"datatype": "INT32", "data": [1, None, 3, 4, 5, 6]},
        "element 1",
    ),
    "too large for its datatype": (
        {"datatype": "UINT8", "data": [256, 2, 3, 4, 5, 6]},
        "does not fit UINT8",
    ),
    "too large for the graph": (
        {"datatype": "FP64", "data": [1e300, 2, 3, 4, 5, 6]},
        "does not fit float32",
    ),
    "booleans for floats": (
        {"datatype": "BOOL", "data": [True] * 6},
        "FP32 is expected",
    ),
    "an unknown datatype": ({"datatype": "FP8"}, "'FP8'"),
    "an unknown tensor": ({"name": "Z", "shape": [6]}, "X, a, b, c"),
    "a name with a surrogate": ({"name": "\ud800", "data": [float("nan")] * 6}, "not valid JSON"),
    "a name that is none": ({"name": 5}, "inputs[0]"),
    "data and bytes": ({"parameters": {"binary_data_size": 24}}, "either data or"),
    "shared memory": (
        {"parameters": {"shared_memory_region": "r"}},
        "shared_memory_region",
    ),
    "parameters that are none": ({"parameters": [1]}, "parameters"),
}
OF_TENSORS = {
    "no inputs": ({}, "inputs"),
    "empty inputs": ({"inputs": []}, "'a', 'b', 'c'"),
    "inputs as an object": ({"inputs": {"X": X}}, "inputs"),
    "an input that is none": ({"inputs": [5]}, "inputs[0]"),
    "a tensor twice": ({"inputs": [X, X]}, "repeated"),
    "no data": ({"inputs": [{"name": "X", "shape": [2, 3], "datatype": "FP32"}]}, "data"),
    "an array": ([1], "object"),
    "no JSON": (b"{", "not valid JSON"),
    "an id that is none": ({"id": 5, "inputs": [X]}, "id"),
    "an id of two lines": ({"id": "a\nb", "inputs": [X]}, "id"),
    "an unknown output": ({"inputs": [X], "outputs": [{"name": "z"}]}, "'z'"),
    "an output twice": ({"inputs": [X], "outputs": [{"name": "y"}, {"name": "y"}]}, "repeated"),
    "an output that is none": ({"inputs": [X], "outputs": ["y"]}, "outputs[0]"),
    "classification": (
        {"inputs": [X], "outputs": [{"name": "y", "parameters": {"classification": 2}}]},
        "classification",
    ),
    "a flag that is none": (
        {"inputs": [X], "parameters": {"binary_data_output": 1}},
        "binary_data_output",
    ),
    "half columns, half tensors": ({"inputs": [X, column("a", "FP32", 1, 2)]}, "unknown"),
}
OF_COLUMNS = {
    "a missing column": (columns(late=None), "missing"),
    "columns of two lengths": (columns(hour=column("hour", "INT64", 1, 2)), "'hour'"),
    "a column that is a table": (
        columns(hour=v2_tensor("hour", "INT64", [1, 2], [1, 2])),
        "'hour'",
    ),
    "a number for a string": (columns(carrier=column("carrier", "INT64", 5)), "'carrier'"),
    "floats for integers": (columns(hour=column("hour", "FP32", 5)), "INT64"),
    "an integer for a boolean": (columns(late=column("late", "UINT8", 1)), "BOOL"),
    "a scalar": (columns(hour=column("hour", "INT64", 1) | {"shape": []}), "'hour'"),
    "a missing string": (columns(carrier=column("carrier", "BYTES", None)), "'carrier'"),
}
OTHER_CASES = [
    pytest.param(model, *case, id=name)
    for model, cases in (("single", OF_TENSORS), ("mixed", OF_COLUMNS))
    for name, case in cases.items()
]
BINARY_CASES = {
    "too few bytes": (
        binary("X", "FP32", [2, 3], 24),
        SIX[:-1],
        "23 bytes are left",
    ),
    "bytes that nobody names": (binary("X", "FP32", [2, 3], 24), SIX + b"x", "25 bytes"),
    "a size that is not the shape's": (
        binary("X", "FP32", [2, 3], 20),
        SIX,
        "20 bytes",
    ),
    "a huge shape": (
        binary("X", "FP32", [BIG, BIG], 24),
        SIX,
        str(4 * BIG * BIG),
    ),
    "a negative size": (binary("X", "FP32", [2, 3], -24), SIX, "-24"),
    "a boolean size": (binary("X", "FP32", [2, 3], True), SIX, "true"),
    "a string cut off": (
        binary("X", "BYTES", [1], 6),
        struct.pack("<I2s", 3, b"ab"),
        "within element 0",
    ),
    "a length cut off": (
        binary("X", "BYTES", [2], 6),
        struct.pack("<IH", 0, 0),
        "within element 1",
    ),
    "not UTF-8": (
        binary("X", "BYTES", [1], 5),
        struct.pack("<Is", 1, b"\xff"),
        "element 0",
    ),
    "too few strings": (binary("X", "BYTES", [3], 4), bytes(4), "1 elements"),
}


@pytest.mark.parametrize(("change", "told"), TENSOR_CASES.values(), ids=TENSOR_CASES)
def test_wrong_tensor_is_named(server, change, told):
    message = error(ask(server, {"inputs": [X | change]}))
    assert told in message
    assert len(message) < 1500
    assert outputs(ask(server, {"inputs": [X]})) == [Y]


@pytest.mark.parametrize(("model", "document", "told"), OTHER_CASES)
def test_wrong_request_is_refused(server, model, document, told):
    message = error(ask(server, document, model))
    assert told in message


@pytest.mark.parametrize(("tensor", "blob", "told"), BINARY_CASES.values(), ids=BINARY_CASES)
def test_wrong_bytes_are_refused(server, tensor, blob, told):
    message = error(ask(server, {"inputs": [tensor]}, binary=blob))
    assert told in message


@pytest.mark.parametrize("given", ["", "-1", "1e3", "99999", "²", "9" * 5000])
def test_wrong_json_length_is_refused(server, given):
    message = error(ask(server, {"inputs": [X]}, inference_header_content_length=given))
    assert "Inference-Header-Content-Length" in message


@pytest.mark.parametrize(
    ("given", "status"), [("application/x-www-form-urlencoded", 200), ("text/csv", 415)]
)
def test_content_type_of_curl_is_accepted(server, given, status):
    assert ask(server, {"inputs": [X]}, content_type=given).status == status


@pytest.mark.parametrize(("shape", "data"), [([2**40], [1]), ([2**40, 0], []), ([2**20] * 32, [1])])
def test_huge_shape_takes_no_memory(server, shape, data):
    tracemalloc.start()
    try:
        error(ask(server, {"inputs": [X | {"shape": shape, "data": data}]}))
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
