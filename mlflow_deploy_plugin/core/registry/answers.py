"""Limits for the answers that requests, MLflow's client and Apprise read in a process
of onnxserve.
"""

import logging
import socket
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import cache
from typing import Any
from urllib.parse import urlsplit

_ANSWER_BYTES = 1_000_000
_ANSWER_SECONDS = 10.0
_PAUSE_SECONDS = 10.0
_DATABRICKS_SECONDS = 3.0
_answer_bound: ContextVar[tuple[int, float] | None] = ContextVar("answer_bound", default=None)


@contextmanager
def bounded_answers(
    most_bytes: int = _ANSWER_BYTES, seconds: float = _ANSWER_SECONDS
) -> Iterator[None]:
    """Limit each answer that this context reads in the block. A longer answer closes
    the connection.

    A read timeout is not enough: it limits only the pause between two packets, so a
    server could answer forever. `most_bytes` limits the decompressed body, and
    `seconds` the time from the end of the request to the last byte. A longer read
    timeout of the caller replaces `seconds`. The library that reads the answer raises
    its own error.

    This context replaces a function of urllib3, so it must not be used in a process of
    a user.
    """
    _extend_urllib3()
    token = _answer_bound.set((most_bytes, seconds))
    try:
        yield
    finally:
        _answer_bound.reset(token)


class _Deadline:
    """A timer that stops another thread's read from a socket after a number of
    seconds.
    """

    def __init__(self, reading: socket.socket, seconds: float) -> None:
        self._seconds = seconds
        self._is_over = threading.Event()
        # A bound method would create a reference cycle, and only garbage collection
        # would free the socket.
        self._timer = threading.Timer(seconds, _end_reading, (reading, self._is_over))
        self._timer.daemon = True
        self._timer.start()

    def cancel(self) -> None:
        self._timer.cancel()

    @contextmanager
    def enforced(self) -> Iterator[None]:
        """Raise ProtocolError if the deadline passes within the block, instead of the
        error that the read raises.
        """
        from urllib3.exceptions import ProtocolError  # The import is slow (see `_extend_urllib3`).

        try:
            yield
        except Exception:
            if not self._is_over.is_set():
                raise
        if self._is_over.is_set():
            raise ProtocolError(f"the answer is not complete after {self._seconds:g} s")


def _end_reading(reading: socket.socket, is_over: threading.Event) -> None:
    is_over.set()
    with suppress(OSError):  # The socket may already be closed.
        socket.socket.shutdown(reading, socket.SHUT_RDWR)  # SSLSocket.shutdown does not end a read.


@cache
def _extend_urllib3() -> None:
    """Make urllib3 respect `bounded_answers`. requests, MLflow's client and Apprise use
    urllib3.
    """
    # The import takes 27 ms, which each command would pay.
    from urllib3.connection import HTTPConnection
    from urllib3.exceptions import ProtocolError
    from urllib3.response import HTTPResponse

    class BoundedResponse(HTTPResponse):
        deadline: _Deadline
        most_bytes: int

        def stream(
            self, amt: int | None = 2**16, decode_content: bool | None = None
        ) -> Generator[bytes, None, None]:
            size = 0
            try:
                with self.deadline.enforced():
                    for piece in super().stream(amt, decode_content):
                        size += len(piece)
                        if size > self.most_bytes:
                            # Without this, requests reads the rest of a redirect
                            # response.
                            self.close()
                            raise ProtocolError(
                                f"the answer is larger than {self.most_bytes:,} bytes"
                            )
                        yield piece
            finally:
                self.deadline.cancel()

        def drain_conn(self) -> None:
            self.close()  # Without this, urllib3 reads the complete answer before a retry.

        def close(self) -> None:
            self.deadline.cancel()
            super().close()

    read_head = HTTPConnection.getresponse

    def getresponse(connection: HTTPConnection) -> HTTPResponse:
        """Read the head of a response within the time and size of the current bound."""
        bound = _answer_bound.get()
        if bound is None:
            return read_head(connection)
        most_bytes, seconds = bound
        patience = connection.timeout if isinstance(connection.timeout, int | float) else 0.0
        deadline = _Deadline(connection.sock, max(seconds, patience))
        try:
            with deadline.enforced():
                response = read_head(connection)
        except Exception:
            deadline.cancel()
            raise
        response.__class__ = BoundedResponse
        bounded: Any = response
        bounded.deadline = deadline
        bounded.most_bytes = most_bytes
        return response

    HTTPConnection.getresponse = getresponse  # type: ignore[method-assign, assignment]


@cache
def limit_retries(waits_after_last: bool = False) -> None:
    """Let a call fail at once if the server asks for a pause of more than
    `_PAUSE_SECONDS` (Retry-After). The text of the error has the pause.

    With `waits_after_last`, a refused call waits for at most this time before it fails,
    so that the next call is not too early.

    This function replaces a function of urllib3, so it must not be called in a process
    of a user.
    """
    # The import takes 27 ms, which each command would pay.
    from urllib3 import Retry
    from urllib3.exceptions import MaxRetryError, ResponseError

    count = Retry.increment

    def increment(self: Retry, *arguments: Any, **options: Any) -> Retry:
        response: Any = options.get("response")
        pause = 0.0
        if response is not None and self.respect_retry_after_header:
            pause = self.get_retry_after(response) or 0.0
        try:
            if pause > _PAUSE_SECONDS:
                refusal = f"too many {response.status} error responses, Retry-After {pause:.0f}"
                raise MaxRetryError(options["_pool"], arguments[1], ResponseError(refusal))
            return count(self, *arguments, **options)
        except MaxRetryError:
            if waits_after_last:
                time.sleep(min(pause, _PAUSE_SECONDS))
            raise

    Retry.increment = increment  # type: ignore[method-assign, assignment]


@cache
def limit_databricks_retries() -> None:
    """Let a call of Databricks' client fail within about `_DATABRICKS_SECONDS`, instead
    of five minutes, if the workspace does not answer. Further calls then fail at once
    for `_PAUSE_SECONDS`.

    For each request, MLflow calls the client three times: twice for the settings of the
    workspace, whose failure is not an error. This function replaces functions of the
    client, so it must not be called in a process of a user.
    """
    # Only users of Databricks have this package.
    from databricks.sdk._base_client import _BaseClient
    from databricks.sdk.clock import RealClock
    from requests import Timeout

    call = _BaseClient.do
    failures: dict[str, tuple[float, str]] = {}

    def call_limited(client: Any, method: str, url: str, *arguments: Any, **options: Any) -> Any:
        client._retry_timeout_seconds = _DATABRICKS_SECONDS
        if client._http_timeout_seconds == 60:  # This is the default of the client.
            client._http_timeout_seconds = _DATABRICKS_SECONDS
        host = urlsplit(url).netloc
        failed_at, failure = failures.get(host, (-_PAUSE_SECONDS, ""))
        if time.monotonic() - failed_at > _PAUSE_SECONDS:
            try:
                return call(client, method, url, *arguments, **options)
            except TimeoutError as error:
                failure = str(error.__cause__)
                if isinstance(error.__cause__, Timeout):
                    failure = f"{host} does not answer within {_DATABRICKS_SECONDS:g} s"
                failures[host] = time.monotonic(), failure
        raise TimeoutError(failure)

    _BaseClient.do = call_limited  # type: ignore[method-assign, assignment]
    RealClock.sleep = lambda _, seconds: time.sleep(min(seconds, 1.0))  # type: ignore
    logging.getLogger("databricks.sdk").setLevel(logging.ERROR)
