"""Feeds of one version are translated for another version."""

from typing import Any

import numpy as np
import pytest

from mlflow_deploy_plugin.core.errors import SchemaMismatch
from mlflow_deploy_plugin.serve.inference.shadow import translate_feeds
from mlflow_deploy_plugin.serve.runtime.artifact import Column, Input
from mlflow_deploy_plugin.serve.runtime.schemas.schema import compile_schema

COLUMNS = (Column("name", "string"), Column("hour", "long"), Column("distance", "double"))
STACKED = compile_schema(
    COLUMNS,
    (),
    (
        Input("text", "str", (-1, 1), ("name",), missing="none"),
        Input("numbers", "float32", (-1, 2), ("hour", "distance")),
    ),
)
APART = compile_schema(
    COLUMNS[::-1],
    (),
    (
        Input("h", "int64", (-1, 1), ("hour",)),
        Input("d", "float64", (-1,), ("distance",)),
        Input("n", "str", (-1, 1), ("name",), missing="?"),
    ),
)
DATA: dict[str, list[Any]] = {"name": ["a", None], "hour": [7, 8], "distance": [0.5, float("nan")]}


def test_columns_are_translated_by_name():
    feeds = translate_feeds(STACKED.from_columns(DATA), STACKED, APART)
    assert {name: (array.dtype.kind, array.shape) for name, array in feeds.items()} == {
        "h": ("i", (2, 1)),
        "d": ("f", (2,)),
        "n": ("O", (2, 1)),
    }
    np.testing.assert_array_equal(feeds["h"], [[7], [8]])
    np.testing.assert_array_equal(feeds["d"], [0.5, np.nan])
    assert feeds["n"].tolist() == [["a"], ["?"]]


def test_equal_schema_takes_the_same_arrays():
    feeds = STACKED.from_columns(DATA)
    assert translate_feeds(feeds, STACKED, STACKED) is feeds


def test_unread_column_is_missing():
    wider = compile_schema(
        (*COLUMNS, Column("more", "double")), (), (Input("m", "float64", (-1, 1), ("more",)),)
    )
    with pytest.raises(SchemaMismatch, match="'more' is missing"):
        translate_feeds(STACKED.from_columns(DATA), STACKED, wider)
