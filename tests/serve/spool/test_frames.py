"""The segments of the spool, and the frames in a segment."""

import os
import zlib

import pytest

from mlflow_deploy_plugin.serve.spool.frames import (
    FRAME,
    MAGIC,
    SHIPPED,
    find_frames,
    payload_at,
    segments,
    shipped_bytes,
    spool_bytes,
)


def frame(payload):
    return FRAME.pack(MAGIC, len(payload), zlib.crc32(payload)) + payload


REQUEST = frame(b"R" + b"x" * 20)
FEEDBACK = frame(b"F[]")


def test_frames_are_found_by_kind():
    frames = find_frames(REQUEST + FEEDBACK + REQUEST, min_request_bytes=20)
    assert frames.requests.tolist() == [0, len(REQUEST) + len(FEEDBACK)]
    assert frames.feedback.tolist() == [len(REQUEST)]
    assert frames.end == 2 * len(REQUEST) + len(FEEDBACK)
    assert frames.lost_bytes == 0
    assert frames.malformed == 0


def test_short_frame_is_malformed():
    assert find_frames(frame(b"") + frame(b"R") + REQUEST, min_request_bytes=20).malformed == 2


@pytest.mark.parametrize("length", [0, 3, FRAME.size, len(REQUEST) - 1])
def test_torn_frame_ends_the_segment(length):
    frames = find_frames(REQUEST + REQUEST[:length], min_request_bytes=20)
    assert frames.requests.tolist() == [0]
    assert frames.end == len(REQUEST)
    assert frames.lost_bytes == 0
    assert payload_at(REQUEST[:length], 0) is None


@pytest.mark.parametrize("value", [b"xxxx", MAGIC])
def test_damage_affects_one_frame(value):
    damaged = frame(b"R" + value + b"x" * 16)[:-1] + b"y"
    frames = find_frames(REQUEST + damaged + REQUEST, min_request_bytes=20)
    assert frames.requests.tolist() == [0, 2 * len(REQUEST)]
    assert frames.lost_bytes == len(REQUEST)


def test_oldest_segment_is_first(tmp_path):
    for age, name in ((3, "b"), (2, "a"), (1, "c")):
        (tmp_path / f"{name}.seg").write_bytes(REQUEST)
        os.utime(tmp_path / f"{name}.seg", (1000 - age, 1000 - age))
    (tmp_path / "b").with_suffix(SHIPPED).write_text("7")
    assert [path.stem for path in segments(tmp_path)] == ["b", "a", "c"]
    assert [shipped_bytes(path) for path in segments(tmp_path)] == [7, 0, 0]
    assert spool_bytes(tmp_path) == 3 * len(REQUEST) + 1
    assert spool_bytes(tmp_path / "nowhere") == 0
