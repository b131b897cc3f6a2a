"""A bound for the answers of other servers: their size, and the time until they are complete.

A read timeout bounds only the pause between two packets. A server that sends a byte per second, or zeros without end,
would be read for ever. requests, MLflow's client and Apprise all read by urllib3, which lacks another bound. So its
connection is extended here, and `bounded_answers` switches the extension on for the calls in a block.
"""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import cache
from typing import Any

from urllib3.connection import HTTPConnection
from urllib3.exceptions import ProtocolError
from urllib3.response import HTTPResponse

_SECONDS, _BYTES = 10.0, 1_000_000


@contextmanager
def bounded_answers(most_bytes: int = _BYTES, seconds: float = _SECONDS) -> Iterator[None]:
    """Bound each answer that this context reads in the block. A longer answer closes its connection.

    The library that reads it raises its own error, with the reason: of requests, a RequestException.

    Args:
        most_bytes: the size of a body, unpacked.
        seconds: the time from the end of the request to the last byte of the answer. A read timeout that is longer
            replaces it: the caller has asked for patience.
    """
    _extend_urllib3()
    token = _bound.set((most_bytes, seconds))
    try:
        yield
    finally:
        _bound.reset(token)


_bound: ContextVar[tuple[int, float] | None] = ContextVar("bound", default=None)


class _Deadline:
    """Ends the reading of another thread from a socket after some seconds."""

    def __init__(self, reading: socket.socket, seconds: float) -> None:
        self._socket, self._seconds, self._is_over = reading, seconds, False
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True
        self._timer.start()
        self.cancel = self._timer.cancel

    def _end(self) -> None:
        self._is_over = True
        with suppress(OSError):  # it is closed already
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)  # SSLSocket.shutdown would not interrupt a read.

    @contextmanager
    def enforced(self) -> Iterator[None]:
        """Raise ProtocolError if the deadline passes within the block, instead of the interrupted read's error."""
        try:
            yield
        except Exception:
            if not self._is_over:
                raise
        if self._is_over:
            raise ProtocolError(f"the answer is not complete after {self._seconds:g} s")


class _BoundedResponse(HTTPResponse):
    """A response with a bound. `stream` is the method by which requests reads a body."""

    deadline: _Deadline
    most_bytes: int

    def stream(self, *arguments: Any, **named: Any) -> Iterator[bytes]:  # type: ignore[override]
        size = 0
        try:
            with self.deadline.enforced():
                for piece in super().stream(*arguments, **named):
                    size += len(piece)
                    if size > self.most_bytes:
                        self.close()  # Otherwise requests would read the rest of a redirection.
                        raise ProtocolError(f"the answer is larger than {self.most_bytes:,} bytes")
                    yield piece
        finally:
            self.deadline.cancel()

    def drain_conn(self) -> None:
        self.close()  # urllib3 would read an answer to its end before it tries again.

    def close(self) -> None:
        self.deadline.cancel()
        super().close()


@cache
def _extend_urllib3() -> None:
    read_head = HTTPConnection.getresponse

    def getresponse(connection: HTTPConnection) -> HTTPResponse:
        if (bound := _bound.get()) is None:
            return read_head(connection)
        patience = connection.timeout if isinstance(connection.timeout, int | float) else 0.0
        deadline = _Deadline(connection.sock, max(bound[1], patience))
        try:
            with deadline.enforced():
                response = read_head(connection)
        except Exception:
            deadline.cancel()
            raise
        response.__class__ = _BoundedResponse
        bounded: Any = response
        bounded.deadline, bounded.most_bytes = deadline, bound[0]
        return response

    HTTPConnection.getresponse = getresponse  # type: ignore[method-assign, assignment]
