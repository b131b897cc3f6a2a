"""Tests of a version as a function of tables, and of the rows that it refuses."""

import numpy as np
import pyarrow as pa
import pytest

from mlflow_deploy_plugin.core.errors import InferenceError, InvalidConfig, InvalidRequest
from mlflow_deploy_plugin.core.tabular.streams import RejectedRow, RowBlock
from mlflow_deploy_plugin.ship.batch.table_model import (
    load_table_model,
    predict_block,
    takes,
)
from tests.support.models import columns, write_model
from tests.support.refusals import mentions

from .conftest import flights, labels


def test_model_is_loaded_once_per_process(model):
    assert load_table_model(model) is load_table_model(model)


def test_refused_rows_are_isolated_and_order_is_kept(model):
    rows = flights(1000)
    hours = [
        None if row in (0, 500, 999) else hour for row, hour in enumerate(rows["hour"].to_pylist())
    ]
    block = RowBlock(rows.set_column(4, "hour", pa.array(hours, pa.int64())), range(7, 1007))

    pieces = list(predict_block(load_table_model(model), block, ("id",)))

    refused = [piece for piece in pieces if isinstance(piece, RejectedRow)]
    tables = pa.concat_tables([piece for piece in pieces if isinstance(piece, pa.Table)])
    assert [row.number for row in refused] == [7, 507, 1006]
    assert mentions(refused[1].why, "column 'hour' (long)", "null")
    assert isinstance(refused[1].content, dict)
    assert refused[1].content["id"] == 500
    answered_rows = rows.take([row for row in range(1000) if row not in (0, 500, 999)])
    assert tables["id"].equals(answered_rows["id"])
    assert tables["prediction"].to_pylist() == labels(answered_rows)


def test_mostly_bad_rows_need_few_retries(model, monkeypatch):
    table = load_table_model(model)
    tried = []

    def refuse(rows):
        tried.append(rows.num_rows)
        raise InvalidRequest("bad")

    monkeypatch.setattr(table, "predict", refuse)
    rows = flights(512)
    refused = list(predict_block(table, RowBlock(rows, range(512))))
    assert [row.number for row in refused if isinstance(row, RejectedRow)] == [*range(512)]
    assert len(tried) < 1.3 * 512


def test_row_marked_by_the_graph_is_named(tmp_path):
    graph = (
        "g (float[N,1] x) => (float[N,1] y, float[N] onnxserve_refused_rows) <int64[1] axis = {1}> "
        + ("{ y = Sub(x, x) onnxserve_refused_rows = ReduceSum<keepdims=0>(x, axis) }")
    )
    model = load_table_model(write_model(tmp_path, graph, columns(x="float")))
    numbers = np.zeros(5000, np.float32)
    numbers[4999] = 1.0

    with pytest.raises(InferenceError, match=r"^row 4999: "):
        model.predict(pa.table({"x": numbers}))


def test_model_takes_only_its_own_columns(model):
    schema = load_table_model(model).schema

    assert [name for name in flights(1).column_names if takes(schema, name, ())] == [
        "carrier",
        "distance",
        "hour",
        "late",
    ]


def test_graph_of_fixed_batch_size_is_refused(tmp_path):
    folder = write_model(tmp_path / "m", "fixed (float[3] x) => (float[3] y) { y = Add(x, x) }")

    with pytest.raises(InvalidConfig, match=r"'x'.*first size 3"):
        load_table_model(folder)
