"""Tests of the values of key columns: their types, missing values,
and refused values.
"""

import numpy as np
import pytest

from mlflow_deploy_plugin.core.errors import SchemaMismatch
from mlflow_deploy_plugin.serve.runtime.artifact import Input, Tensor
from mlflow_deploy_plugin.serve.runtime.feeds import sent_arrays
from mlflow_deploy_plugin.serve.runtime.log_columns import key_array
from mlflow_deploy_plugin.serve.runtime.schemas.keyed_schema import with_keys
from mlflow_deploy_plugin.serve.runtime.schemas.schema import Schema

LARGEST = 2**63 - 1


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        ([1, LARGEST], "i", [1, LARGEST]),
        ([LARGEST, None], "O", [LARGEST, None]),
        ([True, False], "b", [True, False]),
        ([True, None], "O", [True, None]),
        ([1.5, 2], "f", [1.5, 2.0]),
        (["007", None], "O", ["007", None]),
        ([None, None], "O", [None, None]),
        ([1, "one", None], "O", ["1", "one", None]),
        ([LARGEST, 0.5], "O", [str(LARGEST), "0.5"]),
        ([LARGEST + 1], "O", [str(LARGEST + 1)]),
        (np.array([1, 2], np.uint32), "i", [1, 2]),
        (np.array([0.5], np.float32), "f", [0.5]),
    ],
    ids=str,
)
def test_key_keeps_its_type_and_digits(values, kind, expected):
    array = key_array("id", values)
    assert array.dtype.kind == kind
    assert array.tolist() == expected


def test_missing_fraction_is_nan():
    np.testing.assert_array_equal(key_array("id", [0.5, None]), np.array([0.5, np.nan]))


@pytest.mark.parametrize("value", [[1], {"a": 1}], ids=str)
def test_container_as_key_is_refused(value):
    with pytest.raises(SchemaMismatch, match="'id', row 1") as refusal:
        key_array("id", ["x", value])
    assert refusal.value.column == "id"


@pytest.mark.parametrize("value", [[], ["a", "b"], "a", {"a": 1}], ids=str)
def test_key_of_another_length_is_refused(value):
    schema = with_keys(
        Schema((), (Tensor("x", "float32", (-1, 2)),), (Input("x", "float32", (-1, 2)),)), ("id",)
    )
    with pytest.raises(SchemaMismatch, match="key 'id'") as refusal:
        schema.from_columns({"x": [[1.0, 2.0]], "id": value})
    assert refusal.value.column == "id"


@pytest.mark.parametrize("value", [7, [7]], ids=str)
def test_model_without_rows_has_one_key(value):
    tensors = (Tensor("x", "float32", (2,)),)
    inputs = (Input("x", "float32", (2,)),)
    schema = with_keys(Schema((), tensors, inputs, has_rows=False), ("id",))
    feeds = schema.from_columns({"x": [1.0, 2.0], "id": value})
    assert feeds.keys() == {"x"}
    assert sent_arrays(feeds)["id"].shape == ()
    assert sent_arrays(feeds)["id"].item() == 7
