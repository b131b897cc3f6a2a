"""Tests that values are accepted as in MLflow, or refused with the column, row and
value.
"""

import tracemalloc

import numpy as np
import pytest

from mlflow_deploy_plugin.core.errors import SchemaMismatch
from tests.support.schemas import columns_schema, tensor_schema


@pytest.mark.parametrize(
    ("kind", "values", "dtype", "typed"),
    [
        ("long", [1, 2.0], np.int64, [1, 2]),
        ("double", [1.0, None], np.float64, [1.0, np.nan]),
        ("double", np.array([1, 2], np.int8), np.float64, [1.0, 2.0]),
        ("double", np.array([1.5], object), np.float64, [1.5]),
        ("double", [np.float32(0.5)], np.float64, [0.5]),
        ("float", [0.5, 10**10], np.float32, [0.5, 1e10]),
        ("float", np.array([np.inf, np.nan]), np.float32, [np.inf, np.nan]),
        ("long", [1, -(2**63)], np.int64, [1, -(2**63)]),
        ("long", np.array([1], np.uint64), np.int64, [1]),
        ("integer", [2**31 - 1], np.int32, [2**31 - 1]),
        ("boolean", [True, False], np.bool_, [True, False]),
        ("string", ["a", ""], object, ["a", ""]),
        ("string", np.array(["a", "bc"]), object, ["a", "bc"]),
    ],
)
def test_column_accepts_fitting_values(kind, values, dtype, typed):
    array = columns_schema(c=kind).from_columns({"c": values})["c"]
    assert array.dtype == dtype
    assert array.shape == (len(typed), 1)
    np.testing.assert_array_equal(array[:, 0], np.array(typed, dtype=dtype))


@pytest.mark.parametrize(
    ("kind", "values", "words"),
    [
        ("double", [1.0, "x"], "row 1: 'x'"),
        ("double", [True], "row 0: true"),
        ("double", [10**400], "does not fit the type double"),
        ("double", [[1.0]], "row 0: [1.0]"),
        ("double", np.array([True]), "row 0: true"),
        ("double", np.array(["1"]), "row 0: '1'"),
        ("double", np.array(["2013-01-01"], "datetime64[D]"), "row 0"),
        ("float", [1.0, 1e300], "row 1: 1e+300"),
        ("float", np.array([1.0, -1e300]), "row 1: -1e+300"),
        ("long", [1, 2.5], "row 1: 2.5"),
        ("long", [1.0, 2.0**63], "does not fit the type long"),
        ("long", [None], "row 0: null"),
        ("long", [1, 2**63], f"row 1: {2**63}"),
        ("long", np.array([1, 2**63], np.uint64), f"row 1: {2**63}"),
        (
            "long",
            np.array([1.0]),
            "row 0: 1.0",
        ),
        ("integer", [2**31], f"row 0: {2**31}"),
        ("integer", np.array([0, -(2**31) - 1]), f"row 1: {-(2**31) - 1}"),
        ("boolean", [1], "row 0: 1"),
        ("boolean", [None], "row 0: null"),
        ("string", ["a", None], "row 1: null"),
        ("string", ["a", 5], "row 1: 5"),
        ("string", np.array([np.nan]), "row 0: nan"),
        ("double", "text", "a list of values"),
        ("double", 5, "a list of values"),
        ("double", np.zeros((2, 2)), "a list of values"),
        ("double", [], "no rows"),
    ],
)
def test_unfitting_value_is_named_with_its_row(kind, values, words):
    with pytest.raises(SchemaMismatch) as caught:
        columns_schema(c=kind).from_columns({"c": values})
    assert words in caught.value.message


def test_missing_string_becomes_its_default():
    feeds = columns_schema("?", c="string").from_columns({"c": ["a", None, float("nan")]})
    assert feeds["c"][:, 0].tolist() == ["a", "?", "?"]


def test_array_is_not_a_missing_string():
    with pytest.raises(SchemaMismatch, match=r"row 1: array\(\[1, 2\]\)"):
        columns_schema("?", c="string").from_columns({"c": ["a", np.array([1, 2])]})


def test_huge_value_makes_a_short_message():
    deep = []
    for _ in range(900):
        deep = [deep]
    for value in (deep, "x" * 10**6, ["x"] * 10**6, 10**4000, {"k": deep}):
        with pytest.raises(SchemaMismatch) as caught:
            columns_schema(c="boolean").from_columns({"c": [value]})
        assert len(caught.value.message) < 500


@pytest.mark.parametrize(
    ("dtype", "values", "typed"),
    [
        ("float32", [[1, 2], [3, 4]], [[1, 2], [3, 4]]),
        ("float32", [[1.5, None]], [[1.5, np.nan]]),
        ("float64", [[2**64, 1.0]], [[2.0**64, 1.0]]),
        ("float16", np.ones((1, 2)), [[1, 1]]),
        ("int64", [[1, 2]], [[1, 2]]),
        ("uint8", [[255, 0]], [[255, 0]]),
        ("uint64", [[2**64 - 1, 0]], [[2**64 - 1, 0]]),
        ("bool", [[True, False]], [[True, False]]),
        ("str", [["a", ""]], [["a", ""]]),
        ("str", np.array([["a", "bc"]]), [["a", "bc"]]),
    ],
)
def test_tensor_is_cast_to_its_type(dtype, values, typed):
    feeds = tensor_schema(dtype, -1, 2).from_array(values)
    assert feeds["x"].dtype == (object if dtype == "str" else dtype)
    np.testing.assert_array_equal(feeds["x"], np.array(typed, dtype=feeds["x"].dtype))


@pytest.mark.parametrize(
    ("dtype", "values", "words"),
    [
        ("float32", [["a", 1.0]], "strings"),
        ("float32", [[[1], [2]]], r"too deeply: the shape \[any, 2\]"),
        ("float32", [[True, None]], "not a number"),
        ("float32", [[1.0, 1e300]], "tensor has a number that does not fit float32"),
        ("float32", [[1, 2], [3]], "ragged"),
        ("float32", [1, 2], r"shape \[2\]; \[any, 2\]"),
        ("float32", [[1, 2, 3]], r"shape \[1, 3\]"),
        ("float32", 5, r"shape \[\]"),
        ("float32", {"a": 1}, "."),
        ("float32", [], "no rows"),
        ("float32", [[True, False]], "booleans"),
        ("int64", [[1.5, 2.0]], "fractions"),
        ("int64", [[1.0, float("nan")]], "fractions"),
        ("int64", [[2**53 + 1, 1.0]], "fractions"),
        ("int64", [[1, None]], "null"),
        ("int64", [[2**63, 1]], "does not fit int64"),
        ("uint64", [[2**64 - 1, -1]], "does not fit uint64"),
        ("uint8", [[256, 0]], "does not fit uint8"),
        ("bool", [[1, 0]], "integers"),
        ("str", [["a", 1]], "has 1"),
        ("str", [["a", None]], "has null"),
        ("str", [["a"], ["b", "c"]], "."),
    ],
)
def test_unfitting_tensor_is_refused(dtype, values, words):
    with pytest.raises(SchemaMismatch, match=words):
        tensor_schema(dtype, -1, 2).from_array(values)


@pytest.mark.parametrize(
    "ask",
    [
        pytest.param(
            lambda s: s.from_array([["x" * 10**6] + [1.0] * 10**6]),
            id="a long text among many numbers",
        ),
        pytest.param(
            lambda s: s.from_array([[[["x" * 10**6]] + [1.0] * 10**6]]), id="the same, deeper"
        ),
        pytest.param(
            lambda s: s.from_records([{f"k{i}": 1} for i in range(50_000)]),
            id="a key of its own a row",
        ),
    ],
)
def test_small_body_takes_little_memory(ask):
    tracemalloc.start()
    try:
        with pytest.raises(SchemaMismatch) as caught:
            ask(tensor_schema("float32", -1, 2))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 100 * 2**20
    assert len(caught.value.message) < 500
