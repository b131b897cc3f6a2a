"""All complete frames can be read back, and incomplete frames are never read."""

import os
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import Mock

import numpy as np

from mlflow_deploy_plugin.serve.runtime.artifact import Column, Input
from mlflow_deploy_plugin.serve.runtime.feeds import sent_arrays
from mlflow_deploy_plugin.serve.runtime.log_columns import to_log_columns
from mlflow_deploy_plugin.serve.runtime.schemas.schema import compile_schema
from mlflow_deploy_plugin.serve.spool import writer as capture
from mlflow_deploy_plugin.serve.spool.captured_model import CapturedModel
from mlflow_deploy_plugin.serve.spool.codec import RequestRecord
from mlflow_deploy_plugin.serve.spool.frames import is_released, segments
from mlflow_deploy_plugin.serve.spool.writer import CaptureWriter
from tests.support.clocks import Clock
from tests.support.disk import files_of_at_most
from tests.support.spool import read_segment

RECORD = RequestRecord("e", "v", "requést", "prediction", -1_000_000, 2_000_000)


def schema():
    columns = (
        Column("s", "string"),
        Column("d", "double"),
        Column("n", "long"),
        Column("b", "boolean"),
    )
    inputs = (
        Input("s", "str", (-1, 1), ("s",), "?"),
        Input("dn", "float32", (-1, 2), ("d", "n")),
        Input("b", "bool", (-1, 1), ("b",)),
    )
    return compile_schema(columns, (), inputs)


MODEL = CapturedModel("m", "7", schema(), ("y",))
FEEDS = MODEL.schema.from_columns(
    {"s": ["a", 'ü"', None], "d": [0.1, None, 2], "n": [1, 2, 3], "b": [True, False, True]}
)
OUTPUTS = {
    "y": np.array(["x", "", "z"], dtype=object),
    "p": np.arange(6, dtype=np.float32).reshape(3, 2),
    "total": np.array([5.0]),  # This output has one value for all rows.
    "maps": np.array([{1: 0.5}] * 3, dtype=object),
}


def write_request(writer):
    """Write a request of three rows, and return whether it is captured."""
    return writer.write(RECORD, MODEL, FEEDS, OUTPUTS, 100)[-1]


def test_requests_are_read_back_as_written(tmp_path):
    writer = CaptureWriter(tmp_path)
    assert write_request(writer)
    assert writer.write(RECORD, MODEL, {"b": FEEDS["b"]}, {}, 2)[-1]
    (segment,) = segments(tmp_path)
    (request, other), end = read_segment(segment)
    assert end == segment.stat().st_size
    assert request.record == other.record == RECORD
    assert (request.model.model, request.model.version) == ("m", "7")
    assert request.model.schema == MODEL.schema
    for name, array in sent_arrays(FEEDS).items():
        assert request.feeds[name].dtype == array.dtype
        np.testing.assert_array_equal(request.feeds[name], array)
    rows = to_log_columns(
        request.model.schema, request.model.prediction, request.feeds, request.outputs
    )
    # The value is stored as sent; the graph receives 0.1 as 32-bit float.
    assert rows["d"][0] == 0.1
    assert {name: array.tolist() for name, array in rows.items() if name != "d"} == {
        "s": ["a", 'ü"', None],
        "n": [1, 2, 3],
        "b": [True, False, True],
        "prediction": ["x", "", "z"],
        "output.p": [[0, 1], [2, 3], [4, 5]],
    }
    # The first two rows are kept.
    assert {name: array.tolist() for name, array in other.feeds.items()} == {"b": [[1], [0]]}


def test_segment_is_locked_until_closed(tmp_path):
    writer = CaptureWriter(tmp_path)
    write_request(writer)
    (segment,) = segments(tmp_path)
    assert not is_released(segment)
    writer.close()
    assert is_released(segment)
    write_request(writer)
    assert len(segments(tmp_path)) == 2


def test_full_segment_is_followed_by_another(tmp_path, monkeypatch):
    monkeypatch.setattr(capture, "MAX_SEGMENT_BYTES", 2000)
    writer = CaptureWriter(tmp_path)
    for _ in range(30):
        assert write_request(writer)
    paths = segments(tmp_path)
    assert len(paths) > 2
    assert sum(len(read_segment(segment)[0]) for segment in paths) == 30
    assert sum(not is_released(segment) for segment in paths) == 1


def test_threads_write_complete_frames(tmp_path):
    writer = CaptureWriter(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: write_request(writer), range(400)))
    assert sum(len(read_segment(segment)[0]) for segment in segments(tmp_path)) == 400


def test_full_disk_keeps_complete_frames(tmp_path, caplog):
    clock = Clock(0.0)
    writer = CaptureWriter(tmp_path, clock)
    assert writer.write(RECORD, MODEL, FEEDS, OUTPUTS, 100) == (3, 3, True)
    (segment,) = segments(tmp_path)
    size = segment.stat().st_size
    with files_of_at_most(size + 100):
        assert {writer.write(RECORD, MODEL, FEEDS, OUTPUTS, 1) for _ in range(5)} == {(3, 1, False)}
        assert segment.stat().st_size == size
    assert len(caplog.records) == 1
    clock.now = 61.0
    assert write_request(writer)
    assert len(read_segment(segment)[0]) == 2


def test_missing_spool_fails_no_request(tmp_path):
    (tmp_path / "spool").write_text("a file where the folder should be")
    assert write_request(CaptureWriter(tmp_path / "spool")) is False


def test_unnamed_segment_leaves_nothing(tmp_path, monkeypatch):
    writer = CaptureWriter(tmp_path)
    opened = len(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", Mock(side_effect=OSError("the disk is full")))
        assert not write_request(writer)
    assert os.listdir(tmp_path) == []
    assert len(os.listdir("/proc/self/fd")) == opened
    assert write_request(writer)
    assert len(read_segment(segments(tmp_path)[0])[0]) == 1


def test_many_endpoints_are_read_back(tmp_path):
    writer = CaptureWriter(tmp_path)
    names = [f"e{number}" for number in range(300)]
    for name in names * 2:
        assert writer.write(RECORD._replace(endpoint=name), MODEL, FEEDS, OUTPUTS, 100)[-1]
    (segment,) = segments(tmp_path)
    assert [request.record.endpoint for request in read_segment(segment)[0]] == names * 2


def test_full_spool_refuses_requests(tmp_path, caplog):
    clock = Clock(0.0)
    writer = CaptureWriter(tmp_path, clock, max_bytes=1500)
    (tmp_path / "of another worker").write_bytes(bytes(1000))
    assert write_request(writer)
    while write_request(writer):
        clock.now += 1.0
    assert not write_request(writer)
    (message,) = caplog.messages
    assert "1500 bytes" in message
    (segment,) = segments(tmp_path)
    assert is_released(segment)  # Otherwise, the agent could not remove it.

    segment.unlink()
    assert not write_request(writer)
    clock.now += 1.0
    assert write_request(writer)


def test_output_may_become_an_input(tmp_path):
    writer = CaptureWriter(tmp_path)
    a = np.ones((1, 1))
    b = np.empty((1, 0), object)
    for feeds, outputs in (({"a": a}, {"b": b}), ({"a": a, "b": b}, {})):
        assert writer.write(RECORD, MODEL, feeds, outputs, 10)[-1]
    read, _ = read_segment(segments(tmp_path)[0])
    assert [list(request.feeds) for request in read] == [["a"], ["a", "b"]]
