"""Mount a model into another application: the scoring routes of one endpoint under a
prefix.

DispatcherMiddleware(app, {"/flights": wsgi_app("models:/flight-delay@champion")})
"""

import math
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.registry.model_uri import default_endpoint_name
from mlflow_deploy_plugin.core.settings import absolute_path, load_settings
from mlflow_deploy_plugin.core.spec.document import apply_config, new_endpoint
from mlflow_deploy_plugin.core.statedir.files import WANTED, temporary_folder, write_state
from mlflow_deploy_plugin.core.statedir.models import (
    Wanted,
    WantedEndpoint,
    WantedVariant,
)
from mlflow_deploy_plugin.serve.http.app import ServerApp
from mlflow_deploy_plugin.serve.http.embedded import EmbeddedModel, WsgiApp

_WAIT_SECONDS = 120.0


def wsgi_app(
    model_uri: str,
    *,
    name: str | None = None,
    config: Mapping[str, Any] | None = None,
    follow: bool = True,
    state_dir: Path | str | None = None,
    wait_seconds: float = _WAIT_SECONDS,
) -> WsgiApp:
    """Return a WSGI application that serves the model. The function returns once the
    model is loaded (docs/extend.md).

    Call the function after a fork, in the process that serves. The model ends with
    `close()` or with the process.

    Args:
        model_uri: as in `onnxserve serve MODEL`.
        name: the endpoint's name in metrics, the inference log and paths; None for the
            model's name.
        config: fields of the endpoint's spec by their dotted names, such as
            `{"capture.fraction": 0.1}`.
        follow: True to follow a stage or alias; False to resolve it once.
        state_dir: the folder of this process; None for the first free folder of the
            endpoint in ONNXSERVE_HOME.
        wait_seconds: the time limit for the registry and the load.

    Raises InvalidConfig if a field is unknown or mistyped or the folder is not
    writable, and DeploymentFailed if the model cannot be resolved, downloaded or
    loaded.
    """
    endpoint = new_endpoint(name or default_endpoint_name(model_uri), model_uri)
    spec = apply_config(endpoint, dict(config or {}))
    if state_dir is None:
        folder = load_settings().home_path / "embedded" / spec.name
    else:
        folder = absolute_path(state_dir)
    return WsgiApp(EmbeddedModel(spec, folder, follow, wait_seconds))


@contextmanager
def local_app(
    folder: Path,
    name: str,
    version: str,
    config: Mapping[str, Any] = MappingProxyType({}),
) -> Iterator[ServerApp]:
    """Load the version in an MLmodel folder during the block, without a registry, and
    yield the application of `onnxserve serve`. It neither captures nor explains
    requests. `config` has other fields of the spec by their dotted names.

    Raises DeploymentFailed if the version cannot be loaded.
    """
    spec = new_endpoint(
        default_endpoint_name(str(folder.with_name(name))),
        str(folder),
        {"capture.fraction": 0, "server.explain_max_rows": 0, **config},
    )
    served = WantedVariant(
        model_uri=f"models:/{name}/{version}",
        model=name,
        version=version,
        folder=folder,
    )
    endpoint = WantedEndpoint(variants={spec.name: served}, capture=spec.capture)
    wanted = Wanted(generation=1, endpoints={spec.name: endpoint})
    with temporary_folder("onnxserve-local-") as state_dir:
        write_state(state_dir / WANTED, wanted)
        with closing(EmbeddedModel(spec, state_dir, None, math.inf)) as model:
            yield model.app


@contextmanager
def local_server(
    folder: Path,
    name: str,
    version: str,
    port: str = "0",
) -> Iterator[str]:
    """Serve the version in an MLmodel folder to this machine in a thread during the
    block, without a registry, and yield the address.

    Current requests end first. Raises InvalidConfig if the port cannot be used, and the
    errors of `local_app`.
    """
    # `wsgi_app` runs in any server.
    from werkzeug.serving import ThreadedWSGIServer, WSGIRequestHandler

    class Handler(WSGIRequestHandler):
        """Answers one request per connection without a line in the log."""

        protocol_version = "HTTP/1.0"
        timeout = 5.0

        def log(self, *_: object) -> None:
            pass

    try:
        listener = socket.create_server(("127.0.0.1", int(port)))
    except (OSError, OverflowError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InvalidConfig(
            f"port {port} cannot be used: {reason}; choose another port",
        ) from None
    with listener, local_app(folder, name, version) as app:
        host, bound = listener.getsockname()
        server = ThreadedWSGIServer(host, bound, app, Handler, fd=listener.fileno())
        server.daemon_threads = False  # `server_close` waits for the requests.
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://{host}:{bound}"
        finally:
            server.shutdown()
            server.server_close()
