"""The Flask application of the threaded worker. The responses are made by `routes.handle_request`."""

import errno
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import IO

from flask import Flask, Response, request

from mlflow_deploy_plugin.errors import BodyTooLarge, InvalidRequest, OnnxserveError
from mlflow_deploy_plugin.logs import configure_logging
from mlflow_deploy_plugin.server.assembly import Server, open_server
from mlflow_deploy_plugin.server.http.messages import RawRequest, RawResponse, exception_response, safe_headers
from mlflow_deploy_plugin.server.http.parser import MISSING_HOST, check_host, decode_path
from mlflow_deploy_plugin.server.http.routes import handle_request
from mlflow_deploy_plugin.server.http.streaming import BrokenResponse, may_stream, stream_predictions
from mlflow_deploy_plugin.settings import load_settings

SERVER = "onnxserve"
"""The key of the `Server` in the application's extensions, for what else answers in the worker (gRPC)."""

_TORN = "the body broke off, did not arrive in time, or is not in valid chunks"
_PIECE_BYTES = 64 * 1024


def create_app(state_dir: str) -> Flask:
    """Return the application of one worker, serving what the state folder says. Called after the fork.

    It answers at once, with 503 until the first version is loaded.

    Raises:
        InvalidConfig: spec.yaml in the folder is not a spec.
    """
    configure_logging(load_settings(), "worker")
    return build_app(open_server(Path(state_dir)))


def build_app(server: Server) -> Flask:
    """Return the application around a server."""
    app = Flask("onnxserve", static_folder=None)
    app.extensions[SERVER] = server

    @app.before_request  # before Flask looks for a route: it would redirect some paths, and not know some methods
    def view() -> Response:
        path = ""
        stream = request.environ["wsgi.input"]
        try:
            path = decode_path(request.environ["RAW_URI"])
            headers = _headers()
            if _may_stream(path, headers, server.max_body_bytes):
                return _stream(server, RawRequest(request.method, path, headers, b"", request.remote_addr or ""))
            body = _read_body(stream, request.content_length, server.max_body_bytes)
        except OnnxserveError as error:
            _close_unless_whole(stream)
            return _flask_response(exception_response(path, error))
        raw = RawRequest(request.method, path, headers, body, request.remote_addr or "")  # it has arrived by now
        return _flask_response(handle_request(server, raw))

    return app


def _headers() -> dict[str, str]:
    """Return the headers, names in lower case.

    Raises:
        InvalidRequest: Host is missing or invalid.
    """
    headers = {name.lower(): value for name, value in request.headers.items()}
    if "host" not in headers and request.environ["SERVER_PROTOCOL"] == "HTTP/1.1":
        raise InvalidRequest(MISSING_HOST)
    check_host(headers.get("host", ""))
    return headers


def _read_body(stream: IO[bytes], content_length: int | None, limit: int) -> bytes:
    """Return the whole body.

    werkzeug 3.1's own limit silently cuts a chunked body off, and takes half a body for a whole one.

    Raises:
        BodyTooLarge: it is larger than `limit`, by its length or by its chunks.
        InvalidRequest: it ended before its declared length, did not arrive in time (`workers/gthread_worker.py`), or
            is torn.
    """
    if content_length is None and not request.environ.get("wsgi.input_terminated"):
        return b""
    is_small = content_length is None or content_length <= limit
    getattr(stream, "limit", lambda limit: None)(limit)
    try:
        body = stream.read(limit + 1 if content_length is None else content_length) if is_small else b""
    except OSError:
        raise InvalidRequest(_TORN) from None
    if not is_small or len(body) > limit:
        raise BodyTooLarge(f"the body is larger than this server's limit of {limit} bytes")
    if content_length is not None and len(body) < content_length:
        raise InvalidRequest(f"only {len(body)} of the {content_length} bytes of the body arrived in time")
    return body


def _may_stream(path: str, headers: Mapping[str, str], limit: int) -> bool:
    length = request.content_length
    is_long = length > limit if length is not None else request.environ.get("wsgi.input_terminated")
    is_http_1_1 = request.environ["SERVER_PROTOCOL"] == "HTTP/1.1"
    return bool(is_long) and is_http_1_1 and may_stream(request.method, path, headers)


def _stream(server: Server, raw: RawRequest) -> Response:
    stream, length = request.environ["wsgi.input"], request.content_length
    response, pieces = stream_predictions(server, raw, _pieces(stream, length))
    if pieces is None:
        _close_unless_whole(stream)
        return _flask_response(response)
    held_back = _hold_back(pieces, server.max_body_bytes)
    return Response(held_back, response.status, safe_headers(response.headers), content_type=response.content_type)


def _pieces(stream: IO[bytes], content_length: int | None) -> Iterator[bytes]:
    """Yield the body as it comes; each piece has the time that a whole body has.

    Raises:
        InvalidRequest: see `_read_body`.
    """
    read = 0
    awaits_client = getattr(stream, "awaits_client", lambda is_awaited: None)  # a method of our worker's
    try:
        while piece := stream.read(_PIECE_BYTES):
            read += len(piece)
            awaits_client(False)
            yield piece
            awaits_client(True)
    except OSError:
        raise InvalidRequest(_TORN) from None
    if content_length is not None and read < content_length:
        raise InvalidRequest(f"only {read} of the {content_length} bytes of the body arrived in time")


def _hold_back(pieces: Generator[bytes, None, None], limit: int) -> Iterator[bytes]:
    """Yield the response once it has more than `limit` bytes, or at its end.

    Most clients read nothing before they have sent all, and here nothing is read while something cannot be sent. The
    connection of a response that breaks off ends without the last chunk: gunicorn does so for a broken pipe.
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


def _flask_response(response: RawResponse) -> Response:
    flask = Response(response.body, response.status, safe_headers(response.headers), content_type=response.content_type)
    if response.status == 204:
        del flask.headers["Content-Type"]
    return flask


def _close_unless_whole(stream: IO[bytes]) -> None:
    """Tell our worker (`workers/gthread_worker.py`) to close the connection if the body has not come whole."""
    if not getattr(stream, "is_whole", True):
        getattr(stream, "close_connection", lambda: None)()
