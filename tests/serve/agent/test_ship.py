"""`Shipper`: captured requests and labels become rows of the inference log."""

import hmac
import json
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mlflow_deploy_plugin.core.column_names import TRIED_ID
from mlflow_deploy_plugin.serve.agent.ship import Shipper
from mlflow_deploy_plugin.serve.inference_log.log_reader import open_log
from mlflow_deploy_plugin.serve.inference_log.windows import parse_window
from mlflow_deploy_plugin.serve.runtime.artifact import Input, Tensor
from mlflow_deploy_plugin.serve.runtime.schemas.schema import Schema
from mlflow_deploy_plugin.serve.spool.captured_model import CapturedModel, exclude_columns
from mlflow_deploy_plugin.serve.spool.codec import Feedback, RequestRecord
from mlflow_deploy_plugin.serve.spool.writer import CaptureWriter
from tests.support.clocks import Clock
from tests.support.shipping import HOUR, IMAGES, NOON, TABULAR, files, rows, write

DAY = parse_window("2026-06-01/1d")


def test_rows_have_the_names_of_the_signature(writer, shipper, tmp_path):
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


def test_labels_are_partitioned_by_received_day(writer, shipper, tmp_path):
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


def test_failed_requests_have_their_own_log(writer, shipper, tmp_path):
    write(writer, "a", ["AA"])
    for status in (400, 504):
        record = RequestRecord("flights", "champion", "r", f"p{status}", NOON, NOON, 70, status)
        reason = {"_error_code": "BAD_REQUEST", "_message": None, "_column": f"c{status}"}
        texts = {name: np.array([text], object) for name, text in reason.items()}
        writer.write(record, exclude_columns(TABULAR, ("prediction",), ()), {}, texts, 1)
    assert shipper.ship() == 3
    log = open_log(str(tmp_path / "log"))
    assert [len(table) for table in log.batches("flights", DAY)] == [1]
    (failed,) = log.failures.batches("flights", DAY)
    read = ["_status", "_version", "_latency_us", "_error_code", "_message", "_column"]
    assert [list(row.values()) for row in failed.select(read).to_pylist()] == [
        [400, "3", 70, "BAD_REQUEST", None, "c400"],
        [504, "3", 70, "BAD_REQUEST", None, "c504"],
    ]
    assert "carrier" not in failed.column_names
    assert shipper.progress.totals.shipped == {"flights": 1}


def test_masked_values_have_equal_hashes(writer, shipper, tmp_path):
    masked = exclude_columns(TABULAR, (), ("carrier", "prediction"))
    record = RequestRecord("flights", "champion", "r", "p", NOON, NOON)
    feeds = {"c": np.array([["AA"], [None], ["AA"]], dtype=object), "d": np.zeros((3, 1))}
    assert writer.write(record, masked, feeds, {"label": np.array([1.0, 2.0, 1.0])}, 100)[-1]
    label = Feedback(None, None, {"carrier": "AA", "distance": 0}, 1)
    writer.write_feedback("flights", NOON, [label], ("carrier",))
    assert shipper.ship() == 3
    *logged, key_row = sorted(rows(tmp_path), key=lambda row: "_key" in row)
    mask = bytes.fromhex((tmp_path / "mask.key").read_text())
    hashed = hmac.digest(mask, b"AA", "sha256").hex()[:32]
    assert json.loads(key_row["_key"]) == {"carrier": hashed, "distance": "0"}
    assert [row["carrier"] for row in logged] == [hashed, None, hashed]
    assert logged[0]["prediction"] == logged[2]["prediction"] != logged[1]["prediction"]


def test_rows_are_partitioned_by_event_hour(writer, shipper, tmp_path):
    for number, hours in enumerate((0, 0, 1, 13)):
        write(writer, str(number), ["AA"], NOON + hours * HOUR)
    shipper.ship()
    folders = [str(file.parent.relative_to(tmp_path / "log")) for file in files(tmp_path)]
    assert folders == [
        "endpoint=flights/date=2026-06-01/hour=12",
        "endpoint=flights/date=2026-06-01/hour=13",
        "endpoint=flights/date=2026-06-02/hour=01",
    ]


def test_scalar_input_has_no_column(writer, shipper, tmp_path):
    inputs = (Input("x", "float32", (-1,)), Input("threshold", "float32", ()))
    tensors = tuple(Tensor(part.name, part.dtype, part.shape) for part in inputs)
    model = CapturedModel("m", "1", Schema((), tensors, inputs), ("y",))
    x = np.array([1, 2], np.float32)
    feeds = {"threshold": np.array(0.5, np.float32), "x": x}
    assert writer.write(RequestRecord("e", "v", "r", "p", 0, 0), model, feeds, {"y": x}, 100)[-1]
    assert shipper.ship() == 2
    logged = rows(tmp_path)
    assert [(row["x"], row["prediction"]) for row in logged] == [(1.0, 1.0), (2.0, 2.0)]
    assert "threshold" not in logged[0]


def test_tensors_of_several_lengths_are_lists(writer, shipper, tmp_path):
    for length in (1, 3):
        record = RequestRecord("cnn", "cnn", "r", "p", NOON, NOON)
        image = np.arange(length * 2, dtype=np.float32).reshape(1, length, 2)
        assert writer.write(record, IMAGES, {"image": image}, {"p": np.zeros(1, np.int64)}, 100)[-1]
    assert shipper.ship() == 2
    assert [(row["image"], row["prediction"]) for row in rows(tmp_path)] == [
        ([[0.0, 1.0]], 0),
        ([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]], 0),
    ]


def test_only_new_rows_are_shipped(writer, shipper, tmp_path):
    write(writer, "a", ["AA"])
    assert shipper.ship() == 1
    assert shipper.ship() == 0
    write(writer, "b", ["UA"])
    again = Shipper(tmp_path / "spool", str(tmp_path / "log"))
    assert again.ship() == 1
    assert len(list((tmp_path / "spool").glob("*.seg"))) == 1

    write(writer, "c", ["DL"])
    writer.close()
    assert again.ship() == 1
    assert not list((tmp_path / "spool").iterdir())
    assert sorted(row["_request_id"] for row in rows(tmp_path)) == ["a", "b", "c"]


def test_complete_until_follows_a_clock_set_back(tmp_path):
    clock = Clock(0.0)
    day = 86400.0
    shipper = Shipper(tmp_path / "spool", str(tmp_path / "log"), now=clock)
    times = []
    for clock.now in (day, 3 * day, day + 60):
        shipper.round()
        times.append(shipper.state.complete_until)
    assert times == [day, 3 * day, day + 60]


def test_log_that_was_never_writable_is_behind(tmp_path):
    clock = Clock(86400.0)
    (tmp_path / "log").touch()
    shipper = Shipper(tmp_path / "spool", str(tmp_path / "log"), clock, clock)
    write(CaptureWriter(tmp_path / "spool"), "a", ["AA"])
    clock.now += 60
    shipper.ship()
    assert shipper.state.error
    assert shipper.state.complete_until == 86400.0


def test_growing_segment_is_shipped_after_ten_seconds(writer, patient, clock):
    shipped = []
    for second in range(0, 14, 2):
        clock.now = float(second)
        write(writer, str(second), ["AA"])
        shipped.append(patient.round())
    assert shipped == [0, 0, 0, 0, 0, 6, 0]


def test_idle_or_released_segment_is_shipped_in_time(writer, patient):
    for _ in range(2):
        write(writer, "a", ["AA"])
        assert [patient.round() for _ in range(3)] == [0, 1, 0]
    write(writer, "b", ["AA"])
    writer.close()
    assert patient.round() == 1


def test_unwritable_log_is_retried_with_backoff(patient, clock, tmp_path, caplog):
    caplog.set_level("INFO")
    (tmp_path / "log").touch()
    for name in "ab":
        writer = CaptureWriter(tmp_path / "spool")
        write(writer, name, ["AA"])
        writer.close()
    failed = []
    for second in range(60):
        clock.now = float(second)
        before = patient._retry_at
        assert patient.round() == 0
        if patient._retry_at != before:
            failed.append(second)
    assert failed == [0, 2, 6, 14, 30]
    assert patient.state.error.startswith(
        f"the inference log {tmp_path / 'log'} cannot be written: "
    )
    assert len(caplog.records) == 1

    (tmp_path / "log").unlink()
    clock.now = 60.0
    assert patient.round() == 2
    assert patient.state.error == ""
    assert caplog.messages[1:] == ["the inference log can be written again"]
