"""Tests that the fast path returns the same bits as the exact path, or leaves the
request to the exact path.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlflow_deploy_plugin.core.errors import SchemaMismatch
from mlflow_deploy_plugin.core.mlmodel import COLUMN_TYPES
from mlflow_deploy_plugin.serve.runtime.artifact import Column, Input, Tensor
from mlflow_deploy_plugin.serve.runtime.feeds import Feeds, sent_arrays
from mlflow_deploy_plugin.serve.runtime.schemas.schema import Schema, compile_schema
from tests.support.schemas import columns_schema, tensor_schema

NUMERIC = ["float32", "float64", "int64", "float16"]
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "double": st.none()
    | st.floats()
    | st.integers(-(2**65), 2**65)
    | st.sampled_from([3.5e38, 1e39, 2**53 + 1, 10**400]),
    "float": st.none()
    | st.floats()
    | st.integers(-(2**30), 2**30)
    | st.sampled_from([3.5e38, 2**1030]),
    "long": st.integers(-(2**63), 2**63 - 1) | st.sampled_from([2**63, 2.0, 2.5]),
    "integer": st.integers(-(2**31), 2**31 - 1) | st.sampled_from([2**31, 2.0]),
    "boolean": st.booleans(),
    "string": st.text(max_size=3),
}
SOURCES: dict[str, Sequence[Any]] = {
    **dict.fromkeys(
        ("double", "float"),
        (np.float64, np.float64, np.float32, np.int64, np.uint64, np.bool_, object),
    ),
    **dict.fromkeys(
        ("long", "integer"), (np.int64, np.int64, np.int32, np.uint64, np.float64, object)
    ),
    "boolean": [np.bool_, np.bool_, np.int64],
    "string": [object, object, "U3"],
}
"""The types of arrays that a client may send for a column."""
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=2),
    st.just([]),
    st.just([1.0]),
)


@st.composite
def schemas(draw: st.DrawFn) -> Schema:
    """Draw a schema with columns of any types. Each column feeds its own input, as a
    vector or [N, 1], or all numeric columns feed one input in any order.
    """
    kinds = draw(st.lists(st.sampled_from(sorted(VALUES)), min_size=1, max_size=5))
    if draw(st.booleans()):
        kinds = [kinds[0]] * len(kinds)
    required = draw(st.booleans())
    columns = tuple(Column(f"c{place}", kind, required) for place, kind in enumerate(kinds))  # type: ignore[arg-type]
    stacked = [column.name for column in columns if column.type != "string"]
    stacked = draw(st.permutations(stacked)) if draw(st.booleans()) else stacked
    alone = [column for column in columns if column.type == "string" or draw(st.booleans())]
    apart = {column.name for column in alone}
    stacked = [name for name in stacked if name not in apart]
    inputs = []
    for column in alone:
        kind = COLUMN_TYPES[column.type]
        dtype = kind if kind == "str" else draw(st.sampled_from([kind, *NUMERIC]))
        shape = draw(st.sampled_from([(-1,), (-1, 1)]))
        inputs.append(
            Input(column.name, dtype, shape, (column.name,), draw(st.sampled_from([None, "?"])))
        )
    if stacked:
        inputs.append(
            Input("X", draw(st.sampled_from(NUMERIC)), (-1, len(stacked)), tuple(stacked))
        )
    return compile_schema(columns, (), tuple(inputs))


@st.composite
def tables(draw: st.DrawFn) -> tuple[Schema, list[list[Any]]]:
    """Draw a schema and rows that mostly fit it."""
    schema = draw(schemas())
    rows = [
        [draw(VALUES[column.type]) for column in schema.columns]
        for _ in range(draw(st.integers(0, 3)))
    ]
    if rows and draw(st.integers(0, 3)) == 0:
        rows[-1][draw(st.integers(0, len(rows[-1]) - 1))] = draw(ODD)
    if rows and draw(st.integers(0, 5)) == 0:
        rows[-1] = draw(st.lists(ODD, max_size=5)) if draw(st.booleans()) else draw(ODD)
    return schema, rows


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


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")
@given(tables(), st.randoms(use_true_random=False), st.booleans())
@settings(max_examples=500)
def test_fast_and_exact_feeds_and_errors_are_equal(table, shuffle, has_more):
    schema, rows = table
    names = list(schema.names)
    order = list(range(len(names)))
    shuffle.shuffle(order)
    lists = [row for row in rows if isinstance(row, list)]
    whole = [row for row in lists if len(row) == len(names)]
    more: dict[str, Any] = {"more": {"odd": 1}} if has_more else {}
    shuffled = [names[place] for place in order] + list(more)
    columns = {name: [row[place] for row in whole] for place, name in enumerate(names)}
    kinds = {column.name: column.type for column in schema.columns}
    records = [
        {name: row[place] for name, place in zip(shuffled, order, strict=False)} | more
        for row in whole
    ]
    calls: list[Callable[[Schema], Feeds]] = [
        lambda s: s.from_array(rows),
        lambda s: s.from_rows(names, rows),
        lambda s: s.from_rows(
            shuffled, [[row[place] for place in order] + [[]] * len(more) for row in whole]
        ),
        lambda s: s.from_rows(names[:-1] + names[:1], rows),
        lambda s: s.from_rows(names[1:], [row[1:] for row in lists]),
        lambda s: s.from_records(records),
        lambda s: s.from_records([*records, {}]),
        lambda s: s.from_columns(columns | more),
        lambda s: s.from_columns(columns | {names[0]: columns[names[0]][1:]}),
    ]
    with (
        np.errstate(over="ignore", invalid="ignore"),
        suppress(ValueError, TypeError, OverflowError),
    ):
        arrays = {
            name: np.array(columns[name], dtype=shuffle.choice(SOURCES[kind]))
            for name, kind in kinds.items()
        }
        uneven = arrays | {names[0]: arrays[names[0]][1:]}
        calls += [lambda s: s.from_columns(arrays | more), lambda s: s.from_columns(uneven)]
    slow = exact(schema)
    for call in calls:
        assert outcome(lambda: call(schema)) == outcome(lambda: call(slow))  # noqa: B023 - called at once


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
GIVEN: list[Any] = [
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
@pytest.mark.parametrize("first", range(len(GIVEN)))
def test_fast_and_exact_tensors_are_equal(tensors, first):
    schema = compile_schema(
        (), tuple(Tensor(*tensor) for tensor in tensors), tuple(Input(*t) for t in tensors)
    )
    slow = exact(schema)
    given = GIVEN[first]
    assert outcome(lambda: schema.from_array(given)) == outcome(lambda: slow.from_array(given))
    for second in GIVEN:
        for data in ({"x": GIVEN[first], "y": second}, {"": GIVEN[first]}, {"x": GIVEN[first]}):
            assert outcome(lambda: schema.from_columns(data)) == outcome(  # noqa: B023
                lambda: slow.from_columns(data)  # noqa: B023
            )


MATRIX_TYPES = {COLUMN_TYPES[kind]: kind for kind in VALUES if kind != "string"}


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
