"""The WSGI application around a server, and the blueprints of other distributions,
which are the only routes that Flask answers.
"""

import io
import logging
import sys
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from flask import Flask, Response, g, request
from werkzeug.exceptions import HTTPException, MethodNotAllowed
from werkzeug.wrappers import Request

from mlflow_deploy_plugin.core.errors import InvalidRequest, OnnxserveError, pass_exit
from mlflow_deploy_plugin.serve.assembly import open_worker
from mlflow_deploy_plugin.serve.http import routes
from mlflow_deploy_plugin.serve.http.parser import (
    MISSING_HOST,
    TORN_BODY,
    body_too_large,
    check_host,
    decode_path,
)
from mlflow_deploy_plugin.serve.http.responses import (
    RawResponse,
    exception_response,
    failure_response,
)
from mlflow_deploy_plugin.serve.inference.auth import Need, certificate_name
from mlflow_deploy_plugin.serve.inference.server import Server
from mlflow_deploy_plugin.serve.messages import RawRequest, safe_headers, without_keys
from mlflow_deploy_plugin.serve.protocols.table import BLUEPRINTS
from mlflow_deploy_plugin.serve.spool.codec import FIRST_ERROR_STATUS

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

logger = logging.getLogger(__name__)

_RAW_REQUEST = "onnxserve.raw_request"
"""The key of the `RawRequest` in the WSGI environment of Flask's views."""
_PIECE_BYTES = 64 * 1024


def create_app(state_dir: str) -> Flask:
    """Return the application of a worker. Call it after the fork. Raises InvalidConfig
    if spec.yaml is invalid.
    """
    return ServerApp(open_worker(state_dir))


class ServerApp(Flask):
    """The Flask application around a server. The fast worker calls `handle`; WSGI
    servers call `wsgi_app`.

    The routes of `routes.py` are answered before Flask looks for a route in the
    blueprints of other distributions.
    """

    def __init__(self, server: Server) -> None:
        super().__init__("onnxserve", static_folder=None)
        self.server = server
        self.before_request(self._identify)
        self.register_error_handler(Exception, self._answer_error)
        for entry in BLUEPRINTS:
            try:
                self.register_blueprint(entry.load())
            except Exception:
                logger.exception("the blueprint %s (%s) cannot be used", entry.name, entry.value)

    def handle(self, raw: RawRequest) -> RawResponse:
        """Answer any request. Never raises: an unexpected error is logged with its
        traceback, then answered.
        """
        server = self.server
        response = server.observer.observe(
            raw, lambda: routes.handle_route(server, raw) or call_flask(self, raw)
        )
        # not from the pipeline
        if response.status >= FIRST_ERROR_STATUS and "X-Request-Id" not in response.headers:
            protocol = f"{raw.method[:20]} {without_keys(raw.path)[:100]}"
            origin = response.status, "", "", "", protocol
            seconds = time.perf_counter() - raw.arrived
            server.recent.add(origin, seconds, rows=0, prediction_id="", error=None)
        return response

    def wsgi_app(
        self,
        environ: "WSGIEnvironment",
        start_response: "StartResponse",
    ) -> Iterable[bytes]:
        """Answer a WSGI request in the same way as the fast worker."""
        asked = Request(environ)
        path = ""
        body = b""
        try:
            path = decode_path(environ["RAW_URI"])
            headers = {name.lower(): value for name, value in asked.headers.items()}
            if environ["SERVER_PROTOCOL"] == "HTTP/1.1" and "host" not in headers:
                raise InvalidRequest(MISSING_HOST)
            check_host(headers.get("host", ""))
            # gunicorn's TLS socket has the client certificate.
            certificate = getattr(environ.get("gunicorn.socket"), "getpeercert", None)
            caller = certificate_name(certificate()) if certificate else ""
            # A stranger must not occupy a thread.
            if not self.server.auth.is_stranger(headers, caller):
                body = _read_body(asked, self.server.max_body_bytes)
        except OnnxserveError as error:
            response = exception_response(path, error)
        else:
            client = asked.remote_addr or ""
            query = environ.get("QUERY_STRING", "")
            raw = RawRequest(asked.method, path, headers, body, client, query, caller)
            response = self.handle(raw)
        return flask_response(response)(environ, start_response)

    def _identify(self) -> None:
        """Authenticate the caller of a view."""
        raw = request.environ[_RAW_REQUEST]
        g.raw_request = raw
        if request.blueprint is not None:
            need: Need = "read" if request.method == "GET" else "admin"
            self.server.auth.identify(raw, need)

    def _answer_error(self, error: Exception) -> HTTPException | Response:
        """Return the response for an error of Flask's routing or of a view. An
        HTTPException that a view raises is its own response.
        """
        if isinstance(error, MethodNotAllowed) and error is request.routing_exception:
            return flask_response(
                routes.method_not_allowed(g.raw_request, error.valid_methods or ()),
            )
        if isinstance(error, HTTPException) and error is request.routing_exception:
            return flask_response(routes.not_found(g.raw_request.path))
        if isinstance(error, HTTPException):
            return error
        return flask_response(failure_response(g.raw_request, error))


def call_flask(app: ServerApp, raw: RawRequest) -> RawResponse:
    """Answer a request with a view of the application. HEAD is handled as GET; the
    worker omits the body.
    """
    host, _, port = raw.headers.get("host", "localhost").partition(":")
    method = "GET" if raw.method == "HEAD" else raw.method
    environ = {
        **{f"HTTP_{name.upper().replace('-', '_')}": value for name, value in raw.headers.items()},
        "REQUEST_METHOD": method,
        "SCRIPT_NAME": "",
        "PATH_INFO": raw.path.encode().decode("latin-1"),
        "QUERY_STRING": raw.query,
        "CONTENT_TYPE": raw.headers.get("content-type", ""),
        "CONTENT_LENGTH": str(len(raw.body)),
        "REMOTE_ADDR": raw.client,
        "SERVER_NAME": host,
        "SERVER_PORT": port or "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": app.server.spec.scheme,
        "wsgi.input": io.BytesIO(raw.body),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
        _RAW_REQUEST: raw,
    }
    with app.request_context(environ):
        try:
            response = app.full_dispatch_request()
        except BaseException as error:  # noqa: BLE001 - Flask only handles an Exception
            pass_exit(error)
            response = flask_response(failure_response(raw, error))
        # Otherwise the content of a file response could not be read.
        response.direct_passthrough = False
        body = response.get_data()
    headers = {
        name: value
        for name, value in response.headers.items()
        if name not in ("Content-Type", "Content-Length")
    }
    return RawResponse(response.status_code, body, response.content_type or "", headers)


def _read_body(request: Request, limit: int) -> bytes:
    """Return the complete body. Raises BodyTooLarge above `limit`, and InvalidRequest
    if the body ends too early.

    werkzeug 3.1's own limit silently truncates a chunked body, and accepts a body that
    ends too early.
    """
    content_length = request.content_length
    if content_length is None and not request.environ.get("wsgi.input_terminated"):
        return b""
    if content_length is not None and content_length > limit:
        raise body_too_large(limit)
    most_bytes = limit + 1 if content_length is None else content_length
    body = bytearray()
    stream = request.environ["wsgi.input"]
    try:
        # Some servers would wait for more bytes than the body has.
        while piece := stream.read(min(_PIECE_BYTES, most_bytes - len(body))):
            body += piece
    except OSError:
        raise InvalidRequest(TORN_BODY) from None
    if len(body) > limit:
        raise body_too_large(limit)
    if content_length is not None and len(body) < content_length:
        raise InvalidRequest(
            f"only {len(body)} of the {content_length} bytes of the body arrived in time",
        )
    return bytes(body)


def flask_response(response: RawResponse) -> Response:
    """Return the response for Flask. A 204 has no content type."""
    body = response.body if response.pieces is None else response.pieces
    flask = Response(
        body,
        response.status,
        safe_headers(response.headers),
        content_type=response.content_type,
    )
    if response.status == 204:
        del flask.headers["Content-Type"]
    return flask
