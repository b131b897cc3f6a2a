"""`Shipper`: captured requests and labels become rows of the inference log."""

import hashlib
import json
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mlflow_deploy_plugin.core.column_names import TRIED_ID
from mlflow_deploy_plugin.serve.inference_log.log_reader import open_log
from mlflow_deploy_plugin.serve.inference_log.windows import parse_window
from mlflow_deploy_plugin.serve.runtime.artifact import Input, Tensor
from mlflow_deploy_plugin.serve.runtime.schemas.schema import Schema
from mlflow_deploy_plugin.serve.spool.captured_model import CapturedModel, exclude_columns
from mlflow_deploy_plugin.serve.spool.codec import Feedback, RequestRecord
from tests.support.shipping import HOUR, IMAGES, NOON, TABULAR, files, rows, write


def test_captured_rows_come_out_under_the_signatures_names(writer, shipper, tmp_path):
    write(writer, "a", ["AA", "UA"])
    write(writer, f"{TRIED_ID}a", ["AA"])
    assert shipper.ship() == 3

    (segment,) = (tmp_path / "spool").glob("*.seg")
    first, second, tried = rows(tmp_path)
    assert tried["_tried"]
    assert first == {
        "_event_time": datetime(2026, 6, 1, 12, tzinfo=UTC),
        "_received_time": datetime(2026, 6, 1, 12, tzinfo=UTC),
        "_prediction_id": "p-a",
        "_request_id": "a",
        "_variant": "champion",
        "_shadow": False,
        "_tried": False,
        "_model": "tiny",
        "_version": "3",
        "_latency_us": 1500,
        "_status": 200,
        "_segment": segment.stem,
        "_offset": first["_offset"],
        "_row": 0,
        "carrier": "AA",
        "distance": 0.0,
        "prediction": "late",
        "output.probabilities": [0.5, 0.5],
    }
    assert second["_row"] == 1
    assert second["carrier"] == "UA"
    schema = pq.ParquetFile(files(tmp_path)[0]).schema_arrow
    assert schema.field("_event_time").type == pa.timestamp("us", tz="UTC")
    assert schema.field("_offset").type == pa.int64()
    assert schema.field("_row").type == pa.int32()
    assert schema.field("output.probabilities").type == pa.list_(pa.float32())


def test_labels_are_shipped_by_endpoint_and_the_day_they_came_in(writer, shipper, tmp_path):
    writer.write_feedback(
        "flights", NOON, [Feedback("p-a", 0, None, True), Feedback("p-a", 1, None, "late")]
    )
    write(writer, "a", ["AA"])
    writer.write_feedback(
        "flights", NOON + 1, [Feedback(None, None, {"distance": 7.0, "carrier": "AA"}, 2)]
    )
    writer.write_feedback("flights", NOON + 24 * HOUR, [Feedback("p-b", None, None, None)])
    assert shipper.ship() == 1
    folder = tmp_path / "log" / "_labels" / "endpoint=flights"
    assert sorted(path.parent.name for path in folder.rglob("*.parquet")) == [
        "date=2026-06-01",
        "date=2026-06-02",
    ]
    (first,) = (folder / "date=2026-06-01").iterdir()
    labels = pq.ParquetFile(first).read().to_pylist()
    assert [(row["_prediction_id"], row["_row"], row["_key"], row["_label"]) for row in labels] == [
        ("p-a", 0, None, "true"),
        ("p-a", 1, None, "late"),
        (None, None, '{"carrier":"AA","distance":"7"}', "2"),
    ]
    assert len({(row["_segment"], row["_offset"]) for row in labels}) == 3


def test_requests_without_an_answer_are_a_log_of_their_own(writer, shipper, tmp_path):
    write(writer, "a", ["AA"])
    for status in (400, 504):
        record = RequestRecord("flights", "champion", "r", f"p{status}", NOON, NOON, 70, status)
        reason = {"_error_code": "BAD_REQUEST", "_message": None, "_column": f"c{status}"}
        texts = {name: np.array([text], object) for name, text in reason.items()}
        writer.write(record, exclude_columns(TABULAR, ("prediction",), ()), {}, texts, 1)
    assert shipper.ship() == 3
    log = open_log(str(tmp_path / "log"))
    window = parse_window("2026-06-01/1d")
    assert [len(table) for table in log.batches("flights", window)] == [1]
    (failed,) = log.failures.batches("flights", window)
    read = ("_status", "_version", "_latency_us", "_error_code", "_message", "_column")
    assert [tuple(row[name] for name in read) for row in failed.to_pylist()] == [
        (400, "3", 70, "BAD_REQUEST", None, "c400"),
        (504, "3", 70, "BAD_REQUEST", None, "c504"),
    ]
    assert "carrier" not in failed.column_names
    assert shipper.progress.totals.shipped == {"flights": 1}


def test_masked_columns_are_equal_hashes_in_rows_and_in_keys_of_labels(writer, shipper, tmp_path):
    masked = exclude_columns(TABULAR, (), ("carrier", "prediction"))
    record = RequestRecord("flights", "champion", "r", "p", NOON, NOON)
    feeds = {"c": np.array([["AA"], [None], ["AA"]], dtype=object), "d": np.zeros((3, 1))}
    assert writer.write(record, masked, feeds, {"label": np.array([1.0, 2.0, 1.0])}, 100)[-1]
    writer.write_feedback(
        "flights", NOON, [Feedback(None, None, {"carrier": "AA", "distance": 0}, 1)], ("carrier",)
    )
    assert shipper.ship() == 3
    log_rows = rows(tmp_path)
    key = next(json.loads(row["_key"]) for row in log_rows if "_key" in row)
    logged = [row for row in log_rows if "_key" not in row]
    assert [row["carrier"] for row in logged] == [key["carrier"], None, key["carrier"]]
    assert logged[0]["prediction"] == logged[2]["prediction"] != logged[1]["prediction"]
    assert key["distance"] == "0"
    secret = tmp_path / "mask.key"
    assert secret.stat().st_mode & 0o777 == 0o600
    assert len(bytes.fromhex(secret.read_text())) == 32
    expected = hashlib.blake2b(
        b"AA", key=bytes.fromhex(secret.read_text()), digest_size=16
    ).hexdigest()
    assert key["carrier"] == expected


def test_rows_are_partitioned_by_endpoint_and_the_hour_of_event_time(writer, shipper, tmp_path):
    for number, hours in enumerate((0, 0, 1, 13)):
        write(writer, str(number), ["AA"], NOON + hours * HOUR)
    shipper.ship()
    folders = [str(file.parent.relative_to(tmp_path / "log")) for file in files(tmp_path)]
    assert folders == [
        "endpoint=flights/date=2026-06-01/hour=12",
        "endpoint=flights/date=2026-06-01/hour=13",
        "endpoint=flights/date=2026-06-02/hour=01",
    ]


def test_a_scalar_input_gets_no_column(writer, shipper, tmp_path):
    tensors = (Tensor("x", "float32", (-1,)), Tensor("threshold", "float32", ()))
    schema = Schema(
        (), tensors, tuple(Input(tensor.name, tensor.dtype, tensor.shape) for tensor in tensors)
    )
    record = RequestRecord("e", "v", "r", "p", NOON, NOON)
    feeds = {"threshold": np.array(0.5, np.float32), "x": np.array([1, 2], np.float32)}
    assert writer.write(
        record, CapturedModel("m", "1", schema, ("y",)), feeds, {"y": feeds["x"]}, 100
    )[-1]
    assert shipper.ship() == 2
    assert [(row["x"], row["prediction"], "threshold" in row) for row in rows(tmp_path)] == [
        (1.0, 1.0, False),
        (2.0, 2.0, False),
    ]


def test_tensors_of_different_lengths_become_nested_lists(writer, shipper, tmp_path):
    for number, length in enumerate((1, 3)):
        record = RequestRecord("cnn", "cnn", str(number), f"p-{number}", NOON, NOON)
        image = np.arange(2 * length * 2, dtype=np.float32).reshape(2, length, 2)
        assert writer.write(record, IMAGES, {"image": image}, {"p": np.zeros(2, np.int64)}, 100)[-1]
    assert shipper.ship() == 4
    log_rows = rows(tmp_path)
    assert [row["image"] for row in log_rows] == [
        [[0.0, 1.0]],
        [[2.0, 3.0]],
        [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]],
        [[6.0, 7.0], [8.0, 9.0], [10.0, 11.0]],
    ]
    assert [row["prediction"] for row in log_rows] == [0, 0, 0, 0]


def test_requests_that_are_alike_make_one_file_whatever_came_between(writer, shipper, tmp_path):
    for number in range(30):
        write(writer, f"r{number}", ["AA"] * (1 + number % 3))
    assert shipper.ship() == 60
    assert len(files(tmp_path)) == 1
    row_ids = {(row["_request_id"], row["_row"]) for row in rows(tmp_path)}
    assert row_ids == {(f"r{number}", row) for number in range(30) for row in range(1 + number % 3)}
