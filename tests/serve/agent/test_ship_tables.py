"""The log contains the rows as they were sent, in the types of the signature."""

import csv
import io
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlflow_deploy_plugin.serve.agent.ship import Shipper
from mlflow_deploy_plugin.serve.protocols import arrow, mlflow, v2
from mlflow_deploy_plugin.serve.protocols.v2_tensors import TensorHeader, dtype_of
from mlflow_deploy_plugin.serve.runtime.artifact import Column, Input, Output
from mlflow_deploy_plugin.serve.runtime.schemas.schema import compile_schema
from mlflow_deploy_plugin.serve.spool.captured_model import CapturedModel, exclude_columns
from mlflow_deploy_plugin.serve.spool.codec import RequestRecord
from mlflow_deploy_plugin.serve.spool.writer import CaptureWriter
from tests.support.bodies import arrow_stream, v2_tensor
from tests.support.schemas import bare_artifact, tensor_schema
from tests.support.shipping import NOON
from tests.support.tables import columns_of

COLUMNS = (
    Column("key", "long"),
    Column("count", "integer"),
    Column("is_late", "boolean"),
    Column("distance", "double"),
    Column("wind", "float"),
    Column("carrier", "string"),
)
TYPES = {
    "key": pa.int64(),
    "count": pa.int32(),
    "is_late": pa.bool_(),
    "distance": pa.float64(),
    "wind": pa.float32(),
    "carrier": pa.string(),
}
DATATYPES = {
    "key": "INT64",
    "count": "INT32",
    "is_late": "BOOL",
    "distance": "FP64",
    "wind": "FP32",
    "carrier": "BYTES",
}
NUMBERS = tuple(TYPES)[:-1]
TEXT = Input("carrier", "str", (-1, 1), ("carrier",), "?")
STACKED = compile_schema(COLUMNS, (), (Input("X", "float32", (-1, 5), NUMBERS), TEXT))
APART = compile_schema(
    COLUMNS, (), (*(Input(name, "float32", (-1, 1), (name,)) for name in NUMBERS), TEXT)
)
WIDE = compile_schema(COLUMNS, (), (Input("X", "float64", (-1, 5), NUMBERS), TEXT))
ARTIFACT = bare_artifact(outputs=(Output("y", "float32", (-1,)),))
RECORD = RequestRecord("flights", "champion", "r", "p", NOON, NOON)


def by_csv(rows, schema):
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(TYPES)
    for row in rows:
        writer.writerow(["" if row[name] is None else row[name] for name in TYPES])
    return mlflow.decode("text/csv", text.getvalue().encode(), schema)


def by_v2(rows, schema):
    columns = columns_of(rows, DATATYPES)
    inputs = [v2_tensor(name, kind, columns[name]) for name, kind in DATATYPES.items()]
    return v2.decode({}, orjson.dumps({"inputs": inputs}), ARTIFACT, schema, v2.OWN).feeds


def by_arrow(rows, schema):
    table = pa.table(columns_of(rows, TYPES), schema=pa.schema(TYPES))
    return arrow.decode(arrow_stream(table), schema, 10**6)


def by_split(rows, schema):
    data = [[row[name] for name in TYPES] for row in rows]
    split = {"columns": list(TYPES), "data": data}
    return mlflow.decode("application/json", orjson.dumps({"dataframe_split": split}), schema)


def by_records(rows, schema):
    body = orjson.dumps({"dataframe_records": rows})
    return mlflow.decode("application/json", body, schema)


WAYS = (by_records, by_split, by_v2, by_arrow, by_csv)


def logged(schema, *requests, drop=(), mask=()):
    """Return the rows of these requests from the single file
    that is written for them.
    """
    model = exclude_columns(CapturedModel("m", "1", schema, ("y",)), drop, mask)
    with TemporaryDirectory() as folder:
        writer = CaptureWriter(Path(folder, "spool"))
        for feeds in requests:
            outputs = {"y": np.arange(len(next(iter(feeds.values()))))}
            assert writer.write(RECORD, model, feeds, outputs, 1000)[-1]
        writer.close()
        Shipper(Path(folder, "spool"), str(Path(folder, "log"))).ship()
        (file,) = Path(folder, "log").rglob("*.parquet")
        return pq.ParquetFile(file).read()


TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1, max_size=4)
ROW = st.fixed_dictionaries(
    {
        "key": st.integers(-(2**63), 2**63 - 1),
        "count": st.integers(-(2**31), 2**31 - 1),
        "is_late": st.booleans(),
        "distance": st.floats(-1e38, 1e38) | st.none(),
        "wind": st.floats(width=32, allow_nan=False, allow_infinity=False) | st.none(),
        # This text marks a missing value.
        "carrier": TEXTS.filter(lambda text: text != TEXT.missing),
    }
)


@given(rows=st.lists(ROW, min_size=1, max_size=4), schema=st.sampled_from([STACKED, APART, WIDE]))
@settings(max_examples=15)
def test_every_type_is_logged_as_sent(rows, schema):
    table = logged(schema, *(way(rows, schema) for way in WAYS))

    assert {name: table.schema.field(name).type for name in TYPES} == TYPES
    missing = {"distance": np.nan, "wind": np.nan}
    for name in TYPES:
        sent = [missing.get(name) if row[name] is None else row[name] for row in rows]
        np.testing.assert_array_equal(table.column(name).to_pylist(), sent * len(WAYS))
    assert table.column("prediction").type == pa.int64()


ONE = {"key": 123456789, "count": 7, "is_late": True, "distance": 0.1, "wind": 0.5, "carrier": "UA"}


def test_large_body_keeps_its_doubles():
    columns = tuple(Column(f"c{place}", "double") for place in range(30))
    names = tuple(column.name for column in columns)
    schema = compile_schema(columns, (), (Input("X", "float32", (-1, 30), names),))
    values = np.random.default_rng(0).normal(size=(200, 30))
    body = orjson.dumps({"inputs": values.tolist()})
    table = logged(schema, mlflow.decode("application/json", body, schema)).select(names)
    np.testing.assert_array_equal(np.column_stack(table.columns), values)


def by_input(datatype, data):
    """Return one row of the graph's input."""
    head = TensorHeader("X", (1, 5), datatype)
    text = TensorHeader("carrier", (1, 1), "BYTES")
    array = np.array([data], dtype_of(datatype))
    return v2.bind_tensors(
        {"X": (head, array), "carrier": (text, np.array([["UA"]], object))}, STACKED
    )


@pytest.mark.parametrize("datatype", ["FP64", "INT64"])
def test_graph_tensor_is_kept_as_sent(datatype):
    table = logged(STACKED, by_input(datatype, [123456789, 7, 1, 3, 4])).select(list(TYPES))
    assert [list(row.values()) for row in table.to_pylist()] == [
        [123456789, 7, True, 3.0, 4.0, "UA"]
    ]


def test_tensor_has_the_type_of_the_signature():
    schema = tensor_schema("int64", -1, 2, name="ids", graph_name="ids", fed="float32")
    table = logged(schema, schema.from_columns({"ids": [[123456789, 2**62 + 1]]}))
    assert table.column("ids").to_pylist() == [[123456789, 2**62 + 1]]


@pytest.mark.parametrize(("drop", "mask"), [((), ()), (("count",), ()), ((), ("count",))])
def test_request_without_rows_affects_no_other(drop, mask):
    feeds = dict(by_split([ONE], STACKED))  # The rows are split into the graph's tensors.
    none = {name: array[:0] for name, array in feeds.items()}
    assert len(logged(STACKED, feeds, none, feeds, drop=drop, mask=mask)) == 2
