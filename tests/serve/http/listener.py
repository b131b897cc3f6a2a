"""A listener of the fast worker on a loop whose time the test sets, and its clients."""

import asyncio
import socket
import sys

import uvloop

from mlflow_deploy_plugin.serve.http.request_limits import ConnectionLimits
from mlflow_deploy_plugin.serve.http.workers.connection import HttpConnection
from mlflow_deploy_plugin.serve.http.workers.worker_app import WorkerApp


def worker_app(server):
    app = WorkerApp(server, may_be_inline=True, threads=1)
    app.limits = ConnectionLimits(request_seconds=10.0)
    return app


class Listener:
    """A listener whose connections have small buffers, and its clients."""

    def __init__(self, app):
        self.app = app
        self.connections = set()
        self._clients = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)

    async def run(self, talk):
        loop = asyncio.get_running_loop()
        self.app.now = loop.time()
        server = await loop.create_server(
            lambda: HttpConnection(self.app, self.connections), sock=self._socket
        )
        await talk(self)
        for client in self._clients:
            client.close()
        await until(lambda: self.tick(1) and not self.app.streams and not self.connections)
        server.close()

    async def connect(self, sent):
        client = socket.socket()
        self._clients.append(client)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        await asyncio.get_running_loop().sock_connect(client, self._socket.getsockname())
        await self.send(client, sent)
        return client

    async def send(self, client, sent):
        async with asyncio.timeout(20):
            await asyncio.get_running_loop().sock_sendall(client, sent)

    async def read(self, client, end=b"", at_least=sys.maxsize):
        """Return the received bytes up to these bytes or this number, or until the
        connection ends.
        """
        content = b""
        async with asyncio.timeout(20):
            while len(content) < at_least and not (end and content.endswith(end)):
                piece = await asyncio.get_running_loop().sock_recv(client, 65536)
                content += piece
                if not piece:
                    break
        return content

    def tick(self, seconds):
        """Check all deadlines after this number of seconds."""
        self.app.now += seconds
        for connection in list(self.connections):
            connection.check_deadline(self.app.now)
        return True


async def until(condition):
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


def is_readable(client):
    try:
        return bool(client.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return False


def play(app, talk):
    """Run the conversation of clients with a listener of the application."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(Listener(app).run(talk))
