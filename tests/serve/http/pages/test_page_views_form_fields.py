"""The inputs of a model as fields of a form."""

import numpy as np
import pytest

from mlflow_deploy_plugin.serve.http.pages.page_views import ImageInput, form_fields, image_input
from mlflow_deploy_plugin.serve.protocols.examples import Example
from mlflow_deploy_plugin.serve.runtime.artifact import Column, Input, Tensor
from mlflow_deploy_plugin.serve.runtime.schemas.schema import compile_schema
from tests.support.schemas import tensor_schema

DTYPES = {"double": "float64", "string": "str", "long": "int64", "boolean": "bool"}
NO_EXAMPLE = Example({}, 0, False)


def table(*columns, **missing):
    """Return the schema of columns; keywords are the values of missing rows."""
    inputs = tuple(
        Input(column.name, DTYPES[column.type], (-1, 1), (column.name,), missing.get(column.name))
        for column in columns
    )
    return compile_schema(columns, (), inputs)


@pytest.mark.parametrize(
    ("dtype", "shape", "picture"),
    [
        ("float32", (-1, 1, 28, 28), ImageInput("NCHW", 1, 28, 28, True)),
        ("float32", (1, 3, 224, 160), ImageInput("NCHW", 3, 224, 160, True)),
        ("uint8", (-1, 32, 48, 3), ImageInput("NHWC", 3, 32, 48, False)),
        ("float16", (-1, 28, 28), ImageInput("NHW", 1, 28, 28, True)),
        ("int64", (-1, 28, 28), None),
        ("float32", (-1, 28), None),
        ("float32", (-1, 2, 28, 28), None),
        ("float32", (-1, 3, -1, -1), None),
        ("float32", (-1, 3, 5000, 5000), None),
    ],
)
def test_pictures_are_recognized_by_shape(dtype, shape, picture):
    assert image_input(Tensor("x", dtype, shape)) == picture


def test_field_shows_kind_example_and_words():
    schema = table(
        Column("a", "double"),
        Column("it's", "string"),
        Column("n", "long", required=False),
        Column("b", "boolean"),
        **{"it's": ""},
    )
    example = Example({"a": [1.5], "it's": [None], "n": [2**53 + 1], "b": [True]}, 1, True)
    fields = form_fields(schema, example)
    assert [
        (field.kind, field.value, field.is_nullable, field.is_required, field.words, field.type)
        for field in fields
    ] == [
        ("number", "1.5", True, True, "number", "double"),
        ("string", "", True, True, "text", "string"),
        ("number", "9007199254740993", False, False, "whole number", "long"),
        ("boolean", "true", False, True, "true or false", "boolean"),
    ]
    assert fields[1].quoted_name == '"it\'s"'  # The errors use Python's repr.


@pytest.mark.parametrize("missing", [None, float("nan"), np.float64("nan")])
def test_missing_example_value_is_an_empty_field(missing):
    (field,) = form_fields(table(Column("x", "double")), Example({"x": [missing]}, 1, True))
    assert (field.value, field.is_nullable) == ("", True)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("2013-07-01", "2013-07-01T00:00:00.000"),
        ("2013-07-01T12:30:15.5", "2013-07-01T12:30:15.500"),
        ("2013-07-01T01:00:00+02:00", "2013-06-30T23:00:00.000"),
        ("text", ""),
        (None, ""),
    ],
)
def test_date_is_shown_in_utc(value, shown):
    schema = table(Column("when", "string", is_date=True))
    (field,) = form_fields(schema, Example({"when": [value]}, 1, True))
    assert (field.kind, field.value) == ("datetime", shown)


@pytest.mark.parametrize(
    "schema",
    [table(Column("a", "double")), tensor_schema("float32", -1, 2)],
    ids=["table", "tensor"],
)
def test_business_id_is_an_optional_last_field(schema):
    _, field = form_fields(schema, NO_EXAMPLE, {}, ("ticket",))
    assert (field.name, field.kind, field.is_key) == ("ticket", "string", True)
    assert (field.value, field.is_required, field.is_nullable) == ("", False, True)


def test_categories_are_choices():
    schema = table(Column("carrier", "string"), Column("month", "long"), Column("note", "string"))
    fields = form_fields(schema, NO_EXAMPLE, {"carrier": ("AA", "UA"), "month": (1, 2)})
    assert [field.choices for field in fields] == [("AA", "UA"), ("1", "2"), ()]


@pytest.mark.parametrize(
    ("dtype", "words"),
    [("float32", "numbers"), ("int8", "whole numbers"), ("str", "texts")],
)
def test_tensor_values_are_described(dtype, words):
    (field,) = form_fields(tensor_schema(dtype, -1, 4, name="x"), NO_EXAMPLE)
    assert field.words == f"{words}, any × 4"
