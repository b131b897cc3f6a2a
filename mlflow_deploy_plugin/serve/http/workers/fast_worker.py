"""The fast worker: uvicorn's worker for gunicorn, on uvloop, with a custom protocol
class (`connection.py`).

In addition to uvicorn's work, the worker answers connections in the kernel's queue
before the listener closes, bounds all waits, and exits cleanly on SIGTERM.
"""

import asyncio
import contextlib
import os
import signal
import socket
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from uvicorn.server import Server as UvicornServer
from uvicorn_worker import UvicornWorker

from mlflow_deploy_plugin.serve.certificates import open_following_tls
from mlflow_deploy_plugin.serve.http.request_limits import ConnectionLimits

if TYPE_CHECKING:
    from mlflow_deploy_plugin.serve.http.workers.connection import HttpConnection

_CHECK_SECONDS = 0.1


class FastWorker(UvicornWorker):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's worker process around the loop. `serve/gunicorn_conf.py` sets `grpc`,
    the worker's gRPC server.
    """

    CONFIG_KWARGS: ClassVar[dict[str, str | bool]] = {
        "loop": "uvloop",
        "http": "mlflow_deploy_plugin.serve.http.workers.connection:HttpConnection",
        "ws": "none",
        "lifespan": "off",
        "interface": "asgi3",
        "proxy_headers": False,
    }
    grpc: Any = None

    def init_signals(self) -> None:
        """Set signal handlers that remain after uvicorn ends, because uvicorn then
        raises the caught signals again.
        """
        super().init_signals()
        for caught in (signal.SIGTERM, signal.SIGINT):
            signal.signal(caught, self.handle_exit)

    async def _serve(self) -> None:
        cfg = self.cfg
        self.wsgi.limits = ConnectionLimits(cfg.timeout, cfg.keepalive, cfg.worker_connections)
        self.config.app = self.wsgi
        server = _Server(self)
        asyncio.get_running_loop().add_signal_handler(signal.SIGQUIT, server.quit)
        if self.alive:
            await server.serve(sockets=self.sockets)


class _Server(UvicornServer):
    def __init__(self, worker: FastWorker) -> None:
        super().__init__(worker.config)
        self._worker = worker
        self._app = worker.wsgi
        self._connections: set[HttpConnection] = self.server_state.connections  # type: ignore[assignment]

    def quit(self) -> None:
        """Exit without waiting (SIGQUIT)."""
        self.should_exit = True
        self.force_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._checker = asyncio.get_running_loop().create_task(self._check_deadlines())
        if self.config.is_ssl:
            self.config.ssl = open_following_tls(self._worker.cfg)
        await super().startup(sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer all clients that have connected, including connections that are still
        in the kernel's queue.
        """
        loop = asyncio.get_running_loop()

        async def serve(connection: socket.socket) -> None:
            protocol: Any = self.config.http_protocol_class
            make = partial(protocol, self.config, self.server_state, {})
            with contextlib.suppress(OSError):  # The client has closed, or its handshake fails.
                _, accepted = await loop.connect_accepted_socket(
                    make,
                    connection,
                    ssl=self.config.ssl,
                )
                accepted.shutdown()

        if self._worker.grpc is not None:
            self._worker.grpc.drain()
        for listener in sockets or []:
            with contextlib.suppress(OSError):  # A BlockingIOError means that the queue is empty.
                for _ in range(self._app.limits.connections):
                    connection, _ = listener.accept()
                    task = loop.create_task(serve(connection))
                    self.server_state.tasks.add(task)
                    task.add_done_callback(self.server_state.tasks.discard)
        await super().shutdown(sockets)
        self._checker.cancel()

    async def _check_deadlines(self) -> None:
        """Check all deadlines, notify gunicorn (uvicorn does so too rarely), and exit
        if gunicorn has exited.
        """
        loop = asyncio.get_running_loop()
        while True:
            self._worker.notify()
            if os.getppid() != self._worker.ppid:
                self.should_exit = True
            now = loop.time()
            self._app.now = now
            for connection in list(self._connections):
                connection.check_deadline(now)
            await asyncio.sleep(_CHECK_SECONDS)
