"""Large bodies of numbers have the same result as with `content.load_json`, or are left
to it.
"""

import json
from importlib.util import find_spec
from itertools import chain, product
from types import SimpleNamespace

import numpy as np
import pytest

from mlflow_deploy_plugin.core.errors import OnnxserveError
from mlflow_deploy_plugin.serve.protocols import large_json, mlflow, v2
from mlflow_deploy_plugin.serve.protocols.content import JSON, load_json
from mlflow_deploy_plugin.serve.runtime.artifact import Column, Input, read_artifact
from mlflow_deploy_plugin.serve.runtime.schemas.schema import compile_schema
from tests.support.bodies import v2_tensor
from tests.support.schemas import columns_schema, tensor_schema

needs_simdjson = pytest.mark.skipif(not find_spec("simdjson"), reason="simdjson is not installed")
SCHEMAS = {
    "doubles": compile_schema(
        tuple(Column(name, "double") for name in "abc"),
        (),
        (Input("X", "float32", (-1, 3), ("a", "b", "c")),),
    ),
    "both": compile_schema(
        (Column("a", "double"), Column("b", "float"), Column("c", "double", required=False)),
        (),
        (Input("X", "float64", (-1, 2), ("c", "b")), Input("a", "float32", (-1, 1), ("a",))),
    ),
    "longs": columns_schema(a="long"),
    "matrix": tensor_schema("float32", -1, 3),
    "pairs": tensor_schema("float32", -1, 2),
    "image": tensor_schema("float64", -1, 2, 2, fed="float32"),
    "mixed": compile_schema(
        (Column("a", "long"), Column("b", "double"), Column("c", "integer")),
        (),
        (Input("X", "float32", (-1, 2), ("a", "b")), Input("c", "int32", (-1, 1), ("c",))),
    ),
    "bytes": tensor_schema("uint8", -1, 2, 2),
    "named": tensor_schema("float32", -1, 3, name="a", graph_name="a"),
    "whole": tensor_schema("int64", -1, 3),
}


def outcome(ask):
    try:
        feeds = ask()
    except OnnxserveError as error:
        return type(error), error.message
    return {name: (array.dtype.str, array.shape, array.tobytes()) for name, array in feeds.items()}


EXTREMES = [
    *(-9, 0, 20.0, 127, 128, 255, 300, 2**31, 3e9, 2**53, 2**53 + 1, 2**63 - 1, 2**63),
    *(2**64 - 1, 2**64, -(2**63), 10**30, -0.0, 0.1, 65504.0, 65520.0, 3.4e38, 1e39, -1e308),
    *(None, True, "", "ü", "[", [], [1.0], {}, [[1]]),
]


def documents(value):
    """Yield tables and images with this value, in every form."""
    for rows in ([[value, 1, 2], [3, 4.5, value]], [[1, value]], [[[value, 1], [2, 3]]], [value]):
        for columns in ("abc", "cab", "abd", "bbc", ["a", "[", None], ["null", "\n", 1]):
            yield {"dataframe_split": {"columns": [*columns], "data": rows}}
        yield {"dataframe_split": {"data": rows}}
        yield {"dataframe_split": {"columns": [*"abc"], "data": rows, "index": value}}
        for field in ("inputs", "instances", "dataframe_records"):
            yield {field: rows}
            yield {field: rows, "params": value}
            yield {field: dict(zip("cab", rows * 3, strict=False))}
            yield {field: {"a": rows}}


@pytest.mark.parametrize("name", SCHEMAS)
def test_fast_reader_equals_exact_reader(name, monkeypatch):
    monkeypatch.setattr(large_json, "LARGE_BYTES", 0)
    monkeypatch.setattr(large_json, "_COLUMN_BYTES", 1)
    schema = SCHEMAS[name]
    every = chain.from_iterable(map(documents, EXTREMES))
    for place, document in enumerate(every):
        body = json.dumps(document).encode()
        with_keys_twice = body[:-1] + b"," + body[1:]
        for sent in (body, with_keys_twice) if place % 7 == 0 else (body,):
            quick = outcome(lambda: mlflow.decode(JSON, sent, schema))  # noqa: B023
            exact = outcome(lambda: mlflow.decode_document(load_json(sent), schema))  # noqa: B023
            assert quick == exact, sent


ODD_FIELDS = [
    "0",
    "-0",
    "-0.0",
    "-0e0",
    "]",
    "1e400",
    "+1",
    "1_0",
    ".5",
    "null",
    "NaN",
    "inf",
    "true",
    "[1]",
    '"1"',
    '"',
]


FIELDS = [
    *ODD_FIELDS,
    *("", "-0 ", " 2\t", "\r1", "1\r"),
    *(str(value) for value in EXTREMES if isinstance(value, int | float)),
]


@pytest.mark.parametrize("name", ["doubles", "both", "longs", "mixed"])
def test_fast_csv_reader_equals_exact_reader(name, monkeypatch):
    headers = ("a,b,c", "c,a,b", 'a,b,"d"', "a,b,b", "b,a", "\ufeffa,b,c", "")
    rows = ("{},1,2", "1,2,{}", "1,{}", "1,2,3,{}")
    ends = ("\n", "\r\n", "\r", "\n\n")
    for field, (place, header), (number, form) in product(
        FIELDS, enumerate(headers), enumerate(rows)
    ):
        row = form.format(field)
        end = ends[(place + number) % len(ends)]  # Each header and each row has every end.
        body = end.join([header, "1,2,3", row] if header else ["1,2,3", row]).encode()
        with monkeypatch.context() as patch:
            patch.setattr(large_json, "LARGE_BYTES", 0)
            quick = outcome(lambda: mlflow.read_csv(body, SCHEMAS[name], bool(header)))  # noqa: B023
        exact = outcome(lambda: mlflow.read_csv(body, SCHEMAS[name], bool(header)))  # noqa: B023
        assert quick == exact, body


PLAIN = [
    ("doubles", {"dataframe_split": {"columns": ["c", "a", "b"], "data": [[1, 2.5, -3]] * 900}}),
    ("doubles", {"inputs": [[1, 2.5, -3]] * 1400}),
    ("both", {"dataframe_split": {"data": [[1, 2.5, -3]] * 1400, "columns": ["a", "b", "c"]}}),
    ("matrix", {"instances": [[0.5, 2, 3]] * 1400}),
    ("image", {"inputs": [[[0.5, 2], [3, 4]]] * 1400}),
    ("bytes", {"instances": [[[0, 2], [3, 255]]] * 1400}),
    ("named", {"inputs": {"a": [[0.5, None, 3]] * 1400}}),
    ("doubles", {"inputs": {name: [1, 2.5, None] * 700 for name in "cab"}}),
    (
        "mixed",
        {
            "dataframe_split": {
                "columns": ["a", "b", "c"],
                "data": [[1, None, -3], [2.0, 0.5, 4]] * 900,
            }
        },
    ),
]


@pytest.mark.parametrize(
    "has_simdjson",
    [
        False,
        pytest.param(True, marks=needs_simdjson),
    ],
)
@pytest.mark.parametrize(("name", "document"), PLAIN)
def test_plain_numbers_take_the_fast_reader(name, document, has_simdjson, monkeypatch):
    body = json.dumps(document).encode().ljust(large_json.LARGE_BYTES)
    expected = outcome(lambda: mlflow.decode_document(document, SCHEMAS[name]))
    if has_simdjson:
        monkeypatch.setattr(mlflow, "load_json", None)
    else:
        monkeypatch.setattr(large_json, "simdjson", None)
        assert large_json.read_large_feeds(body, SCHEMAS[name]) is None
    assert outcome(lambda: mlflow.decode(JSON, body, SCHEMAS[name])) == expected


@needs_simdjson
@pytest.mark.parametrize("rows", ["1,2.5,-3\n", "1,,-3\r\n", ",null,-0.5\n"])
def test_plain_csv_takes_the_fast_reader(rows, monkeypatch):
    expected = outcome(lambda: mlflow.read_csv(f"c,a,b\n{rows}".encode(), SCHEMAS["doubles"]))
    monkeypatch.setattr(mlflow, "_parse_csv_table", None)
    feeds = mlflow.read_csv(f"c,a,b\n{rows * 3000}".encode(), SCHEMAS["doubles"])
    assert outcome(lambda: {name: array[:1] for name, array in feeds.items()}) == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("doubles", b'{"a":[0],"b":[-1e308],"c":[2],"null":[4]}'),
        ("doubles", b'{"a":[0],"b":[-1e308],"c":[2],"-1e308":[null]}'),
        ("doubles", b'{"a":[0],"b":[-1e308],"c":[null]}'),
        ("pairs", b"[[1,[2]],[3,4]]"),
        ("pairs", b"[[[1],2],[3,4]]"),
        ("pairs", b"[[],[1,2,3,4]]"),
        ("pairs", b"[[1],[2,3]]"),
        ("pairs", b"[[1,2],[3],[4,5,6]]"),
        ("pairs", b"[1,[2]]"),
        ("pairs", b'[[1,2]],"inputs":[[3,4]]'),
    ],
)
def test_ambiguous_bodies_take_the_exact_reader(name, value):
    body = (b'{"inputs":' + value + b"}").ljust(large_json.LARGE_BYTES)
    assert large_json.read_large_feeds(body, SCHEMAS[name]) is None


def test_small_body_takes_the_exact_reader(monkeypatch):
    monkeypatch.setattr(large_json, "simdjson", SimpleNamespace(Parser=pytest.fail))
    feeds = mlflow.decode(JSON, b'{"inputs": [[1, 2, 3]]}', SCHEMAS["doubles"])
    np.testing.assert_array_equal(feeds["X"], [[1, 2, 3]])


DATATYPES = {
    name: name.lower().replace("fp", "float")
    for name in ("FP64", "FP32", "FP16", "INT64", "INT32", "INT8", "UINT64", "UINT8", "BOOL")
} | {"BYTES": "str"}
V2_SCHEMAS = {
    **{datatype: tensor_schema(dtype, -1, 2, name="x") for datatype, dtype in DATATYPES.items()},
    "table": columns_schema(a="double", b="string", c="long"),
}


@pytest.fixture(scope="module")
def artifact(model_folders):
    return read_artifact(model_folders["single"])


def v2_outcome(body, artifact, schema):
    try:
        array = v2.decode({}, body, artifact, schema, v2.OWN).feeds["x"]
    except OnnxserveError as error:
        return type(error), error.message
    return array.dtype, array.shape, repr(array.tolist())


@pytest.mark.parametrize("datatype", DATATYPES)
def test_fast_v2_reader_equals_exact_reader(artifact, monkeypatch, datatype):
    """test_v2.py sends its requests to both readers."""
    forms = [
        data
        for value in EXTREMES
        for data in ([value, 1, 0, 1], [[value, 1], [0, 1]], [[0, 1], [1, value]])
    ]
    for data in forms:
        tensor = v2_tensor("x", datatype, data, [2, 2])
        body = json.dumps({"inputs": [tensor]}, ensure_ascii=False).encode(errors="surrogatepass")
        with monkeypatch.context() as patch:
            patch.setattr(large_json, "LARGE_BYTES", 0)
            patch.setattr(large_json, "_COLUMN_BYTES", 1)
            quick = v2_outcome(body, artifact, V2_SCHEMAS[datatype])
        assert quick == v2_outcome(body, artifact, V2_SCHEMAS[datatype]), body


@needs_simdjson
@pytest.mark.parametrize("datatype", [*DATATYPES][:8])
@pytest.mark.parametrize("is_flat", [True, False])
def test_v2_numbers_take_the_fast_reader(artifact, monkeypatch, datatype, is_flat):
    whole = np.arange(8000) % 100
    array = (whole / 4 if datatype.startswith("FP") else whole).reshape(-1, 2)
    data = (array.ravel() if is_flat else array).tolist()
    tensor = v2_tensor("x", datatype, data, array.shape)
    monkeypatch.setattr(v2, "json_object", None)
    body = json.dumps({"id": "mine", "inputs": [tensor], "parameters": {"note": [1]}}).encode()
    question = v2.decode({}, body, artifact, V2_SCHEMAS[datatype], v2.OWN)
    assert question.id == "mine"
    assert question.parameters == {"note": [1]}
    np.testing.assert_array_equal(question.feeds["x"], array)


@needs_simdjson
def test_v2_texts_take_the_fast_reader(artifact, monkeypatch):
    columns = {"a": ("FP64", 0.5), "b": ("BYTES", "ü"), "c": ("INT64", 7)}
    inputs = [
        v2_tensor(name, datatype, [value] * 4000, [4000])
        for name, (datatype, value) in columns.items()
    ]
    monkeypatch.setattr(v2, "json_object", None)
    body = json.dumps({"inputs": inputs}, ensure_ascii=False).encode()
    feeds = v2.decode({}, body, artifact, V2_SCHEMAS["table"], v2.OWN).feeds
    for name, (_, value) in columns.items():
        assert feeds[name].ravel().tolist() == [value] * 4000
