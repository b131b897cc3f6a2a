"""The calls of a worker that wait for their client: bounded in number and time, and ended when the server drains.

Each call holds a thread from its first byte on, and grpcio's servers wait for ever for the rest of it. So every method
is registered as one that takes a stream, also where it takes one message (the wire does not know the difference): then
the wait is ours, and can be ended.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import grpc

_LOOK_SECONDS = 0.5


class OpenCalls:
    """Who waits for what.

    Args:
        most_streams: open at the same time; more are refused.
        patience: seconds that the message of a unary call may take to arrive whole.
    """

    def __init__(self, most_streams: int, patience: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._most_streams = most_streams
        self._patience = patience
        self._clock = clock
        self._lock = threading.Lock()
        self._streams: set[grpc.ServicerContext] = set()
        self._idle: set[grpc.ServicerContext] = set()
        self._arriving: dict[grpc.ServicerContext, float] = {}
        self._open = 0
        self._ending = threading.Event()
        threading.Thread(target=self._end_late, name="onnxserve-grpc-late", daemon=True).start()

    @property
    def open(self) -> int:
        """How many calls have begun and not ended: an answer counts until it is on its way to its client."""
        return self._open

    def receive_one(self, context: grpc.ServicerContext, bodies: Iterator[bytes]) -> bytes | None:
        """The message of a unary call; None where there is none.

        Raises:
            grpc.RpcError: the client has gone, or its time was up.
        """
        self._begin(context)
        with self._lock:
            self._arriving[context] = self._clock() + self._patience
        try:
            return next(bodies, None)
        finally:
            with self._lock:
                del self._arriving[context]

    @contextmanager
    def stream(self, context: grpc.ServicerContext) -> Iterator[str]:
        """Holds a place for a stream; gives why there is none, or an empty string."""
        self._begin(context)
        with self._lock:
            is_full = len(self._streams) >= self._most_streams
            if not is_full:
                self._streams.add(context)
        try:
            yield f"{self._most_streams} streams are open in this worker, and no more are taken" if is_full else ""
        finally:
            with self._lock:
                self._streams.discard(context)

    def receive_each(self, context: grpc.ServicerContext, bodies: Iterator[bytes]) -> Iterator[bytes]:
        """The messages of a stream, until its client or `end` ends it."""
        while self._may_wait(context):
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

    def end(self) -> None:
        """Streams that wait for a message are cancelled, the others end after the answer they are at."""
        with self._lock:
            self._ending.set()
            idle = list(self._idle)
        for context in idle:
            context.cancel()

    def _begin(self, context: grpc.ServicerContext) -> None:
        with self._lock:
            self._open += 1
        if not context.add_callback(self._end_one):  # its client has gone already
            self._end_one()

    def _end_one(self) -> None:
        with self._lock:
            self._open -= 1

    def wait_for_drain(self, seconds: float) -> bool:
        """Waits so long, or until the server drains: whether it does."""
        return self._ending.wait(seconds)

    def _may_wait(self, context: grpc.ServicerContext) -> bool:
        with self._lock:
            if not self._ending.is_set():
                self._idle.add(context)
            return not self._ending.is_set()

    def _end_late(self) -> None:
        while not self._ending.wait(_LOOK_SECONDS):
            with self._lock:
                now = self._clock()
                late = [context for context, deadline in self._arriving.items() if deadline < now]
            for context in late:
                context.cancel()
