"""HTTP/1.1 of the fast worker, byte by byte over real sockets."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import threading
from collections.abc import Callable

import pytest

from mlflow_deploy_plugin.core.spec.parts import ServerSpec
from mlflow_deploy_plugin.core.statedir.files import read_workers
from tests.serve.http.listener import play, until, worker_app
from tests.support.raising import raise_it
from tests.support.servers import gunicorn, one_endpoint
from tests.support.waiting import wait_until

BODY = b'{"inputs": [[1, 2, 3]]}'
ANSWER = {"predictions": [[1006.0]]}
LIMIT = 200_000
HOST = b"Host: x\r\n"
JSON = b"Content-Type: application/json\r\n"
PING = b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /invocations HTTP/1.1\r\n" + HOST + JSON


def post(body=BODY, head=POST):
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body


@pytest.fixture(scope="module")
def running(tmp_path_factory, bias_folders):
    state_dir = tmp_path_factory.mktemp("fast")
    with gunicorn(
        state_dir,
        one_endpoint(bias_folders["1"]),
        ServerSpec(max_body_bytes=LIMIT, request_timeout_seconds=2),
    ) as running:
        yield running
        assert "Traceback" not in running.log.read_text()


Connect = Callable[..., socket.socket]


@pytest.fixture
def connect(running):
    """Open connections and send bytes. At the end, check that the server answers."""
    address = running.address
    with contextlib.ExitStack() as opened:

        def connect(sent=b""):
            connection = opened.enter_context(socket.create_connection(address, timeout=20))
            connection.sendall(sent)
            return connection

        yield connect
        with socket.create_connection(address, timeout=20) as last:
            last.sendall(post())
            assert read_answer(last)[2] == ANSWER


def read_answer(connection, has_body=True):
    """Return the status, headers and document of the next response, without reading a
    byte of a later response.
    """
    with connection.makefile("rb", 0) as stream:
        status, *fields = iter(lambda: stream.readline().decode().rstrip(), "")
        headers = {}
        for field in fields:
            name, _, value = field.partition(": ")
            headers[name.lower()] = value
        body = b""
        while has_body and len(body) < int(headers["content-length"]):
            body += stream.read(int(headers["content-length"]) - len(body))
    return int(status.split()[1]), headers, json.loads(body) if body.strip() else body


def is_closed(connection):
    """Check that the server does not send anything more."""
    return connection.recv(1) == b""


def test_pipelined_requests_are_answered_in_order(connect):
    connection = connect()
    bodies = [
        json.dumps({"inputs": [[float(n), 0, 0]] * (1 + 500 * (n % 2))}).encode() for n in range(40)
    ]
    threading.Thread(
        target=connection.sendall, args=(b"".join(post(body) + PING for body in bodies),)
    ).start()
    for n in range(40):
        assert read_answer(connection)[2]["predictions"][0] == [1000.0 + n]
        assert read_answer(connection)[0] == 200


def test_same_head_is_read_anew_for_each_request(connect):
    connection = connect()
    longer = post(b'{"inputs": [[1, 2, 33]]}')
    other = post(head=POST + b"X-Request-Id: other\r\n")
    connection.sendall(post() + post() + longer + other + post())
    answers = [read_answer(connection) for _ in range(5)]
    assert [content for _, _, content in answers] == [
        ANSWER,
        ANSWER,
        {"predictions": [[1036.0]]},
        ANSWER,
        ANSWER,
    ]
    ids = [headers["x-request-id"] for _, headers, _ in answers]
    assert [id_ == "other" for id_ in ids] == [False, False, False, True, False]
    connection.sendall(post()[:-1])  # the same head, and an incomplete body
    connection.sendall(post()[-1:] + PING)
    assert [read_answer(connection)[2], read_answer(connection)[0]] == [ANSWER, 200]


def test_waiting_client_receives_100_continue(connect):
    connection = connect(POST + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(BODY))
    assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
    connection.sendall(BODY + PING)
    assert read_answer(connection)[2] == ANSWER
    assert read_answer(connection)[0] == 200


@pytest.mark.parametrize(
    "begun",
    [
        b"GET /ping HT",
        b"GET /ping HTTP/1.1\r\nHost:",
        POST + b"Content-Length: 99\r\n\r\n{",
        POST + b"Transfer-Encoding: chunked\r\n\r\nfff\r\n{",
    ],
)
def test_slow_request_times_out(app, begun):
    async def talk(opened):
        client = await opened.connect(begun)
        for _ in range(2):
            await until(lambda: opened.connections)
            await opened.send(client, b"a")
            await asyncio.sleep(0.01)
            opened.tick(6)  # of 10 seconds
        assert (await opened.read(client)).startswith(b"HTTP/1.1 408 ")

    play(app, talk)


def test_idle_client_is_disconnected(app):
    async def talk(opened):
        client = await opened.connect(b"")
        await until(lambda: opened.connections)
        opened.tick(11)
        assert await opened.read(client) == b""

    play(app, talk)


def test_half_closed_client_is_answered(connect):
    connection = connect(post() + PING + post())
    connection.shutdown(socket.SHUT_WR)
    assert [read_answer(connection)[0] for _ in range(3)] == [200, 200, 200]
    assert is_closed(connection)


def test_stream_behind_request_is_read_completely(connect):
    connection = connect()
    line = b"[1, 2, 3" + b" " * 1000 + b"]\n"
    head = POST.replace(b"json", b"jsonl") + b"Transfer-Encoding: chunked\r\n\r\n"
    # Reading is paused in the meantime.
    large = json.dumps({"inputs": [[1, 2, 3]] * 15_000}).encode()
    everything = post(large) + head + (b"%X\r\n%b\r\n" % (len(line), line)) * 3000 + b"0\r\n\r\n"
    threading.Thread(target=connection.sendall, args=(everything,)).start()
    assert read_answer(connection)[0] == 200
    answer = b""
    while not answer.endswith(b"\r\n0\r\n\r\n"):
        piece = connection.recv(65536)
        assert piece, answer[-100:]
        answer += piece
    assert answer.count(b"[1006.0]\n") == 3000


def test_half_closed_client_with_small_chunks_is_answered(connect):
    """The end arrives while the chunks are read, a thousand steps at a time."""
    connection = connect()
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in BODY + b" " * 3000)
    connection.sendall(POST + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n")
    connection.shutdown(socket.SHUT_WR)
    assert read_answer(connection)[2] == ANSWER
    assert is_closed(connection)


@pytest.fixture
def app(serve_here, bias_folders):
    return worker_app(serve_here(one_endpoint(bias_folders["1"])))


def answer_of(app, sent):
    """Return the answer to a client that sends no more."""
    answers = []

    async def talk(opened):
        client = await opened.connect(sent)
        client.shutdown(socket.SHUT_WR)
        answers.append(await opened.read(client, b"}"))

    play(app, talk)
    return answers[0]


def test_body_after_unread_100_is_not_parsed_as_request(app):
    async def talk(opened):
        head = POST + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(PING)
        client = await opened.connect(head)
        assert await opened.read(client, b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        (connection,) = opened.connections
        connection.pause_writing()
        connection.resume_writing()
        await opened.send(client, PING)
        assert (await opened.read(client, b"}")).startswith(b"HTTP/1.1 400")

    play(app, talk)


def test_memory_error_is_answered_with_503(app, monkeypatch):
    monkeypatch.setattr(app, "handle", lambda *asked: raise_it(MemoryError()))
    assert answer_of(app, post()).startswith(b"HTTP/1.1 503")


def test_request_is_answered_when_no_thread_can_start(app, monkeypatch):
    monkeypatch.setattr(
        threading.Thread, "start", lambda thread: raise_it(RuntimeError("can't start new thread"))
    )
    assert answer_of(app, post()).startswith(b"HTTP/1.1 200")
    stream = POST.replace(b"json", b"jsonl") + b"Transfer-Encoding: chunked\r\n\r\n"
    answer = answer_of(app, stream)
    assert answer.startswith(b"HTTP/1.1 503")
    assert b"Retry-After: 1\r\n" in answer


def test_truncated_body_is_refused(app):
    answer = answer_of(app, POST + b"Content-Length: 9\r\n\r\n{")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"only 1 of the 9 bytes" in answer


def test_client_that_reads_nothing_is_disconnected(app):
    request = post(json.dumps({"inputs": [[1, 2, 3]] * 5000}).encode())
    sent: list[int] = []

    async def talk(opened):
        client = await opened.connect(b"")

        async def flood():
            while True:
                await opened.send(client, request)
                sent.append(len(request))

        flooding = asyncio.create_task(flood())
        await until(lambda: sent and opened.tick(0.2) and not opened.connections)
        with pytest.raises(ConnectionError):
            await flooding

    play(app, talk)
    assert sum(sent) < 10_000_000


@pytest.mark.long
def test_hanging_worker_is_replaced(tmp_path, bias_folders):
    with gunicorn(
        tmp_path, one_endpoint(bias_folders["1"]), ServerSpec(request_timeout_seconds=1)
    ) as running:
        (worker,) = read_workers(tmp_path)
        os.kill(worker.pid, signal.SIGSTOP)
        wait_until(
            lambda: [s for s in read_workers(tmp_path) if s.pid != worker.pid],
            what="another worker",
        )
        response = running.post(data=BODY, headers={"Content-Type": "application/json"})
        assert response.json() == ANSWER
