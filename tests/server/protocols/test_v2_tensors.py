"""Every datatype of V2, there and back: in JSON and in bytes, by itself and through a whole request and its answer."""

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mlflow_deploy_plugin.errors import SchemaMismatch
from mlflow_deploy_plugin.runtime.artifact import Artifact, Input, Output, Tensor
from mlflow_deploy_plugin.runtime.schema import Array, compile_schema
from mlflow_deploy_plugin.server.protocols import v2
from mlflow_deploy_plugin.server.protocols.v2_tensors import TensorHead, datatype_of, from_binary

DTYPES = {
    "BOOL": "bool",
    **{f"{sign}INT{bits}": f"{sign.lower()}int{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": f"float{bits}" for bits in (16, 32, 64)},
    "BYTES": "str",
}
SHAPES = hnp.array_shapes(min_dims=1, max_dims=4, max_side=4)


def arrays(datatype: str, infinity: bool) -> st.SearchStrategy[Array]:
    """Arrays of a datatype; JSON has no infinity."""
    if datatype == "BYTES":
        return hnp.arrays(object, SHAPES, elements=st.text(st.characters(exclude_categories=["Cs"]), max_size=8))
    elements = {"allow_infinity": infinity} if datatype.startswith("FP") else None
    return hnp.arrays(DTYPES[datatype], SHAPES, elements=elements)


def there_and_back(array: Array, datatype: str, is_binary: bool) -> Array:
    """What a model that gives back its input would have been given, had its answer been the next request."""
    shape = (-1,) * array.ndim
    entry, dtype = Input("x", DTYPES[datatype], shape), DTYPES[datatype]
    artifact = Artifact(
        Path(), Path(), "onnx", "", "", "", inputs=(entry,), outputs=(Output("x", dtype, shape),), prediction=("x",)
    )
    schema = compile_schema((), (Tensor("x", dtype, shape),), (entry,))
    question = v2.Question("", {}, (v2.WantedOutput("x", is_binary),))
    body, headers = v2.encode(question, "e", "id", "1", {"x": array})
    length = int(headers.get("Inference-Header-Content-Length", len(body)))
    document: dict[str, Any] = json.loads(body[:length])
    asked = json.dumps({"inputs": document["outputs"]}).encode()
    sent = {"inference-header-content-length": str(len(asked))} if is_binary else {}
    return v2.decode(sent, asked + body[length:], artifact, schema).feeds["x"]


@pytest.mark.parametrize("is_binary", [False, True])
@pytest.mark.parametrize("datatype", DTYPES)
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_what_is_answered_can_be_asked_with_the_same_values(
    datatype: str, is_binary: bool, data: st.DataObject
) -> None:
    array = data.draw(arrays(datatype, infinity=is_binary))
    back = there_and_back(array, datatype, is_binary)
    assert (back.dtype, back.shape) == (array.dtype, array.shape)
    np.testing.assert_array_equal(back, array)


def test_arrays_that_do_not_lie_in_row_major_order_are_answered_in_it() -> None:
    turned = np.arange(6, dtype=np.float32).reshape(2, 3).T
    assert there_and_back(turned, "FP32", is_binary=True).tolist() == turned.tolist()
    assert there_and_back(turned, "FP32", is_binary=False).tolist() == turned.tolist()


def test_a_mapping_from_class_to_probability_has_no_datatype() -> None:
    assert datatype_of("map") == ""


@given(body=st.binary(max_size=200), length=st.integers(0, 40))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_strings_or_are_refused(body: bytes, length: int) -> None:

    with contextlib.suppress(SchemaMismatch):
        assert from_binary(TensorHead("x", (length,), "BYTES"), memoryview(body)).shape == (length,)
