"""Open calls are bounded, and end when the server drains or their message does not
arrive.
"""

import threading
from collections.abc import Callable

import grpc
import pytest

from mlflow_deploy_plugin.serve.grpc.service import OpenCalls
from tests.support.waiting import wait_until


class Call:
    """A call with the interface of grpcio's context; `abort` raises, as in grpcio."""

    def __init__(self) -> None:
        self.callbacks: list[Callable[[], None]] = []
        self.cancelled = threading.Event()

    def add_callback(self, callback: Callable[[], None]) -> bool:
        self.callbacks.append(callback)
        return True

    def abort(self, code: grpc.StatusCode, details: str) -> None:
        raise RuntimeError(f"{code.name}: {details}")

    def cancel(self) -> None:
        self.cancelled.set()

    def end(self) -> None:
        for callback in self.callbacks:
            callback()


def test_a_call_is_open_until_it_ends():
    calls = OpenCalls(1, 60.0)
    call = Call()
    assert calls.receive_one(call, iter([b"message"])) == b"message"
    assert calls.open == 1
    call.end()
    assert calls.open == 0
    calls.drain()


def test_stream_beyond_the_bound_is_refused():
    calls = OpenCalls(1, 60.0)
    with (
        calls.stream(Call()),
        pytest.raises(RuntimeError, match="RESOURCE_EXHAUSTED: 1 streams"),
        calls.stream(Call()),
    ):
        pass
    with calls.stream(Call()):
        calls.drain()


def test_drained_server_cancels_idle_streams():
    calls = OpenCalls(1, 60.0)
    call = Call()
    waits = threading.Event()

    def bodies():
        yield b"first"
        waits.set()
        call.cancelled.wait(60)
        yield b"second"

    received: list[bytes] = []
    reader = threading.Thread(target=lambda: received.extend(calls.receive_each(call, bodies())))
    reader.start()
    assert waits.wait(60)
    calls.drain()
    reader.join(60)
    assert received == [b"first", b"second"]
    assert calls.draining.is_set()
    assert list(calls.receive_each(Call(), iter([b"third"]))) == []


def test_missing_message_ends_its_call():
    now = [0.0]
    calls = OpenCalls(1, 5.0, clock=lambda: now[0])
    call = Call()

    def bodies():
        call.cancelled.wait(60)
        yield from ()

    reader = threading.Thread(target=lambda: calls.receive_one(call, bodies()))
    reader.start()
    wait_until(lambda: calls.open == 1)
    now[0] = 6.0
    assert call.cancelled.wait(60)
    reader.join(60)
    calls.drain()
