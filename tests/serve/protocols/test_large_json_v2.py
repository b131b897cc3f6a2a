"""Large infer requests have the same result as with `content.load_json`, or are left to
it.
"""

import json
from importlib.util import find_spec
from itertools import chain
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlflow_deploy_plugin.core.errors import OnnxserveError
from mlflow_deploy_plugin.serve.protocols import large_json, v2
from mlflow_deploy_plugin.serve.runtime.artifact import read_artifact
from mlflow_deploy_plugin.serve.runtime.schemas.schema import Schema
from tests.support.bodies import v2_tensor
from tests.support.schemas import columns_schema, tensor_schema

needs_simdjson = pytest.mark.skipif(not find_spec("simdjson"), reason="simdjson is not installed")
DATATYPES = {
    name: name.lower().replace("fp", "float")
    for name in ("FP64", "FP32", "FP16", "INT64", "INT32", "INT8", "UINT64", "UINT8", "BOOL")
} | {"BYTES": "str"}
SCHEMAS: dict[str, Schema] = {
    **{datatype: tensor_schema(dtype, -1, 2, name="x") for datatype, dtype in DATATYPES.items()},
    "table": columns_schema(a="double", b="string", c="long"),
}
INTEGERS = st.one_of(
    st.integers(-9, 300),
    st.sampled_from([2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63), 10**30]),
)
FLOATS = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([-0.0, 1.0, 65504.0, 65520.0, 1e39]),
)
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.text(max_size=2),
    st.just([]),
    st.just([1.0]),
    st.just({}),
    st.just([[1]]),
    FLOATS,
)


@pytest.fixture(scope="module")
def artifact(model_folders):
    return read_artifact(model_folders["single"])


def elements(datatype):
    if datatype == "BYTES":
        return st.text(max_size=2)
    if datatype == "BOOL":
        return st.booleans()
    if datatype.startswith("FP"):
        return st.one_of(FLOATS, INTEGERS)
    return st.one_of(st.integers(0, 127), INTEGERS)


@st.composite
def tensors(draw: st.DrawFn, name: str, datatype: str, width: int) -> dict[str, Any]:
    """Draw a tensor, sometimes with an unusual value."""
    rows = draw(st.integers(1, 3))
    data: Any = [[draw(elements(datatype)) for _ in range(width)] for _ in range(rows)]
    if draw(st.integers(0, 3)) == 0:
        data[-1][0 : draw(st.integers(0, 1))] = [draw(ODD)] * draw(st.integers(0, 2))
    if draw(st.booleans()):
        data = list(chain.from_iterable(data))
    tensor: dict[str, Any] = v2_tensor(name, datatype, data, [rows, width])
    if draw(st.integers(0, 5)) == 0:
        tensor[draw(st.sampled_from(["name", "shape", "datatype", "data", "parameters"]))] = draw(
            ODD
        )
    if draw(st.integers(0, 5)) == 0:
        tensor["parameters"] = draw(
            st.sampled_from([{"a": [1, [2]]}, {"binary_data_size": 1}, {"a": "["}])
        )
    if draw(st.integers(0, 8)) == 0:
        del tensor[draw(st.sampled_from(sorted(tensor)))]
    return tensor


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, bytes]:
    kind = draw(st.sampled_from(sorted(SCHEMAS)))
    columns = [("a", "FP64"), ("b", "BYTES"), ("c", "INT64")] if kind == "table" else [("x", kind)]
    inputs: Any = [
        draw(tensors(name, datatype, 1 if kind == "table" else 2)) for name, datatype in columns
    ]
    document: dict[str, Any] = {"inputs": inputs}
    for name in ("id", "outputs", "parameters", "inputs"):
        if draw(st.integers(0, 6)) == 0:
            document[name] = draw(
                st.one_of(ODD, st.just([{"name": "y"}]), st.just({"binary_data_output": True}))
            )
    body = json.dumps(document, ensure_ascii=draw(st.booleans())).encode(errors="surrogatepass")
    if draw(st.integers(0, 9)) == 0:
        body = body[:-1] + b"," + body[1:]  # the same keys twice
    return kind, body


def outcome(body, artifact, schema):
    try:
        question = v2.decode({}, body, artifact, schema)
    except OnnxserveError as error:
        return type(error), error.message
    feeds = {
        name: (a.dtype.str, a.shape, a.tolist(), a.tobytes()) for name, a in question.feeds.items()
    }
    if any(array.dtype.kind == "O" for array in question.feeds.values()):
        feeds = {name: entry[:3] for name, entry in feeds.items()}  # type: ignore[misc]
    return question.id, question.outputs, question.parameters, repr(feeds)


@pytest.mark.long
@given(requests())
@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_fast_reader_agrees_with_the_exact_reader(artifact, request_):
    kind, body = request_
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(large_json, "LARGE_BYTES", 0)
        patch.setattr(large_json, "_COLUMN_BYTES", 1)
        quick = outcome(body, artifact, SCHEMAS[kind])
    assert len(body) < large_json.LARGE_BYTES
    assert quick == outcome(body, artifact, SCHEMAS[kind])


@needs_simdjson
@pytest.mark.parametrize("datatype", [*DATATYPES][:8])
@pytest.mark.parametrize("is_flat", [True, False])
def test_numbers_are_read_without_the_exact_way(artifact, monkeypatch, datatype, is_flat):
    whole: Any = np.arange(8000) % 100
    array = (whole / 4 if datatype.startswith("FP") else whole).reshape(-1, 2)
    data = (array.ravel() if is_flat else array).tolist()
    tensor = v2_tensor("x", datatype, data, array.shape)
    monkeypatch.setattr(v2, "json_object", None)
    body = json.dumps({"id": "mine", "inputs": [tensor], "parameters": {"note": [1]}}).encode()
    question = v2.decode({}, body, artifact, SCHEMAS[datatype])
    assert question.id == "mine"
    assert question.parameters == {"note": [1]}
    np.testing.assert_array_equal(question.feeds["x"], array)


@needs_simdjson
def test_a_table_with_texts_is_read_too(artifact, monkeypatch):
    columns = {"a": ("FP64", 0.5), "b": ("BYTES", "ü"), "c": ("INT64", 7)}
    inputs = [
        v2_tensor(name, datatype, [value] * 4000, [4000])
        for name, (datatype, value) in columns.items()
    ]
    monkeypatch.setattr(v2, "json_object", None)
    body = json.dumps({"inputs": inputs}, ensure_ascii=False).encode()
    feeds = v2.decode({}, body, artifact, SCHEMAS["table"]).feeds
    for name, (_, value) in columns.items():
        assert feeds[name].ravel().tolist() == [value] * 4000
