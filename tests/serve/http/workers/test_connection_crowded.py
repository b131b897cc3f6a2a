"""More clients than connections, and more answers than memory: the client that waits
longest gives way.
"""

import asyncio
import contextlib

import pytest

from mlflow_deploy_plugin.serve.http import request_limits
from mlflow_deploy_plugin.serve.http.request_limits import ConnectionLimits
from tests.serve.http.listener import is_readable, play, until, worker_app
from tests.support.servers import one_endpoint

PLACES = 10
PING = b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n"
PONG = b"\r\n\r\n\n"
POST = b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
HALF_A_HEAD = PING[:20]
HALF_A_BODY = POST + b"Content-Length: 100000\r\n\r\n{"
BODY = b'{"inputs": [' + b"[1, 2, 3]," * 20_000 + b"[1, 2, 3]]}"
LARGE = POST + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
ANSWER = b'{"predictions":[' + b"[1006.0]," * 20_000 + b"[1006.0]]}"


@pytest.fixture
def app(serve_here, bias_folders):
    app = worker_app(serve_here(one_endpoint(bias_folders["1"])))
    app.limits = ConnectionLimits(60.0, connections=PLACES)
    return app


async def asks(opened, client):
    """Check that the client is answered now."""
    opened.app.now = asyncio.get_running_loop().time()
    await opened.send(client, PING)
    answer = await opened.read(client, PONG)
    return answer.startswith(b"HTTP/1.1 200 ")


def test_longest_idle_client_is_evicted(app):
    async def talk(opened):
        first = await opened.connect(b"")
        await asyncio.sleep(0.05)  # the loop's resolution is a millisecond
        silent = [await opened.connect(b"") for _ in range(PLACES - 1)]
        await until(lambda: len(opened.connections) == PLACES)
        assert await asks(opened, await opened.connect(b""))
        assert await opened.read(first) == b""
        assert await asks(opened, silent[-1])

    play(app, talk)


def test_active_clients_are_not_evicted(app):
    async def talk(opened):
        asking = [await opened.connect(b"") for _ in range(PLACES // 2)]
        for _ in range(3 * PLACES):
            for client in asking:
                assert await asks(opened, client)
            await opened.connect(b"")

    play(app, talk)


@pytest.mark.parametrize("begun", [HALF_A_HEAD, HALF_A_BODY], ids=["heads", "bodies"])
def test_slow_requests_are_evicted(app, begun):
    async def talk(opened):
        app.now -= 5
        slow = [await opened.connect(begun) for _ in range(PLACES)]
        await until(lambda: len(opened.connections) == PLACES)
        for _ in range(3):
            assert await asks(opened, await opened.connect(b""))
        evicted = [await opened.read(client) for client in slow if is_readable(client)]
        assert [answer[:12] for answer in evicted] == [b"HTTP/1.1 408"] * 3

    play(app, talk)


def test_active_upload_is_not_evicted(app):
    async def talk(opened):
        upload = await opened.connect(POST + b"Content-Length: 200000\r\n\r\n")
        await opened.send(upload, b" " * 100_000)
        (connection,) = opened.connections
        await until(lambda: connection._body and connection._body.received == 100_000)
        for _ in range(3 * PLACES):
            await opened.connect(b"")
            await asyncio.sleep(0.002)  # the loop's resolution is a millisecond
        await opened.send(upload, b" " * 100_000)
        assert (await opened.read(upload, b"}")).startswith(b"HTTP/1.1 400 ")

    play(app, talk)


def test_oldest_unread_answer_is_aborted(app, monkeypatch):
    monkeypatch.setattr(request_limits, "MAX_UNSENT_BYTES", 5 * len(ANSWER))

    async def talk(opened):
        clients = [await opened.connect(LARGE) for _ in range(PLACES - 1)]
        await until(lambda: len(opened.connections) < PLACES - 1)
        assert await asks(opened, await opened.connect(b""))
        assert (await opened.read(clients[-1], b"]]}")).endswith(ANSWER)
        with contextlib.suppress(ConnectionError):
            assert not (await opened.read(clients[0])).endswith(ANSWER)

    play(app, talk)


def test_half_read_answers_count_by_the_rest(app, monkeypatch):
    monkeypatch.setattr(request_limits, "MAX_UNSENT_BYTES", 6 * len(ANSWER))

    async def talk(opened):
        clients = []
        for _ in range(PLACES):
            client = await opened.connect(LARGE)
            clients.append((client, await opened.read(client, at_least=len(ANSWER) * 2 // 3)))
        for client, begun in clients:
            assert (begun + await opened.read(client, b"]]}")).endswith(ANSWER)

    play(app, talk)


def test_request_behind_unread_answer_is_answered(app):
    async def talk(opened):
        client = await opened.connect(LARGE + PING)
        await until(lambda: app.blocked_connections)
        content = await opened.read(client, PONG)
        assert ANSWER in content
        assert content.count(b"HTTP/1.1 200 OK") == 2

    play(app, talk)
