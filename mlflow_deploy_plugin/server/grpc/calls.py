"""The calls of a worker that wait for their client: bounded in number and time, and ended when the server drains.

Each call holds a thread from its first byte on, and grpcio's servers wait for ever for the rest of it. So every method
is registered as one that takes a stream, even if it takes one message (the wire does not know the difference): then the
wait is ours, and can be ended.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import grpc

_CHECK_SECONDS = 0.5


class OpenCalls:
    """The open calls of one worker.

    Args:
        max_streams: open at the same time; more are refused.
        message_seconds: how long the message of a unary call may take to arrive whole.
    """

    def __init__(self, max_streams: int, message_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_streams = max_streams
        self._message_seconds = message_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._streams: set[grpc.ServicerContext] = set()
        self._idle: set[grpc.ServicerContext] = set()
        self._arriving: dict[grpc.ServicerContext, float] = {}
        self._open = 0
        self._draining = threading.Event()
        threading.Thread(target=self._cancel_late, name="onnxserve-grpc-late", daemon=True).start()

    @property
    def open(self) -> int:
        """The number of open calls. A call is open until its response is on the way to the client."""
        return self._open

    def receive_one(self, context: grpc.ServicerContext, bodies: Iterator[bytes]) -> bytes | None:
        """Return the message of a unary call, or None if there is none.

        Raises:
            grpc.RpcError: the client has gone, or its time was up.
        """
        self._open_call(context)
        with self._lock:
            self._arriving[context] = self._clock() + self._message_seconds
        try:
            return next(bodies, None)
        finally:
            with self._lock:
                del self._arriving[context]

    @contextmanager
    def stream(self, context: grpc.ServicerContext) -> Iterator[None]:
        """Hold a place for a stream; end the call with RESOURCE_EXHAUSTED if there is none."""
        self._open_call(context)
        with self._lock:
            is_full = len(self._streams) >= self._max_streams
            if not is_full:
                self._streams.add(context)
        if is_full:
            text = f"{self._max_streams} streams are open in this worker, and no more are taken"
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, text)
        try:
            yield
        finally:
            with self._lock:
                self._streams.discard(context)

    def receive_each(self, context: grpc.ServicerContext, bodies: Iterator[bytes]) -> Iterator[bytes]:
        """Yield the messages of a stream, until the client or `drain` ends it."""
        while True:
            with self._lock:
                if self._draining.is_set():
                    return
                self._idle.add(context)
            try:
                body = next(bodies, None)
            except grpc.RpcError:
                return
            finally:
                with self._lock:
                    self._idle.discard(context)
            if body is None:
                return
            yield body

    def drain(self) -> None:
        """Cancel the streams that wait for a message; the others end after their current response."""
        with self._lock:
            self._draining.set()
            idle = list(self._idle)
        for context in idle:
            context.cancel()

    def wait_for_drain(self, seconds: float) -> bool:
        """Wait so long, or until the server drains; return whether it does."""
        return self._draining.wait(seconds)

    def _open_call(self, context: grpc.ServicerContext) -> None:
        with self._lock:
            self._open += 1
        if not context.add_callback(self._close_call):  # the client has gone already
            self._close_call()

    def _close_call(self) -> None:
        with self._lock:
            self._open -= 1

    def _cancel_late(self) -> None:
        while not self._draining.wait(_CHECK_SECONDS):
            with self._lock:
                now = self._clock()
                late = [context for context, deadline in self._arriving.items() if deadline < now]
            for context in late:
                context.cancel()
