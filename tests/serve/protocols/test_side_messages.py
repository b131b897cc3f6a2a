"""Messages between a worker and its side process arrive completely and in time, and
other bytes are refused.
"""

import socket
import struct
import threading
import time

import numpy as np
import pytest

from mlflow_deploy_plugin.serve.protocols.side_messages import (
    MalformedMessage,
    SideMessage,
    receive_message,
    send_message,
)


@pytest.fixture
def pair():
    end, other = socket.socketpair()
    with end, other:
        yield end, other


def objects(*texts):
    return np.array(texts, dtype=object)


def described(groups):
    return {
        (group, name): (array.dtype, array.shape, array.tolist())
        for group, arrays in groups.items()
        for name, array in arrays.items()
    }


def test_message_round_trips(pair):
    arrays = {
        "feeds": {
            "x": np.arange(6, dtype=np.float32).reshape(3, 2),
            "flag": np.array([True]),
            "none": np.empty((0, 4)),
        },
        "outputs": {
            "text": objects("ä", "", "half \ud800").reshape(3, 1),
            "big": np.array([2**63], dtype=np.uint64),
        },
    }
    send_message(pair[0], SideMessage("ask", {"a": [1, None]}, arrays, b"\x00\xff"))
    got = receive_message(pair[1])
    assert got is not None
    assert (got.kind, got.fields, got.body) == ("ask", {"a": [1, None]}, b"\x00\xff")
    assert described(got.arrays) == described(arrays)


def test_large_message_crosses_a_small_buffer(pair):
    array = np.arange(1_000_000, dtype=np.int64)
    sender = threading.Thread(
        target=send_message, args=(pair[0], SideMessage("ask", arrays={"feeds": {"x": array}}))
    )
    sender.start()
    got = receive_message(pair[1], time.monotonic() + 30)
    sender.join()
    assert got is not None
    assert (got.arrays["feeds"]["x"] == array).all()


def framed(head, rest=b""):
    return struct.pack("<4sIQ", b"OXP1", len(head), len(rest)) + head + rest


def test_end_within_a_message_is_an_error(pair):
    send_message(pair[0], SideMessage("ask"))
    pair[0].sendall(b"OXP1\x05")
    pair[0].close()
    assert receive_message(pair[1]) == SideMessage("ask")
    with pytest.raises(MalformedMessage, match="a truncated message"):
        receive_message(pair[1])
    assert receive_message(pair[1]) is None


@pytest.mark.parametrize(
    "sent",
    [
        struct.pack("<4sIQ", b"WXYZ", 1, 0) + b"{",
        struct.pack("<4sIQ", b"OXP1", 2**31, 0),
        struct.pack("<4sIQ", b"OXP1", 2, 2**60) + b"{}",
        struct.pack("<4sIQ", b"OXP1", 2, 0) + b"{}",
        struct.pack("<4sIQ", b"OXP1", 1, 0) + b"{",
        framed(b'{"kind":"","fields":{},"arrays":{"f":{"x":0}}}', bytes(8)),
        framed(b'{"kind":"a","fields":{},"arrays":{"f":[["x","|O",[1],8]]}}', bytes(8)),
        framed(b'{"kind":"a","fields":{},"arrays":[]}'),
        framed(
            b'{"kind":"a","fields":{},"arrays":{"f":[["x","str",[1000000000000000],2]]}}', b"[]"
        ),
        framed(b'{"kind":"a","fields":{},"arrays":{"f":[["x","str",[1],100000]]}}', b"[" * 100_000),
    ],
)
def test_invalid_message_is_refused(pair, sent):
    pair[0].sendall(sent)
    with pytest.raises(MalformedMessage):
        receive_message(pair[1], time.monotonic() + 5)


def test_silence_ends_at_the_deadline(pair):
    with pytest.raises(TimeoutError):
        receive_message(pair[1], time.monotonic() + 0.05)
    with pytest.raises(TimeoutError):
        receive_message(pair[1], time.monotonic() - 1)
    with pytest.raises(TimeoutError):
        send_message(pair[0], SideMessage("ask", body=bytes(10_000_000)), time.monotonic() + 0.05)
