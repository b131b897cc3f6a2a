from typing import Any

import numpy as np
import pytest

from mlflow_deploy_plugin.runtime import Array, cast_columns, cast_columns_losslessly


@pytest.mark.parametrize(
    ("values", "wanted", "found"),
    [
        (np.array([1.0, 895.0], "float32"), "int64", "int64"),  # as the graph takes whole numbers
        (np.array([1, 0], "int32"), "int64", "int64"),
        (np.array([1, 0], "int64"), "int32", "int32"),  # as a CSV file has them
        (np.array([1.0, 0.0], "float32"), "bool", "bool"),
        (np.array([1, 0], "int64"), "bool", "bool"),
        (np.array([0.5, np.nan], "float32"), "float64", "float64"),
        (np.array([0.5, np.inf], "float64"), "float32", "float32"),
        (np.array([1.5, 2.0], "float32"), "int64", "float32"),  # whatever would be lost stays, to be refused by name
        (np.array([1.0, np.nan], "float32"), "int64", "float32"),
        (np.array([2, 0], "int64"), "bool", "int64"),
        (np.array([2**40, 0], "int64"), "int32", "int64"),
        (np.array([2.0**63, 0.0]), "int64", "float64"),
        (np.array([1e300, 0.0]), "float32", "float64"),
        (np.array([1, 2], "int64"), "float64", "int64"),  # whole numbers stay whole where any number goes
        (np.array([True, False]), "int64", "bool"),
        (np.array(["1", None], dtype=object), "int64", "object"),
        (np.array([1.0, 2.0]), "str", "float64"),
    ],
)
def test_numbers_come_in_the_signatures_type_where_none_is_lost(values: Array, wanted: str, found: str) -> None:
    typed = cast_columns({"x": wanted, "gone": "int64"}, {"x": values, "other": values})
    assert str(typed["x"].dtype) == found
    assert np.array_equal(typed["x"], values.astype(found), equal_nan=found.startswith("float"))
    assert typed["other"] is values


@pytest.mark.parametrize(
    ("values", "wanted", "dtype"),
    [
        ([1.0, 0.0], "bool", "bool"),
        ([1.0, 2.0], "bool", "float64"),
        ([1.0, np.nan], "bool", "float64"),
        ([7.0, -7.0], "int64", "int64"),
        ([7.5], "int64", "float64"),
        ([np.nan], "int64", "float64"),
        ([np.inf], "int32", "float64"),
        ([-(2.0**63)], "int64", "int64"),
        ([2.0**63], "int64", "float64"),
        ([2.0**31 - 1], "int32", "int32"),
        ([2.0**31], "int32", "float64"),
        (np.array([2.0**31], np.float32), "int32", "float32"),
        ([0.5, np.nan, np.inf], "float32", "float32"),
        ([0.1], "float32", "float64"),
        (np.array([2**53 + 1]), "float64", "int64"),
        (np.array([2**63 - 1]), "float64", "int64"),
        (np.array([2**64 - 1], np.uint64), "float32", "uint64"),
        (np.array([-(2**63), 2**53]), "float64", "float64"),
        (np.array([True]), "int32", "int32"),
        (np.array(["7"], object), "int64", "object"),
    ],
)
def test_a_column_of_the_log_takes_the_type_of_the_signature_where_nothing_is_lost(
    values: Any, wanted: str, dtype: str
) -> None:
    given = np.asarray(values)
    typed = cast_columns_losslessly({"x": wanted}, {"x": given})["x"]
    assert typed.dtype == dtype
    np.testing.assert_array_equal(typed.astype(given.dtype), given)
