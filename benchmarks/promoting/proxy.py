"""A TCP proxy in front of MLflow. It counts HTTP requests, and can delay bytes, cut
connections, or hang.
"""

import asyncio
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_HEAD = re.compile(rb"(?:GET|POST|PUT|PATCH|DELETE|HEAD) ([^ ?]+)\S* HTTP/1\.1\r\n")
_CHUNK_BYTES = 65_536


class _Connection:
    """A connection of a client. If `is_stuck` is True, its bytes are never forwarded,
    and it is never closed.
    """

    def __init__(self, client: asyncio.StreamWriter) -> None:
        self.writers = [client]
        self.is_stuck = False


class Proxy:
    """A proxy that runs in a thread.

    Attributes:
        requests: path → number of requests that were forwarded, without their queries.
            A stream is one request.
        delay_seconds: the time by which bytes are delayed in both directions.
    """

    def __init__(self, port: int) -> None:
        self.requests = Counter[str]()
        self.delay_seconds = 0.0
        self.port = 0
        self._target_port = port
        self._hangs = False
        self._connections: set[_Connection] = set()

    def cut(self) -> int:
        """Close all connections, and return their number."""
        return asyncio.run_coroutine_threadsafe(self._cut(), self._loop).result()

    def hang(self) -> None:
        """Stop forwarding bytes. Existing and new connections remain open, and stay
        silent forever.
        """
        self._hangs = True
        for connection in list(self._connections):
            connection.is_stuck = True

    def recover(self) -> None:
        """Forward the bytes of new connections again."""
        self._hangs = False
        self.delay_seconds = 0.0

    async def _cut(self) -> int:
        closed = [connection for connection in self._connections if not connection.is_stuck]
        for connection in closed:
            for writer in connection.writers:
                writer.transport.abort()
        return len(closed)

    async def _serve(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        connection = _Connection(client)
        connection.is_stuck = self._hangs
        self._connections.add(connection)
        try:
            with suppress(
                OSError,
                asyncio.CancelledError,
            ):  # The tasks are cancelled when the proxy ends.
                if connection.is_stuck:
                    await reader.read()  # This call returns when the client gives up.
                    return
                answers, server = await asyncio.open_connection("127.0.0.1", self._target_port)
                connection.writers.append(server)
                await asyncio.gather(
                    self._forward(connection, reader, server, self.requests),
                    self._forward(connection, answers, client),
                )
        finally:
            self._connections.discard(connection)
            for writer in connection.writers:
                writer.close()

    async def _forward(
        self,
        connection: _Connection,
        source: asyncio.StreamReader,
        target: asyncio.StreamWriter,
        requests: Counter[str] | None = None,
    ) -> None:
        """Forward bytes until the source ends, and then close both sides unless the
        connection is stuck.
        """
        while piece := await source.read(_CHUNK_BYTES):
            if self.delay_seconds:
                await asyncio.sleep(self.delay_seconds)
            if connection.is_stuck:
                continue
            if requests is not None:
                requests.update(path.decode() for path in _HEAD.findall(piece))
            target.write(piece)
            await target.drain()
        if not connection.is_stuck or requests is not None:
            for writer in connection.writers:
                writer.close()

    async def _run(self, has_started: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=1024)
        self.port = server.sockets[0].getsockname()[1]
        has_started.set()
        await self._ended.wait()
        server.close()

    @contextmanager
    def running(self) -> Iterator["Proxy"]:
        """Run the proxy in a thread within the block."""
        has_started = threading.Event()
        thread = threading.Thread(target=lambda: asyncio.run(self._run(has_started)), name="proxy")
        thread.start()
        has_started.wait()
        try:
            yield self
        finally:
            self._loop.call_soon_threadsafe(self._ended.set)
            thread.join()
