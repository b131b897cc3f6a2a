"""Slow clients on any route: they send nothing, an incomplete request or slow bytes, or
do not read the response.
"""

import contextlib
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

from tests.serve.corpus.case import Route
from tests.serve.corpus.routes import BINARY, INFER, INVOCATIONS, PAGES, PREDICT, TF_PREDICT
from tests.serve.corpus.wire import Refused, Wire, read_answer

_TRICKLE_SECONDS = 0.3


@dataclass(frozen=True)
class Slow:
    """A client that begins with these bytes, and then sends `trickles` byte by byte.

    Attributes:
        status: the status of the response that ends the connection.
    """

    name: str
    bound: str
    begun: Callable[[Route], bytes]
    on: tuple[Route, ...]
    status: int
    trickles: bytes = b""

    def try_on(self, wire: Wire, route: Route, limit: float) -> None:
        """
        Raises:
            Refused: the connection has not ended after `limit` seconds, or has ended in
                another way.
        """
        began = time.monotonic()
        with wire.connect() as connection, connection.makefile("rb") as stream:
            connection.sendall(self.begun(route))
            connection.settimeout(_TRICKLE_SECONDS if self.trickles else limit)
            status = None
            while status is None:
                if time.monotonic() - began > limit:
                    raise Refused(f"after {limit} s the server still waits")
                try:
                    status = _status_of(stream.peek(1) and read_answer(stream))  # type: ignore[attr-defined]
                except TimeoutError:
                    with contextlib.suppress(OSError):
                        connection.sendall(self.trickles)
                    stream = connection.makefile("rb")
                except OSError:
                    status = 0
            if status != self.status:
                raise Refused(f"it ends with {status}")


def _status_of(answer: object) -> int:
    return int(getattr(answer, "status", 0))


def _head(route: Route) -> bytes:
    return route.request().partition(b"\r\n\r\n")[0]


def _half(route: Route) -> bytes:
    return route.request()[: -len(route.good) // 2]


def _half_a_chunk(route: Route) -> bytes:
    return route.request(b"", {"Transfer-Encoding": "chunked"}, length=-1) + b"fff\r\n{"


_ROUTES = (INVOCATIONS, PREDICT, INFER, TF_PREDICT, BINARY)
CASES = [
    Slow(
        "half a request line", "seconds of a head", lambda route: b"GET /pi", (PAGES["/docs"],), 408
    ),
    Slow("half a head", "seconds of a head", _head, _ROUTES, 408),
    Slow("a head that trickles", "seconds of a head", _head, _ROUTES[:2], 408, b"a"),
    Slow("half a body", "seconds of a body", _half, _ROUTES, 408),
    Slow("a body that trickles", "seconds of a body", _half, _ROUTES[:2], 408, b" "),
    Slow("half a chunk", "seconds of a body", _half_a_chunk, _ROUTES, 408),
    Slow("a chunk that trickles", "seconds of a body", _half_a_chunk, _ROUTES[:1], 408, b" "),
    Slow(
        "a chunk whose line ends with LF",
        "seconds of a body",
        lambda route: (
            route.request(b"", {"Transfer-Encoding": "chunked"}, length=-1) + b"3\nabc\n0\n\n"
        ),
        _ROUTES[:1],
        400,
    ),
    Slow(
        "a head whose lines end with LF",
        "seconds of a head",
        lambda route: _head(route).replace(b"\r\n", b"\n") + b"\n\n",
        _ROUTES[:1],
        400,
    ),
]


def never_read(wire: Wire, route: Route, limit: float) -> None:
    """Check that the server closes a client that sends requests and does not read any
    response.

    Raises:
        Refused: the server does not close the connection.
    """
    payload = route.request() * 50
    deadline = time.monotonic() + limit
    with wire.connect() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(1)
        while time.monotonic() < deadline:
            try:
                connection.sendall(payload)
            except TimeoutError:
                continue
            except OSError:
                return
    raise Refused(f"after {limit} s the server still sends")
