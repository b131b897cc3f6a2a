"""JSON Lines that are answered as they arrive, on a loop whose time the test sets."""

import asyncio
import json
import math
import re
import socket
import struct
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from mlflow_deploy_plugin.serve.http.parser import CHUNKED, BodyParser
from mlflow_deploy_plugin.serve.http.request_limits import ConnectionLimits
from mlflow_deploy_plugin.serve.http.responses import RawResponse
from mlflow_deploy_plugin.serve.http.streaming import StreamedExchange
from mlflow_deploy_plugin.serve.http.workers.worker_app import InlinePolicy
from mlflow_deploy_plugin.serve.messages import RawRequest
from tests.serve.http.listener import is_readable, play, until, worker_app
from tests.support.models import columns, graph_tensor, numbers_section, write_model
from tests.support.raising import Panic
from tests.support.servers import one_endpoint
from tests.support.texts import PANIC, panicking_model

LINE = b"[1, 2, 3]\n"
ANSWER = b"[1006.0]\n"
FIELDS = b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: application/jsonl\r\n"
CODING = b"Transfer-Encoding: chunked\r\n\r\n"
HEAD = FIELDS + CODING
PING = b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n"
LIMIT = 100_000
LIMITS = {"max_body_bytes": LIMIT, "max_concurrent_requests": 1}
"""One request at a time, so that a request that is not released is detected."""
LAST = b"0\r\n\r\n"


def chunk(piece=b""):
    return b"%X\r\n%b\r\n" % (len(piece), piece)


@pytest.fixture
def app(serve_here, bias_folders):
    return worker_app(serve_here(one_endpoint(bias_folders["1"]), LIMITS))


def counted(app, name):
    page = app.server.metrics.page().decode()
    matches = re.findall(rf"^{name}{{(.*)}} (\S+)$", page, re.MULTILINE)
    return {labels: float(value) for labels, value in matches}


def test_lines_are_answered_as_they_arrive(app):
    async def talk(opened):
        client = await opened.connect(FIELDS + b"X-Request-Id: mine\r\n" + CODING)
        for number in range(3):
            await opened.send(client, chunk(b"[1, 2, %d]\n" % number))
            answer = await opened.read(client, b"]\n\r\n")
            assert answer.endswith(chunk(b"[%.1f]\n" % (1003 + number)))
            if number == 0:
                head, *fields = answer.partition(b"\r\n\r\n")[0].split(b"\r\n")
        await opened.send(client, chunk() + PING)
        assert b"HTTP/1.1 200 OK" in await opened.read(client, b"\r\n\r\n\n")
        assert head == b"HTTP/1.1 200 OK"
        assert {
            b"Transfer-Encoding: chunked",
            b"Content-Type: application/jsonl",
            b"X-Request-Id: mine",
            b"X-Model-Name: m",
            b"X-Model-Version: 1",
        } <= {*fields}

    play(app, talk)


def test_limit_holds_for_each_line(app):
    line = b"[1, 2, 3" + b" " * 20 + b"]\n"  # The response is below the limit.
    body = line * (2 * LIMIT // len(line))

    async def talk(opened):
        client = await opened.connect(FIELDS + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        assert (await opened.read(client, LAST)).count(ANSWER) == body.count(b"\n")
        client = await opened.connect(HEAD + chunk(b"[1, 2, " + b" " * LIMIT + b"3]\n"))
        refused = await opened.read(client, b"}")
        assert refused.startswith(b"HTTP/1.1 413 ")
        assert b"line 1 is" in refused

    play(app, talk)


@pytest.mark.parametrize(
    ("lines", "words"), [(b"", b"no rows"), (b'["far", 2, 3]\n', b"line 1: column 'a'")]
)
def test_error_in_first_line_is_an_ordinary_error(app, lines, words):
    async def talk(opened):
        client = await opened.connect(HEAD + (chunk(lines) if lines else b"") + chunk())
        answer = await opened.read(client, b"}")
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert words in answer

    play(app, talk)


def test_client_that_reads_after_sending_is_answered(app):
    async def talk(opened):
        client = await opened.connect(HEAD + chunk(LINE * 1000) * 80 + chunk())
        content = await opened.read(client, LAST)
        assert content.replace(b"\r\n", b"").count(b"1006.0") > 79_000

    play(app, talk)


def test_stream_beyond_most_streams_is_refused(serve_here, bias_folders):
    app = worker_app(serve_here(one_endpoint(bias_folders["1"])))

    async def talk(opened):
        streams = []
        for _ in range(4):
            streams.append(await opened.connect(HEAD + chunk(LINE)))
            assert b"200 OK" in await opened.read(streams[-1], ANSWER + b"\r\n")
        refused = await opened.read(await opened.connect(HEAD + chunk(LINE)), b"}")
        assert refused.startswith(b"HTTP/1.1 429 ")
        assert b"Retry-After: 1\r\n" in refused
        for stream in streams:
            await opened.send(stream, chunk())
            assert await opened.read(stream, LAST) == LAST
        client = await opened.connect(HEAD + chunk(LINE) + chunk())
        assert b"200 OK" in await opened.read(client, LAST)

    play(app, talk)


def exchange_of(body, written, ended):
    """Return an exchange without a connection."""
    transport: Any = SimpleNamespace(get_write_buffer_size=int, is_closing=bool)
    loop = asyncio.get_running_loop()
    return StreamedExchange(
        body, transport, LIMIT, written.append, lambda response: None, ended.append, loop
    )


def test_last_lines_are_answered_whenever_thread_looks(app):
    """The thread may check at any time; here, the loop has read the end of the body but
    not passed on its lines.
    """
    body: Any = BodyParser(CHUNKED, LIMIT)
    written: list[bytes] = []
    ended: list[RawResponse | bool] = []

    async def talk():
        exchange = exchange_of(body, written, ended)
        request = RawRequest("POST", "/invocations", {"content-type": "application/jsonl"}, b"")
        thread = threading.Thread(target=exchange.run, args=(app.server, request))
        take = body.take

        def interrupted():
            thread.start()
            thread.join(0.5)
            return take()

        body.take = interrupted
        exchange.receive(chunk(LINE) + chunk())
        await until(lambda: ended)
        thread.join()

    asyncio.run(talk())
    assert written == [ANSWER]
    assert ended == [True]


@pytest.mark.parametrize("error", [Panic("a regular expression"), SystemExit(1)])
def test_unexpected_error_aborts_stream(error):
    ended: list[Any] = []

    def pieces():
        yield b""
        raise error

    async def talk():
        exchange = exchange_of(BodyParser(0, 0), [], ended)
        with pytest.raises(type(error)):
            await asyncio.to_thread(exchange.send, RawResponse(200, b""), pieces())
        await until(lambda: ended)

    asyncio.run(talk())
    assert ended == [False]


@pytest.mark.parametrize("lines", [9_000, 30_000], ids=["within the limit", "beyond the limit"])
def test_client_not_reading_is_disconnected(app, lines):
    async def talk(opened):
        client = await opened.connect(HEAD + chunk(LINE * lines))
        await until(lambda: sum(counted(app, "onnxserve_batch_rows_sum").values()) > 4_000)
        await opened.send(client, chunk())
        await until(lambda: opened.tick(1) and not opened.connections)

    play(app, talk)


def test_client_that_reads_slowly_gets_whole_answer(app):
    async def talk(opened):
        client = await opened.connect(HEAD + chunk(LINE * 8_000) + chunk())
        content = await opened.read(client, at_least=12_000)
        await until(lambda: not app.streams)
        content += await opened.read(client, at_least=12_000)
        opened.tick(11)
        content += await opened.read(client, LAST)
        assert len(re.findall(rb"1006\.0", content)) == 8_000

    play(app, talk)


def test_stream_may_last_longer_than_a_request(app):
    async def talk(opened):
        client = await opened.connect(HEAD)
        for _ in range(3):
            await opened.send(client, chunk(LINE))
            await opened.read(client, chunk(ANSWER))
            opened.tick(6)  # of 10 seconds
        await opened.send(client, chunk())
        assert await opened.read(client, LAST) == LAST

    play(app, talk)


def test_time_of_model_does_not_count_against_client(serve_here, bias_folders):
    slow = {"max_batch_size": 64, "max_queue_delay_microseconds": 1_000_000}
    app = worker_app(serve_here(one_endpoint(bias_folders["1"]), slow))

    async def talk(opened):
        client = await opened.connect(HEAD + chunk(LINE))
        await until(lambda: app.streams)
        opened.tick(11)
        await opened.read(client, chunk(ANSWER))
        await until(lambda: opened.tick(1) and is_readable(client))
        assert b"in time" in await opened.read(client)

    play(app, talk)


def test_client_sends_on_after_answer_breaks_off(app):
    """Reading was paused for the thread, which does not read any more."""

    async def talk(opened):
        client = await opened.connect(HEAD + chunk(LINE * 30_000 + b"[1]\n"))
        await until(lambda: is_readable(client))
        sending = asyncio.create_task(opened.send(client, chunk(b" " * 3_000_000)))
        await asyncio.sleep(0.3)  # No response shows how far the server has read.
        content = await opened.read(client)
        error = json.loads(content.splitlines()[-2])
        assert error["error_code"] == "BAD_REQUEST"
        assert "line 30001" in error["message"]
        assert not content.endswith(LAST)
        await sending

    play(app, talk)


def test_abandoned_stream_counts_as_499_and_is_released(app):
    async def talk(opened):
        client = await opened.connect(HEAD + chunk(LINE))
        await opened.read(client, ANSWER + b"\r\n")
        await asyncio.sleep(0.1)  # The thread probably waits for the next line.
        # a reset
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        await until(lambda: not app.streams)
        client = await opened.connect(HEAD + chunk(LINE) + chunk())
        assert b" 200 OK" in await opened.read(client, LAST)

    play(app, talk)
    labels = " ".join(counted(app, "onnxserve_requests_total"))
    assert set(re.findall('status="([0-9]+)"', labels)) == {"499", "200"}


def test_predicted_labels_of_stream_are_counted(serve_here, model_folders):
    app = worker_app(serve_here(one_endpoint(model_folders["mixed"], "7")))

    async def talk(opened):
        line = b'{"carrier": "AA", "distance": 5000, "hour": 7, "late": true}\n'
        client = await opened.connect(HEAD + chunk(line * 1_500) + chunk())
        assert b'"yes"' in await opened.read(client, LAST)

    play(app, talk)
    assert counted(app, "ml_predictions_total")['model_version="7",prediction="yes"'] == 1_500


def test_piece_without_answer_does_not_end_stream(serve_here, tmp_path):
    """An empty chunk would end the response."""
    graph = """
    positive (float[N,1] X) => (float[M] y) <float[1] zero = {0.0}> {
      is_positive = Greater(X, zero)
      flags = Squeeze(is_positive)
      values = Flatten<axis=0>(X)
      kept = Compress<axis=1>(values, flags)
      y = Squeeze(kept)
    }"""
    section = numbers_section(graph_tensor("X", "float32", -1, 1, columns=["a"]), shape=())
    folder = write_model(tmp_path / "positive", graph, columns(a="double"), section)

    async def talk(opened):
        lines = b"[0]\n[0]\n" * 500 + b"[1]\n[2]\n"
        client = await opened.connect(HEAD + chunk(lines) + chunk())
        assert (await opened.read(client, LAST)).endswith(chunk(b"1.0\n2.0\n") + LAST)

    play(worker_app(serve_here(one_endpoint(folder))), talk)


def test_stream_that_panics_is_aborted_and_released(serve_here, tmp_path):
    app = worker_app(serve_here(one_endpoint(panicking_model(tmp_path / "model")), LIMITS))
    good = b'{"text": "a"}\n' * 1_000

    async def talk(opened):
        bad = b'{"text": "%b"}\n' % PANIC.encode()
        client = await opened.connect(HEAD + chunk(good) + chunk(bad) + chunk())
        answer = await opened.read(client)
        assert answer.count(b"]\n") == 1_000
        assert b"retry-limit-in-match" in answer
        assert not answer.endswith(LAST)
        client = await opened.connect(HEAD + chunk(good) + chunk())
        assert (await opened.read(client, LAST)).count(b"]\n") == 1_000

    play(app, talk)


def test_client_being_answered_is_not_evicted(app):
    answering = threading.Event()
    app.inline_policy = InlinePolicy(lambda _: False)
    app.limits = ConnectionLimits(request_seconds=10.0, connections=1)
    app.pool.submit(answering.wait)  # the only thread

    async def talk(opened):
        head = FIELDS.replace(b"jsonl", b"json") + b"Content-Length: 22\r\n\r\n"
        first = await opened.connect(head + b'{"inputs":[[1, 2, 3]]}')
        await until(lambda: [each.idle_since for each in opened.connections] == [math.inf])
        second = await opened.connect(b"")
        refused = await opened.read(second)
        second.close()
        assert refused.startswith(b"HTTP/1.1 503")
        assert b"Retry-After: 1\r\n" in refused
        answering.set()
        assert (await opened.read(first, b"}")).startswith(b"HTTP/1.1 200")
        await until(lambda: len(opened.connections) == 1)
        third = await opened.connect(PING)
        assert (await opened.read(third, b"\n\n")).startswith(b"HTTP/1.1 200")
        assert await opened.read(first) == b""

    play(app, talk)
