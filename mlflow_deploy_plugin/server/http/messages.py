"""A request and an answer without a framework, and what their headers mean."""

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

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST_EVENT = datetime(1700, 1, 1, tzinfo=UTC)
"""Every reader of the inference log can hold it; pandas' nanoseconds begin in 1677."""
_MOST_AHEAD = timedelta(days=1)
"""A clock may be wrong, and a zone; no monitor judges a row before its time has come."""
_REQUEST_ID = re.compile(r"[!-~]{1,128}")
_VISIBLE = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")
"""What the value of a header, or of gRPC's metadata, may hold as it is."""


@dataclass(slots=True)
class RawRequest:
    """One HTTP request, its body read; names of headers in lower case.

    Nothing changes it; to be frozen would cost half a microsecond a request, for each of this and of the answer.

    Attributes:
        client: the address that it came from.
        arrived: when it was whole, in `time.perf_counter()`: what it waits for a thread counts towards its deadline.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    client: str = ""
    arrived: float = field(default_factory=time.perf_counter)


@dataclass(slots=True)
class RawResponse:
    """One HTTP answer."""

    status: int
    body: bytes
    content_type: str = JSON
    headers: dict[str, str] = field(default_factory=dict)


def safe_headers(headers: Mapping[str, str]) -> Mapping[str, str]:
    """The headers of an answer as they may be sent: percent-encoded is % and whatever is no visible ASCII.

    So a line end in a value, wherever it came from, begins no header of its own. A caller's id comes back as it came.
    """
    text = "".join(headers.values())
    if text.isascii() and text.isprintable() and "%" not in text:
        return headers
    return {name: value if _is_id(name, value) else _encoded(value) for name, value in headers.items()}


def _is_id(name: str, value: str) -> bool:
    return name == "X-Request-Id" and _REQUEST_ID.fullmatch(value) is not None


def _encoded(value: str) -> str:
    return quote(value, safe=_VISIBLE, errors="replace")


def error_response(
    path: str, status: int, error_code: str, message: str, headers: dict[str, str] | None = None
) -> RawResponse:
    """An error in the form of the protocol that the path belongs to: V2's, TensorFlow's, or else MLflow's."""
    is_short = path == "/v2" or path.startswith(("/v2/", "/v1/models/"))
    document = {"error": message} if is_short else {"error_code": error_code, "message": message}
    return RawResponse(status, dump_json(document), headers=headers or {})


def exception_response(path: str, error: OnnxserveError, headers: dict[str, str] | None = None) -> RawResponse:
    """The answer to a request for this path that ended in one of our errors."""
    if isinstance(error, UnfitPath):
        path = error.path
    if error.retry_after is not None:
        headers = {**(headers or {}), "Retry-After": str(error.retry_after)}
    return error_response(path, error.http_status, error.error_code, error.message, headers)


def request_id(headers: Mapping[str, str]) -> str:
    """The caller's `X-Request-Id` where it is fit to be sent back (1–128 visible ASCII characters), else a new one."""
    given = headers.get("x-request-id", "")
    return given if given and _REQUEST_ID.fullmatch(given) else new_id()


def event_time(headers: Mapping[str, str]) -> int | None:
    """`X-Event-Time` in microseconds since 1970 (UTC), or None where there is none.

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


# An answer as the bytes of HTTP/1.1.

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def serialize_response(response: RawResponse, keeps_alive: bool, with_body: bool = True) -> bytes:
    """Head and body, to be sent in one write.

    Args:
        keeps_alive: the connection stays open; else the answer says that it ends.
        with_body: False: the answer to a HEAD.
    """
    if response.status == 204:
        return _head(response, keeps_alive, "")  # it has no body, and may not say how long that is (RFC 9110, 8.6)
    head = _head(
        response, keeps_alive, f"\r\nContent-Type: {response.content_type}\r\nContent-Length: {len(response.body)}"
    )
    return head + response.body if with_body else head


def serialize_chunked_head(response: RawResponse, keeps_alive: bool) -> bytes:
    """The head of an answer whose body follows in chunks."""
    return _head(response, keeps_alive, f"\r\nContent-Type: {response.content_type}\r\nTransfer-Encoding: chunked")


def _head(response: RawResponse, keeps_alive: bool, content: str) -> bytes:
    fields = "\r\n".join([*map(": ".join, safe_headers(response.headers).items()), "\r\n"])
    return (
        f"{_status_line(response.status)}\r\nDate: {_date(int(time.time()))}"
        f"\r\nConnection: {'keep-alive' if keeps_alive else 'close'}"
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


# What is no request, or breaks the connection of one, answered by the threaded worker as the accelerated one does.

logger = logging.getLogger(__name__)


def parse_error_response(refusal: Exception) -> bytes:
    """The last answer on a connection; what is no refusal of a request is logged, and answered without its details."""
    if isinstance(refusal, ssl.SSLError):
        refusal = InvalidRequest(f"the request is not HTTP/1.1 as it is spoken here: {refusal}")
    if isinstance(refusal, OnnxserveError):
        return serialize_response(exception_response("", refusal), False)
    logger.error("answering failed", exc_info=refusal)
    message = "the server failed to answer; its log says why"
    return serialize_response(error_response("", 500, "INTERNAL_ERROR", message), False)
