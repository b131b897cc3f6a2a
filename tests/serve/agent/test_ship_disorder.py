"""`Shipper`: a segment or row that cannot be read or written does not affect other
segments and rows.
"""

import os
import sys
import zlib
from unittest.mock import Mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlflow_deploy_plugin.serve.agent.ship import Shipper
from mlflow_deploy_plugin.serve.spool.captured_model import exclude_columns
from mlflow_deploy_plugin.serve.spool.codec import Feedback, RequestRecord
from mlflow_deploy_plugin.serve.spool.frames import FRAME, MAGIC
from mlflow_deploy_plugin.serve.spool.writer import CaptureWriter
from tests.support.refusals import mentions
from tests.support.shipping import NOON, TABULAR, files, rows, write
from tests.support.spool import read_segment


def test_a_key_that_is_none_lets_nothing_unmasked_out(writer, shipper, tmp_path, caplog):
    (tmp_path / "mask.key").write_text("secret")
    masked = exclude_columns(TABULAR, (), ("carrier",))
    record = RequestRecord("flights", "champion", "r", "p", NOON, NOON)
    feeds = {"c": np.array([["AA"]], dtype=object), "d": np.zeros((1, 1))}
    assert not writer.write(record, masked, feeds, {}, 100)[-1]
    assert mentions(caplog.text, "mask.key", "32 to 128")
    assert "secret" not in caplog.text
    (tmp_path / "mask.key").write_text("ab" * 16)
    assert writer.write(record, masked, feeds, {}, 100)[-1]
    assert shipper.ship() == 1


def test_a_log_that_cannot_be_written_keeps_the_segment(writer, tmp_path):
    (tmp_path / "log").touch()
    shipper = Shipper(tmp_path / "spool", str(tmp_path / "log"))
    write(writer, "a", ["AA"])
    writer.close()
    assert shipper.ship() == 0
    (tmp_path / "log").unlink()
    assert shipper.ship() == 1


def test_a_segment_that_makes_no_sense_is_set_aside(writer, shipper, tmp_path):
    write(writer, "a", ["AA"])
    writer.close()
    (segment,) = (tmp_path / "spool").glob("*.seg")
    (request,), _ = read_segment(segment)
    # The frame of the model is removed.
    segment.write_bytes(segment.read_bytes()[request.offset :])
    assert shipper.ship() == 0
    assert [path.suffix for path in (tmp_path / "spool").iterdir()] == [".broken"]


def test_answers_of_other_types_or_shapes_take_no_row_of_the_same_model_with_them(
    writer, shipper, tmp_path
):
    answers = [
        np.array([1.0]),
        np.array([1]),
        np.array([[1.0]]),
        np.array(["a"], dtype=object),
        np.array([2.0]),
    ]
    for number, answer in enumerate(answers):
        record = RequestRecord("flights", "champion", str(number), "p", NOON, NOON)
        feeds = {"c": np.array([["AA"]], dtype=object), "d": np.zeros((1, 1))}
        assert writer.write(record, TABULAR, feeds, {"label": answer}, 100)[-1]
    assert shipper.ship() == 5
    predictions = {
        row["_request_id"]: row.get("prediction", row.get("output.label")) for row in rows(tmp_path)
    }
    assert predictions == {"0": 1.0, "1": 1, "2": [1.0], "3": "a", "4": 2.0}
    assert len(files(tmp_path)) == 4


def test_labels_that_have_no_form_are_left_out_and_take_no_row_with_them(writer, shipper, tmp_path):
    write(writer, "a", ["AA"])
    # The time is in the year 33658.
    writer.write_feedback("flights", 10**18, [Feedback("p-a", None, None, 1)])
    writer.close()
    assert shipper.ship() == 1
    assert not list((tmp_path / "spool").iterdir())


def test_a_time_that_no_file_can_be_named_for_takes_no_other_row_with_it(writer, shipper, tmp_path):
    write(writer, "before", ["AA"])
    write(writer, "impossible", ["AA"], at=-62_135_600_000_000_000)  # The time is in the year 0.
    write(writer, "after", ["AA"])
    assert shipper.ship() == 2
    write(writer, "later", ["AA"])
    assert shipper.ship() == 1
    assert {row["_request_id"] for row in rows(tmp_path)} == {"before", "after", "later"}


def test_where_it_is_not_known_how_far_a_segment_is_shipped_all_of_it_is(writer, shipper, tmp_path):
    write(writer, "a", ["AA"])
    assert shipper.ship() == 1
    (shipped,) = (tmp_path / "spool").glob("*.shipped")
    shipped.write_text("not a number")
    assert shipper.ship() == 1


def test_the_last_few_segments_that_make_no_sense_are_kept_and_all_are_counted(shipper, tmp_path):
    for number in range(6):
        writer = CaptureWriter(tmp_path / "spool")
        write(writer, "a", ["AA"])
        writer.close()
        (segment,) = (tmp_path / "spool").glob("*.seg")
        (request,), _ = read_segment(segment)
        segment.write_bytes(segment.read_bytes()[request.offset :])
        os.utime(segment, (number, number))
        shipper.ship()
    times = {path.stat().st_mtime for path in (tmp_path / "spool").glob("*.broken")}
    assert times == {2, 3, 4, 5}
    assert shipper.state.broken_segments == 6


@pytest.mark.parametrize("payload", [b"", b"R", b"R" + bytes(4), b"R" + bytes(40), b"L" + bytes(2)])
def test_whole_frames_that_hold_something_else_do_not_end_the_agent(
    writer, shipper, tmp_path, payload
):
    frame = FRAME.pack(MAGIC, len(payload), zlib.crc32(payload)) + payload
    (tmp_path / "spool").mkdir()
    (tmp_path / "spool" / "odd.seg").write_bytes(frame)
    write(writer, "a", ["AA"])
    assert shipper.ship() == 1


@pytest.mark.parametrize("payload", [b"", b"R", b"R" + bytes(40), b"F", b"F{}"])
def test_a_frame_that_makes_no_sense_takes_none_with_it_of_a_segment_that_is_written_on(
    writer, shipper, tmp_path, payload
):
    write(writer, "a", ["AA"])
    writer.write_feedback("flights", NOON, [Feedback("p-a", None, None, 1)])
    (segment,) = (tmp_path / "spool").glob("*.seg")
    with segment.open("ab") as file:
        file.write(FRAME.pack(MAGIC, len(payload), zlib.crc32(payload)) + payload)
    write(writer, "b", ["AA"])
    assert shipper.ship() == 2
    write(writer, "c", ["AA"])
    assert shipper.ship() == 1
    log_rows = rows(tmp_path)
    assert {row["_request_id"] for row in log_rows if "_request_id" in row} == {"a", "b", "c"}
    assert [row["_label"] for row in log_rows if "_label" in row] == ["1"]
    assert segment.with_suffix(".broken").exists()
    assert shipper.state.broken_segments == 1


def test_a_broken_frame_is_counted_once_even_if_its_segment_is_retried(writer, shipper, tmp_path):
    write(writer, "a", ["AA"])
    (segment,) = (tmp_path / "spool").glob("*.seg")
    with segment.open("ab") as file:
        file.write(FRAME.pack(MAGIC, 0, zlib.crc32(b"")))
    (tmp_path / "log").write_text("a file where the folder should be")
    for _ in range(3):
        assert shipper.ship() == 0
    assert shipper.state.broken_segments == 0
    (tmp_path / "log").unlink()
    assert shipper.ship() == 1
    assert shipper.state.broken_segments == 1


def test_a_segment_that_cannot_be_read_keeps_no_other_from_the_log(writer, shipper, tmp_path):
    (tmp_path / "spool").mkdir()
    unreadable = tmp_path / "spool" / "a.seg"
    unreadable.mkdir()  # A folder cannot be read as a file, even by root.
    write(writer, "a", ["AA"])
    assert shipper.ship() == 1
    assert mentions(shipper.state.error, "a.seg", "cannot be read")
    unreadable.rmdir()
    assert shipper.ship() == 0
    assert shipper.state.error == ""


def test_a_segment_whose_own_files_are_in_disorder_keeps_no_other_from_the_log(shipper, tmp_path):
    held = CaptureWriter(tmp_path / "spool")
    ended = CaptureWriter(tmp_path / "spool")
    write(held, "a", ["AA"])
    (segment,) = (tmp_path / "spool").glob("*.seg")
    segment.with_suffix(".shipped").mkdir()
    os.utime(segment, (1, 1))  # Ship this segment first.
    write(ended, "b", ["UA"])
    ended.close()
    shipper.ship()
    assert list((tmp_path / "spool").glob("*.seg")) == [segment]
    assert mentions(shipper.state.error, segment.name, "cannot be read")
    segment.with_suffix(".shipped").rmdir()
    shipper.ship()
    assert shipper.state.error == ""
    assert shipper.progress.totals.shipped == {"flights": 2}
    assert sorted(row["_request_id"] for row in rows(tmp_path)) == ["a", "b"]
    held.close()


def test_running_out_of_memory_or_missing_boto3_loses_no_rows(
    writer, bucket, tmp_path, monkeypatch
):
    shipper = Shipper(tmp_path / "spool", "s3://b/log")
    write(writer, "a", ["AA"])
    writer.write_feedback("flights", NOON, [Feedback("p-a", None, None, 1)])
    writer.close()
    with monkeypatch.context() as without_memory:
        without_memory.setattr(
            pq, "write_table", Mock(side_effect=pa.ArrowMemoryError("malloc of size 1 failed"))
        )
        assert shipper.ship() == 0
        assert "malloc of size" in shipper.state.error
    with monkeypatch.context() as without_boto:
        without_boto.setitem(sys.modules, "boto3", None)
        assert shipper.ship() == 0
        assert "needs boto3" in shipper.state.error
    assert shipper.ship() == 1
    assert shipper.state.error == ""
    assert len(bucket.objects) == 2
    assert shipper.progress.totals.lost == {}
    assert not list((tmp_path / "spool").iterdir())
