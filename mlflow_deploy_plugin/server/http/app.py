"""The Flask application: everything over HTTP. What is answered is decided in `routes.py`."""

import logging
import time
from pathlib import Path
from typing import IO

from flask import Flask, Response
from flask import request as flask_request
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from mlflow_deploy_plugin.errors import BodyTooLarge
from mlflow_deploy_plugin.server.assembly import Server, open_server
from mlflow_deploy_plugin.server.http.messages import RawRequest, RawResponse, error_response, refused
from mlflow_deploy_plugin.server.http.routes import answer

_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
_DRAIN_BYTES = 64 * 1024 * 1024
_DRAIN_SECONDS = 5.0


def create_app(state_dir: str) -> Flask:
    """The application of one worker, serving what the state folder says; made after the fork.

    It answers at once, with 503 until the first version is loaded.

    Raises:
        InvalidConfig: spec.yaml in the folder is not a spec.
    """
    logging.basicConfig(format="%(asctime)s %(levelname)s %(process)d %(name)s: %(message)s", level=logging.INFO)
    return build_app(open_server(Path(state_dir)))


def build_app(server: Server) -> Flask:
    """The application around a server that is there already."""
    app = Flask("onnxserve", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = server.max_body_bytes
    app.url_map.merge_slashes = False  # no redirects: a path is answered or is not there

    def view(path: str = "") -> Response:
        return _flask_response(answer(server, _raw_request()))

    app.add_url_rule("/", "any", view, methods=_METHODS, provide_automatic_options=False)
    app.add_url_rule("/<path:path>", "any", view, methods=_METHODS, provide_automatic_options=False)

    def too_large(error: RequestEntityTooLarge) -> Response:
        _drain(flask_request.environ["wsgi.input"], flask_request.content_length)
        limit = server.max_body_bytes
        return _flask_response(refused(BodyTooLarge(f"the body is larger than this server's limit of {limit} bytes")))

    def refused_by_werkzeug(error: HTTPException) -> Response:
        return _flask_response(error_response(error.code or 500, "BAD_REQUEST", error.description or error.name))

    app.register_error_handler(RequestEntityTooLarge, too_large)
    app.register_error_handler(HTTPException, refused_by_werkzeug)
    return app


def _raw_request() -> RawRequest:
    request = flask_request
    headers = {name.lower(): value for name, value in request.headers.items()}
    return RawRequest(request.method, request.path, headers, request.get_data(cache=False))


def _flask_response(response: RawResponse) -> Response:
    return Response(response.body, response.status, response.headers, content_type=response.content_type)


def _drain(stream: IO[bytes], content_length: int | None) -> None:
    """Reads what a client still sends of a body that is refused, in small pieces, up to a bound.

    A client that is cut off while it sends sees a reset connection instead of the 413.
    """
    if content_length is not None and content_length > _DRAIN_BYTES:
        return
    deadline = time.monotonic() + _DRAIN_SECONDS
    drained = 0
    while drained < _DRAIN_BYTES and time.monotonic() < deadline:
        piece = stream.read(65536)
        if not piece:
            return
        drained += len(piece)
