"""Requests to a server in this process, without a worker."""

import io
import json
import sys
import threading
from urllib.parse import unquote_to_bytes

from werkzeug.test import run_wsgi_app

from mlflow_deploy_plugin.serve.http.app import ServerApp
from mlflow_deploy_plugin.serve.messages import RawRequest

JSON = {"content-type": "application/json"}
ROW = b'{"inputs": [[1, 2, 3]]}'
V2_ROW = b'{"inputs": [{"name": "X", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}]}'

_apps = {}
_building = threading.Lock()


def handle(server, request):
    """Answer a request with the server's application, which is built once because
    werkzeug needs milliseconds for its rules.
    """
    with _building:
        app = _apps.get(id(server))
        if app is None or app.server is not server:
            app = _apps[id(server)] = ServerApp(server)
    return app.handle(request)


def post(path="/invocations", body=ROW, method="POST", **headers):
    """Return a request; keywords are headers, with underscores for hyphens.

    Args:
        body: bytes, or a document that is sent as JSON.
    """
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    http_headers = {name.replace("_", "-"): value for name, value in headers.items()}
    return RawRequest(method, path, {**JSON, **http_headers}, content)


def ask(server, path="/invocations", method="POST", body=ROW, **headers):
    """Answer the request that `post` makes of the other arguments."""
    return handle(server, post(path, body, method, **headers))


_OWN_KEYS = ("CONTENT_TYPE", "CONTENT_LENGTH")


def wsgi_environ(method, target, headers, body):
    """Return the environ that gunicorn makes of a request. The target and the headers
    are not checked.

    The input ends where the body ends.
    """
    path, _, query = target.partition("?")
    variables = {
        name.upper().replace("-", "_"): value for name, value in headers.items() if "_" not in name
    }
    return {
        "REQUEST_METHOD": method,
        "SCRIPT_NAME": "",
        "PATH_INFO": unquote_to_bytes(path.encode("latin-1")).decode("latin-1"),
        "RAW_URI": target,
        "QUERY_STRING": query,
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "REMOTE_ADDR": "127.0.0.1",
        "wsgi.url_scheme": "http",
        "wsgi.input": body,
        "wsgi.input_terminated": True,
        "wsgi.errors": sys.stderr,
        **{
            name if name in _OWN_KEYS else f"HTTP_{name}": value
            for name, value in variables.items()
        },
    }


def ask_wsgi(app, method, target, headers, body=b""):
    """Answer a request with the WSGI application; return the status, the headers in
    lower case and the body.
    """
    content, status, fields = run_wsgi_app(
        app, wsgi_environ(method, target, headers, io.BytesIO(body)), buffered=True
    )
    return int(status[:3]), {name.lower(): value for name, value in fields}, b"".join(content)
