from datetime import date
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from mlflow.models import ModelSignature, infer_signature
from mlflow.types import ColSpec, Schema, TensorSpec

import mlflow_deploy_plugin as onnxserve
from mlflow_deploy_plugin.core.errors import ConversionError, InvalidConfig, SchemaMismatch
from mlflow_deploy_plugin.serve.runtime.artifact import Column, Input
from mlflow_deploy_plugin.serve.runtime.feeds import sent_arrays
from mlflow_deploy_plugin.serve.runtime.schemas.schema import compile_schema
from mlflow_deploy_plugin.wrap.convert.batch import Batch, as_pandas, column_values, columns_of
from tests.support.refusals import mentions


@pytest.mark.parametrize(
    ("values", "found", "column_type"),
    [
        (pd.Series([1, 2], dtype="int32"), [1, 2], "integer"),
        (pd.Series([1, 2]), [1, 2], "long"),
        (pd.Series([1, None], dtype="Int64"), [1.0, None], "double"),
        (pd.Series([1.5, 2.5], dtype="float32"), [1.5, 2.5], "float"),
        (pd.Series([True, False]), [True, False], "boolean"),
        (pd.Series(["x", None]), ["x", None], "string"),
        (pd.Series(["x", "y"], dtype="category"), ["x", "y"], "string"),
        (pd.Series([True, None], dtype=object), [True, None], "boolean"),
    ],
)
def test_a_column_has_one_of_mlflows_types(values, found, column_type):
    read = [
        None if isinstance(value, float) and np.isnan(value) else value
        for value in column_values(values).tolist()
    ]
    assert read == found
    assert columns_of(pd.DataFrame({"a": values}))[0].type == column_type


def test_a_column_of_times_is_refused_by_its_name():
    with pytest.raises(ConversionError, match=r"'when' .*datetime64"):
        columns_of(pd.DataFrame({"when": pd.date_range("2026-01-01", periods=2)}))


def test_the_error_of_an_object_column_names_the_type_of_its_values():
    with pytest.raises(ConversionError, match=r"'when' .*object .*date"):
        columns_of(pd.DataFrame({"when": [None, date(2026, 1, 1)]}))


@pytest.mark.parametrize("dtype", [object, pd.ArrowDtype(pa.decimal128(5, 2))], ids=str)
def test_decimals_of_a_database_are_numbers(dtype):
    table = pd.DataFrame(
        {"price": pd.Series([Decimal("1.5"), None], dtype=dtype), "city": ["a", None]}
    )

    read = as_pandas(table)

    assert [column.type for column in columns_of(read)] == ["double", "string"]
    np.testing.assert_array_equal(read["price"], [1.5, np.nan])


@pytest.mark.parametrize("data", [pd.DataFrame({"a": range(5)}), {"a": np.arange(5)}])
def test_chunks_of_a_batch_are_the_batch_again(data):
    parts = list(Batch(data).chunks(2))
    assert [len(part) for part in parts] == [2, 2, 1]
    assert np.asarray(Batch.joined(parts).data["a"]).tolist() == list(range(5))
    assert np.asarray(Batch(data).take([3, 1]).data["a"]).tolist() == [3, 1]


MATRIX = np.array([[0.1, np.nan, 3.0], [1e-40, -np.inf, 5.0]])
FRAMES = {
    "rows": pd.DataFrame(MATRIX, columns=["a", "b", "c"]),
    "columns": pd.DataFrame({name: MATRIX[:, place].copy() for place, name in enumerate("abc")}),
    "one row": pd.DataFrame(MATRIX[:1], columns=["a", "b", "c"]),
    "32 bits": pd.DataFrame(MATRIX.astype(np.float32), columns=["a", "b", "c"]),
    "whole numbers": pd.DataFrame([[2**53 + 1, 2, 3]], columns=["a", "b", "c"]),
    "two types": pd.DataFrame({"a": [0.1], "b": [2**53 + 1], "c": [3.0]}),
    "another order": pd.DataFrame(MATRIX, columns=["c", "a", "b"]),
    "one column more": pd.DataFrame(
        np.hstack([MATRIX, MATRIX[:, :1]]), columns=["a", "b", "c", "d"]
    ),
    "missing numbers of pandas": pd.DataFrame(MATRIX, columns=["a", "b", "c"]).convert_dtypes(),
}


@pytest.mark.parametrize("column_type", ["double", "float"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES.keys())
def test_a_frame_is_read_as_its_columns_one_by_one(frame, dtype, column_type):
    columns = tuple(Column(name, column_type) for name in "abc")
    schema = compile_schema(columns, (), (Input("X", dtype, (-1, 3), ("a", "b", "c")),))

    feeds = Batch(frame).feeds(schema)

    wanted = schema.from_columns({name: column_values(frame[name]) for name in "abc"})
    assert feeds["X"].dtype == dtype
    np.testing.assert_array_equal(feeds["X"], wanted["X"])
    assert sent_arrays(feeds).keys() == sent_arrays(wanted).keys()
    for name, array in sent_arrays(wanted).items():
        np.testing.assert_array_equal(sent_arrays(feeds)[name], array)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (pd.DataFrame(MATRIX[:0], columns=["a", "b", "c"]), "no rows"),
        (pd.DataFrame([[1.0, 1e300, 1.0]], columns=["a", "b", "c"]), "column 'b'"),
    ],
)
def test_a_frame_that_does_not_fit_is_refused(frame, message):
    columns = tuple(Column(name, "double") for name in "abc")
    schema = compile_schema(columns, (), (Input("X", "float32", (-1, 3), ("a", "b", "c")),))
    with pytest.raises(SchemaMismatch, match=message):
        Batch(frame).feeds(schema)


def test_digest_follows_the_values():
    table = pd.DataFrame({"a": [1.0, 2.0], "city": ["rome", None]})

    assert Batch(table).digest() == Batch(table.copy()).digest()
    assert Batch(table).digest() != Batch(table.assign(a=[1.0, 3.0])).digest()
    assert Batch({"x": np.ones(2)}).digest() != Batch({"x": np.zeros(2)}).digest()


def test_given_signature_decides_order_and_types(model, table, tmp_path):
    signature = infer_signature(table.astype(np.float32), model.predict(table))

    onnxserve.save_model(
        model, tmp_path / "model", input_example=table[["c", "b", "a"]], signature=signature
    )

    loaded = onnxserve.load_model(str(tmp_path / "model"))
    assert [(column.name, column.type) for column in loaded.artifact.columns] == [
        ("a", "float"),
        ("b", "float"),
        ("c", "float"),
    ]


def test_the_signature_that_mlflow_infers_from_an_array_is_taken(model, table, tmp_path):
    rows = table.to_numpy()
    model.fit(rows, model.predict(table))
    signature = infer_signature(rows, model.predict(rows))

    onnxserve.save_model(model, tmp_path / "model", input_example=rows[:5], signature=signature)

    (tensor,) = onnxserve.load_model(str(tmp_path / "model")).artifact.tensors
    assert tensor.name == ""
    assert tensor.dtype == "float64"
    assert tensor.shape == (-1, rows.shape[1])


@pytest.mark.parametrize("name", ["prediction", "output.label", "_row"])
def test_a_column_whose_name_the_log_needs_is_refused(name, model, table, tmp_path):
    example = table.rename(columns={table.columns[0]: name})
    with pytest.raises(ConversionError, match=f"name '{name}' is"):
        onnxserve.save_model(model, tmp_path / "model", input_example=example)


@pytest.mark.parametrize("value", [np.nan, None])
def test_an_example_without_any_value_is_refused(value, model, table, tmp_path):
    example = pd.DataFrame(value, index=range(3), columns=table.columns)
    with pytest.raises(InvalidConfig, match="input_example contains only missing values"):
        onnxserve.save_model(model, tmp_path / "model", input_example=example)


def _columns(**types):
    return ModelSignature(Schema([ColSpec(kind, name) for name, kind in types.items()]))


def _tensor(dtype, *shape, name=None):
    return ModelSignature(Schema([TensorSpec(np.dtype(dtype), shape, name)]))


TABLE = pd.DataFrame({"a": [0.5, 1.5], "b": ["x", "y"]})
TENSOR = {"": np.ones((4, 3), np.float32)}


@pytest.mark.parametrize(
    ("data", "signature", "message"),
    [
        (TABLE, _columns(a="double", c="string"), "the example has no column 'c'"),
        (
            TABLE,
            _columns(a="string", b="string"),
            "column 'a' is a string, but a double in the example",
        ),
        (
            TABLE,
            _columns(a="long", b="string"),
            "column 'a' is a long, but has other numbers in the example",
        ),
        (
            TABLE,
            _columns(a="double", b="double"),
            "the example does not match it: could not convert string to float",
        ),
        (TABLE, _tensor("float64", -1, 2), "it describes tensors, but the example is a table"),
        (
            TENSOR,
            _columns(a="double"),
            "it has the columns ['a'], and the example has one unnamed tensor",
        ),
        (
            TENSOR,
            _tensor("float32", -1, 3, name="x"),
            "it has the tensors ['x'], and the example has one unnamed",
        ),
        (
            TENSOR,
            _tensor("float32", -1, 4),
            "the tensor has the shape [-1, 4], but [4, 3] in the example",
        ),
        (
            TENSOR,
            _tensor("float32", -1, 3, 1),
            "the tensor has the shape [-1, 3, 1], but [4, 3] in the example",
        ),
        (
            TENSOR,
            _tensor("int64", -1, 3),
            "the tensor has the type int64, but float32 in the example",
        ),
    ],
)
def test_a_signature_that_contradicts_the_example_is_refused_in_one_line(data, signature, message):
    with pytest.raises(InvalidConfig) as caught:
        Batch(data).cast_to_signature(signature)
    assert str(caught.value).startswith(f"signature: {message}")
    assert "\n" not in str(caught.value)


def test_a_signature_may_be_wider_than_the_example():
    rows = pd.DataFrame({"a": [1, 2], "b": ["x", "y"]})
    assert (
        Batch(rows).cast_to_signature(_columns(a="double", b="string")).data["a"].dtype
        == np.float64
    )
    assert Batch(TENSOR).cast_to_signature(_tensor("float64", -1, -1)).data is TENSOR


def test_a_signature_whose_outputs_the_model_contradicts_is_refused(model, table, tmp_path):
    numbers = infer_signature(table, pd.DataFrame({"delay": [0.5]}))
    with pytest.raises(InvalidConfig) as caught:
        onnxserve.save_model(model, tmp_path / "model", input_example=table, signature=numbers)
    assert mentions(str(caught.value), "signature", "'delay'", "double", "strings")
    assert not (tmp_path / "model").exists()

    texts = infer_signature(table, pd.DataFrame({"delay": model.predict(table)}))
    onnxserve.save_model(model, tmp_path / "model", input_example=table, signature=texts)
