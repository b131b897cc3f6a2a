"""The log contains the rows as they were sent, in the types of the signature."""

import csv
import io
from collections.abc import Callable
from operator import itemgetter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import orjson
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlflow_deploy_plugin.serve.agent.ship import Shipper
from mlflow_deploy_plugin.serve.grpc import inference_pb2 as messages
from mlflow_deploy_plugin.serve.grpc import tensors
from mlflow_deploy_plugin.serve.protocols import arrow, jsonlines, mlflow, v2
from mlflow_deploy_plugin.serve.protocols.v2_tensors import TensorHeader, dtype_of, to_binary
from mlflow_deploy_plugin.serve.runtime.artifact import Column, Input, Output
from mlflow_deploy_plugin.serve.runtime.feeds import Feeds
from mlflow_deploy_plugin.serve.runtime.schemas.schema import Schema, compile_schema
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

Rows = list[dict[str, Any]]


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
    return v2.decode({}, orjson.dumps({"inputs": inputs}), ARTIFACT, schema).feeds


def by_arrow(rows, schema):
    table = pa.table(columns_of(rows, TYPES), schema=pa.schema(TYPES))
    return arrow.decode(arrow_stream(table), schema, 10**6)


def by_split(rows, schema):
    split = {"columns": list(TYPES), "data": [list(itemgetter(*TYPES)(row)) for row in rows]}
    return mlflow.decode("application/json", orjson.dumps({"dataframe_split": split}), schema)


def by_v2_binary(rows, schema):
    arrays = _arrays_of(rows)
    parts = {name: to_binary(array) for name, array in arrays.items()}
    inputs = [
        {
            "name": name,
            "datatype": DATATYPES[name],
            "shape": [len(rows)],
            "parameters": {"binary_data_size": len(part)},
        }
        for name, part in parts.items()
    ]
    head = orjson.dumps({"inputs": inputs})
    length = {v2.HEADER_LENGTH.lower(): str(len(head))}
    return v2.decode(length, head + b"".join(parts.values()), ARTIFACT, schema).feeds


def by_grpc(rows, schema):
    message = messages.ModelInferRequest()
    for name, array in _arrays_of(rows).items():
        message.inputs.add(name=name, datatype=DATATYPES[name], shape=array.shape)
        message.raw_input_contents.append(to_binary(array))
    return tensors.decode(message, ARTIFACT, schema).feeds


def _arrays_of(rows):
    dtypes = {name: dtype_of(kind) for name, kind in DATATYPES.items()}
    return {
        name: np.array(pd.Series(values).fillna(np.nan), dtypes[name])
        for name, values in columns_of(rows, dtypes).items()
    }


def by_inputs(rows, schema):
    columns = columns_of(rows, TYPES)
    return mlflow.decode("application/json", orjson.dumps({"inputs": columns}), schema)


WAYS: dict[str, Callable[[Rows, Schema], Feeds]] = {
    "records": lambda rows, schema: mlflow.decode(
        "application/json", orjson.dumps({"dataframe_records": rows}), schema
    ),
    "split": by_split,
    "lines": lambda rows, schema: jsonlines.decode(b"\n".join(map(orjson.dumps, rows)), schema),
    "v2": by_v2,
    "v2 binary": by_v2_binary,
    "gRPC": by_grpc,
    "arrow": by_arrow,
    "inputs": by_inputs,
    "csv": by_csv,
}


def logged(schema, *requests, drop=()):
    """Return the rows of these requests from the single file
    that is written for them.
    """
    model = exclude_columns(CapturedModel("m", "1", schema, ("y",)), drop, ())
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


@pytest.mark.parametrize("way", WAYS)
@given(rows=st.lists(ROW, min_size=1, max_size=4), schema=st.sampled_from([STACKED, APART, WIDE]))
@settings(max_examples=15)
def test_every_type_comes_back_as_it_was_sent(way, rows, schema):
    table = logged(schema, WAYS[way](rows, schema))

    assert {name: table.schema.field(name).type for name in TYPES} == TYPES
    missing = {"distance": np.nan, "wind": np.nan}
    for name in TYPES:
        sent = [missing.get(name) if row[name] is None else row[name] for row in rows]
        np.testing.assert_array_equal(table.column(name).to_pylist(), sent)
    assert table.column("prediction").type == pa.int64()


ONE = {"key": 123456789, "count": 7, "is_late": True, "distance": 0.1, "wind": 0.5, "carrier": "UA"}


def test_a_column_that_is_dropped_is_in_no_block_either():
    table = logged(STACKED, by_split([ONE], STACKED), drop=("key", "is_late"))
    assert not {"key", "is_late"} & set(table.column_names)
    assert table.select(["count", "distance"]).to_pylist() == [{"count": 7, "distance": 0.1}]


def test_a_large_body_of_numbers_keeps_its_doubles():
    columns = tuple(Column(f"c{place}", "double") for place in range(30))
    names = tuple(column.name for column in columns)
    schema = compile_schema(columns, (), (Input("X", "float32", (-1, 30), names),))
    values = np.random.default_rng(0).normal(size=(200, 30))
    body = orjson.dumps({"inputs": values.tolist()})
    table = logged(schema, mlflow.decode("application/json", body, schema))
    np.testing.assert_array_equal(np.column_stack([table.column(name) for name in names]), values)


def by_input(datatype, data):
    """Return one row of the graph's input."""
    head = TensorHeader("X", (1, 5), datatype)
    text = TensorHeader("carrier", (1, 1), "BYTES")
    array = np.array([data], {"FP32": np.float32, "FP64": np.float64, "INT64": np.int64}[datatype])
    return v2.bind_tensors(
        {"X": (head, array), "carrier": (text, np.array([["UA"]], object))}, STACKED
    )


@pytest.mark.parametrize("datatype", ["FP64", "INT64"])
def test_a_tensor_for_the_graph_is_kept_as_it_came(datatype):
    (row,) = (
        logged(STACKED, by_input(datatype, [123456789, 7, 1, 3, 4])).select(list(TYPES)).to_pylist()
    )
    assert row == {
        "key": 123456789,
        "count": 7,
        "is_late": True,
        "distance": 3.0,
        "wind": 4.0,
        "carrier": "UA",
    }


def test_values_beyond_the_column_type_widen_the_column():
    table = logged(STACKED, by_input("FP64", [7, 7, 1, 3, 4]), by_input("FP64", [7.5, 7, 2, 3, 4]))
    assert table.column("key").to_pylist() == [7, 7.5]
    assert table.column("is_late").to_pylist() == [1, 2]
    assert table.schema.field("count").type == pa.int32()


def test_a_tensor_stands_in_the_type_of_the_signature():
    schema = tensor_schema("int64", -1, 2, name="ids", graph_name="ids", fed="float32")
    table = logged(schema, schema.from_columns({"ids": [[123456789, 2**62 + 1]]}))
    assert table.column("ids").to_pylist() == [[123456789, 2**62 + 1]]


@pytest.mark.parametrize(("drop", "mask"), [((), ()), (("count",), ()), ((), ("count",))])
def test_a_request_without_rows_takes_no_others_from_the_log(tmp_path, drop, mask):
    rows: Rows = [dict.fromkeys(NUMBERS, 1) | {"is_late": True, "carrier": "AA"}]
    feeds = dict(by_split(rows, STACKED))  # The rows are split into the graph's tensors.
    none = {name: array[:0] for name, array in feeds.items()}
    model = exclude_columns(CapturedModel("m", "1", STACKED, ("y",)), drop, mask)
    writer = CaptureWriter(tmp_path / "spool")
    for sent in (feeds, none, feeds):
        assert writer.write(RECORD, model, sent, {"y": np.zeros(len(sent["X"]), np.float32)}, 100)[
            -1
        ]
    writer.close()
    shipped = Shipper(tmp_path / "spool", str(tmp_path / "log"))
    shipped.ship()
    assert sum(len(pq.read_table(file)) for file in (tmp_path / "log").rglob("*.parquet")) == 2
