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
from tests.support.shipping import NOON, TABULAR, files, forget_what_is_shipped, rows, write
from tests.support.spool import read_segment

FEEDS = {"c": np.array([["AA"]], dtype=object), "d": np.zeros((1, 1))}


def test_malformed_mask_key_stops_the_capture(writer, shipper, tmp_path, caplog):
    (tmp_path / "mask.key").write_text("secret")
    masked = exclude_columns(TABULAR, (), ("carrier",))
    record = RequestRecord("flights", "champion", "r", "p", NOON, NOON)
    assert not writer.write(record, masked, FEEDS, {}, 100)[-1]
    assert mentions(caplog.text, "mask.key", "32 to 128")
    assert "secret" not in caplog.text
    (tmp_path / "mask.key").write_text("ab" * 16)
    assert writer.write(record, masked, FEEDS, {}, 100)[-1]
    assert shipper.ship() == 1


def test_answers_of_several_types_are_logged(writer, shipper, tmp_path):
    for number, answer in enumerate(([1.0], [1], [[1.0]], ["a"], [2.0])):
        record = RequestRecord("flights", "champion", str(number), "p", NOON, NOON)
        label = np.array(answer, object if answer == ["a"] else None)
        assert writer.write(record, TABULAR, FEEDS, {"label": label}, 100)[-1]
    assert shipper.ship() == 5
    predictions = {
        row["_request_id"]: row.get("prediction", row.get("output.label")) for row in rows(tmp_path)
    }
    assert predictions == {"0": 1.0, "1": 1, "2": [1.0], "3": "a", "4": 2.0}
    assert len(files(tmp_path)) == 4


def test_impossible_times_affect_no_other_row(writer, shipper, tmp_path):
    write(writer, "before", ["AA"])
    write(writer, "impossible", ["AA"], at=-62_135_600_000_000_000)  # The time is in the year 0.
    # The time is in the year 33658.
    writer.write_feedback("flights", 10**18, [Feedback("p-a", None, None, 1)])
    write(writer, "after", ["AA"])
    assert shipper.ship() == 2
    write(writer, "later", ["AA"])
    writer.close()
    assert shipper.ship() == 1
    assert {row["_request_id"] for row in rows(tmp_path)} == {"before", "after", "later"}
    assert not list((tmp_path / "spool").iterdir())


def test_unknown_offset_ships_the_whole_segment(writer, shipper, tmp_path):
    write(writer, "a", ["AA"])
    assert shipper.ship() == 1
    (shipped,) = (tmp_path / "spool").glob("*.shipped")
    shipped.write_text("not a number")
    assert shipper.ship() == 1


def test_last_malformed_segments_are_kept(shipper, tmp_path):
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


@pytest.mark.parametrize(
    "payload",
    [b"", b"R", b"R" + bytes(4), b"R" + bytes(40), b"F", b"F{}", b"F7", b'F["e",1,[[1]]]'],
)
def test_malformed_frame_affects_no_other(writer, shipper, tmp_path, payload):
    write(writer, "a", ["AA"])
    writer.write_feedback("flights", NOON, [Feedback("p-a", None, None, 1)])
    (segment,) = (tmp_path / "spool").glob("*.seg")
    with segment.open("ab") as file:
        file.write(FRAME.pack(MAGIC, len(payload), zlib.crc32(payload)) + payload)
    write(writer, "b", ["AA"])
    (tmp_path / "log").write_text("a file where the folder should be")
    assert shipper.ship() == 0
    assert shipper.state.broken_segments == 0  # The write is repeated.
    (tmp_path / "log").unlink()
    assert shipper.ship() == 2
    write(writer, "c", ["AA"])
    assert shipper.ship() == 1
    log_rows = rows(tmp_path)
    assert {row["_request_id"] for row in log_rows if "_request_id" in row} == {"a", "b", "c"}
    assert [row["_label"] for row in log_rows if "_label" in row] == ["1"]
    assert segment.with_suffix(".broken").exists()
    assert shipper.state.broken_segments == 1


@pytest.mark.parametrize("name", ["a.seg", "a.shipped"])
def test_unreadable_segment_blocks_no_other(writer, shipper, tmp_path, name):
    spool = tmp_path / "spool"
    spool.mkdir()
    (spool / name).mkdir()  # A folder cannot be read as a file, even by root.
    if name == "a.shipped":
        (spool / "a.seg").touch()
    os.utime(spool / "a.seg", (1, 1))  # This segment is shipped first.
    write(writer, "a", ["AA"])
    assert shipper.ship() == 1
    assert mentions(shipper.state.error, "a.seg", "cannot be read")
    (spool / name).rmdir()
    assert shipper.ship() == 0
    assert shipper.state.error == ""


def test_failed_write_loses_no_rows(writer, bucket, tmp_path, monkeypatch):
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


def test_shipping_again_overwrites_no_file(writer, shipper, tmp_path):
    for request in "ab":
        write(writer, request, ["AA"])
        writer.write_feedback("flights", NOON, [Feedback("p-a", None, None, 1)])
        if request == "a":
            shipper.ship()
            before = {file: file.read_bytes() for file in files(tmp_path)}
            forget_what_is_shipped(tmp_path)
    shipper.ship()
    assert len(before) == 2  # one file of rows and one file of labels
    for file, content in before.items():
        assert file.read_bytes() == content
        file.unlink()
    log_rows = rows(tmp_path)
    assert [row["_request_id"] for row in log_rows if "_row" in row and "_label" not in row] == [
        "a",
        "b",
    ]
    assert len([row for row in log_rows if "_label" in row]) == 2


def test_torn_frame_is_counted_and_logged(writer, shipper, tmp_path, caplog):
    for name in "ab":
        write(writer, name, ["AA"])
    writer.close()
    (segment,) = (tmp_path / "spool").glob("*.seg")
    (_, last), end = read_segment(segment)
    os.truncate(segment, end - 3)
    assert shipper.ship() == 1
    assert shipper.state.torn_segments == 1
    lost = end - 3 - last.offset
    assert caplog.messages == [
        f"{lost} bytes of segment {segment.stem} are not a complete frame and are lost"
    ]
    assert [row["_request_id"] for row in rows(tmp_path)] == ["a"]
    assert not list((tmp_path / "spool").iterdir())
