"""A captured request is stored completely, or without the columns that the spec drops
or masks.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import numpy as np
import pytest

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.statedir.files import SPOOL, read_state, worker_file
from mlflow_deploy_plugin.core.statedir.models import WorkerState
from mlflow_deploy_plugin.serve.runtime.artifact import Column, Input, Tensor
from mlflow_deploy_plugin.serve.runtime.log_columns import to_log_columns
from mlflow_deploy_plugin.serve.runtime.schemas.schema import Schema, compile_schema
from mlflow_deploy_plugin.serve.spool.captured_model import (
    MASK_KEY,
    CapturedModel,
    ColumnMask,
    exclude_columns,
)
from mlflow_deploy_plugin.serve.spool.codec import RequestRecord
from mlflow_deploy_plugin.serve.spool.frames import segments
from mlflow_deploy_plugin.serve.spool.spool_reader import read_batches
from mlflow_deploy_plugin.serve.spool.writer import CaptureWriter
from tests.support.handling import ask
from tests.support.refusals import mentions
from tests.support.servers import variant, want
from tests.support.waiting import wait_until

COLUMNS = (Column("name", "string"), *(Column(name, "double") for name in "abc"))
INPUTS = (Input("name", "str", (-1, 1), ("name",)), Input("X", "float32", (-1, 3), ("a", "b", "c")))
MODEL = CapturedModel("m", "7", compile_schema(COLUMNS, (), INPUTS), ("y",), ("y", "p"))
# a model without a signature
SILENT = CapturedModel("m", "1", Schema((), (), ()), ("output",))
TWO_ANSWERS = CapturedModel("m", "1", Schema((), (), ()), ("y", "p"), ("y", "p"))
RECORD = RequestRecord("e", "v", "r", "p", 0, 0)
OUTPUTS = {"y": np.array([7.0, 8.0]), "p": np.eye(2)}
SENT: dict[str, list[Any]] = {"name": ["x", "z"], "a": [1, 2], "b": [3, 4], "c": [5, 6]}
ROWS = {**SENT, "prediction": [7, 8], "output.p": [[1, 0], [0, 1]]}
FEEDS = MODEL.schema.from_columns(SENT)


def log_columns(batch):
    columns = to_log_columns(batch.model.schema, batch.model.prediction, batch.feeds, batch.outputs)
    return {name: array.tolist() for name, array in columns.items()}


@pytest.mark.parametrize(
    "drop",
    [
        ("b",),
        ("a", "c"),
        ("a", "b", "c"),
        ("name",),
        ("prediction",),
        ("output.y", "output.p", "name", "b"),
    ],
)
def test_dropped_columns_are_never_written(tmp_path, drop):
    writer = CaptureWriter(tmp_path)
    model = exclude_columns(MODEL, drop, ())
    assert writer.write(RECORD, model, FEEDS, OUTPUTS, 100)[-1]
    assert writer.write(RECORD, model, FEEDS, OUTPUTS, 1)[-1]
    (segment,) = segments(tmp_path)
    assert (b'"x"' in segment.read_bytes()) == ("name" not in drop)
    assert writer.write(RECORD, MODEL, FEEDS, OUTPUTS, 100)[-1]
    left = {name: values for name, values in ROWS.items() if name not in drop}
    if "output.y" in drop:
        del left["prediction"]
    first = {name: values[:1] for name, values in left.items()}
    logged = [log_columns(batch) for batch in read_batches(segment).batches]
    assert sorted(logged, key=str) == sorted([left, ROWS, first], key=str)


@pytest.mark.parametrize(
    "mask", [("name",), ("a", "c"), ("a", "b", "c"), ("prediction",), ("output.p", "name")]
)
def test_masked_columns_are_written_as_hashes(tmp_path, mask):
    writer = CaptureWriter(tmp_path / "spool")
    model = exclude_columns(MODEL, ("b",) if "b" not in mask else (), mask)
    assert writer.write(RECORD, model, FEEDS, OUTPUTS, 100)[-1]
    assert writer.write(RECORD, model, FEEDS, OUTPUTS, 1)[-1]
    (segment,) = segments(tmp_path / "spool")
    key = ColumnMask(tmp_path / "mask.key")
    columns = to_log_columns(MODEL.schema, MODEL.prediction, FEEDS, OUTPUTS)
    expected = {name: key.hash_column(columns[name]) for name in mask}
    left = {name: values for name, values in ROWS.items() if name not in ("b", *mask)}
    for batch, rows in zip(read_batches(segment).batches, (2, 1), strict=True):
        masked = {name: array.tolist() for name, array in batch.masked.items()}
        assert log_columns(batch) == {name: values[:rows] for name, values in left.items()}
        assert masked == {name: hashes[:rows] for name, hashes in expected.items()}
    assert (b'"x"' in segment.read_bytes()) == ("name" not in mask)


def test_prediction_of_unnamed_outputs(tmp_path):
    writer = CaptureWriter(tmp_path / "spool")
    for excluded in ((("prediction",), ()), ((), ("prediction",))):
        model = exclude_columns(SILENT, *excluded)
        assert writer.write(RECORD, model, FEEDS, OUTPUTS, 100)[-1]
    dropped, masked = read_batches(segments(tmp_path / "spool")[0]).batches
    assert dropped.outputs == masked.outputs == dropped.masked == {}
    key = ColumnMask(tmp_path / "mask.key")
    assert {name: list(hashes) for name, hashes in masked.masked.items()} == {
        f"output.{name}": key.hash_column(values) for name, values in OUTPUTS.items()
    }


def test_same_choice_is_one_object():
    assert exclude_columns(MODEL, (), ()) is MODEL
    assert exclude_columns(MODEL, ("a",), ("b",)) is exclude_columns(MODEL, ("a",), ("b",))


@pytest.mark.parametrize(
    ("model", "drop", "mask", "message"),
    [
        (MODEL, ("nam",), (), "capture.drop: m 7 has no column 'nam'; did you mean 'name'?"),
        (MODEL, (), ("output.q",), "capture.mask: .* 'output.q'; did you mean 'output.y'?"),
        (MODEL, ("zzz",), (), "'zzz'; .* name, a, b, c, prediction, output.y, output.p"),
        (TWO_ANSWERS, ("prediction",), (), "'prediction'; .* output.y, output.p"),
        (TWO_ANSWERS, (), ("anything", "output.q"), "'output.q'; did you mean 'output.y'?"),
    ],
)
def test_unknown_column_names_the_nearest(model, drop, mask, message):
    with pytest.raises(InvalidConfig, match=message):
        exclude_columns(model, drop, mask)


@pytest.mark.parametrize("name", ["a", "X"])
def test_input_is_refused_as_a_key(name):
    with pytest.raises(InvalidConfig) as refused:
        exclude_columns(MODEL, (), (), ("customer_id", name))
    assert f"capture.keys: {name!r}" in refused.value.message


def test_key_may_be_dropped_or_masked():
    model = exclude_columns(MODEL, ("customer_id",), ("order_id",), ("customer_id", "order_id"))
    assert model.schema.names == MODEL.schema.names
    assert model.masked == {"customer_id": (), "order_id": (("order_id", None),)}


def test_unsigned_model_accepts_any_name():
    assert exclude_columns(SILENT, ("anything",), ()).model == "m"
    tensors = Schema(
        (), (Tensor("image", "float32", (-1, 2)),), (Input("image", "float32", (-1, 2)),)
    )
    model = exclude_columns(CapturedModel("m", "1", tensors, ()), ("image", "output.any"), ())
    assert not model.schema.inputs
    assert model.left_out == {"any"}


@pytest.mark.parametrize(
    ("drop", "mask", "is_kept"),
    [
        ((), (), True),
        (("name",), ("a",), True),
        (("prediction",), (), False),
        ((), ("prediction",), False),
        ((), ("output.p",), False),
    ],
)
def test_excluded_outputs_are_not_complete(drop, mask, is_kept):
    assert exclude_columns(MODEL, drop, mask).has_all_outputs is is_kept
    assert not exclude_columns(SILENT, drop, ("prediction",)).has_all_outputs


def error_of_version_2(server):
    def error():
        state = read_state(worker_file(server.repository.state_dir, os.getpid()), WorkerState)
        if state and state.generation == 2:
            return state.endpoints["e"]["e"].error
        return ""

    return wait_until(error, what="the refusal")


def test_unknown_column_keeps_the_previous_version(serve_here, bias_folders):
    server = serve_here({"e": {"e": variant(bias_folders["1"])}}, drop=["a"])
    state_dir = server.repository.state_dir
    document = {"dataframe_records": [{"a": 1, "b": 2, "c": 3}]}
    assert ask(server, body=document).status == 200
    want(state_dir, 2, {"e": {"e": variant(bias_folders["2"], version="2")}}, drop=["aa"])
    assert mentions(error_of_version_2(server), "capture.drop", "'aa'", "'a'")
    assert ask(server, body=document).headers["X-Model-Version"] == "1"
    (batch,) = read_batches(segments(state_dir / SPOOL)[0]).batches
    assert list(to_log_columns(batch.model.schema, (), batch.feeds, {})) == ["b", "c"]
    assert len(batch.offsets) == 2


def test_invalid_mask_key_refuses_a_version(serve_here, bias_folders):
    server = serve_here({"e": {"e": variant(bias_folders["1"])}})
    state_dir = server.repository.state_dir
    (state_dir / MASK_KEY).write_text("none")
    want(state_dir, 2, {"e": {"e": variant(bias_folders["2"], version="2")}}, mask=["a"])
    assert mentions(error_of_version_2(server), "mask.key", "32 to 128")
    assert server.repository.table["e"].answering[0].loaded.version == "1"


@pytest.mark.parametrize(
    ("column", "key"),
    [
        (np.array([0.1], np.float32), 0.1),
        (np.array([0.1]), "0.1"),
        (np.array([7.0], np.float32), 7),
        (np.array([7]), "7"),
        (np.array([True]), True),
        (np.array([True]), "True"),  # the text in a CSV file
        (np.array([False]), 0),
        (np.array([0.0], np.float32), False),  # a boolean in rows of earlier builds
        (np.array(["é"], object), "é"),
    ],
)
def test_column_and_key_have_equal_hashes(tmp_path, column, key):
    mask = ColumnMask(tmp_path / "mask.key")
    assert mask.hash_values({"a": key, "b": key}, frozenset("a")) == {
        "a": mask.hash_column(column)[0],
        "b": key,
    }


def test_missing_values_and_lists_are_masked(tmp_path):
    mask = ColumnMask(tmp_path / "mask.key")
    assert mask.hash_column(np.array([np.nan], np.float32)) == [None]
    first, second, again = mask.hash_column(
        np.array([[0.1, 2.0], [0.1, 3.0], [0.1, 2.0]], np.float32)
    )
    assert first == again != second


def test_concurrent_workers_share_the_key(tmp_path):
    workers = 8
    at_once = Barrier(workers)

    def masked(_):
        mask = ColumnMask(tmp_path / "mask.key")
        at_once.wait()
        return mask.hash_values({"a": 1}, frozenset("a"))["a"]

    with ThreadPoolExecutor(workers) as pool:
        assert len(set(pool.map(masked, range(workers)))) == 1
