"""The fast worker: gunicorn's worker process with the connections of `connection.py` on
uvloop.

The worker answers connections in the kernel's queue before the listener closes, bounds
all waits, and exits cleanly on SIGTERM.
"""

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import uvloop
from gunicorn.workers.base import Worker

from mlflow_deploy_plugin.serve.certificates import open_following_tls
from mlflow_deploy_plugin.serve.http import request_limits
from mlflow_deploy_plugin.serve.http.request_limits import ConnectionLimits
from mlflow_deploy_plugin.serve.http.workers.connection import HttpConnection
from mlflow_deploy_plugin.serve.runtime.session import must_end

_CHECK_SECONDS = 0.1


class FastWorker(Worker):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's worker process around the loop. `serve/gunicorn_conf.py` sets `grpc`,
    the worker's gRPC server.
    """

    grpc: Any = None

    def init_signals(self) -> None:
        """Let SIGTERM and SIGINT end the loop after the current requests. gunicorn's
        own handler of SIGINT exits within a callback.
        """
        for caught in self.SIGNALS:
            signal.signal(caught, signal.SIG_DFL)
        for caught in (signal.SIGTERM, signal.SIGINT):
            signal.signal(caught, self.handle_exit)
        signal.signal(signal.SIGUSR1, self.handle_usr1)
        signal.siginterrupt(signal.SIGUSR1, False)

    def run(self) -> None:
        if self.alive:
            with contextlib.suppress(asyncio.CancelledError):  # SIGQUIT
                uvloop.run(self._serve())

    async def _accept(self, listener: socket.socket) -> None:
        """Accept connections with TLS, because the loop's own server would count them
        only after the handshake. Above the limit, cancel the oldest handshake.
        """
        while True:
            try:
                accepted, _ = await asyncio.get_running_loop().sock_accept(listener)
            except OSError:  # The client has closed, or the limit of files is reached.
                await asyncio.sleep(_CHECK_SECONDS)
                continue
            self._connect(accepted)
            if len(self._handshakes) > request_limits.HANDSHAKES:
                oldest = next(iter(self._handshakes))
                del self._handshakes[oldest]
                oldest.cancel()

    def _connect(self, accepted: socket.socket) -> None:
        """Make a connection, with TLS after its handshake."""
        task = asyncio.create_task(self._connected(accepted))
        self._handshakes[task] = None
        task.add_done_callback(self._end_handshake)

    def _end_handshake(self, task: asyncio.Task[Any]) -> None:
        self._handshakes.pop(task, None)
        if task.cancelled() or task.exception():  # The client has closed, or is too slow.
            self.wsgi.server.metrics.count_refused("handshake")

    async def _serve(self) -> None:
        """Serve until SIGTERM. Then answer all clients that have connected, including
        connections that are still in the kernel's queue.
        """
        app = self.wsgi
        cfg = self.cfg
        app.limits = ConnectionLimits(cfg.timeout, cfg.keepalive, cfg.worker_connections)
        loop = asyncio.get_running_loop()
        app.now = loop.time()
        task: asyncio.Task[None] | None = asyncio.current_task()
        assert task is not None
        loop.add_signal_handler(signal.SIGQUIT, task.cancel)  # Exit without waiting.
        connections: set[HttpConnection] = set()
        make = partial(HttpConnection, app, connections)
        self._connected = partial(loop.connect_accepted_socket, make)
        self._handshakes: dict[asyncio.Task[Any], None] = {}  # the oldest first
        if cfg.is_ssl:
            self._connected = partial(
                self._connected,
                ssl=open_following_tls(cfg),
                ssl_handshake_timeout=request_limits.HANDSHAKE_SECONDS,
                ssl_shutdown_timeout=request_limits.LINGER_SECONDS,
            )
        closers = contextlib.ExitStack()
        for listener in self.sockets:
            closers.callback(listener.close)
            if cfg.is_ssl:
                closers.callback(loop.create_task(self._accept(listener.sock)).cancel)
            else:
                server = await loop.create_server(make, sock=listener, backlog=cfg.backlog)
                closers.callback(server.close)
        await self._check_while(lambda: self.alive, connections)
        if self.grpc is not None:
            self.grpc.drain()
        for listener in self.sockets:
            for accepted in self._queued(listener):
                self._connect(accepted)
        closers.close()
        await self._check_while(lambda: self._handshakes, connections)
        for connection in list(connections):
            connection.shutdown()
        await asyncio.sleep(_CHECK_SECONDS)
        await self._check_while(lambda: connections, connections)

    def _queued(self, listener: socket.socket) -> Iterator[socket.socket]:
        """Accept the connections that are in the kernel's queue."""
        with contextlib.suppress(OSError):  # A BlockingIOError means that the queue is empty.
            for _ in range(self.wsgi.limits.connections):
                yield listener.accept()[0]

    async def _check_while(
        self, is_needed: Callable[[], object], connections: set[HttpConnection]
    ) -> None:
        """Check all deadlines, notify gunicorn, and exit if gunicorn has exited or the
        worker must end.
        """
        app = self.wsgi
        while is_needed():
            self.notify()
            if os.getppid() != self.ppid or must_end.is_set():
                self.alive = False
            app.now = asyncio.get_running_loop().time()
            for connection in list(connections):
                connection.check_deadline(app.now)
            await asyncio.sleep(_CHECK_SECONDS)
