"""HTTP responses as plain values and as bytes. An error has the form of its route's
protocol.
"""

import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from functools import lru_cache
from http.client import responses

from mlflow_deploy_plugin.core.errors import OnnxserveError, UnfitPath
from mlflow_deploy_plugin.serve.inference.pipeline import failure
from mlflow_deploy_plugin.serve.messages import RawRequest, Reply, error_reply, safe_headers
from mlflow_deploy_plugin.serve.protocols.content import JSON, dump_json

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


@dataclass(slots=True)
class RawResponse:
    """An HTTP response.

    `fields` are the serialized headers, if available (`header_fields`). `pieces` is a
    body in parts; the caller must close it.
    """

    status: int
    body: bytes
    content_type: str = JSON
    headers: dict[str, str] = field(default_factory=dict)
    fields: str = ""
    pieces: Generator[bytes, None, None] | None = None


def http_response(path: str, reply: Reply) -> RawResponse:
    """Return the reply to a request for this path as HTTP; an error has the form of the
    path's protocol.
    """
    error = reply.error
    if error is None:
        return RawResponse(
            200,
            reply.body,
            reply.content_type,
            reply.headers,
            pieces=reply.pieces,
        )
    path = error.path if isinstance(error, UnfitPath) else path
    return error_response(path, error.http_status, error.error_code, error.message, reply.headers)


def exception_response(path: str, error: OnnxserveError) -> RawResponse:
    return http_response(path, error_reply(error))


def failure_response(request: RawRequest | None, error: BaseException) -> RawResponse:
    """Return the response to a request that failed with any exception; an unexpected
    exception is logged, and its message is not sent.
    """
    path = request.path if request else ""
    return http_response(path, failure(request, error))


def error_response(
    path: str,
    status: int,
    error_code: str,
    message: str,
    headers: dict[str, str] | None = None,
) -> RawResponse:
    """Return an error in the form of the path's protocol: V2, TensorFlow, or otherwise
    MLflow.
    """
    document = {"error_code": error_code, "message": message}
    if has_short_errors(path):
        document = {"error": message}
    return RawResponse(status, dump_json(document), headers=headers or {})


def has_short_errors(path: str) -> bool:
    """Return True if an error of this path has the form of V2 and TensorFlow instead of
    MLflow's.
    """
    return path == "/v2" or path.startswith(("/v2/", "/v1/models/"))


def header_fields(headers: Mapping[str, str]) -> str:
    """Return the headers as they are sent, each with its line end. Characters that a
    header may not contain are percent-encoded.
    """
    lines = map(": ".join, safe_headers(headers).items())
    return "\r\n".join([*lines, ""])


def serialize_response(response: RawResponse, keep_alive: bool, with_body: bool = True) -> bytes:
    """Return the head and the body as bytes for a single write. The body is left out
    for HEAD.
    """
    fields = response.fields or header_fields(response.headers)
    start = _head_start(response.status, keep_alive, int(time.time()))
    if response.status == 204:
        # A 204 has neither a body nor a length (RFC 9110, 8.6).
        return f"{start}{fields}\r\n".encode("latin-1")
    body = response.body
    head = (
        f"{start}Content-Type: {response.content_type}\r\n"
        f"Content-Length: {len(body)}\r\n"
        f"{fields}\r\n"
    )
    if with_body:
        return head.encode("latin-1") + body
    return head.encode("latin-1")


def serialize_streamed_head(response: RawResponse, keep_alive: bool, is_chunked: bool) -> bytes:
    """Return the head of a response whose body follows in chunks, or until the
    connection is closed.
    """
    start = _head_start(response.status, keep_alive, int(time.time()))
    coding = "Transfer-Encoding: chunked\r\n" if is_chunked else ""
    content = f"Content-Type: {response.content_type}\r\n{coding}"
    return f"{start}{content}{header_fields(response.headers)}\r\n".encode("latin-1")


@lru_cache(maxsize=64)
def _head_start(status: int, keep_alive: bool, second: int) -> str:
    """Return the status line and the first fields of a response that is sent at
    `second` since 1970.
    """
    phrase = responses.get(status, "Unknown")
    date = formatdate(second, usegmt=True)
    connection = "keep-alive" if keep_alive else "close"
    return f"HTTP/1.1 {status} {phrase}\r\nDate: {date}\r\nConnection: {connection}\r\n"
