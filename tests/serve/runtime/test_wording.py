"""The wording of the most frequent errors for callers of a model."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest

from mlflow_deploy_plugin.serve.runtime.artifact import Column, Input, Refusals
from mlflow_deploy_plugin.serve.runtime.schemas.schema import compile_schema
from tests.support.messages import message_of
from tests.support.schemas import columns_schema, stacked_schema, tensor_schema

MIXED = columns_schema(None, s="string", d="double", n="long", b="boolean")
PAIR = stacked_schema("float32", "a", "b")
ROW = {"s": "x", "d": 1.0, "n": 2, "b": True}
STRICT = compile_schema(
    (Column("distance", "double"), Column("carrier", "string")),
    (),
    (
        Input("distance", "float32", (-1, 1), ("distance",)),
        Input("carrier", "str", (-1, 1), ("carrier",)),
    ),
    refusals=Refusals(
        missing=frozenset({"distance"}),
        infinite=frozenset({"distance"}),
        categories={"carrier": ("UA", "DL")},
    ),
)
MESSAGES: dict[str, tuple[Callable[[], object], str]] = {
    "missing columns": (
        partial(MIXED.from_records, [{"s": "x", "n": 2}]),
        "columns 'd', 'b' are missing; the model needs s, d, n, b",
    ),
    "a text for a number": (
        partial(MIXED.from_records, [ROW | {"d": "far"}]),
        "column 'd' (double), row 0: 'far'; a number is expected",
    ),
    "a number for a text": (
        partial(MIXED.from_records, [ROW | {"s": 1}]),
        "column 's' (string), row 0: 1; a string is expected",
    ),
    "a fraction for a whole number": (
        partial(MIXED.from_records, [ROW, ROW | {"n": 1.5}]),
        "column 'n' (long), row 1: 1.5; an integer is expected",
    ),
    "no value for a whole number": (
        partial(MIXED.from_records, [ROW | {"n": None}]),
        "column 'n' (long), row 0: null; an integer is expected",
    ),
    "a number for a boolean": (
        partial(MIXED.from_records, [ROW | {"b": 7}]),
        "column 'b' (boolean), row 0: 7; true or false is expected",
    ),
    "a row with too few values": (
        partial(MIXED.from_rows, list(ROW), [["x", 1.0, 2]]),
        "row 0 is ['x', 1.0, 2]; a list of 4 values is expected",
    ),
    "columns of different lengths": (
        partial(PAIR.from_columns, {"a": [1.0, 2.0], "b": [1.0]}),
        "column 'b' has 1 values, but column 'a' has 2",
    ),
    "a number that the type cannot hold": (
        partial(PAIR.from_columns, {"a": [1e300], "b": [1.0]}),
        "column 'a', row 0: 1e+300 is too large for the model's 32-bit input",
    ),
    "a number that the original refuses": (
        partial(STRICT.from_records, [{"distance": None, "carrier": "UA"}]),
        "column 'distance', row 0: null or NaN; the model does not accept missing values",
    ),
    "an infinite number": (
        partial(STRICT.from_records, [{"distance": np.inf, "carrier": "UA"}]),
        "column 'distance', row 0: infinite; the model accepts only finite numbers",
    ),
    "an unknown category": (
        partial(STRICT.from_records, [{"distance": 1.0, "carrier": "XX"}]),
        (
            "column 'carrier', row 0: 'XX' is not a known category of the model; the allowed "
            "values are DL, UA"
        ),
    ),
    "a tensor of another shape": (
        partial(tensor_schema("float32", -1, 2).from_array, np.ones((3, 3))),
        "the tensor has the shape [3, 3]; [any, 2] is expected",
    ),
    "columns for a tensor": (
        partial(tensor_schema("float32", -1, 2).from_columns, {"a": [1.0], "b": [2.0]}),
        "the model takes one array, not a, b: send its rows as lists of values",
    ),
}


@pytest.mark.parametrize(("cause", "message"), MESSAGES.values(), ids=MESSAGES)
def test_a_refusal_names_the_mistake_and_the_correct_form(cause, message):
    assert message_of(cause) == message
