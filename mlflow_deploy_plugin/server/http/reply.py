"""An answer as the bytes of HTTP/1.1."""

import time
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus

from mlflow_deploy_plugin.server.http.messages import RawResponse, fit_headers

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def reply(response: RawResponse, keeps_alive: bool, with_body: bool = True) -> bytes:
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


def chunked_head(response: RawResponse, keeps_alive: bool) -> bytes:
    """The head of an answer whose body follows in chunks."""
    return _head(response, keeps_alive, f"\r\nContent-Type: {response.content_type}\r\nTransfer-Encoding: chunked")


def _head(response: RawResponse, keeps_alive: bool, content: str) -> bytes:
    fields = "\r\n".join([*map(": ".join, fit_headers(response.headers).items()), "\r\n"])
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
