"""Requests and replies of every transport as plain values, and the parsing of their
headers.

A gRPC call becomes a POST whose path is the method and whose headers are the metadata.
"""

import os
import re
import time
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from urllib.parse import quote

from mlflow_deploy_plugin.core.errors import InvalidRequest, OnnxserveError, Unauthenticated
from mlflow_deploy_plugin.serve.protocols.content import JSON

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST_EVENT = datetime(1700, 1, 1, tzinfo=UTC)
"""The earliest event time that every reader of the inference log can represent; pandas'
nanoseconds begin in 1677.
"""
_MOST_AHEAD = timedelta(days=1)
"""The tolerance for event times in the future (wrong clock or zone). Monitors ignore a
row until its event time.
"""
_KEY = re.compile(r"onnxserve_[A-Za-z0-9_-]{43}")
"""The text form of an API key (`core/store/keys.py`)."""
_REQUEST_ID = re.compile(rf"(?!.*{_KEY.pattern})[!-~]{{1,128}}")
VISIBLE = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")
"""The characters that a header value or gRPC metadata may contain unescaped."""


@dataclass(slots=True)
class RawRequest:
    """A complete request. Header names are in lower case.

    Only authentication, limits and plans change requests. A frozen class would cost
    half a microsecond per request.

    Attributes:
        client: the address of the caller.
        query: the part of the target after the question mark, as it was sent.
        caller: the name of the API key after authentication; until then the name in the
            client certificate, or empty.
        arrived: `time.perf_counter()` when the request was complete. The deadline
            includes the wait for a thread.
        is_counted: True once the rate limits have counted the request
            (`RequestLimits.check_rates`).
        refusal: the reason why a rate limit refused the request, and the seconds until
            a retry.
        draw: the number in [0, 1) with which a plan selected a weighted variant; None
            if no plan drew a number.
        sample: the number in [0, 1) that decides if the request is logged and traced;
            None until it is drawn.
        failure: the error of a plan with steps, which must not run again; None without
            an error.
        upload: the body in pieces, if it is the file of a job that still arrives.
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
    sample: float | None = None
    failure: BaseException | None = None
    upload: Iterable[bytes] | None = None


@dataclass(slots=True)
class Reply:
    """The result of a request before its transport writes it. With an `error`, `body`
    is empty.

    In gRPC, `headers` become trailing metadata. `pieces` is a body in parts; the
    transport must close it.
    """

    headers: dict[str, str]
    body: bytes = b""
    content_type: str = JSON
    error: OnnxserveError | None = None
    pieces: Generator[bytes, None, None] | None = None

    @property
    def status(self) -> int:
        return 200 if self.error is None else self.error.http_status


def error_reply(
    error: OnnxserveError,
    headers: dict[str, str] | None = None,
) -> Reply:
    """Return the reply for an error, with Retry-After and WWW-Authenticate (RFC 9110
    §11.6.1) if needed.
    """
    error_headers = {}
    if error.retry_after is not None:
        error_headers["Retry-After"] = str(error.retry_after)
    if isinstance(error, Unauthenticated):
        error_headers["WWW-Authenticate"] = 'Basic realm="onnxserve", Bearer realm="onnxserve"'
    return Reply({**(headers or {}), **error_headers}, error=error)


def safe_headers(headers: Mapping[str, str]) -> Mapping[str, str]:
    """Percent-encode % and all characters except visible ASCII in the header values,
    against header injection.
    """
    text = "".join(headers.values())
    if text.isascii() and text.isprintable() and "%" not in text:
        return headers
    encoded = {}
    for name, value in headers.items():
        if not (name == "X-Request-Id" and _REQUEST_ID.fullmatch(value)):
            value = percent_encoded(value)
        encoded[name] = value
    return encoded


def percent_encoded(text: str, safe: str = VISIBLE) -> str:
    """Percent-encode all characters except the `safe` ones. A lone surrogate becomes a
    question mark.
    """
    return quote(text, safe=safe, errors="replace")


def request_id(headers: Mapping[str, str]) -> str:
    """Return the caller's `X-Request-Id`; a new id if it is not 1–128 visible ASCII
    characters or has an API key.
    """
    header = headers.get("x-request-id", "")
    if header and _REQUEST_ID.fullmatch(header):
        return header
    return new_id()


def without_keys(text: str) -> str:
    """Return a caller's text, such as a path, without API keys, for logs and traces."""
    return _KEY.sub("onnxserve_…", text)


def event_time(headers: Mapping[str, str]) -> int | None:
    """Return `X-Event-Time` in microseconds since 1970 (UTC), or None if the header is
    missing.

    Raises InvalidRequest if the header is not an RFC 3339 time with an offset, or is
    too far from the current time.
    """
    header = headers.get("x-event-time")
    if header is None:
        return None
    try:
        moment = datetime.fromisoformat(header)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise InvalidRequest(
            f"X-Event-Time is {header[:60]!r}; an RFC 3339 time with an offset is expected, as "
            "2013-07-01T12:30:00Z",
        )
    if moment < _FIRST_EVENT:
        raise InvalidRequest(
            f"X-Event-Time is {header[:60]!r}; a time in 1700 or later is expected",
        )
    now = datetime.now(UTC)
    if moment - now > _MOST_AHEAD:
        raise InvalidRequest(
            f"X-Event-Time is {header[:60]!r}, more than a day ahead of the server's clock, "
            f"{now:%FT%TZ}; the time of the event is expected",
        )
    return (moment - _EPOCH) // timedelta(microseconds=1)


_BATCH = 32
_ready: list[str] = []


def new_id() -> str:
    """Return a new identifier. One system call fetches the random bits of many
    identifiers, to save system calls.
    """
    while True:
        try:
            return _ready.pop()
        except IndexError:
            digits = os.urandom(16 * _BATCH).hex()
            _ready.extend(digits[start : start + 32] for start in range(0, len(digits), 32))


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    # Otherwise parent and child would return the same ids.
    os.register_at_fork(after_in_child=_ready.clear)
