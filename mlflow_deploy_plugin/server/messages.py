"""Requests and replies of every transport as plain values, and the meaning of their headers.

A gRPC call is a POST whose path is the method and whose headers are the metadata.
"""

import os
import re
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from urllib.parse import quote

from mlflow_deploy_plugin.errors import InvalidRequest, OnnxserveError, Unauthenticated
from mlflow_deploy_plugin.protocols import JSON

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST_EVENT = datetime(1700, 1, 1, tzinfo=UTC)
"""The earliest event time that every reader of the inference log can hold; pandas' nanoseconds begin in 1677."""
_MOST_AHEAD = timedelta(days=1)
"""The tolerance for a wrong clock or time zone. Monitors ignore a row before its event time."""
_KEY = re.compile(r"onnxserve_[A-Za-z0-9_-]{43}")
"""The text of an API key (`store/keys.py`)."""
_REQUEST_ID = re.compile(rf"(?!.*{_KEY.pattern})[!-~]{{1,128}}")
_VISIBLE = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")
"""The characters that the value of a header, or of gRPC's metadata, may hold as they are."""


@dataclass(slots=True)
class RawRequest:
    """One whole request; names of headers in lower case.

    Only authentication, limits and plans change it. A frozen class would cost half a microsecond per request.

    Attributes:
        client: the address that it came from.
        query: the part of the target after the question mark, as it was sent.
        caller: the name of its key once it is authenticated, before that the name in its client certificate, or empty.
        arrived: the time when it was whole, in `time.perf_counter()`. The wait for a thread counts for its deadline.
        is_counted: its rates have counted it (`RequestLimits.check_rates`).
        refusal: the reason of a rate's refusal, and its duration in seconds.
        draw: the number in [0, 1) by which a plan has chosen among weighted variants; None if no plan has.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    client: str = ""
    query: str = ""
    caller: str = ""
    arrived: float = field(default_factory=time.perf_counter)
    is_counted: bool = False
    refusal: tuple[str, int] | None = None
    draw: float | None = None


@dataclass(slots=True)
class Reply:
    """The result of a request before its transport writes it. With an `error`, `body` is empty.

    `headers` become gRPC's trailing metadata. `pieces` is a body in parts, which the transport must close.
    """

    headers: dict[str, str]
    body: bytes = b""
    content_type: str = JSON
    error: OnnxserveError | None = None
    pieces: Generator[bytes, None, None] | None = None

    @property
    def status(self) -> int:
        return 200 if self.error is None else self.error.http_status


def error_reply(error: OnnxserveError, headers: dict[str, str] | None = None) -> Reply:
    """Return the reply for one of our errors, with Retry-After and WWW-Authenticate (RFC 9110 §11.6.1) if needed."""
    more = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    if isinstance(error, Unauthenticated):
        more["WWW-Authenticate"] = 'Basic realm="onnxserve", Bearer realm="onnxserve"'
    return Reply({**(headers or {}), **more}, error=error)


def safe_headers(headers: Mapping[str, str]) -> Mapping[str, str]:
    """Return the headers with % and all but visible ASCII percent-encoded, against header injection."""
    text = "".join(headers.values())
    if text.isascii() and text.isprintable() and "%" not in text:
        return headers
    return {
        name: value
        if name == "X-Request-Id" and _REQUEST_ID.fullmatch(value)
        else quote(value, safe=_VISIBLE, errors="replace")
        for name, value in headers.items()
    }


def request_id(headers: Mapping[str, str]) -> str:
    """Return the caller's `X-Request-Id`, or a new one if it is not 1–128 visible ASCII characters, or has a key."""
    given = headers.get("x-request-id", "")
    return given if given and _REQUEST_ID.fullmatch(given) else new_id()


def without_keys(text: str) -> str:
    """Return a text of a caller, such as a path, as logs and traces may have it: without API keys."""
    return _KEY.sub("onnxserve_…", text)


def event_time(headers: Mapping[str, str]) -> int | None:
    """Return `X-Event-Time` in microseconds since 1970 (UTC), or None if the header is missing.

    Raises InvalidRequest if it is not a time of RFC 3339 with its offset, or is too far from now.
    """
    given = headers.get("x-event-time")
    if given is None:
        return None
    try:
        moment = datetime.fromisoformat(given)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise InvalidRequest(
            f"X-Event-Time is {given[:60]!r}; a time of RFC 3339 with its offset is expected, as 2013-07-01T12:30:00Z"
        )
    if moment < _FIRST_EVENT:
        raise InvalidRequest(f"X-Event-Time is {given[:60]!r}; a time since the year 1700 is expected")
    now = datetime.now(UTC)
    if moment - now > _MOST_AHEAD:
        raise InvalidRequest(
            f"X-Event-Time is {given[:60]!r}, more than a day ahead of the server's clock, {now:%FT%TZ}; the time "
            "at which it happened is expected"
        )
    return (moment - _EPOCH) // timedelta(microseconds=1)


_BATCH = 32
_ready: list[str] = []


def new_id() -> str:
    """Return a new identifier. Random bits are fetched for many at once, because each system call costs time."""
    while True:
        try:
            return _ready.pop()
        except IndexError:
            digits = os.urandom(16 * _BATCH).hex()
            _ready.extend(digits[start : start + 32] for start in range(0, len(digits), 32))


os.register_at_fork(after_in_child=_ready.clear)  # otherwise both processes would return the same ids
