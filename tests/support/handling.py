"""Requests to a server in this process, without a worker."""

import threading

from mlflow_deploy_plugin.server.assembly import Server
from mlflow_deploy_plugin.server.http.app import ServerApp
from mlflow_deploy_plugin.server.http.messages import RawResponse
from mlflow_deploy_plugin.server.inference.messages import RawRequest

_apps: dict[int, ServerApp] = {}
_building = threading.Lock()


def handle(server: Server, request: RawRequest) -> RawResponse:
    """Answer a request by the server's application, which is built once: werkzeug takes milliseconds for its rules."""
    with _building:
        app = _apps.get(id(server))
        if app is None or app.server is not server:
            app = _apps[id(server)] = ServerApp(server)
    return app.handle(request)
