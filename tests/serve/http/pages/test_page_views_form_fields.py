"""The inputs of a model as fields of a form."""

import numpy as np
import pytest

from mlflow_deploy_plugin.serve.http.pages.page_views import ImageInput, form_fields, image_input
from mlflow_deploy_plugin.serve.protocols.examples import Example
from mlflow_deploy_plugin.serve.runtime.artifact import Column, Input, Tensor
from mlflow_deploy_plugin.serve.runtime.schemas.schema import compile_schema
from tests.support.schemas import tensor_schema


@pytest.mark.parametrize(
    ("dtype", "shape", "picture"),
    [
        ("float32", (-1, 1, 28, 28), ImageInput("NCHW", 1, 28, 28, True)),
        ("float32", (1, 3, 224, 160), ImageInput("NCHW", 3, 224, 160, True)),
        ("uint8", (-1, 32, 48, 3), ImageInput("NHWC", 3, 32, 48, False)),
        ("float16", (-1, 28, 28), ImageInput("NHW", 1, 28, 28, True)),
        ("int64", (-1, 28, 28), None),
        ("str", (-1, 28, 28), None),
        ("float32", (-1, 28), None),
        ("float32", (-1, 2, 28, 28), None),
        ("float32", (-1, 4, 28), None),
        ("float32", (-1, 3, -1, -1), None),
        ("float32", (-1, 3, 5000, 5000), None),
    ],
)
def test_a_batch_of_pictures_is_known_by_its_shape(dtype, shape, picture):
    assert image_input(Tensor("x", dtype, shape)) == picture


def test_fields_have_the_kind_the_example_and_the_words_of_the_signature():
    columns = (
        Column("a", "double"),
        Column("it's", "string"),
        Column("n", "long", required=False),
        Column("b", "boolean"),
    )
    inputs = tuple(
        Input(column.name, dtype, (-1, 1), (column.name,), missing)
        for column, (dtype, missing) in zip(
            columns, [("float64", None), ("str", ""), ("int64", None), ("bool", None)], strict=True
        )
    )
    example = Example({"a": [1.5], "it's": [None], "n": [2**53 + 1], "b": [True]}, 1, True)
    fields = form_fields(compile_schema(columns, (), inputs), example)
    assert [
        (field.kind, field.value, field.is_nullable, field.is_required) for field in fields
    ] == [
        ("number", "1.5", True, True),
        ("string", "", True, True),
        ("number", "9007199254740993", False, False),
        ("boolean", "true", False, True),
    ]
    assert [field.words for field in fields] == ["number", "text", "whole number", "true or false"]
    assert [field.type for field in fields] == ["double", "string", "long", "boolean"]
    assert fields[1].quoted_name == '"it\'s"'  # The errors use Python's repr.


@pytest.mark.parametrize("missing", [None, float("nan"), np.float64("nan")])
def test_a_value_that_the_example_lacks_is_an_empty_field(missing):
    column = Column("wind_gust", "double")
    schema = compile_schema(
        (column,), (), (Input("wind_gust", "float64", (-1, 1), ("wind_gust",), None),)
    )
    (field,) = form_fields(schema, Example({"wind_gust": [missing]}, 1, True))
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
def test_date_is_a_moment_in_utc(value, shown):
    column = Column("when", "string", is_date=True)
    schema = compile_schema((column,), (), (Input("when", "str", (-1, 1), ("when",)),))
    (field,) = form_fields(schema, Example({"when": [value]}, 1, True))
    assert (field.kind, field.value) == ("datetime", shown)


@pytest.mark.parametrize("is_table", [True, False])
def test_a_business_id_is_an_optional_text_after_the_inputs(is_table):
    columns = (Column("a", "double"),) if is_table else ()
    tensors = () if is_table else (Tensor("x", "float32", (-1, 2)),)
    inputs = (
        Input("a", "float64", (-1, 1), ("a",), None)
        if is_table
        else Input("x", "float32", (-1, 2)),
    )
    schema = compile_schema(columns, tensors, inputs)
    _, field = form_fields(schema, Example({}, 0, False), {}, ("ticket",))
    assert (field.name, field.kind, field.is_key) == ("ticket", "string", True)
    assert (field.value, field.is_required, field.is_nullable) == ("", False, True)


def test_a_column_of_categories_has_them_as_choices_in_the_form_of_its_values():
    columns = (Column("carrier", "string"), Column("month", "long"), Column("note", "string"))
    inputs = tuple(
        Input(column.name, dtype, (-1, 1), (column.name,))
        for column, dtype in zip(columns, ("str", "int64", "str"), strict=True)
    )
    schema = compile_schema(columns, (), inputs)
    fields = form_fields(schema, Example({}, 0, False), {"carrier": ("AA", "UA"), "month": (1, 2)})
    assert [field.choices for field in fields] == [("AA", "UA"), ("1", "2"), ()]


@pytest.mark.parametrize(
    ("dtype", "words"),
    [
        ("float32", "numbers, any × 4"),
        ("int8", "whole numbers, any × 4"),
        ("str", "texts, any × 4"),
    ],
)
def test_a_tensor_has_words_for_its_values(dtype, words):
    (field,) = form_fields(tensor_schema(dtype, -1, 4, name="x"), Example({}, 0, False))
    assert field.words == words
