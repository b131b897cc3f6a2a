"""Slow clients, all at the same time: each reaches its time limit, and other clients
are answered in the meantime.
"""

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from tests.serve.corpus.case import Route
from tests.serve.corpus.routes import BINARY, INFER, INVOCATIONS, PAGES, PREDICT, TF_PREDICT
from tests.serve.corpus.wire import Wire, read_answer

_TRICKLE_SECONDS = 0.3


@dataclass(frozen=True)
class Slow:
    """A client that begins with these bytes, and then sends `trickles` byte by byte.

    Attributes:
        status: the status of the response that ends the connection.
    """

    name: str
    begun: Callable[[Route], bytes]
    on: tuple[Route, ...]
    status: int = 408
    trickles: bytes = b""

    def try_on(self, wire: Wire, route: Route, limit: float) -> None:
        """Check that the connection ends as expected within `limit` seconds."""
        began = time.monotonic()
        with wire.connect() as connection, connection.makefile("rb") as stream:
            connection.sendall(self.begun(route))
            connection.settimeout(_TRICKLE_SECONDS if self.trickles else limit)
            while True:
                assert time.monotonic() - began < limit, "the server still waits"
                try:
                    answer = read_answer(stream)
                    break
                except TimeoutError:
                    with contextlib.suppress(OSError):
                        connection.sendall(self.trickles)
                    stream = connection.makefile("rb")
            assert answer, "no answer"
            assert answer.status == self.status, answer


def _head(route: Route) -> bytes:
    return route.request().partition(b"\r\n\r\n")[0]


def _half(route: Route) -> bytes:
    return route.request()[: -len(route.good) // 2]


def _chunked(route: Route) -> bytes:
    return route.request(b"", {"Transfer-Encoding": "chunked"}, length=-1)


def _half_a_chunk(route: Route) -> bytes:
    return _chunked(route) + b"fff\r\n{"


_ROUTES = (INVOCATIONS, PREDICT, INFER, TF_PREDICT, BINARY)
CASES = [
    Slow("half a request line", lambda route: b"GET /pi", _ROUTES[:1]),
    Slow("half a head", _head, _ROUTES),
    Slow("a head that trickles", _head, _ROUTES[:2], trickles=b"a"),
    Slow("half a body", _half, _ROUTES),
    Slow("a body that trickles", _half, _ROUTES[:2], trickles=b" "),
    Slow("half a chunk", _half_a_chunk, _ROUTES),
    Slow("a chunk that trickles", _half_a_chunk, _ROUTES[:1], trickles=b" "),
    Slow("chunks with LF", lambda route: _chunked(route) + b"3\nabc\n0\n\n", _ROUTES[:1], 400),
]


def never_read(wire: Wire, route: Route, limit: float) -> None:
    """Check that the server closes a client that sends requests and does not read any
    response.
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
    raise AssertionError("the server still sends")


LIMIT_SECONDS = 15.0
"""Several times the server's time limit, because the machine may be busy."""


@pytest.mark.long
def test_slow_clients_delay_no_others(start):
    clients = [(case.name, case.try_on, route) for case in CASES for route in case.on]
    clients.append(("answers that nobody takes", never_read, PAGES["/docs"]))
    with (
        start(threads=len(clients) + 4, request_timeout_seconds=2) as tried,
        ThreadPoolExecutor(len(clients)) as pool,
    ):
        before = tried.pids
        begun = threading.Barrier(len(clients) + 1)

        def run(name, client, route):
            begun.wait()
            try:
                client(tried.wire, route, LIMIT_SECONDS)
            except AssertionError as error:
                return f"{name}, {route.name}: {error}"
            return ""

        results = [pool.submit(run, *client) for client in clients]
        begun.wait()
        tried.wire.check_good(INVOCATIONS)
        assert [failure for result in results if (failure := result.result())] == []
        tried.wire.check_good(INVOCATIONS)
        assert "Traceback" not in tried.log
        assert tried.pids == before
