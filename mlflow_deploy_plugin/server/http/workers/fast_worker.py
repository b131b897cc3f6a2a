"""The accelerated worker: uvicorn's worker for gunicorn, on uvloop, with our own protocol (`connection.py`).

uvicorn gives the loop, the listeners, TLS and the heartbeat. What it lacks is here: connections that the kernel holds
already are answered before the listener goes, waits have an end, and SIGTERM ends the process in an orderly way (it
would raise the signal once more after its end, and nothing would run at exit).
"""

import asyncio
import contextlib
import os
import signal
import socket
from dataclasses import replace
from typing import Any, ClassVar

from uvicorn.server import Server as UvicornServer
from uvicorn_worker import UvicornWorker

_SWEEP_SECONDS = 0.1


class FastWorker(UvicornWorker):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's process around the loop.

    Attributes:
        grpc: the worker's gRPC listener, where there is one (`server/gunicorn_conf.py`).
    """

    CONFIG_KWARGS: ClassVar[dict[str, Any]] = {
        "loop": "uvloop",
        "http": "mlflow_deploy_plugin.server.http.workers.connection:HttpConnection",  # imported after the fork
        "ws": "none",
        "lifespan": "off",
        "interface": "asgi3",
        "proxy_headers": False,
    }
    grpc: Any = None

    @property
    def server(self) -> Any:
        """The `Server` that the application of this worker answers from."""
        return self.wsgi.server

    def init_signals(self) -> None:
        """uvicorn raises what it has caught once more when it has ended: by then that must not kill."""
        super().init_signals()
        for caught in (signal.SIGTERM, signal.SIGINT):
            signal.signal(caught, self.handle_exit)

    async def _serve(self) -> None:
        """As uvicorn's, with a server of ours."""
        self.wsgi.limits = replace(
            self.wsgi.limits,
            request_seconds=self.cfg.timeout,
            keep_alive_seconds=self.cfg.keepalive,
            connections=self.cfg.worker_connections,
        )
        self.config.app = self.wsgi
        server = _Server(self)
        asyncio.get_running_loop().add_signal_handler(signal.SIGQUIT, server.leave)
        if self.alive:
            await server.serve(sockets=self.sockets)


class _Server(UvicornServer):
    """The listeners, and the end of the waits of their connections."""

    def __init__(self, worker: FastWorker) -> None:
        super().__init__(worker.config)
        self._worker = worker
        self._front = worker.wsgi
        self._connections: set[Any] = self.server_state.connections

    def leave(self) -> None:
        """SIGQUIT: nothing is waited for."""
        self.should_exit = self.force_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._sweeper = asyncio.get_running_loop().create_task(self._sweep())
        await super().startup(sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Nobody is refused who is connected already, even where only the kernel knows of it."""
        if self._worker.grpc is not None:
            self._worker.grpc.drain()
        for listener in sockets or []:
            self._accept_waiting(listener)
        await super().shutdown(sockets)
        self._sweeper.cancel()

    def _accept_waiting(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError):  # BlockingIOError: that was the last one
            for _ in range(self._front.limits.connections):
                connection, _ = listener.accept()
                task = loop.create_task(self._take(connection))
                self.server_state.tasks.add(task)
                task.add_done_callback(self.server_state.tasks.discard)

    async def _take(self, connection: socket.socket) -> None:
        protocol: Any = self.config.http_protocol_class
        with contextlib.suppress(OSError):  # a client that has gone, or whose handshake fails
            _, taken = await asyncio.get_running_loop().connect_accepted_socket(
                lambda: protocol(self.config, self.server_state, {}), connection, ssl=self.config.ssl
            )
            taken.shutdown()

    async def _sweep(self) -> None:
        """Looks after the deadlines of all connections, tells gunicorn that the loop turns, and ends without gunicorn.

        uvicorn tells so only after half of `--timeout`, not at all while it ends, and would outlive a killed gunicorn.
        """
        loop = asyncio.get_running_loop()
        while True:
            self._worker.notify()
            if os.getppid() != self._worker.ppid:
                self.should_exit = True
            now = self._front.now = loop.time()
            for connection in list(self._connections):
                connection.sweep(now)
            await asyncio.sleep(_SWEEP_SECONDS)
