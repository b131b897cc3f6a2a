import hashlib
import json
import os
import signal
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlflow_deploy_plugin.agent.ship import Shipper
from mlflow_deploy_plugin.inference_log.joining import label_batches
from mlflow_deploy_plugin.inference_log.reader import open_log
from mlflow_deploy_plugin.inference_log.windows import parse_window
from mlflow_deploy_plugin.runtime.artifact import Column, Input, Tensor
from mlflow_deploy_plugin.runtime.schema import Schema
from mlflow_deploy_plugin.server.capture import CapturedModel, CaptureWriter, RequestRecord
from mlflow_deploy_plugin.server.captured_model import kept_of
from mlflow_deploy_plugin.server.feedback import Feedback
from support.s3 import s3_server
from support.spool import read_segment

NOON = int(datetime(2026, 6, 1, 12, tzinfo=UTC).timestamp()) * 1_000_000
HOUR = 3_600_000_000

TABULAR = CapturedModel(
    "tiny",
    "3",
    Schema(
        (Column("carrier", "string"), Column("distance", "double")),
        (),
        (Input("c", "str", (-1, 1), ("carrier",)), Input("d", "float64", (-1, 1), ("distance",))),
    ),
    ("label",),
)
IMAGES = CapturedModel(
    "cnn",
    "1",
    Schema((), (Tensor("image", "float32", (-1, -1, 2)),), (Input("image", "float32", (-1, -1, 2)),)),
    ("p",),
)


def write(writer: CaptureWriter, request: str, carriers: list[str], at: int = NOON) -> None:
    record = RequestRecord("flights", "champion", request, f"p-{request}", at, NOON, latency=1500)
    feeds = {
        "c": np.array([[carrier] for carrier in carriers], dtype=object),
        "d": np.arange(len(carriers), dtype=np.float64).reshape(-1, 1),
    }
    outputs = {"label": np.array(["late"] * len(carriers), dtype=object)}
    outputs["probabilities"] = np.full((len(carriers), 2), 0.5, dtype=np.float32)
    assert writer.write(record, TABULAR, feeds, outputs, 100)


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[CaptureWriter]:
    writer = CaptureWriter(tmp_path / "spool")
    yield writer
    writer.close()


@pytest.fixture
def shipper(tmp_path: Path) -> Shipper:
    return Shipper(tmp_path / "spool", str(tmp_path / "log"))


def files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "log").rglob("*.parquet"))


def rows(tmp_path: Path) -> list[dict[str, Any]]:
    return [row for file in files(tmp_path) for row in pq.ParquetFile(file).read().to_pylist()]


def test_captured_rows_come_out_under_the_signatures_names(
    writer: CaptureWriter, shipper: Shipper, tmp_path: Path
) -> None:
    write(writer, "a", ["AA", "UA"])
    assert shipper.ship() == 2

    (segment,) = (tmp_path / "spool").glob("*.seg")
    first, second = rows(tmp_path)
    assert first == {
        "_event_time": datetime(2026, 6, 1, 12, tzinfo=UTC),
        "_received_time": datetime(2026, 6, 1, 12, tzinfo=UTC),
        "_prediction_id": "p-a",
        "_request_id": "a",
        "_variant": "champion",
        "_shadow": False,
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
    assert (second["_row"], second["carrier"]) == (1, "UA")
    schema = pq.ParquetFile(files(tmp_path)[0]).schema_arrow
    assert schema.field("_event_time").type == pa.timestamp("us", tz="UTC")
    assert (schema.field("_offset").type, schema.field("_row").type) == (pa.int64(), pa.int32())
    assert schema.field("output.probabilities").type == pa.list_(pa.float32())


def test_labels_are_shipped_by_endpoint_and_the_day_they_came_in(
    writer: CaptureWriter, shipper: Shipper, tmp_path: Path
) -> None:
    writer.write_feedback("flights", NOON, [Feedback("p-a", 0, None, True), Feedback("p-a", 1, None, "late")])
    write(writer, "a", ["AA"])
    writer.write_feedback("flights", NOON + 1, [Feedback(None, None, {"distance": 7.0, "carrier": "AA"}, 2)])
    writer.write_feedback("flights", NOON + 24 * HOUR, [Feedback("p-b", None, None, None)])
    assert shipper.ship() == 1
    folder = tmp_path / "log" / "_labels" / "endpoint=flights"
    assert sorted(path.parent.name for path in folder.rglob("*.parquet")) == ["date=2026-06-01", "date=2026-06-02"]
    (first,) = (folder / "date=2026-06-01").iterdir()
    labels = pq.ParquetFile(first).read().to_pylist()
    assert [(row["_prediction_id"], row["_row"], row["_key"], row["_label"]) for row in labels] == [
        ("p-a", 0, None, "true"),
        ("p-a", 1, None, "late"),
        (None, None, '{"carrier":"AA","distance":"7"}', "2"),
    ]
    assert len({(row["_segment"], row["_offset"]) for row in labels}) == 3


def test_requests_without_an_answer_are_a_log_of_their_own(
    writer: CaptureWriter, shipper: Shipper, tmp_path: Path
) -> None:
    write(writer, "a", ["AA"])
    for status in (400, 504):
        writer.write_failure(RequestRecord("flights", "champion", "r", f"p{status}", NOON, NOON, 70, status), TABULAR)
    assert shipper.ship() == 3
    log = open_log(str(tmp_path / "log"))
    window = parse_window("2026-06-01/1d")
    assert [len(table) for table in log.batches("flights", window)] == [1]
    (failed,) = log.failures.batches("flights", window)
    assert [(row["_status"], row["_version"], row["_latency_us"]) for row in failed.to_pylist()] == [
        (400, "3", 70),
        (504, "3", 70),
    ]
    assert "carrier" not in failed.column_names
    assert shipper.progress.totals.shipped == {"flights": 1}


def test_masked_columns_are_equal_hashes_in_rows_and_in_keys_of_labels(
    writer: CaptureWriter, shipper: Shipper, tmp_path: Path
) -> None:
    masked = kept_of(TABULAR, (), ("carrier", "prediction"))
    record = RequestRecord("flights", "champion", "r", "p", NOON, NOON)
    feeds = {"c": np.array([["AA"], [None], ["AA"]], dtype=object), "d": np.zeros((3, 1))}
    assert writer.write(record, masked, feeds, {"label": np.array([1.0, 2.0, 1.0])}, 100)
    writer.write_feedback("flights", NOON, [Feedback(None, None, {"carrier": "AA", "distance": 0}, 1)], ("carrier",))
    assert shipper.ship() == 3
    found = rows(tmp_path)
    key = next(json.loads(row["_key"]) for row in found if "_key" in row)
    logged = [row for row in found if "_key" not in row]
    assert [row["carrier"] for row in logged] == [key["carrier"], None, key["carrier"]]
    assert logged[0]["prediction"] == logged[2]["prediction"] != logged[1]["prediction"]
    assert key["distance"] == "0"
    secret = tmp_path / "mask.key"
    assert (secret.stat().st_mode & 0o777, len(bytes.fromhex(secret.read_text()))) == (0o600, 32)
    expected = hashlib.blake2b(b"AA", key=bytes.fromhex(secret.read_text()), digest_size=16).hexdigest()
    assert key["carrier"] == expected


def test_a_key_that_is_none_lets_nothing_unmasked_out(
    writer: CaptureWriter, shipper: Shipper, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "mask.key").write_text("secret")
    masked = kept_of(TABULAR, (), ("carrier",))
    record = RequestRecord("flights", "champion", "r", "p", NOON, NOON)
    feeds = {"c": np.array([["AA"]], dtype=object), "d": np.zeros((1, 1))}
    assert not writer.write(record, masked, feeds, {}, 100)
    assert "mask.key holds no key: 32 to 128 hexadecimal digits are expected" in caplog.text
    assert "secret" not in caplog.text
    (tmp_path / "mask.key").write_text("ab" * 16)
    assert writer.write(record, masked, feeds, {}, 100)
    assert shipper.ship() == 1


def test_rows_are_partitioned_by_endpoint_and_the_hour_of_event_time(
    writer: CaptureWriter, shipper: Shipper, tmp_path: Path
) -> None:
    for number, hours in enumerate((0, 0, 1, 13)):
        write(writer, str(number), ["AA"], NOON + hours * HOUR)
    shipper.ship()
    folders = [str(file.parent.relative_to(tmp_path / "log")) for file in files(tmp_path)]
    assert folders == [
        "endpoint=flights/date=2026-06-01/hour=12",
        "endpoint=flights/date=2026-06-01/hour=13",
        "endpoint=flights/date=2026-06-02/hour=01",
    ]


def test_only_what_is_new_is_shipped_and_a_segment_goes_when_its_worker_let_go(
    writer: CaptureWriter, shipper: Shipper, tmp_path: Path
) -> None:
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


def test_a_crash_before_the_offset_is_written_makes_no_doubles(
    writer: CaptureWriter, shipper: Shipper, tmp_path: Path
) -> None:
    write(writer, "a", ["AA"])
    shipper.ship()
    forget_what_is_shipped(tmp_path)
    Shipper(tmp_path / "spool", str(tmp_path / "log")).ship()
    assert [row["_request_id"] for row in rows(tmp_path)] == ["a"]


def test_after_a_crash_no_file_comes_to_hold_other_rows_so_that_a_compactor_may_delete_what_it_has_read(
    writer: CaptureWriter, shipper: Shipper, tmp_path: Path
) -> None:
    said = [Feedback("p-a", None, None, 1)]
    for request in "ab":
        write(writer, request, ["AA"])
        writer.write_feedback("flights", NOON, said)
        if request == "a":
            shipper.ship()
            read = files(tmp_path)
            before = [file.read_bytes() for file in read]
            forget_what_is_shipped(tmp_path)
    Shipper(tmp_path / "spool", str(tmp_path / "log")).ship()
    assert len(read) == 2  # rows and labels
    assert [file.read_bytes() for file in read] == before
    for file in read:
        file.unlink()
    log = open_log(str(tmp_path / "log"))
    tables = log.batches("flights", parse_window("2026-06-01/1d"))
    assert sorted(row["_request_id"] for table in tables for row in table.to_pylist()) == ["a", "b"]
    assert sum(map(len, label_batches(log.location, "flights", {}))) == 2


def forget_what_is_shipped(folder: Path) -> None:
    """A crash after rows were written to the log, and before it was written down."""
    (shipped,) = (folder / "spool").glob("*.shipped")
    shipped.unlink()


def test_what_a_killed_worker_left_is_shipped_up_to_the_torn_frame(shipper: Shipper, tmp_path: Path) -> None:
    script = (
        "import sys; sys.path[:0] = sys.argv[1:3]; from pathlib import Path; import test_ship as t, time;"
        "w = t.CaptureWriter(Path(sys.argv[3])); t.write(w, 'a', ['AA']); t.write(w, 'b', ['UA']);"
        "print('written', flush=True); time.sleep(60)"
    )
    folders = Path(__file__).parent, Path(__file__).parents[1], tmp_path / "spool"
    command = [sys.executable, "-c", script, *map(str, folders)]
    worker = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert worker.stdout is not None
    assert worker.stdout.readline() == b"written\n"
    (segment,) = (tmp_path / "spool").glob("*.seg")
    os.kill(worker.pid, signal.SIGKILL)
    worker.communicate()
    os.truncate(segment, segment.stat().st_size - 3)

    assert shipper.ship() == 1
    assert [row["_request_id"] for row in rows(tmp_path)] == ["a"]
    assert not list((tmp_path / "spool").iterdir())


def test_a_log_that_cannot_be_written_keeps_the_segment(writer: CaptureWriter, tmp_path: Path) -> None:
    (tmp_path / "log").touch()
    shipper = Shipper(tmp_path / "spool", str(tmp_path / "log"))
    write(writer, "a", ["AA"])
    writer.close()
    assert shipper.ship() == 0
    (tmp_path / "log").unlink()
    assert shipper.ship() == 1


def test_a_segment_that_makes_no_sense_is_set_aside(writer: CaptureWriter, shipper: Shipper, tmp_path: Path) -> None:
    write(writer, "a", ["AA"])
    writer.close()
    (segment,) = (tmp_path / "spool").glob("*.seg")
    (request,), _ = read_segment(segment)
    segment.write_bytes(segment.read_bytes()[request.offset :])  # without the frame that describes the model
    assert shipper.ship() == 0
    assert [path.suffix for path in (tmp_path / "spool").iterdir()] == [".broken"]


def test_answers_of_other_types_or_shapes_take_no_row_of_the_same_model_with_them(
    writer: CaptureWriter, shipper: Shipper, tmp_path: Path
) -> None:
    answers = [np.array([1.0]), np.array([1]), np.array([[1.0]]), np.array(["a"], dtype=object), np.array([2.0])]
    for number, answer in enumerate(answers):
        record = RequestRecord("flights", "champion", str(number), "p", NOON, NOON)
        feeds = {"c": np.array([["AA"]], dtype=object), "d": np.zeros((1, 1))}
        assert writer.write(record, TABULAR, feeds, {"label": answer}, 100)
    assert shipper.ship() == 5
    found = {row["_request_id"]: row.get("prediction", row.get("output.label")) for row in rows(tmp_path)}
    assert found == {"0": 1.0, "1": 1, "2": [1.0], "3": "a", "4": 2.0}
    assert len(files(tmp_path)) == 4


def test_labels_that_have_no_form_are_left_out_and_take_no_row_with_them(
    writer: CaptureWriter, shipper: Shipper, tmp_path: Path
) -> None:
    write(writer, "a", ["AA"])
    writer.write_feedback("flights", 10**18, [Feedback("p-a", None, None, 1)])  # by a clock of the year 33658
    writer.close()
    assert shipper.ship() == 1
    assert not list((tmp_path / "spool").iterdir())


def test_a_time_that_no_file_can_be_named_for_takes_no_other_row_with_it(
    writer: CaptureWriter, shipper: Shipper, tmp_path: Path
) -> None:
    write(writer, "before", ["AA"])
    write(writer, "impossible", ["AA"], at=-62_135_600_000_000_000)  # in the year 0
    write(writer, "after", ["AA"])
    assert shipper.ship() == 2
    write(writer, "later", ["AA"])
    assert shipper.ship() == 1
    assert {row["_request_id"] for row in rows(tmp_path)} == {"before", "after", "later"}


def test_one_value_for_all_rows_is_no_column(writer: CaptureWriter, shipper: Shipper, tmp_path: Path) -> None:
    tensors = (Tensor("x", "float32", (-1,)), Tensor("threshold", "float32", ()))
    schema = Schema((), tensors, tuple(Input(tensor.name, tensor.dtype, tensor.shape) for tensor in tensors))
    record = RequestRecord("e", "v", "r", "p", NOON, NOON)
    feeds = {"threshold": np.array(0.5, np.float32), "x": np.array([1, 2], np.float32)}
    assert writer.write(record, CapturedModel("m", "1", schema, ("y",)), feeds, {"y": feeds["x"]}, 100)
    assert shipper.ship() == 2
    assert [(row["x"], row["prediction"], "threshold" in row) for row in rows(tmp_path)] == [
        (1.0, 1.0, False),
        (2.0, 2.0, False),
    ]


def test_where_it_is_not_known_how_far_a_segment_is_shipped_all_of_it_is(
    writer: CaptureWriter, shipper: Shipper, tmp_path: Path
) -> None:
    write(writer, "a", ["AA"])
    assert shipper.ship() == 1
    (shipped,) = (tmp_path / "spool").glob("*.shipped")
    shipped.write_text("not a number")
    assert shipper.ship() == 1


def test_tensors_of_different_lengths_become_nested_lists(
    writer: CaptureWriter, shipper: Shipper, tmp_path: Path
) -> None:
    for number, length in enumerate((1, 3)):
        record = RequestRecord("cnn", "cnn", str(number), f"p-{number}", NOON, NOON)
        image = np.arange(2 * length * 2, dtype=np.float32).reshape(2, length, 2)
        assert writer.write(record, IMAGES, {"image": image}, {"p": np.zeros(2, np.int64)}, 100)
    assert shipper.ship() == 4
    found = rows(tmp_path)
    assert [row["image"] for row in found] == [
        [[0.0, 1.0]],
        [[2.0, 3.0]],
        [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]],
        [[6.0, 7.0], [8.0, 9.0], [10.0, 11.0]],
    ]
    assert [row["prediction"] for row in found] == [0, 0, 0, 0]


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def patient(tmp_path: Path, clock: Clock) -> Shipper:
    return Shipper(tmp_path / "spool", str(tmp_path / "log"), clock)


def test_a_segment_that_grows_is_left_to_grow_for_ten_seconds(
    writer: CaptureWriter, patient: Shipper, clock: Clock
) -> None:
    shipped = []
    for second in range(0, 14, 2):
        clock.now = float(second)
        write(writer, str(second), ["AA"])
        shipped.append(patient.round())
    assert shipped == [0, 0, 0, 0, 0, 6, 0]


def test_a_segment_that_has_stopped_growing_is_shipped_in_the_next_round(
    writer: CaptureWriter, patient: Shipper
) -> None:
    write(writer, "a", ["AA"])
    assert [patient.round() for _ in range(3)] == [0, 1, 0]
    write(writer, "b", ["AA"])
    assert [patient.round() for _ in range(3)] == [0, 1, 0]


def test_a_segment_that_its_worker_let_go_of_is_shipped_at_once(writer: CaptureWriter, patient: Shipper) -> None:
    write(writer, "a", ["AA"])
    writer.close()
    assert patient.round() == 1


def test_a_log_that_is_down_is_told_and_asked_less_and_less_often(
    patient: Shipper, clock: Clock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
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
    assert patient.state.error.startswith(f"the inference log {tmp_path / 'log'} cannot be written: ")
    assert len(caplog.records) == 1

    (tmp_path / "log").unlink()
    clock.now = 60.0
    assert (patient.round(), patient.state.error) == (2, "")
    assert caplog.messages[1:] == ["the inference log is written again"]


def test_a_torn_end_is_counted_and_logged(
    writer: CaptureWriter, shipper: Shipper, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in "ab":
        write(writer, name, ["AA"])
    writer.close()
    (segment,) = (tmp_path / "spool").glob("*.seg")
    (_, last), end = read_segment(segment)
    os.truncate(segment, end - 3)
    assert shipper.ship() == 1
    assert shipper.state.torn_segments == 1
    lost = end - 3 - last.offset
    assert caplog.messages == [f"{lost} bytes of segment {segment.stem} are no whole frame, and are lost"]


def test_the_last_few_segments_that_make_no_sense_are_kept_and_all_are_counted(
    shipper: Shipper, tmp_path: Path
) -> None:
    for number in range(6):
        writer = CaptureWriter(tmp_path / "spool")
        write(writer, "a", ["AA"])
        writer.close()
        (segment,) = (tmp_path / "spool").glob("*.seg")
        (request,), _ = read_segment(segment)
        segment.write_bytes(segment.read_bytes()[request.offset :])
        os.utime(segment, (number, number))
        shipper.ship()
    kept = {path.stat().st_mtime for path in (tmp_path / "spool").glob("*.broken")}
    assert (kept, shipper.state.broken_segments) == ({2, 3, 4, 5}, 6)


def test_requests_that_are_alike_make_one_file_whatever_came_between(
    writer: CaptureWriter, shipper: Shipper, tmp_path: Path
) -> None:
    for number in range(30):
        write(writer, f"r{number}", ["AA"] * (1 + number % 3))
    assert shipper.ship() == 60
    assert len(files(tmp_path)) == 1
    found = {(row["_request_id"], row["_row"]) for row in rows(tmp_path)}
    assert found == {(f"r{number}", row) for number in range(30) for row in range(1 + number % 3)}


@pytest.mark.parametrize("payload", [b"", b"R", b"R" + bytes(4), b"R" + bytes(40), b"L" + bytes(2)])
def test_whole_frames_that_hold_something_else_do_not_end_the_agent(
    writer: CaptureWriter, shipper: Shipper, tmp_path: Path, payload: bytes
) -> None:
    frame = struct.pack("<4sII", b"OXS2", len(payload), zlib.crc32(payload)) + payload
    (tmp_path / "spool").mkdir()
    (tmp_path / "spool" / "odd.seg").write_bytes(frame)
    write(writer, "a", ["AA"])
    assert shipper.ship() == 1


def test_an_hour_without_the_log_costs_no_row_and_few_attempts(
    writer: CaptureWriter, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    shipper = Shipper(tmp_path / "spool", str(tmp_path / "log"), clock, clock)
    (tmp_path / "log").write_text("a file where the folder should be")
    written, attempts = 0, 0
    while clock.now < 3600:
        write(writer, str(written), ["AA"])
        written += 1
        before = shipper._retry_at
        assert shipper.round() == 0
        attempts += shipper._retry_at != before
        clock.now += 2
    assert attempts <= 3600 / 30 + 10
    assert len([line for line in caplog.messages if "cannot be written" in line]) == 1
    (tmp_path / "log").unlink()
    clock.now += 60
    shipper.round()
    clock.now += 2
    shipper.round()
    assert sorted(row["_request_id"] for row in rows(tmp_path)) == sorted(map(str, range(written)))
    assert (shipper.state.error, shipper.progress.complete_until >= 3600) == ("", True)


def test_a_bucket_that_refuses_gets_each_row_once_it_takes_them(
    writer: CaptureWriter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    with s3_server() as bucket:
        monkeypatch.setenv("AWS_ENDPOINT_URL", bucket.url)
        shipper = Shipper(tmp_path / "spool", "s3://b/log")
        bucket.refusals = [403, 403]
        shipped = []
        for name in "abc":
            write(writer, name, ["AA"])
            shipped.append(shipper.ship())
        assert shipped == [0, 0, 3]
        tables = [pq.ParquetFile(pa.BufferReader(content)).read() for content in bucket.objects.values()]
    assert [row["_request_id"] for table in tables for row in table.to_pylist()] == ["a", "b", "c"]


def test_a_segment_that_cannot_be_read_keeps_no_other_from_the_log(
    writer: CaptureWriter, shipper: Shipper, tmp_path: Path
) -> None:
    (tmp_path / "spool").mkdir()
    unreadable = tmp_path / "spool" / "a.seg"
    unreadable.mkdir()  # whoever runs the tests may read any file
    write(writer, "a", ["AA"])
    assert shipper.ship() == 1
    assert "segment a.seg cannot be read" in shipper.state.error
    unreadable.rmdir()
    assert shipper.ship() == 0
    assert shipper.state.error == ""


def test_a_segment_whose_own_files_are_in_disorder_keeps_no_other_from_the_log(
    shipper: Shipper, tmp_path: Path
) -> None:
    held, ended = CaptureWriter(tmp_path / "spool"), CaptureWriter(tmp_path / "spool")
    write(held, "a", ["AA"])
    (segment,) = (tmp_path / "spool").glob("*.seg")
    segment.with_suffix(".shipped").mkdir()
    os.utime(segment, (1, 1))  # it comes first
    write(ended, "b", ["UA"])
    ended.close()
    shipper.ship()
    assert list((tmp_path / "spool").glob("*.seg")) == [segment]
    assert f"segment {segment.name} cannot be read" in shipper.state.error
    segment.with_suffix(".shipped").rmdir()
    shipper.ship()
    assert (shipper.state.error, shipper.progress.totals.shipped) == ("", {"flights": 2})
    assert sorted(row["_request_id"] for row in rows(tmp_path)) == ["a", "b"]
    held.close()


def test_want_of_memory_or_of_what_writes_to_a_bucket_costs_no_row(
    writer: CaptureWriter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    with s3_server() as bucket:
        monkeypatch.setenv("AWS_ENDPOINT_URL", bucket.url)
        shipper = Shipper(tmp_path / "spool", "s3://b/log")
        write(writer, "a", ["AA"])
        writer.write_feedback("flights", NOON, [Feedback("p-a", None, None, 1)])
        writer.close()
        with monkeypatch.context() as without_memory:
            without_memory.setattr(pq, "write_table", Mock(side_effect=pa.ArrowMemoryError("malloc of size 1 failed")))
            assert shipper.ship() == 0
            assert "malloc of size 1 failed" in shipper.state.error
        with monkeypatch.context() as without_boto:
            without_boto.setitem(sys.modules, "boto3", None)
            assert shipper.ship() == 0
            assert "needs boto3" in shipper.state.error
        assert shipper.ship() == 1
        assert (shipper.state.error, len(bucket.objects), shipper.progress.totals.lost) == ("", 2, {})
    assert not list((tmp_path / "spool").iterdir())
