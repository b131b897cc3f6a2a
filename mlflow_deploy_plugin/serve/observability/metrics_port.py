"""`python -m mlflow_deploy_plugin.serve.observability.metrics_port STATE_DIR DESCRIPTOR
[--gpu]`: the metrics port, which answers only `GET /metrics`, over plain HTTP and
without authentication.

For a server, this is a small process. The supervisor owns the listening socket, and
restarts the process if it ends. Scrapes do not depend on the workers.
"""

import asyncio
import socket
import sys
from collections.abc import Callable
from pathlib import Path

from mlflow_deploy_plugin.core.statedir.files import METRICS
from mlflow_deploy_plugin.serve.observability.gauges import (
    CONTENT_TYPE,
    gauges_page,
    workers_page,
)

_MOST_SECONDS = 10.0
_MOST_CONNECTIONS = 256
"""The limits of the time and the number of connections. Prometheus waits for 10 s by
default. The loop accepts 100 connections at once, before it reads their requests.
"""


async def serve(listener: socket.socket, read_page: Callable[[], bytes]) -> None:
    """Answer one request per connection. At the limit of connections, a further one
    closes the oldest without a request, or else the oldest.

    `read_page` is called in a thread, and returns the metrics in Prometheus' text
    format; requests that arrive meanwhile get the same page.
    """
    # Each connection, the oldest first, and True if it has sent its request.
    connections: dict[asyncio.StreamWriter, bool] = {}
    reading: asyncio.Task[bytes] | None = None

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the request of a connection, and close it."""
        nonlocal reading
        if len(connections) == _MOST_CONNECTIONS:
            oldest = min(connections, key=connections.__getitem__)
            del connections[oldest]
            oldest.transport.abort()
        connections[writer] = False
        try:
            async with asyncio.timeout(_MOST_SECONDS):
                request = await reader.readuntil(b"\r\n\r\n")
                connections[writer] = True
                status = "404 Not Found"
                page = b""
                if request.startswith((b"GET /metrics ", b"GET /metrics?")):
                    status = "200 OK"
                    if reading is None or reading.done():
                        reading = asyncio.create_task(asyncio.to_thread(read_page))
                    page = await asyncio.shield(reading)
                headers = (
                    f"Content-Type: {CONTENT_TYPE}\r\n"
                    f"Content-Length: {len(page)}\r\n"
                    "Connection: close"
                )
                # `drain` then waits until the response is sent.
                writer.transport.set_write_buffer_limits(0)
                writer.write(f"HTTP/1.1 {status}\r\n{headers}\r\n\r\n".encode() + page)
                await writer.drain()
        except (OSError, EOFError, asyncio.LimitOverrunError):
            pass  # The client is gone or too slow, or does not send HTTP.
        finally:
            connections.pop(writer, None)
            writer.transport.abort()

    await (await asyncio.start_server(answer, sock=listener)).serve_forever()


if __name__ == "__main__":
    state_dir = Path(sys.argv[1])
    asyncio.run(
        serve(
            socket.socket(fileno=int(sys.argv[2])),
            lambda: workers_page(state_dir / METRICS) + gauges_page(state_dir, "--gpu" in sys.argv),
        )
    )
