"""Large infer requests have the same result as with `content.load_json`, or are left to
it.
"""

import json
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

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


EXTREMES: list[Any] = [
    *(-9, 127, 128, 300, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63), 10**30),
    *(-0.0, 1.0, 0.1, 65504.0, 65520.0, 3.4e38, 1e39, 1e308),
    *(None, True, "", "ü", "[", [], [1.0], {}, [[1]]),
]


@pytest.fixture(scope="module")
def artifact(model_folders):
    return read_artifact(model_folders["single"])


def outcome(body, artifact, schema):
    try:
        array = v2.decode({}, body, artifact, schema).feeds["x"]
    except OnnxserveError as error:
        return type(error), error.message
    return array.dtype, array.shape, repr(array.tolist())


@pytest.mark.parametrize("datatype", DATATYPES)
@pytest.mark.parametrize("value", EXTREMES, ids=repr)
def test_fast_reader_equals_exact_reader(artifact, monkeypatch, datatype, value):
    """test_v2.py sends its requests to both readers."""
    for data in ([value, 1, 0, 1], [[value, 1], [0, 1]], [[0, 1], [1, value]]):
        tensor = v2_tensor("x", datatype, data, [2, 2])
        body = json.dumps({"inputs": [tensor]}, ensure_ascii=False).encode(errors="surrogatepass")
        with monkeypatch.context() as patch:
            patch.setattr(large_json, "LARGE_BYTES", 0)
            patch.setattr(large_json, "_COLUMN_BYTES", 1)
            quick = outcome(body, artifact, SCHEMAS[datatype])
        assert quick == outcome(body, artifact, SCHEMAS[datatype])


@needs_simdjson
@pytest.mark.parametrize("datatype", [*DATATYPES][:8])
@pytest.mark.parametrize("is_flat", [True, False])
def test_numbers_take_the_fast_reader(artifact, monkeypatch, datatype, is_flat):
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
def test_table_with_texts_takes_the_fast_reader(artifact, monkeypatch):
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
