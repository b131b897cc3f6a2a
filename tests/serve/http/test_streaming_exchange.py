"""Streamed requests between the event loop and their thread, on a loop whose time the
test sets.
"""

import asyncio
import math
import re
import socket
import struct
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import uvloop

from mlflow_deploy_plugin.serve.http.parser import CHUNKED, BodyParser
from mlflow_deploy_plugin.serve.http.request_limits import ConnectionLimits
from mlflow_deploy_plugin.serve.http.responses import RawResponse
from mlflow_deploy_plugin.serve.http.streaming import StreamedExchange
from mlflow_deploy_plugin.serve.http.workers.connection import HttpConnection
from mlflow_deploy_plugin.serve.http.workers.worker_app import InlinePolicy, WorkerApp
from mlflow_deploy_plugin.serve.inference.server import Server
from mlflow_deploy_plugin.serve.messages import RawRequest
from tests.support.models import columns, graph_tensor, write_model
from tests.support.raising import Panic
from tests.support.servers import one_endpoint
from tests.support.texts import PANIC, panicking_model

LINE = b"[1, 2, 3]\n"
ANSWER = b"[1006.0]\n"
FIELDS = b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: application/jsonl\r\n"
HEAD = FIELDS + b"Transfer-Encoding: chunked\r\n\r\n"
LIMIT = 100_000
LAST = b"0\r\n\r\n"


def chunk(piece=b""):
    return b"%X\r\n%b\r\n" % (len(piece), piece)


@pytest.fixture
def server(serve_here, bias_folders):
    """Allow one request at a time, so that a request
    that is not released is detected.
    """
    limits = {"max_body_bytes": LIMIT, "max_concurrent_requests": 1}
    return serve_here(one_endpoint(bias_folders["1"]), limits)


class Listener:
    """A listener whose connections have small buffers, and its clients."""

    def __init__(self, app: WorkerApp) -> None:
        self.app = app
        self.connections: set[HttpConnection] = set()
        self._clients: list[socket.socket] = []

    async def open(self) -> None:
        app = self.app
        app.now = asyncio.get_running_loop().time()
        state = SimpleNamespace(connections=self.connections)
        config = SimpleNamespace(app=app)
        listening = socket.create_server(("127.0.0.1", 0))
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        self._address = listening.getsockname()
        self._server = await asyncio.get_running_loop().create_server(
            lambda: HttpConnection(config, state, {}), sock=listening
        )

    async def connect(self, sent: bytes) -> socket.socket:
        client = socket.socket()
        self._clients.append(client)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(client, self._address)
        await loop.sock_sendall(client, sent)
        return client

    async def send(self, client: socket.socket, sent: bytes) -> None:
        async with asyncio.timeout(20):
            await asyncio.get_running_loop().sock_sendall(client, sent)

    async def read(
        self, client: socket.socket, end: bytes = b"", at_least: int = sys.maxsize
    ) -> bytes:
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

    def tick(self, seconds: float) -> Literal[True]:
        """Check all deadlines after this number of seconds."""
        self.app.now += seconds
        for connection in list(self.connections):
            connection.check_deadline(self.app.now)
        return True

    async def close(self) -> None:
        for client in self._clients:
            client.close()
        await until(lambda: not self.app.streams and not self.connections)
        self._server.close()


async def until(condition):
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def listener(server: Server) -> AsyncIterator[Listener]:
    app = WorkerApp(server, may_be_inline=True, threads=1)
    app.limits = ConnectionLimits(request_seconds=10.0)
    opened = Listener(app)
    await opened.open()
    yield opened
    await opened.close()


def is_readable(client):
    try:
        return bool(client.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return False


def play(talk):
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(talk)


def counted(server, name):
    matches = re.findall(rf"^{name}{{(.*)}} (\S+)$", server.metrics.page().decode(), re.MULTILINE)
    return {labels: float(value) for labels, value in matches}


def test_the_last_lines_are_answered_whenever_the_thread_looks(server):
    """The thread may check at any time; here, the loop has read the end of the body but
    not passed on its lines.
    """
    body: Any = BodyParser(CHUNKED, LIMIT)
    written: list[bytes] = []
    ended: list[RawResponse | bool] = []
    transport: Any = SimpleNamespace(get_write_buffer_size=int, is_closing=bool)

    async def talk():
        loop = asyncio.get_running_loop()
        exchange = StreamedExchange(
            body, transport, LIMIT, written.append, lambda response: None, ended.append, loop
        )
        request = RawRequest("POST", "/invocations", {"content-type": "application/jsonl"}, b"")
        thread = threading.Thread(target=exchange.run, args=(server, request))
        take = body.take

        def interrupted():
            thread.start()
            thread.join(0.5)
            return take()

        body.take = interrupted
        exchange.receive(chunk(LINE) + chunk())
        await until(lambda: ended)
        thread.join()

    play(talk())
    assert written == [ANSWER]
    assert ended == [True]


@pytest.mark.parametrize(
    "lines", [9_000, 30_000], ids=["answer-within-the-limit", "answer-beyond-the-limit"]
)
def test_a_client_that_takes_nothing_of_its_answer_is_left(server, lines):
    async def talk():
        async with listener(server) as opened:
            client = await opened.connect(HEAD + chunk(LINE * lines))
            await until(lambda: sum(counted(server, "onnxserve_batch_rows_sum").values()) > 4_000)
            await opened.send(client, chunk())
            await until(lambda: opened.tick(1) and not opened.connections)

    play(talk())


def test_a_client_that_takes_its_answer_slowly_is_not(server):
    async def talk():
        async with listener(server) as opened:
            client = await opened.connect(HEAD + chunk(LINE * 8_000) + chunk())
            content = await opened.read(client, at_least=12_000)
            await until(lambda: not opened.app.streams)
            content += await opened.read(client, at_least=12_000)
            opened.tick(11)
            content += await opened.read(client, LAST)
            assert len(re.findall(rb"1006\.0", content)) == 8_000

    play(talk())


def test_time_runs_for_the_client_only_while_the_model_is_done(serve_here, bias_folders):
    slow = {"max_batch_size": 64, "max_queue_delay_microseconds": 1_000_000}
    server = serve_here(one_endpoint(bias_folders["1"]), slow)

    async def talk():
        async with listener(server) as opened:
            client = await opened.connect(HEAD + chunk(LINE))
            await until(lambda: opened.app.streams)
            opened.tick(11)
            await opened.read(client, chunk(ANSWER))
            await opened.send(client, chunk())
            assert await opened.read(client, LAST) == LAST

            client = await opened.connect(HEAD + chunk(LINE))
            await opened.read(client, chunk(ANSWER))
            await until(lambda: opened.tick(1) and is_readable(client))
            assert b"in time" in await opened.read(client)

    play(talk())


def test_a_client_that_still_sends_when_the_answer_breaks_off_is_heard_out(server):
    """Reading was paused for the thread, which does not read any more."""

    async def talk():
        async with listener(server) as opened:
            client = await opened.connect(HEAD + chunk(LINE * 30_000 + b"[1]\n"))
            await until(lambda: is_readable(client))
            sending = asyncio.create_task(opened.send(client, chunk(b" " * 3_000_000)))
            await asyncio.sleep(0.3)  # No response shows how far the server has read.
            content = await opened.read(client)
            assert b"line 30001" in content.splitlines()[-2]
            await sending

    play(talk())


def test_a_stream_that_its_client_leaves_counts_as_left_and_lets_the_next_one_in(server):
    async def talk():
        async with listener(server) as opened:
            client = await opened.connect(HEAD + chunk(LINE))
            await opened.read(client, ANSWER + b"\r\n")
            await asyncio.sleep(0.1)  # The thread probably waits for the next line.
            # a reset
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
            await until(lambda: not opened.app.streams)
            client = await opened.connect(HEAD + chunk(LINE) + chunk())
            assert b" 200 OK" in await opened.read(client, LAST)

    play(talk())
    statuses = {
        re.findall('status="([0-9]+)"', labels)[0]
        for labels in counted(server, "onnxserve_requests_total")
    }
    assert statuses == {"499", "200"}


def test_the_labels_that_a_stream_predicts_are_counted(serve_here, model_folders):
    server = serve_here(one_endpoint(model_folders["mixed"], "7"))

    async def talk():
        async with listener(server) as opened:
            line = b'{"carrier": "AA", "distance": 5000, "hour": 7, "late": true}\n'
            client = await opened.connect(HEAD + chunk(line * 1_500) + chunk())
            assert b'"yes"' in await opened.read(client, LAST)

    play(talk())
    assert counted(server, "ml_predictions_total")['model_version="7",prediction="yes"'] == 1_500


def test_a_piece_without_an_answer_does_not_end_the_answer(serve_here, tmp_path):
    """An empty chunk would end the response."""
    graph = """
    positive (float[N,1] X) => (float[M] y) <float[1] zero = {0.0}> {
      is_positive = Greater(X, zero)
      flags = Squeeze(is_positive)
      values = Flatten<axis=0>(X)
      kept = Compress<axis=1>(values, flags)
      y = Squeeze(kept)
    }"""
    section = {
        "inputs": [graph_tensor("X", "float32", -1, 1, columns=["a"])],
        "outputs": [graph_tensor("y", "float32", -1, role="values")],
        "prediction": ["y"],
    }
    folder = write_model(tmp_path / "positive", graph, columns(a="double"), section)
    server = serve_here(one_endpoint(folder))

    async def talk():
        async with listener(server) as opened:
            client = await opened.connect(
                HEAD + chunk(b"[0]\n[0]\n" * 500 + b"[1]\n[2]\n") + chunk()
            )
            assert (await opened.read(client, LAST)).endswith(chunk(b"1.0\n2.0\n") + LAST)

    play(talk())


def test_a_stream_that_panics_is_aborted_and_lets_the_next_stream_in(serve_here, tmp_path):
    limits = {"max_body_bytes": LIMIT, "max_concurrent_requests": 1}
    server = serve_here(one_endpoint(panicking_model(tmp_path / "model")), limits)
    good = b'{"text": "a"}\n' * 1_000

    async def talk():
        async with listener(server) as opened:
            client = await opened.connect(
                HEAD + chunk(good) + chunk(b'{"text": "%b"}\n' % PANIC.encode()) + chunk()
            )
            answer = await opened.read(client)
            assert answer.count(b"]\n") == 1_000
            assert b"retry-limit-in-match" in answer
            assert not answer.endswith(LAST)
            client = await opened.connect(HEAD + chunk(good) + chunk())
            assert (await opened.read(client, LAST)).count(b"]\n") == 1_000

    play(talk())


@pytest.mark.parametrize("error", [Panic("a regular expression"), SystemExit(1)])
def test_a_stream_that_ends_with_an_unexpected_error_is_aborted(error):
    ended: list[Any] = []

    async def talk():
        exchange = StreamedExchange(
            BodyParser(0, 0),
            asyncio.Transport(),
            LIMIT,
            lambda piece: None,
            lambda response: None,
            ended.append,
            asyncio.get_running_loop(),
        )

        def pieces():
            yield b""
            raise error

        with pytest.raises(type(error)):
            await asyncio.to_thread(exchange.send, RawResponse(200, b""), pieces())
        await until(lambda: ended)

    play(talk())
    assert ended == [False]


def test_a_client_that_is_being_answered_does_not_give_way_to_another(server):
    answering = threading.Event()

    async def talk():
        async with listener(server) as here:
            here.app.inline_policy = InlinePolicy(lambda _: False)
            here.app.limits = ConnectionLimits(request_seconds=10.0, connections=1)
            here.app.pool.submit(answering.wait)  # the only thread
            row = LINE.strip()
            head = FIELDS.replace(b"jsonl", b"json") + b"Content-Length: %d\r\n\r\n" % len(
                b'{"inputs":[%s]}' % row
            )
            first = await here.connect(head + b'{"inputs":[%s]}' % row)
            await until(
                lambda: [connection.idle_since for connection in here.connections] == [math.inf]
            )
            second = await here.connect(b"")
            refused = await here.read(second)
            second.close()
            assert refused.startswith(b"HTTP/1.1 503")
            assert b"Retry-After: 1\r\n" in refused
            answering.set()
            assert (await here.read(first, b"}")).startswith(b"HTTP/1.1 200")
            await until(lambda: len(here.connections) == 1)
            third = await here.connect(b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await here.read(third, b"\n\n")).startswith(b"HTTP/1.1 200")
            assert await here.read(first) == b""

    play(talk())
