"""Large bodies of numbers are read as `content.load_json` reads them, or left to it."""

import json
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlflow_deploy_plugin.errors import OnnxserveError
from mlflow_deploy_plugin.runtime import Column, Input, Schema, Tensor, compile_schema
from mlflow_deploy_plugin.server.protocols import large_json, mlflow
from mlflow_deploy_plugin.server.protocols.content import JSON, load_json

SCHEMAS = {
    "doubles": compile_schema(
        tuple(Column(name, "double") for name in "abc"), (), (Input("X", "float32", (-1, 3), ("a", "b", "c")),)
    ),
    "both": compile_schema(
        (Column("a", "double"), Column("b", "float"), Column("c", "double", required=False)),
        (),
        (Input("X", "float64", (-1, 2), ("c", "b")), Input("a", "float32", (-1, 1), ("a",))),
    ),
    "longs": compile_schema((Column("a", "long"),), (), (Input("a", "int64", (-1, 1), ("a",)),)),
    "matrix": compile_schema((), (Tensor("", "float32", (-1, 3)),), (Input("x", "float32", (-1, 3)),)),
    "pairs": compile_schema((), (Tensor("", "float32", (-1, 2)),), (Input("x", "float32", (-1, 2)),)),
    "image": compile_schema((), (Tensor("", "float64", (-1, 2, 2)),), (Input("x", "float32", (-1, 2, 2)),)),
    "whole": compile_schema((), (Tensor("", "int64", (-1, 3)),), (Input("x", "int64", (-1, 3)),)),
}
NUMBER = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False),
    st.integers(-9, 9),
    st.sampled_from([1e39, -0.0, 2**53, 2**53 + 1, 2**63, 2**64, 10**30]),
)
ODD = st.one_of(st.none(), st.booleans(), st.text(max_size=2), st.just([]), st.just([1.0]), st.just({}), st.just([[1]]))


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """Draw a plain table or image, sometimes with something odd."""
    width = draw(st.integers(2, 4))
    if draw(st.integers(0, 3)):
        rows: Any = [[draw(NUMBER) for _ in range(width)] for _ in range(draw(st.integers(0, 3)))]
    else:
        rows = [[[draw(NUMBER) for _ in range(2)] for _ in range(2)] for _ in range(draw(st.integers(0, 2)))]
    if rows and draw(st.integers(0, 2)) == 0:
        place = draw(st.integers(0, len(rows[-1]) - 1))
        rows[-1][place : place + draw(st.integers(0, 1))] = [draw(ODD)] * draw(st.integers(0, 2))
    columns: list[Any] = draw(st.permutations("abcd"))[:width] if draw(st.booleans()) else list("abcd"[:width])
    if draw(st.integers(0, 4)) == 0:
        columns[0] = draw(st.sampled_from(["b", "[", "\n", 1, None]))
    field = draw(st.sampled_from(["dataframe_split", "dataframe_split", "inputs", "instances", "dataframe_records"]))
    value = {"columns": columns, "data": rows} if field == "dataframe_split" else rows
    if field == "dataframe_split" and draw(st.integers(0, 4)) == 0:
        value["index"] = draw(ODD)
    document = {field: value}
    if draw(st.integers(0, 4)) == 0:
        document["params"] = draw(ODD)
    body = json.dumps(document).encode()
    if draw(st.integers(0, 4)) == 0:
        body = body[:-1] + b"," + body[1:]  # the same key twice
    return body


def outcome(ask: Any) -> Any:
    try:
        feeds = ask()
    except OnnxserveError as error:
        return type(error), error.message
    return {name: (array.dtype.str, array.shape, array.tobytes()) for name, array in feeds.items()}


@given(st.sampled_from(sorted(SCHEMAS)), bodies())
@settings(max_examples=1000)
def test_it_reads_what_the_exact_way_reads_and_refuses_alike(name: str, body: bytes) -> None:
    schema = SCHEMAS[name]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(large_json, "LARGE_BYTES", 0)
        quick = outcome(lambda: mlflow.decode(JSON, body, schema))
    assert quick == outcome(lambda: mlflow.decode_document(load_json(body), schema))


PLAIN: list[tuple[str, Any]] = [
    ("doubles", {"dataframe_split": {"columns": ["c", "a", "b"], "data": [[1, 2.5, -3]] * 900}}),
    ("doubles", {"inputs": [[1, 2.5, -3]] * 1400}),
    ("both", {"dataframe_split": {"data": [[1, 2.5, -3]] * 1400, "columns": ["a", "b", "c"]}}),
    ("matrix", {"instances": [[0.5, 2, 3]] * 1400}),
    ("image", {"inputs": [[[0.5, 2], [3, 4]]] * 1400}),
]


@pytest.mark.skipif(not find_spec("simdjson"), reason="simdjson is not installed")
@pytest.mark.parametrize(("name", "document"), PLAIN)
def test_plain_numbers_are_read_without_the_exact_way(
    name: str, document: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = json.dumps(document).encode()
    expected = outcome(lambda: mlflow.decode_document(document, SCHEMAS[name]))
    monkeypatch.setattr(mlflow, "json_object", None)
    body = body + b" " * max(0, large_json.LARGE_BYTES - len(body))
    assert outcome(lambda: mlflow.decode(JSON, body, SCHEMAS[name])) == expected


@pytest.mark.parametrize(
    "rows",
    [
        b"[[1,[2]],[3,4]]",
        b"[[[1],2],[3,4]]",
        b"[[],[1,2,3,4]]",
        b"[[1],[2,3]]",
        b"[[1,2],[3],[4,5,6]]",
        b"[1,[2]]",
        b'[[1,2]],"inputs":[[3,4]]',
    ],
)
def test_what_is_ragged_or_stands_twice_is_left_alone(rows: bytes) -> None:
    body = b'{"inputs":' + rows + b"}" + b" " * large_json.LARGE_BYTES
    assert large_json.read_large_feeds(body, SCHEMAS["pairs"]) is None


def test_a_small_body_is_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_json, "simdjson", SimpleNamespace(Parser=pytest.fail))
    schema: Schema = SCHEMAS["doubles"]
    assert large_json.read_large_feeds(b'{"inputs": [[1, 2, 3]]}', schema) is None
    np.testing.assert_array_equal(mlflow.decode(JSON, b'{"inputs": [[1, 2, 3]]}', schema)["X"], [[1, 2, 3]])


@pytest.mark.parametrize(("name", "document"), PLAIN)
def test_without_simdjson_a_large_body_is_read_alike(name: str, document: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_json, "simdjson", None)
    body = json.dumps(document).encode()
    body = body + b" " * max(0, large_json.LARGE_BYTES - len(body))
    assert large_json.read_large_feeds(body, SCHEMAS[name]) is None
    expected = outcome(lambda: mlflow.decode_document(document, SCHEMAS[name]))
    assert outcome(lambda: mlflow.decode(JSON, body, SCHEMAS[name])) == expected
