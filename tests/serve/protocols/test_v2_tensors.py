"""Every datatype of V2 in both directions, in JSON and in bytes, separately and in a
complete request and response.
"""

import contextlib
import json
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mlflow_deploy_plugin.core.errors import SchemaMismatch
from mlflow_deploy_plugin.serve.protocols import v2
from mlflow_deploy_plugin.serve.protocols.v2_tensors import TensorHeader, from_binary
from mlflow_deploy_plugin.serve.runtime.artifact import Column, Input, Output, Tensor
from mlflow_deploy_plugin.serve.runtime.schemas.pyfunc_schema import FrameSchema
from mlflow_deploy_plugin.serve.runtime.schemas.schema import compile_schema
from tests.support.bodies import v2_tensor
from tests.support.schemas import bare_artifact

DTYPES = {
    "BOOL": "bool",
    **{
        f"{sign}INT{bits}": f"{sign.lower()}int{bits}"
        for sign, bits in product(("", "U"), (8, 16, 32, 64))
    },
    **{f"FP{bits}": f"float{bits}" for bits in (16, 32, 64)},
    "BYTES": "str",
}
SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, max_side=4)


def arrays(datatype, infinity):
    """Draw arrays of a datatype; JSON cannot represent infinity."""
    if datatype == "BYTES":
        return hnp.arrays(
            object, SHAPES, elements=st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
        )
    elements = {"allow_infinity": infinity} if datatype.startswith("FP") else None
    return hnp.arrays(DTYPES[datatype], SHAPES, elements=elements)


def same(datatype, shape):
    """Return a model that returns its input."""
    dtype = DTYPES[datatype]
    entry = Input("x", dtype, shape)
    output = Output("x", dtype, shape)
    artifact = bare_artifact("onnx", inputs=(entry,), outputs=(output,), prediction=("x",))
    return artifact, compile_schema((), (Tensor("x", dtype, shape),), (entry,))


def there_and_back(array, datatype, is_binary):
    """Return the feeds that the identity model would receive if its response were the
    next request.
    """
    artifact, schema = same(datatype, (-1,) * array.ndim)
    answer = v2.V2Answer("id", "1", [v2.V2Output("x", array, is_binary=is_binary)])
    body, _, headers = v2.encode("e", answer)
    length = int(headers.get("Inference-Header-Content-Length", len(body)))
    document = json.loads(body[:length])
    request_json = json.dumps({"inputs": document["outputs"]}).encode()
    sent = {"inference-header-content-length": str(len(request_json))} if is_binary else {}
    return v2.decode(sent, request_json + body[length:], artifact, schema, v2.OWN).feeds["x"]


@pytest.mark.parametrize("is_binary", [False, True])
@pytest.mark.parametrize("datatype", DTYPES)
@given(data=st.data())
@settings(max_examples=10)
def test_answers_round_trip(datatype, is_binary, data):
    array = data.draw(arrays(datatype, infinity=is_binary))
    back = there_and_back(array, datatype, is_binary)
    np.testing.assert_array_equal(back, array, strict=True)


@pytest.mark.parametrize("is_binary", [False, True])
def test_column_major_array_is_answered_in_row_order(is_binary):
    turned = np.arange(6, dtype=np.float32).reshape(2, 3).T
    assert there_and_back(turned, "FP32", is_binary).tolist() == turned.tolist()


@pytest.mark.parametrize("shape", [[2], [2, 1]])
def test_single_column_may_be_named_input_1(shape):
    texts = v2_tensor("input-1", "BYTES", ["a", "b"], shape)
    body = json.dumps({"inputs": [texts]}).encode()
    schema = FrameSchema((Column("do", "string"),), (), (Input("do", "str", (-1,), ("do",)),))
    feeds = v2.decode({}, body, bare_artifact("python_function"), schema, v2.OWN).feeds
    assert {name: array.tolist() for name, array in feeds.items()} == {"do": ["a", "b"]}


def test_output_without_datatype_is_not_offered():
    """scikit-learn's classifiers, as converted by default, return a mapping from class
    to probability.
    """
    artifact, schema = same("FP32", (-1,))
    artifact = replace(artifact, outputs=(*artifact.outputs, Output("map", "map", ())))
    inputs = [v2_tensor("x", "FP32", [1])]
    question = v2.decode({}, json.dumps({"inputs": inputs}).encode(), artifact, schema, v2.OWN)
    assert question.outputs == (v2.RequestedOutput("x"),)
    described = v2.model_metadata("e", ("1",), artifact)["outputs"]
    assert [output["name"] for output in described] == ["x"]
    document = {"inputs": inputs, "outputs": [{"name": "map"}]}
    with pytest.raises(SchemaMismatch, match="'map' is unknown"):
        v2.decode({}, json.dumps(document).encode(), artifact, schema, v2.OWN)


@given(body=st.binary(max_size=200), length=st.integers(0, 40))
def test_random_bytes_are_strings_or_refused(body, length):
    with contextlib.suppress(SchemaMismatch):
        assert from_binary(TensorHeader("x", (length,), "BYTES"), memoryview(body)).shape == (
            length,
        )
