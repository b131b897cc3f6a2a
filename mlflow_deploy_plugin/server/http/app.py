"""The Flask application: everything over HTTP. What is answered is decided in `routes.py`."""

import errno
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import IO

from flask import Flask, Response, request

from mlflow_deploy_plugin.errors import BodyTooLarge, InvalidRequest, OnnxserveError
from mlflow_deploy_plugin.logs import configure_logging
from mlflow_deploy_plugin.server.assembly import Server, open_server
from mlflow_deploy_plugin.server.http.messages import (
    RawRequest,
    RawResponse,
    exception_response,
    safe_headers,
)
from mlflow_deploy_plugin.server.http.parser import MISSING_HOST, check_host, decode_path
from mlflow_deploy_plugin.server.http.routes import handle_request
from mlflow_deploy_plugin.server.http.streaming import BrokenResponse, may_stream, stream_predictions
from mlflow_deploy_plugin.settings import load_settings

SERVER = "onnxserve"
"""Where the application keeps its `Server`, for what else answers in the worker (`server/gunicorn_conf.py`)."""

_TORN = "the body broke off, did not arrive in time, or is not in valid chunks"
_PIECE_BYTES = 64 * 1024


def create_app(state_dir: str) -> Flask:
    """The application of one worker, serving what the state folder says; made after the fork.

    It answers at once, with 503 until the first version is loaded.

    Raises:
        InvalidConfig: spec.yaml in the folder is not a spec.
    """
    configure_logging(load_settings(), "worker")
    return build_app(open_server(Path(state_dir)))


def build_app(server: Server) -> Flask:
    """The application around a server that is there already."""
    app = Flask("onnxserve", static_folder=None)
    app.extensions[SERVER] = server

    @app.before_request  # before Flask looks for a route: a path it would redirect, a method it does not know
    def view() -> Response:
        path = ""
        try:
            path = decode_path(request.environ["RAW_URI"])
            headers = _headers()
            if _comes_in_lines(path, headers, server.max_body_bytes):
                return _streamed(server, _raw_request(path, headers))
            body = _read_body(request.environ["wsgi.input"], request.content_length, server.max_body_bytes)
        except OnnxserveError as error:
            _give_up_unless_whole(request.environ["wsgi.input"])
            return _flask_response(exception_response(path, error))
        return _flask_response(handle_request(server, _raw_request(path, headers, body)))

    return app


def _comes_in_lines(path: str, headers: Mapping[str, str], limit: int) -> bool:
    length = request.content_length
    is_long = length > limit if length is not None else request.environ.get("wsgi.input_terminated")
    takes_chunks = request.environ["SERVER_PROTOCOL"] == "HTTP/1.1"
    return bool(is_long) and takes_chunks and may_stream(request.method, path, headers)


def _streamed(server: Server, raw: RawRequest) -> Response:
    stream, length = request.environ["wsgi.input"], request.content_length
    response, pieces = stream_predictions(server, raw, _pieces(stream, length))
    if pieces is None:
        _give_up_unless_whole(stream)
        return _flask_response(response)
    held = _gathered(pieces, server.max_body_bytes)
    return Response(held, response.status, safe_headers(response.headers), content_type=response.content_type)


def _gathered(pieces: Generator[bytes, None, None], limit: int) -> Iterator[bytes]:
    """The answer, of which as much is held back as a whole body may have: most clients read nothing before they have
    sent all, and here nothing is read while something cannot be sent.

    The connection of an answer that breaks off ends without the last chunk: gunicorn does so for a broken pipe.
    """
    held: list[bytes] = []
    size = 0
    try:
        for piece in pieces:
            held.append(piece)
            size += len(piece)
            if size > limit:
                yield b"".join(held)
                held, size = [], 0
    except BrokenResponse:
        yield b"".join(held)
        raise BrokenPipeError(errno.EPIPE, "the answer ended in an error") from None
    yield b"".join(held)


def _pieces(stream: IO[bytes], content_length: int | None) -> Iterator[bytes]:
    """The body as it comes; each piece has the time that a whole body has.

    Raises:
        InvalidRequest: as `_read_body`.
    """
    read = 0
    try:
        while piece := stream.read(_PIECE_BYTES):
            read += len(piece)
            _awaits_client(stream, False)
            yield piece
            _awaits_client(stream, True)
    except OSError:
        raise InvalidRequest(_TORN) from None
    if content_length is not None and read < content_length:
        raise InvalidRequest(f"only {read} of the {content_length} bytes of the body arrived in time")


def _headers() -> dict[str, str]:
    """
    Raises:
        InvalidRequest: no Host, or one that is none.
    """
    headers = {name.lower(): value for name, value in request.headers.items()}
    if "host" not in headers and request.environ["SERVER_PROTOCOL"] == "HTTP/1.1":
        raise InvalidRequest(MISSING_HOST)
    check_host(headers.get("host", ""))
    return headers


def _raw_request(path: str, headers: Mapping[str, str], body: bytes = b"") -> RawRequest:
    """To be made when the body is there: that is when a request has arrived."""
    return RawRequest(request.method, path, headers, body, request.remote_addr or "")


def _read_body(stream: IO[bytes], content_length: int | None, limit: int) -> bytes:
    """The whole body.

    werkzeug 3.1's own limit cuts a chunked body off without a word, and takes half a body for a whole one.

    Raises:
        BodyTooLarge: it is larger than `limit`, declared or chunked.
        InvalidRequest: it ended before its declared length, did not arrive in time (`gthread_worker.py`), or is torn.
    """
    if content_length is None and not request.environ.get("wsgi.input_terminated"):
        return b""
    is_small = content_length is None or content_length <= limit
    getattr(stream, "bound", lambda limit: None)(limit)
    try:
        body = stream.read(limit + 1 if content_length is None else content_length) if is_small else b""
    except OSError:
        raise InvalidRequest(_TORN) from None
    if not is_small or len(body) > limit:
        raise BodyTooLarge(f"the body is larger than this server's limit of {limit} bytes")
    if content_length is not None and len(body) < content_length:
        raise InvalidRequest(f"only {len(body)} of the {content_length} bytes of the body arrived in time")
    return body


def _flask_response(response: RawResponse) -> Response:
    flask = Response(response.body, response.status, safe_headers(response.headers), content_type=response.content_type)
    if response.status == 204:
        del flask.headers["Content-Type"]
    return flask


def _awaits_client(stream: IO[bytes], is_awaited: bool) -> None:
    """Says whether time runs for the client, to a server that lets it be said (`gthread_worker.py`)."""
    getattr(stream, "awaits_client", lambda is_awaited: None)(is_awaited)


def _give_up_unless_whole(stream: IO[bytes]) -> None:
    """Tell gunicorn (`http/workers/gthread_worker.py`) to close the connection if the body has not come whole."""
    if not getattr(stream, "is_whole", True):
        getattr(stream, "give_up", lambda: None)()
