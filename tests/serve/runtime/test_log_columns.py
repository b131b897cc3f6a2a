"""Tests of the columns of the log: their names, types and texts."""

from datetime import date
from decimal import Decimal

import numpy as np
import pytest

from mlflow_deploy_plugin.serve.runtime.log_columns import (
    as_key,
    as_text,
    cast_columns,
    cast_columns_losslessly,
    to_log_columns,
)
from mlflow_deploy_plugin.serve.runtime.model import OnnxModel
from tests.support.models import columns, write_model


@pytest.mark.parametrize(
    ("values", "wanted", "found"),
    [
        (np.array([1.0, 895.0], "float32"), "int64", "int64"),  # The graph accepts integers.
        (np.array([1, 0], "int64"), "int32", "int32"),  # A CSV file contains integers.
        (np.array([1, 0], "int64"), "bool", "bool"),
        (np.array([0.5, np.nan], "float32"), "float64", "float64"),
        # Values that would lose precision remain unchanged, and are refused by name.
        (np.array([1.5, 2.0], "float32"), "int64", "float32"),
        (np.array([2, 0], "int64"), "bool", "int64"),
        (np.array([2**40, 0], "int64"), "int32", "int64"),
        (np.array([2.0**63, 0.0]), "int64", "float64"),
        (np.array([1e300, 0.0]), "float32", "float64"),
        # Integers remain integers if the column accepts any number.
        (np.array([1, 2], "int64"), "float64", "int64"),
        (np.array([True, False]), "int64", "bool"),
        (np.array(["1", None], dtype=object), "int64", "object"),
        (np.array([1.0, 2.0]), "str", "float64"),
    ],
)
def test_numbers_are_cast_if_none_is_lost(values, wanted, found):
    typed = cast_columns({"x": wanted, "gone": "int64"}, {"x": values, "other": values})
    assert str(typed["x"].dtype) == found
    assert np.array_equal(typed["x"], values.astype(found), equal_nan=found.startswith("float"))
    assert typed["other"] is values


@pytest.mark.parametrize(
    ("values", "wanted", "dtype"),
    [
        ([1.0, 0.0], "bool", "bool"),
        ([1.0, 2.0], "bool", "float64"),
        ([7.0, -7.0], "int64", "int64"),
        ([np.nan], "int64", "float64"),
        ([-(2.0**63)], "int64", "int64"),
        ([2.0**63], "int64", "float64"),
        ([2.0**31 - 1], "int32", "int32"),
        ([2.0**31], "int32", "float64"),
        (np.array([2.0**31], np.float32), "int32", "float32"),
        ([0.5, np.nan, np.inf], "float32", "float32"),
        ([0.1], "float32", "float64"),
        (np.array([2**63 - 1]), "float64", "int64"),
        (np.array([2**64 - 1], np.uint64), "float32", "uint64"),
        (np.array([-(2**63), 2**53]), "float64", "float64"),
        (np.array([True]), "int32", "int32"),
        (np.array(["7"], object), "int64", "object"),
    ],
)
def test_column_is_cast_if_no_value_changes(values, wanted, dtype):
    array = np.asarray(values)
    typed = cast_columns_losslessly({"x": wanted}, {"x": array})["x"]
    assert typed.dtype == dtype
    np.testing.assert_array_equal(typed.astype(array.dtype), array)


SUM = (
    "g (float[N,2] X) => (float[N] y) <int64[1] axis = {1}> { y = ReduceSum<keepdims=0>(X, axis) }"
)


def test_log_rows_have_columns_and_prediction(tmp_path):
    model = OnnxModel.load(write_model(tmp_path, SUM, columns(p="double", q="double")))
    feeds = model.schema.from_columns({"p": [1, 2], "q": [3, 4]})
    rows = to_log_columns(model.schema, model.artifact.prediction, feeds, model.run(feeds))
    assert {name: array.tolist() for name, array in rows.items()} == {
        "p": [1, 2],
        "q": [3, 4],
        "prediction": [4, 6],
    }


@pytest.mark.parametrize(
    ("value", "text", "key"),
    [
        (None, None, None),
        (float("nan"), None, None),
        (1.0, "1", "1"),
        (True, "true", "1"),
        ("False", "False", "0"),
        (np.float32(0.1), "0.1", "0.1"),
        (np.int64(7), "7", "7"),
        (Decimal("1.50"), "1.5", "1.5"),
        (date(2026, 6, 1), "2026-06-01", "2026-06-01"),
        (1e300, "1e+300", "1e+300"),
    ],
)
def test_equal_values_have_equal_texts(value, text, key):
    assert as_text(value) == text
    assert as_key(value) == key
