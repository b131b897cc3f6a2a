"""Uploads that are stored as they arrive, and results of jobs that are sent in pieces,
on a loop whose time the test sets.
"""

import asyncio
import json
import math
import socket
import struct
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from mlflow_deploy_plugin.core.statedir.files import SERVER
from mlflow_deploy_plugin.serve.http.parser import CHUNKED, BodyParser
from mlflow_deploy_plugin.serve.http.request_limits import ConnectionLimits
from mlflow_deploy_plugin.serve.http.responses import RawResponse
from mlflow_deploy_plugin.serve.http.streaming import StreamedExchange
from mlflow_deploy_plugin.serve.http.workers.worker_app import InlinePolicy
from mlflow_deploy_plugin.serve.inference.jobs import STATE
from mlflow_deploy_plugin.serve.messages import RawRequest
from tests.serve.http.listener import is_readable, play, until, worker_app
from tests.support.raising import Panic, raise_it
from tests.support.servers import one_endpoint

FIELDS = b"POST /endpoints/e/jobs HTTP/1.1\r\nHost: x\r\nContent-Type: text/csv\r\n"
HEAD = FIELDS + b"Transfer-Encoding: chunked\r\n\r\n"
PING = b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n"
LIMIT = 100_000
LIMITS = {"max_body_bytes": LIMIT, "jobs": {"key_share": 1}}
ROWS = b"a,b,c\n" + b"1,2,3\n" * 5_000
"""More rows than the buffer of a file has."""
LAST = b"0\r\n\r\n"


def chunk(piece=b""):
    return b"%X\r\n%b\r\n" % (len(piece), piece)


@pytest.fixture
def app(serve_here, bias_folders):
    app = worker_app(serve_here(one_endpoint(bias_folders["1"]), LIMITS))
    (app.server.repository.state_dir / SERVER).touch()  # There is a process of jobs.
    return app


def stored(app, pattern="*"):
    """Return the contents of the uploaded files; the files in hidden folders are not
    complete.
    """
    folder = app.server.repository.state_dir / "jobs"
    return [path.read_bytes() for path in folder.glob(f"{pattern}/input.csv")]


@pytest.fixture
def select(app, monkeypatch):
    """Replace the choice of a version, which a model that is not loaded delays."""
    kind = type(app.server.repository)
    original = kind.select_variant

    def select(wait):
        def selected(*asked, **named):
            wait()
            return original(*asked, **named)

        monkeypatch.setattr(kind, "select_variant", selected)

    return select


@pytest.fixture
def result(app):
    """Store the result of a job that has ended; return the request for it."""

    async def result(opened, content):
        client = await opened.connect(HEAD + chunk(ROWS) + chunk())
        job = json.loads((await opened.read(client, b"}")).partition(b"\r\n\r\n")[2])["id"]
        folder = app.server.repository.state_dir / "jobs" / job
        (folder / "output").mkdir()
        (folder / "output" / "input.csv").write_bytes(content)
        (folder / STATE).write_text('{"state": "succeeded"}')
        return b"GET /endpoints/e/jobs/%b/result HTTP/1.1\r\nHost: x\r\n\r\n" % job.encode()

    return result


def test_upload_is_stored_as_it_arrives(app):
    async def talk(opened):
        client = await opened.connect(FIELDS + b"Content-Length: %d\r\n\r\n" % (9 * len(ROWS)))
        for number in range(8):
            await opened.send(client, ROWS)
            await until(lambda: len(b"".join(stored(app, ".*"))) > number * len(ROWS))  # noqa: B023
            opened.tick(6)  # of 10 seconds
        await opened.send(client, ROWS)
        await opened.send(client, PING)
        assert (await opened.read(client, b"\n\n")).startswith(b"HTTP/1.1 202 ")
        assert stored(app) == [9 * ROWS]

    play(app, talk)


@pytest.mark.parametrize("coding", [b"Content-Length: 100001", b"Transfer-Encoding: chunked"])
def test_larger_body_of_lines_is_sent_to_jobs(app, coding):
    async def talk(opened):
        head = b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: application/jsonl\r\n"
        client = await opened.connect(head + coding + b"\r\n\r\n186A1\r\n")
        refused = await opened.read(client, b"}")
        assert refused.startswith(b"HTTP/1.1 413 ")
        assert b"/endpoints/NAME/jobs" in refused

    play(app, talk)


def test_upload_beyond_most_streams_is_refused(app):
    async def talk(opened):
        clients = [await opened.connect(HEAD + chunk(ROWS)) for _ in range(4)]
        await until(lambda: app.streams == 4)
        refused = await opened.read(await opened.connect(HEAD), b"}")
        assert refused.startswith(b"HTTP/1.1 429 ")
        assert b"Retry-After: 1\r\n" in refused
        for client in clients:
            await opened.send(client, chunk())
            assert b" 202 Accepted" in await opened.read(client, b"}")
        assert not app.streams

    play(app, talk)


def exchange_of(body, ended):
    """Return an exchange without a connection."""
    transport: Any = SimpleNamespace(get_write_buffer_size=int, is_closing=bool)
    loop = asyncio.get_running_loop()
    return StreamedExchange(
        body, transport, LIMIT, lambda piece: None, lambda response: None, ended.append, loop
    )


def test_last_rows_are_stored_whenever_thread_looks(app):
    """The thread may check at any time; here, the loop has read the end of the body but
    not passed on its rows.
    """
    body: Any = BodyParser(CHUNKED, LIMIT)
    ended: list[RawResponse | bool] = []

    async def talk():
        exchange = exchange_of(body, ended)
        request = RawRequest("POST", "/endpoints/e/jobs", {"content-type": "text/csv"}, b"")
        thread = threading.Thread(target=exchange.run, args=(app.handle, request))
        take = body.take

        def interrupted():
            thread.start()
            thread.join(0.5)
            return take()

        body.take = interrupted
        exchange.receive(chunk(ROWS) + chunk())
        await until(lambda: ended)
        thread.join()

    asyncio.run(talk())
    assert stored(app) == [ROWS]


@pytest.mark.parametrize("error", [Panic("a regular expression"), SystemExit(1)])
def test_unexpected_error_aborts_response(error):
    ended: list[Any] = []

    def pieces():
        yield b"1"
        raise error

    async def talk():
        exchange = exchange_of(BodyParser(0, 0), ended)
        with pytest.raises(type(error)):
            await asyncio.to_thread(exchange.send, RawResponse(200, b""), pieces())
        await until(lambda: ended)

    asyncio.run(talk())
    assert ended == [False]


@pytest.mark.parametrize("error", [Panic("a regular expression"), SystemExit(1)])
def test_unexpected_error_of_upload_is_answered(app, select, error):
    select(lambda: raise_it(error))

    async def talk(opened):
        client = await opened.connect(HEAD + chunk(ROWS))
        assert b" 500 Internal Server Error" in await opened.read(client, b"}")
        assert not app.streams

    play(app, talk)


@pytest.mark.parametrize("size", [90_000, 1_000_000], ids=["within the limit", "beyond the limit"])
def test_client_not_reading_is_disconnected(app, result, size):
    async def talk(opened):
        request = await result(opened, b"1" * size)
        client = await opened.connect(request)
        await until(lambda: is_readable(client))
        await until(lambda: opened.tick(1) and not opened.connections)
        client = await opened.connect(request)  # The only thread is free.
        assert b" 200 OK" in await opened.read(client, at_least=20)

    play(app, talk)


def test_client_that_reads_slowly_gets_whole_answer(app, result):
    async def talk(opened):
        client = await opened.connect(await result(opened, b"1" * 300_000))
        content = b""
        for _ in range(3):
            content += await opened.read(client, at_least=50_000)
            opened.tick(11)
        content += await opened.read(client, LAST)
        assert content.count(b"1") >= 300_000

    play(app, talk)


def test_time_of_model_does_not_count_against_client(app, select):
    is_loaded = threading.Event()
    select(is_loaded.wait)

    async def talk(opened):
        client = await opened.connect(HEAD + chunk(ROWS))
        await until(lambda: app.streams)
        opened.tick(11)
        is_loaded.set()
        await until(lambda: stored(app, ".*"))
        assert not is_readable(client)
        await until(lambda: opened.tick(1) and is_readable(client))
        assert b"in time" in await opened.read(client)
        assert not stored(app, ".*")

    play(app, talk)


def test_client_sends_on_after_upload_is_refused(app, select):
    """Reading was paused for the thread, which does not read any more."""
    is_paused = threading.Event()
    select(is_paused.wait)

    async def talk(opened):
        head = HEAD.replace(b"/e/", b"/none/")
        client = await opened.connect(head)
        sending = asyncio.create_task(opened.send(client, chunk(b" " * 3_000_000)))
        (connection,) = opened.connections
        await until(lambda: app.streams and connection._exchange.is_paused)
        is_paused.set()
        assert (await opened.read(client)).startswith(b"HTTP/1.1 404 ")
        await sending

    play(app, talk)


def test_abandoned_upload_is_deleted_and_released(app):
    async def talk(opened):
        client = await opened.connect(HEAD + chunk(ROWS))
        await until(lambda: stored(app, ".*"))
        # a reset
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        await until(lambda: not app.streams)

    play(app, talk)
    assert not [*(app.server.repository.state_dir / "jobs").iterdir()]


def test_client_being_answered_is_not_evicted(app):
    answering = threading.Event()
    app.inline_policy = InlinePolicy(lambda _: False)
    app.limits = ConnectionLimits(request_seconds=10.0, connections=1)
    app.pool.submit(answering.wait)  # the only thread

    async def talk(opened):
        head = FIELDS.replace(b"/endpoints/e/jobs", b"/invocations").replace(
            b"text/csv", b"application/json"
        )
        first = await opened.connect(
            head + b"Content-Length: 22\r\n\r\n" + b'{"inputs":[[1, 2, 3]]}'
        )
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
