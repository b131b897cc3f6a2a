"""The value of a column keeps a client at one variant."""

from typing import Any

import numpy as np
import pytest

from mlflow_deploy_plugin.serve.runtime.artifact import Column, Input
from mlflow_deploy_plugin.serve.runtime.schemas.schema import compile_schema
from mlflow_deploy_plugin.serve.variants import has_sticky_column, sticky_key
from tests.support.schemas import tensor_schema

COLUMNS = (Column("user", "string"), Column("account", "long"), Column("amount", "double"))
INPUTS = (
    Input("u", "str", (-1, 1), ("user",), missing="none"),
    Input("numbers", "float32", (-1, 2), ("amount", "account")),
)
SCHEMA = compile_schema(COLUMNS, (), INPUTS)


@pytest.mark.parametrize(
    ("column", "values", "key"),
    [
        ("user", ["ann", "bob"], "ann"),
        ("user", [None, "bob"], None),
        ("account", [7, 8], "7"),
        ("amount", [0.5, 1.0], "0.5"),
        ("amount", [2.0, 1.0], "2"),
        ("amount", [float("nan"), 1.0], None),
        ("unknown", [1, 2], None),
    ],
)
def test_the_first_row_has_the_key(column, values, key):
    data: dict[str, list[Any]] = {
        "user": ["a", "b"],
        "account": [1, 2],
        "amount": [1.5, 2.5],
        column: values,
    }
    assert sticky_key(SCHEMA, SCHEMA.from_columns(data), column) == key
    assert has_sticky_column(SCHEMA, column) == (column != "unknown")


def test_a_number_is_the_same_caller_in_every_type():
    apart = compile_schema(COLUMNS[1:2], (), (Input("a", "int64", (-1,), ("account",)),))
    data: dict[str, list[Any]] = {"user": ["a"], "account": [12345], "amount": [0.0]}
    assert sticky_key(apart, apart.from_columns(data), "account") == sticky_key(
        SCHEMA, SCHEMA.from_columns(data), "account"
    )


def test_a_tensor_is_known_by_its_name():
    schema = tensor_schema("int64", -1, name="id", graph_name="id")
    assert sticky_key(schema, {"id": np.array([9, 8])}, "id") == "9"
    assert sticky_key(schema, {}, "id") is None
