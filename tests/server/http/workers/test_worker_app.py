"""The state that the connections of one worker share, on a loop of the test's own."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mlflow_deploy_plugin.server.assembly import Server
from mlflow_deploy_plugin.server.http.workers.connection import HttpConnection
from mlflow_deploy_plugin.server.http.workers.worker_app import ConnectionLimits, WorkerApp

HEAD = b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


def test_bodies_of_all_connections_together_are_bounded(
    serve_here: Callable[..., Server], bias_folders: dict[str, Path], tools: Any
) -> None:
    app = WorkerApp(serve_here({"e": {"v": tools.variant(bias_folders["1"], "1")}}), may_be_inline=True, threads=1)
    app.limits = ConnectionLimits(body_bytes=100_000)

    async def talk() -> None:
        state = SimpleNamespace(connections=set())
        config = SimpleNamespace(app=app)
        server = await asyncio.get_running_loop().create_server(
            lambda: HttpConnection(config, state, {}), "127.0.0.1", 0
        )
        address = server.sockets[0].getsockname()
        first, second = [await asyncio.open_connection(*address) for _ in range(2)]
        body = b'{"inputs": [[1, 2, 3]]}' + b" " * 70_000
        first[1].write(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body[:-1])
        while app.buffered_bytes < len(body) - 1:
            await asyncio.sleep(0.01)
        second[1].write(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body[:-1])
        refused = await second[0].readuntil(b"\r\n\r\n")
        assert refused.startswith(b"HTTP/1.1 503 ")
        assert b"Retry-After: 1\r\n" in refused
        first[1].write(body[-1:])
        assert (await first[0].readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        for _, writer in (first, second):
            writer.close()
        server.close()

    asyncio.run(asyncio.wait_for(talk(), 30))
    assert app.buffered_bytes == 0
