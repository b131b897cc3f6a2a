"""Tests of signatures as tables: inputs, outputs, and errors for unsupported
signatures.
"""

import numpy as np
import pytest

from mlflow_deploy_plugin.core.errors import InvalidArtifact, SchemaMismatch
from mlflow_deploy_plugin.serve.runtime.artifact import Column, Input, Tensor
from mlflow_deploy_plugin.serve.runtime.schemas.schema import compile_schema
from tests.support.schemas import columns_schema, stacked_schema, tensor_schema

MIXED = columns_schema(None, s="string", d="double", n="long", b="boolean")


def as_lists(feeds):
    return {name: array.tolist() for name, array in feeds.items()}


@pytest.mark.parametrize(
    "ask",
    [
        lambda schema: schema.from_columns({"dep_tme": [1.0], "hour": [1.0]}),
        lambda schema: schema.from_records([{"dep_tme": 1.0, "hour": 1.0}]),
        lambda schema: schema.from_rows(["dep_tme", "hour"], [[1.0, 1.0]]),
    ],
    ids=["columns", "records", "rows"],
)
def test_missing_column_is_named_with_similar_name(ask):
    with pytest.raises(SchemaMismatch, match=r"'dep_time' is missing; 'dep_tme' .*'dep_time'"):
        ask(stacked_schema("float32", "dep_time", "hour"))


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"a": [1.0, 2.0], "b": [1.0]}, "'b' has 1 .*'a' has 2"),
        ({"a": [1.0, 1e300], "b": [1.0, 2.0]}, "'a', row 1: 1e\\+300"),
    ],
    ids=["lengths", "range"],
)
def test_unfitting_column_is_named(columns, words):
    with pytest.raises(SchemaMismatch, match=words):
        stacked_schema("float32", "a", "b").from_columns(columns)


def test_missing_values_are_bounded():
    names = tuple(f"c{number}" for number in range(30))
    columns = tuple(Column(name, "double", name == "c0") for name in names)
    schema = compile_schema(columns, (), (Input("X", "float32", (-1, 30), names),))
    whole = dict.fromkeys(names, 1.0)
    with pytest.raises(SchemaMismatch, match=r"values .*missing"):
        schema.from_records([whole, *[{}] * 400_000])
    with pytest.raises(SchemaMismatch, match=r"values .*missing"):
        schema.from_columns({"c0": np.zeros(400_000)})
    assert schema.from_records([whole, {"c0": 2.0}])["X"].shape == (2, 30)


def test_missing_key_of_a_record_is_null():
    schema = columns_schema(a="double", b="double")
    feeds = schema.from_records([{"a": 1.0, "b": 1.0}, {"a": 2.0}])
    assert np.isnan(feeds["b"][1, 0])


def test_optional_column_may_be_absent():
    columns = (Column("a", "double"), Column("b", "double", required=False))
    schema = compile_schema(columns, (), (Input("X", "float64", (-1, 2), ("a", "b")),))
    np.testing.assert_array_equal(schema.from_columns({"a": [1.0]})["X"], [[1.0, np.nan]])


def test_optional_integer_column_needs_a_value():
    columns = (Column("a", "double"), Column("b", "long", required=False))
    schema = compile_schema(
        columns, (), (Input("a", "float64", (-1, 1), ("a",)), Input("b", "int64", (-1, 1), ("b",)))
    )
    with pytest.raises(SchemaMismatch, match=r"'b'.*row 0: null"):
        schema.from_columns({"a": [1.0]})


def test_columns_are_stacked_in_graph_order():
    schema = stacked_schema("float32", "a", "b", "c")
    feeds = schema.from_columns({"c": [3, 6], "a": [1, 4], "b": [2.0, 5.0]})
    assert feeds["X"].dtype == np.float32
    assert feeds["X"].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert as_lists(schema.to_columns(feeds)) == {"a": [1, 4], "b": [2, 5], "c": [3, 6]}


def test_vector_input_stays_a_vector():
    schema = compile_schema((Column("a", "long"),), (), (Input("a", "int64", (-1,), ("a",)),))
    assert schema.from_array([1, 2])["a"].shape == (2,)


@pytest.mark.parametrize(
    ("names", "rows", "words"),
    [
        (["s", "s"], [["a", "b"]], "column 's' is duplicated"),
        (["s"], [["a", "b"]], "row 0"),
        (["s"], ["a"], "row 0 is 'a'"),
        (["s"], [None], "row 0 is null"),
        (["s", "d", "n", "b"], [], "no rows"),
        ([], [[]], "missing"),
    ],
)
def test_rows_without_table_form_are_refused(names, rows, words):
    with pytest.raises(SchemaMismatch, match=words):
        MIXED.from_rows(names, rows)


@pytest.mark.parametrize("values", [None, 5, "text", [], [5], np.float64(1.0), np.zeros(3)])
def test_array_without_table_form_is_refused(values):
    with pytest.raises(SchemaMismatch):
        MIXED.from_array(values)


@pytest.mark.parametrize(
    ("shape", "cells", "values"),
    [
        ((-1,), [1, 2], [1, 2]),
        ((-1, 1), [1, 2], [[1], [2]]),
        ((-1, 2), [[1, 2], [3, 4]], [[1, 2], [3, 4]]),
        ((-1, 2, 3), [[1, 2, 3, 4, 5, 6]], [[[1, 2, 3], [4, 5, 6]]]),
        ((-1, 1, 2, 2), [[1, 2, 3, 4]], [[[[1, 2], [3, 4]]]]),
        ((1, 2, 2), [[[1, 2], [3, 4]]], [[[1, 2], [3, 4]]]),
    ],
)
def test_cell_holds_a_nested_or_flat_tensor_row(shape, cells, values):
    schema = tensor_schema("float32", *shape)
    for feeds in (
        schema.from_rows(["x"], [[cell] for cell in cells]),
        schema.from_records([{"x": c} for c in cells]),
    ):
        assert feeds["x"].tolist() == values


@pytest.mark.parametrize(
    "cell", [[1, 2, 3], [1, 2, 3, 4, 5], [1e39, 2, 3, 4], [], [[1], 2, 3, 4], "abcd", None]
)
def test_cell_of_another_size_is_refused(cell):
    with pytest.raises(SchemaMismatch):
        tensor_schema("float32", -1, 2, 2).from_records([{"x": cell}])


def test_frame_feeds_the_only_tensor_by_position():
    schema = tensor_schema("float64", -1, 2)
    rows = [[1, 2], [3, 4]]
    for feeds in (
        schema.from_rows(["0", "1"], rows),
        schema.from_rows(["a", "b"], rows),
        schema.from_records([{"a": a, "b": b} for a, b in rows]),
        schema.from_columns({"x": rows}),
    ):
        assert as_lists(feeds) == {"x": rows}


PAIR = compile_schema(
    (),
    (Tensor("b", "float32", (-1,)), Tensor("a", "int64", (-1, 2))),
    (
        Input("a", "int64", (-1, 2), dimension_names=("N", "")),
        Input("b", "float32", (-1,), dimension_names=("N",)),
    ),
)


def test_tensors_are_bound_by_name():
    feeds = PAIR.from_columns({"b": [0.5], "a": [[1, 2]], "more": [0]})
    assert as_lists(feeds) == {"a": [[1, 2]], "b": [0.5]}


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda: PAIR.from_columns({"b": [0.5]}), "'a' is missing"),
        (lambda: PAIR.from_columns({"b": [0.5, 1], "a": [[1, 2]]}), r"'N'.*'a' has 1.*'b' has 2"),
        (lambda: PAIR.from_array([1]), "several tensors"),
        (lambda: PAIR.from_rows(["x"], [[1]]), "table does not"),
    ],
)
def test_unfitting_tensors_are_refused(ask, words):
    with pytest.raises(SchemaMismatch, match=words):
        ask()


@pytest.mark.parametrize("scalar", [2.5, np.array(2.5, np.float32)], ids=["number", "array"])
def test_unnamed_dimensions_have_any_size(scalar):
    kinds = (("b", "float32", (-1,)), ("a", "int64", (-1, 2)), ("s", "float32", ()))
    schema = compile_schema(
        (), tuple(Tensor(*kind) for kind in kinds), tuple(Input(*kind) for kind in kinds)
    )
    data = {"b": np.zeros(0, np.float32), "a": np.array([[1, 2]]), "s": scalar}
    assert as_lists(schema.from_columns(data)) == {"b": [], "a": [[1, 2]], "s": 2.5}


def test_columns_as_tensors_have_equal_rows():
    columns = (Column("a", "float"), Column("b", "float"))
    inputs = tuple(Input(name, "float32", (-1, 1), (name,)) for name in ("a", "b"))
    schema = compile_schema(columns, (), inputs)
    with pytest.raises(SchemaMismatch, match="'a' has 2"):
        schema.tensor_schema.from_columns(
            {"a": np.zeros((2, 1), np.float32), "b": np.zeros((1, 1), np.float32)}
        )


@pytest.mark.parametrize(
    ("columns", "tensors", "fed"),
    [
        (["a"], [], {"X": ("b",)}),
        (["a"], [], {"X": ()}),
        (["a", "a"], [], {"X": ("a",)}),
        ([], ["a"], {"a": (), "b": ()}),
        ([], ["b", "c"], {"a": (), "b": ()}),
    ],
)
def test_signature_that_does_not_feed_the_graph_is_refused(columns, tensors, fed):
    with pytest.raises(InvalidArtifact):
        compile_schema(
            tuple(Column(name, "double") for name in columns),
            tuple(Tensor(name, "float32", (-1,)) for name in tensors),
            tuple(Input(name, "float32", (-1, 1), names) for name, names in fed.items()),
        )


def test_all_forms_give_equal_feeds_and_round_trip():
    kinds = {
        "double": [1.5, None, 2**53],
        "float": [0.5, -0.0, float("inf")],
        "long": [2**63 - 1, -(2**63), 0],
        "integer": [2**31 - 1, -(2**31), 0],
        "boolean": [True, False, True],
        "string": ["a", None, ""],
    }
    schema = columns_schema("<missing>", **{kind: kind for kind in kinds})  # type: ignore[arg-type]
    rows = [list(row) for row in zip(*kinds.values(), strict=True)]
    records = [{"more": {}, **dict(zip(kinds, row, strict=True))} for row in rows]
    feeds = schema.from_columns(kinds)
    back = schema.to_columns(feeds)
    assert back["string"].tolist() == kinds["string"]
    for other in (
        schema.from_rows([*kinds], rows),
        schema.from_rows([*[*kinds][::-1], "more"], [[*row[::-1], {}] for row in rows]),
        schema.from_records(records),
        schema.from_columns(dict(reversed([*kinds.items(), ("more", [])]))),
        schema.from_array(rows),
        schema.from_columns(back),
    ):
        np.testing.assert_equal(dict(other), dict(feeds))
