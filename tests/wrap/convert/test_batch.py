from datetime import date
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from mlflow.models import ModelSignature, infer_signature
from mlflow.types import ColSpec, Schema, TensorSpec
from sklearn.linear_model import LinearRegression

from mlflow_deploy_plugin.core.errors import ConversionError, InvalidConfig, SchemaMismatch
from mlflow_deploy_plugin.serve.runtime.artifact import Column, Input
from mlflow_deploy_plugin.serve.runtime.feeds import sent_arrays
from mlflow_deploy_plugin.serve.runtime.schemas.schema import compile_schema
from mlflow_deploy_plugin.wrap.convert.batch import Batch, as_pandas, column_values, columns_of
from mlflow_deploy_plugin.wrap.flavor.wrap import wrap
from tests.support.refusals import refused
from tests.wrap.conftest import cases


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
def test_columns_have_the_types_of_mlflow(values, found, column_type):
    read = [
        None if isinstance(value, float) and np.isnan(value) else value
        for value in column_values(values).tolist()
    ]
    assert read == found
    assert columns_of(pd.DataFrame({"a": values}))[0].type == column_type


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (pd.date_range("2026-01-01", periods=2), ("datetime64",)),
        ([None, date(2026, 1, 1)], ("object", "date")),
    ],
)
def test_unsupported_column_is_named(values, words):
    with refused(ConversionError, "'when'", *words):
        columns_of(pd.DataFrame({"when": values}))


@pytest.mark.parametrize("dtype", [object, pd.ArrowDtype(pa.decimal128(5, 2))], ids=str)
def test_decimals_are_numbers(dtype):
    table = pd.DataFrame(
        {"price": pd.Series([Decimal("1.5"), None], dtype=dtype), "city": ["a", None]}
    )

    read = as_pandas(table)

    assert [column.type for column in columns_of(read)] == ["double", "string"]
    np.testing.assert_array_equal(read["price"], [1.5, np.nan])


@pytest.mark.parametrize("data", [pd.DataFrame({"a": range(5)}), {"a": np.arange(5)}])
def test_chunks_can_be_joined(data):
    parts = list(Batch(data).chunks(2))
    assert [len(part) for part in parts] == [2, 2, 1]
    assert np.asarray(Batch.joined(parts).data["a"]).tolist() == list(range(5))
    assert np.asarray(Batch(data).take([3, 1]).data["a"]).tolist() == [3, 1]


MATRIX = np.array([[0.1, np.nan, 3.0], [1e-40, -np.inf, 5.0]])
FRAMES = {
    "rows": pd.DataFrame(MATRIX, columns=["a", "b", "c"]),
    "columns": pd.DataFrame({name: MATRIX[:, place].copy() for place, name in enumerate("abc")}),
    "32 bits": pd.DataFrame(MATRIX.astype(np.float32), columns=["a", "b", "c"]),
    "whole numbers": pd.DataFrame([[2**53 + 1, 2, 3]], columns=["a", "b", "c"]),
    "two types": pd.DataFrame({"a": [0.1], "b": [2**53 + 1], "c": [3.0]}),
    "another order": pd.DataFrame(MATRIX, columns=["c", "a", "b"]),
    "one column more": pd.DataFrame(
        np.hstack([MATRIX, MATRIX[:, :1]]), columns=["a", "b", "c", "d"]
    ),
    "missing numbers of pandas": pd.DataFrame(MATRIX, columns=["a", "b", "c"]).convert_dtypes(),
}


SCHEMA_COLUMNS = ("a", "b", "c")


def _schema(dtype, column_type="double"):
    columns = tuple(Column(name, column_type) for name in SCHEMA_COLUMNS)
    return compile_schema(columns, (), (Input("X", dtype, (-1, 3), SCHEMA_COLUMNS),))


@pytest.mark.parametrize("column_type", ["double", "float"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("frame", cases(FRAMES))
def test_frame_is_read_as_its_columns(frame, dtype, column_type):
    schema = _schema(dtype, column_type)

    feeds = Batch(frame).feeds(schema)

    wanted = schema.from_columns({name: column_values(frame[name]) for name in SCHEMA_COLUMNS})
    assert feeds["X"].dtype == dtype
    np.testing.assert_array_equal(feeds["X"], wanted["X"])
    assert sent_arrays(feeds).keys() == sent_arrays(wanted).keys()
    for name, array in sent_arrays(wanted).items():
        np.testing.assert_array_equal(sent_arrays(feeds)[name], array)


@pytest.mark.parametrize(
    ("rows", "words"), [(MATRIX[:0], "no rows"), ([[1.0, 1e300, 1.0]], "column 'b'")]
)
def test_unfit_frame_is_refused(rows, words):
    with refused(SchemaMismatch, words):
        Batch(pd.DataFrame(rows, columns=[*SCHEMA_COLUMNS])).feeds(_schema("float32"))


def test_digest_depends_on_the_values():
    table = pd.DataFrame({"a": [1.0, 2.0], "city": ["rome", None]})

    digest = Batch(table).digest()
    assert digest == Batch(table.copy()).digest()
    assert digest != Batch(table.assign(a=[1.0, 3.0])).digest()
    assert Batch({"x": np.ones(2)}).digest() != Batch({"x": np.zeros(2)}).digest()


@pytest.mark.parametrize("name", ["prediction", "output.label", "_row"])
def test_reserved_column_name_is_refused(name, model, table):
    with refused(ConversionError, f"'{name}'"):
        wrap(model, table.rename(columns={table.columns[0]: name}))


@pytest.mark.parametrize("value", [np.nan, None])
def test_example_without_values_is_refused(value, model, table):
    with refused(InvalidConfig, "input_example", "missing values"):
        wrap(model, pd.DataFrame(value, index=range(3), columns=table.columns))


def _columns(**types):
    return ModelSignature(Schema([ColSpec(kind, name) for name, kind in types.items()]))


def _tensor(dtype, *shape, name=None):
    return ModelSignature(Schema([TensorSpec(np.dtype(dtype), shape, name)]))


TABLE = pd.DataFrame({"a": [0.5, 1.5], "b": ["x", "y"]})
TENSOR = {"": np.ones((4, 3), np.float32)}


@pytest.mark.parametrize(
    ("data", "signature", "words"),
    [
        (TABLE, _columns(a="double", c="string"), ("'c'",)),
        (TABLE, _columns(a="string", b="string"), ("'a'", "string", "double")),
        (TABLE, _columns(a="long", b="string"), ("'a'", "long", "other numbers")),
        (TABLE, _columns(a="double", b="double"), ("could not convert string to float",)),
        (TABLE, _tensor("float64", -1, 2), ("tensors", "table")),
        (TENSOR, _columns(a="double"), ("['a']", "tensor")),
        (TENSOR, _tensor("float32", -1, 3, name="x"), ("['x']", "unnamed")),
        (TENSOR, _tensor("float32", -1, 4), ("[-1, 4]", "[4, 3]")),
        (TENSOR, _tensor("float32", -1, 3, 1), ("[-1, 3, 1]", "[4, 3]")),
        (TENSOR, _tensor("int64", -1, 3), ("int64", "float32")),
    ],
)
def test_contradicting_signature_is_refused(data, signature, words):
    with refused(InvalidConfig, "signature", *words) as caught:
        Batch(data).cast_to_signature(signature)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", ["table", "array"])
def test_signature_decides_order_and_types(form, table, saved):
    model = LinearRegression()
    numbers = table.astype(np.float32)
    if form == "table":
        signature = infer_signature(numbers, numbers.a)
        loaded = saved(model.fit(table, table.a), table[["c", "b", "a"]], signature=signature)
        columns = [(column.name, column.type) for column in loaded.artifact.columns]
        assert columns == [("a", "float"), ("b", "float"), ("c", "float")]
        return
    rows = table.to_numpy()
    signature = infer_signature(rows, rows[:, 0])
    loaded = saved(model.fit(rows, rows[:, 0]), rows[:5], signature=signature)
    (tensor,) = loaded.artifact.tensors
    assert (tensor.name, tensor.dtype, tensor.shape) == ("", "float64", (-1, 3))


def test_signature_may_be_wider():
    rows = pd.DataFrame({"a": [1, 2], "b": ["x", "y"]})
    wide = Batch(rows).cast_to_signature(_columns(a="double", b="string"))
    assert wide.data["a"].dtype == np.float64
    assert Batch(TENSOR).cast_to_signature(_tensor("float64", -1, -1)).data is TENSOR


def test_signature_of_other_outputs_is_refused(model, table, saved, tmp_path):
    numbers = infer_signature(table, pd.DataFrame({"delay": [0.5]}))
    with refused(InvalidConfig, "signature", "'delay'", "double", "strings"):
        saved(model, table, signature=numbers)
    assert not (tmp_path / "model").exists()

    saved(model, table, signature=infer_signature(table, pd.DataFrame({"delay": ["up"]})))
