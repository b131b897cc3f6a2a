"""HTTP requests and responses as plain values, what their headers mean, and a response as bytes."""

import logging
import re
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from urllib.parse import quote

from mlflow_deploy_plugin.errors import InvalidRequest, OnnxserveError, UnfitPath
from mlflow_deploy_plugin.server.inference.ids import new_id
from mlflow_deploy_plugin.server.protocols.content import JSON, dump_json

logger = logging.getLogger(__name__)

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST_EVENT = datetime(1700, 1, 1, tzinfo=UTC)
"""The earliest event time that every reader of the inference log can hold; pandas' nanoseconds begin in 1677."""
_MOST_AHEAD = timedelta(days=1)
"""A clock may be wrong, and a time zone; no monitor judges a row before its time has come."""
_REQUEST_ID = re.compile(r"[!-~]{1,128}")
_VISIBLE = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")
"""The characters that the value of a header, or of gRPC's metadata, may hold as they are."""


@dataclass(slots=True)
class RawRequest:
    """One whole HTTP request; names of headers in lower case.

    Nobody changes it. A frozen class would cost half a microsecond a request, and as much for the response.

    Attributes:
        client: the address that it came from.
        query: the part of the target after the question mark, as it was sent.
        arrived: when it was whole, in `time.perf_counter()`. The wait for a thread counts towards its deadline.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    client: str = ""
    query: str = ""
    arrived: float = field(default_factory=time.perf_counter)


@dataclass(slots=True)
class RawResponse:
    """One HTTP response."""

    status: int
    body: bytes
    content_type: str = JSON
    headers: dict[str, str] = field(default_factory=dict)


def safe_headers(headers: Mapping[str, str]) -> Mapping[str, str]:
    """Return the headers of a response with % and everything but visible ASCII percent-encoded.

    So a line end in a value, wherever it came from, begins no header of its own. A caller's id is returned as it came.
    """
    text = "".join(headers.values())
    if text.isascii() and text.isprintable() and "%" not in text:
        return headers
    return {
        name: value
        if name == "X-Request-Id" and _REQUEST_ID.fullmatch(value)
        else quote(value, safe=_VISIBLE, errors="replace")
        for name, value in headers.items()
    }


def error_response(
    path: str, status: int, error_code: str, message: str, headers: dict[str, str] | None = None
) -> RawResponse:
    """Return an error in the form of the path's protocol: V2's, TensorFlow's, or else MLflow's."""
    is_short = path == "/v2" or path.startswith(("/v2/", "/v1/models/"))
    document = {"error": message} if is_short else {"error_code": error_code, "message": message}
    return RawResponse(status, dump_json(document), headers=headers or {})


def exception_response(path: str, error: OnnxserveError, headers: dict[str, str] | None = None) -> RawResponse:
    """Return the response to a request for this path that has ended in one of our errors."""
    if isinstance(error, UnfitPath):
        path = error.path
    if error.retry_after is not None:
        headers = {**(headers or {}), "Retry-After": str(error.retry_after)}
    return error_response(path, error.http_status, error.error_code, error.message, headers)


def request_id(headers: Mapping[str, str]) -> str:
    """Return the caller's `X-Request-Id`, or a new one if it is not 1–128 visible ASCII characters."""
    given = headers.get("x-request-id", "")
    return given if given and _REQUEST_ID.fullmatch(given) else new_id()


def event_time(headers: Mapping[str, str]) -> int | None:
    """Return `X-Event-Time` in microseconds since 1970 (UTC), or None if the header is missing.

    Raises:
        InvalidRequest: it is not a time of RFC 3339 with its offset, or lies too far back or ahead.
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


def serialize_response(response: RawResponse, keep_alive: bool, with_body: bool = True) -> bytes:
    """Return the head and the body, to be sent in one write.

    Args:
        keep_alive: False if the response has to say that the connection ends.
        with_body: False for the response to a HEAD.
    """
    if response.status == 204:
        return _serialize_head(response, keep_alive, "")  # no body, nor its length (RFC 9110, 8.6)
    content = f"\r\nContent-Type: {response.content_type}\r\nContent-Length: {len(response.body)}"
    head = _serialize_head(response, keep_alive, content)
    return head + response.body if with_body else head


def serialize_chunked_head(response: RawResponse, keep_alive: bool) -> bytes:
    """Return the head of a response whose body follows in chunks."""
    content = f"\r\nContent-Type: {response.content_type}\r\nTransfer-Encoding: chunked"
    return _serialize_head(response, keep_alive, content)


def parse_error_response(error: Exception) -> bytes:
    """Return the threaded worker's last response on a connection on which no request could be read.

    An error that is neither ours nor of TLS is logged, and answered without its details.
    """
    if isinstance(error, ssl.SSLError):
        error = InvalidRequest(f"the request is not HTTP/1.1 as it is spoken here: {error}")
    if isinstance(error, OnnxserveError):
        return serialize_response(exception_response("", error), False)
    logger.error("answering failed", exc_info=error)
    message = "the server failed to answer; its log says why"
    return serialize_response(error_response("", 500, "INTERNAL_ERROR", message), False)


def _serialize_head(response: RawResponse, keep_alive: bool, content: str) -> bytes:
    fields = "\r\n".join([*map(": ".join, safe_headers(response.headers).items()), "\r\n"])
    return (
        f"{_status_line(response.status)}\r\nDate: {_date(int(time.time()))}"
        f"\r\nConnection: {'keep-alive' if keep_alive else 'close'}"
        f"{content}\r\n{fields}"
    ).encode("latin-1")


@lru_cache(maxsize=64)
def _status_line(status: int) -> str:
    try:
        return f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"
    except ValueError:
        return f"HTTP/1.1 {status} Unknown"


@lru_cache(maxsize=1)
def _date(second: int) -> str:
    return formatdate(second, usegmt=True)
