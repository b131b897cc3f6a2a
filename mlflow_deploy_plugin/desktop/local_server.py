"""The server of a desktop program: the routes and pages of `onnxserve serve`, in a thread of this process."""

import socket
import threading
from contextlib import ExitStack
from pathlib import Path

import uvicorn

from mlflow_deploy_plugin.embed import local_app
from mlflow_deploy_plugin.errors import InvalidConfig
from mlflow_deploy_plugin.statedir.files import temporary_folder

_END_SECONDS = 5


class LocalServer:
    """A server of the version in an MLmodel folder. It ends with `close` or with the process.

    Raises InvalidConfig if the port cannot be used or `rate_limit` ("100/minute", or empty) is not a limit, and
    DeploymentFailed if the version cannot be loaded. Without a `key`, requests need none.
    """

    def __init__(
        self, folder: Path, name: str, version: str, host: str, port: str, key: str = "", rate_limit: str = ""
    ) -> None:
        with ExitStack() as held:
            try:
                listener = held.enter_context(socket.create_server((host, int(port))))
            except (OSError, OverflowError, ValueError) as error:
                reason = getattr(error, "strerror", None) or error
                raise InvalidConfig(f"{host} port {port} cannot be used: {reason}; choose another port") from None
            state_dir = held.enter_context(temporary_folder("onnxserve-desktop-"))
            config = {"server.rate_limit": rate_limit}
            app = local_app(folder, state_dir, name=name, version=version, key=key, config=config)
            held.callback(app.close)
            options = uvicorn.Config(app, log_config=None, lifespan="off", timeout_graceful_shutdown=_END_SECONDS)
            server = uvicorn.Server(options)
            thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
            thread.start()
            held.callback(thread.join)
            held.callback(setattr, server, "should_exit", True)
            self.url = f"http://{host}:{listener.getsockname()[1]}"
            self._held = held.pop_all()

    def close(self) -> None:
        """Answer the current requests for at most five seconds, close the port, and delete the server's files."""
        self._held.close()
