"""HTTP/1.1 of the fast worker, byte by byte over real sockets."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

from mlflow_deploy_plugin.core.spec.parts import ServerSpec
from mlflow_deploy_plugin.core.statedir.files import read_workers
from mlflow_deploy_plugin.serve.http.workers.connection import HttpConnection
from mlflow_deploy_plugin.serve.http.workers.worker_app import WorkerApp
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


def test_head_request_is_answered_without_body(connect):
    connection = connect(b"HEAD /health HTTP/1.1\r\nHost: x\r\n\r\n" + PING)
    status, headers, _ = read_answer(connection, has_body=False)
    assert status == 200
    assert headers["content-length"] == str(len('{"status":"ok"}'))
    assert read_answer(connection)[0] == 200


def test_waiting_client_receives_100_continue(connect):
    connection = connect(POST + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(BODY))
    assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
    connection.sendall(BODY + PING)
    assert read_answer(connection)[2] == ANSWER
    assert read_answer(connection)[0] == 200


def test_waiting_client_with_large_body_is_refused(connect):
    connection = connect(POST + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % (LIMIT + 1))
    status, headers, document = read_answer(connection)
    assert status == 413
    assert headers["connection"] == "close"
    assert str(LIMIT) in document["message"]
    assert is_closed(connection)


LATE = {
    b"GET /ping HT": 408,
    b"GET /ping HTTP/1.1\r\nHost:": 408,
    POST + b"Content-Length: 9\r\n\r\n{": 408,
    POST + b"Transfer-Encoding: chunked\r\n\r\n3\r\n{": 408,
    b"": 0,
}


def test_incomplete_request_times_out(connect):
    """The cases run at the same time, because each takes seconds."""
    connections = {sent: connect() for sent in LATE}
    for sent, connection in connections.items():
        connection.sendall(sent)
    for sent, connection in connections.items():
        if LATE[sent]:
            assert read_answer(connection)[0] == LATE[sent]
        assert is_closed(connection)


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
    return WorkerApp(serve_here(one_endpoint(bias_folders["1"])), may_be_inline=True, threads=1)


def talk(app, act, answers):
    """Return the bytes that a connection without a socket has written after this number
    of writes.
    """
    written: list[bytes] = []
    transport: Any = MagicMock()
    transport.write = written.append
    transport.get_extra_info.return_value = None
    transport.is_closing.return_value = False
    transport.get_write_buffer_size.return_value = 0

    async def run():
        connection = HttpConnection(
            SimpleNamespace(app=app), SimpleNamespace(connections=set()), {}
        )
        connection.connection_made(transport)
        act(connection)
        async with asyncio.timeout(20):
            while len(written) < answers:
                await asyncio.sleep(0.01)

    asyncio.run(run())
    return written


def test_body_after_unread_100_is_not_parsed_as_request(app):
    def act(connection):
        connection.data_received(
            POST + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(PING)
        )
        connection.pause_writing()
        connection.resume_writing()
        connection.data_received(PING)

    interim, answer = talk(app, act, 2)
    assert interim == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert answer.startswith(b"HTTP/1.1 400")


def test_memory_error_is_answered_with_503(app, monkeypatch):
    def fail(*asked):
        raise MemoryError

    monkeypatch.setattr(app, "handle", fail)
    (answer,) = talk(app, lambda connection: connection.data_received(post()), 1)
    assert answer.startswith(b"HTTP/1.1 503")


def test_request_is_answered_when_no_thread_can_start(app, monkeypatch):
    monkeypatch.setattr(
        threading.Thread, "start", lambda thread: raise_it(RuntimeError("can't start new thread"))
    )

    (answer,) = talk(app, lambda connection: connection.data_received(post()), 1)
    assert answer.startswith(b"HTTP/1.1 200")

    stream = (
        POST.replace(b"application/json", b"application/jsonl")
        + b"Transfer-Encoding: chunked\r\n\r\n"
    )
    (answer,) = talk(app, lambda connection: connection.data_received(stream), 1)
    assert answer.startswith(b"HTTP/1.1 503")
    assert b"Retry-After: 1\r\n" in answer


def test_truncated_body_is_refused(connect):
    connection = connect(POST + b"Content-Length: 9\r\n\r\n{")
    connection.shutdown(socket.SHUT_WR)
    status, _, document = read_answer(connection)
    assert status == 400
    assert document["message"] == "only 1 of the 9 bytes of the body arrived in time"
    assert is_closed(connection)


def test_client_that_reads_nothing_is_disconnected(connect):
    connection = connect()
    connection.settimeout(0.5)
    body = json.dumps({"inputs": [[1, 2, 3]] * 5000}).encode()
    sent = 0
    with contextlib.suppress(TimeoutError):
        while True:
            sent += connection.send(post(body))
    assert sent < 50_000_000

    def is_reset():
        try:
            return connection.send(b"x") < 0
        except TimeoutError:
            return False
        except OSError:
            return True

    wait_until(is_reset, what="the end of the connection")


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
