"""HTTP responses: as plain values, for errors in the form of each route, and as bytes."""

import ssl
import time
from dataclasses import dataclass, field
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus

from mlflow_deploy_plugin.errors import InvalidRequest, OnnxserveError, UnfitPath
from mlflow_deploy_plugin.server.inference.messages import RawRequest, Reply, safe_headers
from mlflow_deploy_plugin.server.inference.pipeline import failure
from mlflow_deploy_plugin.server.protocols.content import JSON, dump_json

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


@dataclass(slots=True)
class RawResponse:
    """One HTTP response."""

    status: int
    body: bytes
    content_type: str = JSON
    headers: dict[str, str] = field(default_factory=dict)


def http_response(request: RawRequest, reply: Reply) -> RawResponse:
    """Return the response to a request that the pipeline has replied to."""
    if reply.error is None:
        return RawResponse(200, reply.body, reply.content_type, reply.headers)
    return exception_response(request.path, reply.error, reply.headers)


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
    nothing = RawRequest("", "", {}, b"")
    return serialize_response(http_response(nothing, failure(nothing, error)), False)


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
