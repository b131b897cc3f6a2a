"""Tests that the fast path returns the same bits as the exact path, or leaves the
request to the exact path.
"""

from contextlib import suppress
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from mlflow_deploy_plugin.core.errors import SchemaMismatch
from mlflow_deploy_plugin.core.mlmodel import COLUMN_TYPES
from mlflow_deploy_plugin.serve.runtime.artifact import Column, Input, Tensor
from mlflow_deploy_plugin.serve.runtime.feeds import sent_arrays
from mlflow_deploy_plugin.serve.runtime.schemas.schema import compile_schema
from tests.support.schemas import columns_schema, tensor_schema

KINDS = ("double", "float", "long", "integer", "boolean", "string")
NUMERIC = ("float32", "float64", "int64", "float16")
EXTREMES = [
    *(2.0, 2.5, -0.0, float("nan"), float("inf"), 1e39, 2**53 + 1, 2**31 - 1, 2**31),
    *(2**63 - 1, 2**63, -(2**63) - 1, 2**65, 10**400, None, True, "a", [1.0]),
]
GOOD = {"boolean": True, "string": "a"}
SOURCES = (np.float64, np.float32, np.int64, np.int32, np.uint64, np.bool_, object, "U3")
"""The types of arrays that a client may send for a column."""


def schemas(kind):
    """Yield schemas of the columns a, b and c: each with its own input, as a vector or
    [N, 1], and stacked in another order.
    """
    columns = tuple(Column(name, kind, required=name != "c") for name in "abc")
    exact = COLUMN_TYPES[kind]
    for dtype in (exact,) if kind == "string" else dict.fromkeys((exact, *NUMERIC)):
        alone = {
            name: Input(name, dtype, shape, (name,), missing)
            for name, shape, missing in (
                ("a", (-1,), None),
                ("b", (-1, 1), "?"),
                ("c", (-1, 1), None),
            )
        }
        yield compile_schema(columns, (), tuple(alone.values()))
        if kind != "string":
            everything = Input("X", dtype, (-1, 3), ("c", "a", "b"))
            yield compile_schema(columns, (), (everything,))
            pair = Input("X", dtype, (-1, 2), ("b", "a"))
            yield compile_schema(columns, (), (alone["c"], pair))


def calls(rows):
    """Yield every way to give rows of three values to a schema."""
    records = [dict(zip("abc", row, strict=True)) for row in rows]
    columns = {name: [record[name] for record in records] for name in "abc"}
    more = {"more": {"odd": 1}}
    yield lambda s: s.from_array(rows)
    yield lambda s: s.from_rows([*"abc"], rows)
    yield lambda s: s.from_rows([*"cba", "more"], [[*row[::-1], []] for row in rows])
    yield lambda s: s.from_rows([*"aba"], rows)
    yield lambda s: s.from_rows([*"bc"], [row[1:] for row in rows])
    yield lambda s: s.from_rows([*"ab"], [row[:2] for row in rows])
    yield lambda s: s.from_records([dict(reversed(record.items())) | more for record in records])
    yield lambda s: s.from_records([*records, {}])
    yield lambda s: s.from_columns(columns)
    yield lambda s: s.from_columns(columns | more)
    short = columns | {"a": columns["a"][1:]}
    yield lambda s: s.from_columns(short)
    yield lambda s: s.from_columns(
        {name: np.array(values, object) for name, values in short.items()}
    )
    for source in SOURCES:
        with suppress(ValueError, TypeError, OverflowError):
            arrays = {name: np.array(values, source) for name, values in columns.items()}
            yield lambda s, arrays=arrays: s.from_columns(arrays | more)


def outcome(ask):
    """Return the feeds as plain values (bytes, to distinguish NaN and -0.0), or the
    message.
    """
    try:
        feeds = ask()
    except SchemaMismatch as error:
        return error.message
    return [
        {
            name: (
                array.dtype.str,
                array.shape,
                array.tolist() if array.dtype.kind == "O" else array.tobytes(),
            )
            for name, array in arrays.items()
        }
        for arrays in (feeds, sent_arrays(feeds))
    ]


def exact(schema):
    """Return the same schema without the fast path."""
    slow = replace(schema)
    slow.__dict__.update(_fast=None, _fast_tensors=None)
    return slow


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", EXTREMES, ids=str)
def test_fast_and_exact_feeds_and_errors_are_equal(kind, value):
    good = GOOD.get(kind, 7)
    assert_equal_tables(kind, [[good, value, good], [value, good, value]])


@pytest.mark.parametrize("kind", KINDS)
def test_short_rows_and_empty_tables_are_equal(kind):
    good = GOOD.get(kind, 7)
    assert_equal_tables(kind, [[good, good, good], [good, good]], [])


def assert_equal_tables(kind, *tables):
    for schema, rows in product(schemas(kind), tables):
        slow = exact(schema)
        with np.errstate(over="ignore", invalid="ignore"):
            for call in calls([row for row in rows if len(row) == 3]):
                assert outcome(lambda: call(schema)) == outcome(lambda: call(slow))  # noqa: B023
        assert outcome(lambda: schema.from_array(rows)) == outcome(lambda: slow.from_array(rows))  # noqa: B023


ARRAYS = [np.float32, np.float64, np.int64, np.uint64, np.bool_, np.float16, object]


@pytest.mark.parametrize("kind", ["double", "float", "long"])
@pytest.mark.parametrize("source", ARRAYS)
@pytest.mark.parametrize("target", ["float32", "float64"])
def test_array_feeds_equal_those_of_its_lists(kind, source, target):
    columns = tuple(Column(name, kind) for name in "abc")
    schema = compile_schema(columns, (), (Input("X", target, (-1, 3), ("a", "b", "c")),))
    largest = {"f": 3.4e38, "i": 2**63 - 1, "u": 2**64 - 1}.get(np.dtype(source).kind, 1)
    for values in ([[0, 1, 0], [1, 0, largest]], [[1, 2]], []):
        with np.errstate(over="ignore"):
            array = np.array(values, dtype=source)
        assert outcome(lambda: schema.from_array(array)) == outcome(  # noqa: B023 - called at once
            lambda: exact(schema).from_array(array.tolist())  # noqa: B023
        )


def test_fitting_rows_take_the_fast_path(monkeypatch):
    schema = columns_schema(s="string", d="double", n="long", b="boolean")
    monkeypatch.setattr("mlflow_deploy_plugin.serve.runtime.schemas.schema.convert_column", None)
    row = ["a", 1.5, 2, True]
    record = dict(zip("sdnb", row, strict=True))
    schema.from_rows(list("sdnb"), [row])
    schema.from_rows(list("bnds"), [row[::-1]])
    schema.from_records([record, record])
    schema.from_columns({name: [value] for name, value in record.items()})
    schema.from_columns(
        {
            name: np.array([value], dtype=object if name == "s" else None)
            for name, value in record.items()
        }
    )
    schema.from_array([row])


TENSORS = [
    [("x", "float32", (-1, 2))],
    [("", "float32", (-1, 2))],
    [("x", "float64", (2, 2))],
    [("x", "int64", (-1,)), ("y", "float32", (-1, 2))],
    [("x", "bool", (-1, 2))],
    [("x", "str", (-1, 2))],
    [("x", "float32", ())],
]
GIVEN = [
    np.zeros((2, 2), np.float32),
    np.zeros((2, 2), np.float64),
    np.full((2, 2), 1e300),
    np.zeros((3, 2), np.float32),
    np.zeros((2, 3), np.float32),
    np.zeros((0, 2), np.float32),
    np.zeros(2, np.int64),
    np.zeros(2, np.int32),
    np.zeros((2, 2), np.bool_),
    np.array([["a", "b"]], dtype=object),
    np.float32(1),
    *([[1.0, 2.0]], [[1, None]], [[True, 2.0]], [[2**64, 1.0]], [[2**53 + 1, 0.5]]),
    *([[1.0], [1.0, 2.0]], [["a", 1.0]], [[-0.0, 1e39]], [[True, False]], [[[1.0]]]),
    *([[1, 2], [3, 2**63 - 1]], [[1.0, 2.0], [3.0, 2.5]], [], [1, 2], 5, None),
]


@pytest.mark.parametrize("tensors", TENSORS)
def test_fast_and_exact_tensors_are_equal(tensors):
    schema = compile_schema(
        (), tuple(Tensor(*t) for t in tensors), tuple(Input(*t) for t in tensors)
    )
    slow = exact(schema)
    columns = [{"x": x, "y": y} for x, y in product(GIVEN, GIVEN)]
    columns += [{name: x} for name, x in product(("", "x"), GIVEN)]
    asks = [lambda s, x=x: s.from_array(x) for x in GIVEN]
    asks += [lambda s, x=x: s.from_columns(x) for x in columns]
    for ask in asks:
        assert outcome(lambda: ask(schema)) == outcome(lambda: ask(slow))  # noqa: B023


MATRIX_TYPES = {COLUMN_TYPES[kind] for kind in KINDS if kind != "string"}


@pytest.mark.parametrize("dtype", sorted(MATRIX_TYPES))
def test_fitting_matrix_takes_the_fast_path(dtype, monkeypatch):
    monkeypatch.setattr("mlflow_deploy_plugin.serve.runtime.schemas.schema.convert_tensor", None)
    fed = "float32" if dtype == "float64" else dtype
    value = {"f": 0.5, "i": 3, "b": True}[np.dtype(dtype).kind]
    for name in ("", "x"):
        schema = tensor_schema(dtype, -1, 2, name=name, graph_name="X", fed=fed)
        for feeds in (schema.from_array([[value] * 2]), schema.from_columns({"x": [[value] * 2]})):
            assert feeds["X"].tolist() == [[value] * 2]
            assert feeds["X"].dtype == fed
            assert sent_arrays(feeds)["X"].dtype == dtype
