"""All complete frames can be read back, and incomplete frames are never read."""

import errno
import fcntl
import os
import threading
from typing import Any

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
from tests.support.disk import files_of_at_most
from tests.support.spool import read_segment

RECORD = RequestRecord("e", "v", "request", "prediction", 1_000_000, 2_000_000)


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


def test_a_request_comes_back_as_it_was_written(tmp_path):
    writer = CaptureWriter(tmp_path)
    assert write_request(writer)
    (segment,) = segments(tmp_path)
    (request,), end = read_segment(segment)
    assert request.segment == segment.stem
    assert request.record == RECORD
    assert end == segment.stat().st_size
    assert request.model.model == "m"
    assert request.model.version == "7"
    assert request.model.schema == MODEL.schema
    for name, array in sent_arrays(FEEDS).items():
        assert request.feeds[name].dtype == array.dtype
        np.testing.assert_array_equal(request.feeds[name], array)
    assert set(request.outputs) == {"y", "p"}
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


def test_only_the_first_rows_are_kept(tmp_path):
    CaptureWriter(tmp_path).write(RECORD, MODEL, FEEDS, OUTPUTS, 2)
    (request,), _ = read_segment(segments(tmp_path)[0])
    assert {len(array) for array in (*request.feeds.values(), *request.outputs.values())} == {2}


def test_requests_of_every_shape_come_back_as_they_were_written(tmp_path):
    writer = CaptureWriter(tmp_path)
    written = []
    for rows in (1, 3, 1, 2, 3):
        for width in (1, 2):
            other = RECORD._replace(variant=f"v{width}", request_id="ü" * rows, event_time=-rows)
            feeds = {"X": np.arange(rows * width * 2.0).reshape(rows, width, 2)}
            outputs = {"y": np.ones(rows, np.int8)}
            if width == 1:
                feeds = feeds | {"s": np.array(["a"] * rows, object)}
                outputs = {"one": np.array([1.5])} | outputs
            assert writer.write(other, MODEL, feeds, outputs, 2)[-1]
            written.append((other, feeds, outputs))
    requests, _ = read_segment(segments(tmp_path)[0])
    for request, (record, feeds, outputs) in zip(requests, written, strict=True):
        rows = len(feeds["X"])
        assert request.record == record
        assert {name: array.tolist() for name, array in request.feeds.items()} == {
            name: array[:2].tolist() for name, array in feeds.items()
        }
        expected = {
            name: array[:2].tolist() for name, array in outputs.items() if len(array) == rows
        }
        assert {name: array.tolist() for name, array in request.outputs.items()} == expected


def test_reading_goes_on_where_it_stopped(tmp_path):
    writer = CaptureWriter(tmp_path)
    other = CapturedModel("m", "8", MODEL.schema, ("y",))
    ends = [0]
    versions = []
    for model in (MODEL, other, MODEL, MODEL):
        writer.write(RECORD, model, FEEDS, OUTPUTS, 100)
        requests, end = read_segment(segments(tmp_path)[0], ends[-1])
        versions += [request.model.version for request in requests]
        ends.append(end)
    assert versions == ["7", "8", "7", "7"]
    assert read_segment(segments(tmp_path)[0], ends[-1]) == ([], ends[-1])
    offsets = [request.offset for request in read_segment(segments(tmp_path)[0])[0]]
    assert len(set(offsets)) == 4


def test_a_segment_torn_anywhere_gives_the_requests_before_the_tear(tmp_path):
    writer = CaptureWriter(tmp_path / "spool")
    ends = []
    for _ in range(3):
        write_request(writer)
        ends.append(segments(tmp_path / "spool")[0].stat().st_size)
    content = segments(tmp_path / "spool")[0].read_bytes()
    torn = tmp_path / "torn.seg"
    for length in range(0, len(content), 7):
        torn.write_bytes(content[:length])
        whole = sum(end <= length for end in ends)
        requests, end = read_segment(torn)
        assert len(requests) == whole
        assert end <= length
        assert len(read_segment(torn, end)[0]) == 0


def test_a_flipped_byte_ends_the_segment(tmp_path):
    writer = CaptureWriter(tmp_path)
    for _ in range(2):
        write_request(writer)
    (segment,) = segments(tmp_path)
    content = bytearray(segment.read_bytes())
    content[-3] ^= 1
    segment.write_bytes(content)
    assert len(read_segment(segment)[0]) == 1


def test_the_segment_is_locked_while_its_worker_has_it_and_free_after(tmp_path):
    writer = CaptureWriter(tmp_path)
    write_request(writer)
    (segment,) = segments(tmp_path)
    assert not is_released(segment)
    writer.close()
    assert is_released(segment)
    write_request(writer)
    assert len(segments(tmp_path)) == 2


def test_a_full_segment_is_followed_by_another(tmp_path, monkeypatch):
    monkeypatch.setattr(capture, "MAX_SEGMENT_BYTES", 2000)
    writer = CaptureWriter(tmp_path)
    for _ in range(30):
        assert write_request(writer)
    paths = segments(tmp_path)
    assert len(paths) > 2
    assert sum(len(read_segment(segment)[0]) for segment in paths) == 30
    assert sum(not is_released(segment) for segment in paths) == 1


def test_threads_write_whole_frames(tmp_path):
    writer = CaptureWriter(tmp_path)

    def write():
        for _ in range(50):
            write_request(writer)

    threads = [threading.Thread(target=write) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(len(read_segment(segment)[0]) for segment in segments(tmp_path)) == 400


def test_a_full_disk_refuses_requests_and_keeps_the_complete_frames(tmp_path, caplog):
    now = [0.0]
    writer = CaptureWriter(tmp_path, lambda: now[0])
    assert writer.write(RECORD, MODEL, FEEDS, OUTPUTS, 100) == (3, 3, True)
    (segment,) = segments(tmp_path)
    size = segment.stat().st_size
    with files_of_at_most(size + 100):
        assert {writer.write(RECORD, MODEL, FEEDS, OUTPUTS, 1) for _ in range(5)} == {(3, 1, False)}
        assert segment.stat().st_size == size
    assert len(caplog.records) == 1
    now[0] = 61.0
    assert write_request(writer)
    assert len(read_segment(segment)[0]) == 2


def test_a_spool_that_cannot_be_made_fails_no_request(tmp_path):
    (tmp_path / "spool").write_text("a file where the folder should be")
    assert write_request(CaptureWriter(tmp_path / "spool")) is False


def test_a_segment_that_cannot_get_its_name_leaves_nothing_and_the_next_request_makes_another(
    tmp_path, monkeypatch
):
    def refuse(*paths):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    writer = CaptureWriter(tmp_path)
    opened = len(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", refuse)
        assert not write_request(writer)
    assert os.listdir(tmp_path) == []
    assert len(os.listdir("/proc/self/fd")) == opened
    assert write_request(writer)
    assert len(read_segment(segments(tmp_path)[0])[0]) == 1


def test_requests_of_more_endpoints_than_are_planned_for_come_back_as_they_were_written(tmp_path):
    writer = CaptureWriter(tmp_path)
    names = [f"e{number}" for number in range(300)]
    for name in names * 2:
        assert writer.write(RECORD._replace(endpoint=name), MODEL, FEEDS, OUTPUTS, 100)[-1]
    (segment,) = segments(tmp_path)
    assert [request.record.endpoint for request in read_segment(segment)[0]] == names * 2


def test_another_process_sees_the_lock(tmp_path):
    writer = CaptureWriter(tmp_path)
    write_request(writer)
    (segment,) = segments(tmp_path)
    child = os.fork()
    if child == 0:  # Use only system calls, so that pytest's code does not run twice.
        code = 1
        try:
            fcntl.flock(os.open(segment, os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            code = 42
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42


def test_empty_text_and_no_rows_of_text_are_kept(tmp_path):
    writer = CaptureWriter(tmp_path)
    outputs: dict[str, Any] = {"y": np.empty((3, 0), dtype=object)}
    assert writer.write(RECORD, MODEL, FEEDS, outputs, 100)[-1]
    assert len(read_segment(segments(tmp_path)[0])[0]) == 1


def test_a_full_spool_takes_nothing_until_the_agent_has_shipped(tmp_path, caplog):
    now = [0.0]
    writer = CaptureWriter(tmp_path, lambda: now[0], max_bytes=1500)
    (tmp_path / "of another worker").write_bytes(bytes(1000))
    assert write_request(writer)
    while write_request(writer):
        now[0] += 1.0
    assert not write_request(writer)
    assert [record.message for record in caplog.records] == [
        (
            "requests are not captured: the spool has reached its limit of 1500 bytes; check that "
            "the agent ships it"
        )
    ]
    (segment,) = segments(tmp_path)
    assert is_released(segment)  # Otherwise, the agent could not remove it.

    segment.unlink()
    assert not write_request(writer)
    now[0] += 1.0
    assert write_request(writer)


def test_an_output_that_became_an_input_is_held_as_one(tmp_path):
    writer = CaptureWriter(tmp_path)
    a = np.ones((1, 1))
    b = np.zeros((1, 1))
    for feeds, outputs in (({"a": a}, {"b": b}), ({"a": a, "b": b}, {})):
        assert writer.write(RECORD, MODEL, feeds, outputs, 10)[-1]
    read, _ = read_segment(segments(tmp_path)[0])
    assert [list(request.feeds) for request in read] == [["a"], ["a", "b"]]
