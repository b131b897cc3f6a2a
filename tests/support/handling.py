"""Requests to a server in this process, without a worker."""

import threading

from mlflow_deploy_plugin.server.assembly import Server
from mlflow_deploy_plugin.server.http.app import ServerApp
from mlflow_deploy_plugin.server.http.responses import RawResponse
from mlflow_deploy_plugin.server.inference.messages import RawRequest

JSON = {"content-type": "application/json"}
ROW = b'{"inputs": [[1, 2, 3]]}'
V2_ROW = b'{"inputs": [{"name": "X", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}]}'

_apps: dict[int, ServerApp] = {}
_building = threading.Lock()


def handle(server: Server, request: RawRequest) -> RawResponse:
    """Answer a request by the server's application, which is built once: werkzeug takes milliseconds for its rules."""
    with _building:
        app = _apps.get(id(server))
        if app is None or app.server is not server:
            app = _apps[id(server)] = ServerApp(server)
    return app.handle(request)


def ask(
    server: Server, path: str = "/invocations", method: str = "POST", body: bytes = ROW, **headers: str
) -> RawResponse:
    """Answer a JSON request; keywords are headers, with underscores for hyphens."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return handle(server, RawRequest(method, path, {**JSON, **named}, body))
