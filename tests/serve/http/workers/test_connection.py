"""HTTP/1.1 of the fast worker, byte by byte over real sockets."""

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
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
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        piece = connection.recv(1)
        assert piece, head
        head += piece
    line, *fields = head[:-4].decode().split("\r\n")
    headers = {}
    for field in fields:
        name, _, value = field.partition(": ")
        headers[name.lower()] = value
    body = b""
    left = int(headers["content-length"]) if has_body else 0
    while len(body) < left:
        piece = connection.recv(left - len(body))
        assert piece, body
        body += piece
    return int(line.split()[1]), headers, json.loads(body) if body.strip() else body


def is_closed(connection):
    """Check that the server does not send anything more."""
    return connection.recv(1) == b""


def test_requests_on_one_connection_are_answered_in_their_order(connect):
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


def test_the_head_of_the_request_before_is_never_that_of_another(connect):
    connection = connect()
    longer = b'{"inputs": [[1, 2, 33]]}'
    other = POST + b"X-Request-Id: other\r\n"
    for request, answer, id_ in (
        (post(), ANSWER, None),
        (post(), ANSWER, None),
        (post(longer), {"predictions": [[1036.0]]}, None),
        (post(head=other), ANSWER, "other"),
        (post(), ANSWER, None),
        (post() + post(head=other), ANSWER, None),
    ):
        connection.sendall(request)
        _, headers, content = read_answer(connection)
        assert (content, headers["x-request-id"] == "other") == (answer, id_ == "other")
    assert read_answer(connection)[1]["x-request-id"] == "other"
    connection.sendall(post()[:-1])  # the same head, and an incomplete body
    connection.sendall(post()[-1:] + PING)
    assert [read_answer(connection)[2], read_answer(connection)[0]] == [ANSWER, 200]


@pytest.mark.parametrize("size", [1, 2, 7, 60])
def test_a_request_may_come_in_pieces(connect, size):
    connection = connect()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    chunked = (
        POST
        + b"Transfer-Encoding: chunked\r\n\r\n5;a=b\r\n"
        + BODY[:5]
        + b"\r\n%X\r\n" % len(BODY[5:])
        + BODY[5:]
    )
    everything = post() + chunked + b"\r\n0\r\nTrailer: x\r\n\r\n" + PING
    for start in range(0, len(everything), size):
        connection.sendall(everything[start : start + size])
    assert read_answer(connection)[2] == ANSWER
    assert read_answer(connection)[2] == ANSWER
    assert read_answer(connection)[0] == 200


@pytest.mark.parametrize(
    ("request_", "connection_header"),
    [
        (PING, "keep-alive"),
        (b"GET /ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "close"),
        (b"GET /ping HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, Close\r\n\r\n", "close"),
        (
            b"GET /ping HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
            "keep-alive",
        ),
        (b"GET /ping HTTP/1.0\r\n\r\n", "close"),
        (b"GET /ping HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", "keep-alive"),
    ],
)
def test_a_connection_lives_as_long_as_the_client_wants(connect, request_, connection_header):
    connection = connect(request_)
    status, headers, _ = read_answer(connection)
    assert status == 200
    assert headers["connection"] == connection_header
    if connection_header == "close":
        assert is_closed(connection)
    else:
        connection.sendall(b"\r\n" + PING)  # An empty line before a request is skipped.
        assert read_answer(connection)[0] == 200


def test_head_is_get_without_the_body(connect):
    connection = connect(b"HEAD /health HTTP/1.1\r\nHost: x\r\n\r\n" + PING)
    status, headers, _ = read_answer(connection, has_body=False)
    assert status == 200
    assert headers["content-length"] == str(len('{"status":"ok"}'))
    assert read_answer(connection)[0] == 200


def test_a_waiting_client_gets_a_100_continue(connect):
    connection = connect(POST + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(BODY))
    assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
    connection.sendall(BODY + PING)
    assert read_answer(connection)[2] == ANSWER
    assert read_answer(connection)[0] == 200


def test_a_waiting_client_learns_at_once_that_its_body_is_too_large(connect):
    connection = connect(POST + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % (LIMIT + 1))
    status, headers, document = read_answer(connection)
    assert status == 413
    assert headers["connection"] == "close"
    assert str(LIMIT) in document["message"]
    assert is_closed(connection)


@pytest.mark.parametrize("chunked", [False, True])
def test_a_client_that_sends_too_much_gets_to_read_why(connect, chunked):
    connection = connect()
    body = b"x" * (20 * LIMIT)
    framing = (
        b"Transfer-Encoding: chunked\r\n\r\n"
        if chunked
        else b"Content-Length: %d\r\n\r\n" % len(body)
    )
    chunk = b"1000\r\n" + b"x" * 4096 + b"\r\n"
    connection.sendall(POST + framing + (chunk * (20 * LIMIT // 4096) if chunked else body))
    assert read_answer(connection)[0] == 413
    assert is_closed(connection)


def test_a_body_of_the_largest_size_is_taken(connect):
    connection = connect()
    body = BODY + b" " * (LIMIT - len(BODY))
    connection.sendall(post(body))
    assert read_answer(connection)[2] == ANSWER
    connection.sendall(
        POST + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % LIMIT + body + b"\r\n0\r\n\r\n"
    )
    assert read_answer(connection)[2] == ANSWER


def test_many_tiny_chunks_do_not_hold_others_up(connect):
    connection = connect()
    other = connect()
    body = BODY + b" " * 50_000
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body)
    threading.Thread(
        target=connection.sendall,
        args=(POST + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n",),
    ).start()
    other.sendall(PING)
    assert read_answer(other)[0] == 200
    assert read_answer(connection)[2] == ANSWER


REFUSED = {
    "no-http": b"hello\r\n\r\n",
    "no-version": b"GET /ping\r\n\r\n",
    "http-2": b"GET /ping HTTP/2.0\r\nHost: x\r\n\r\n",
    "lower-case-method": b"get /ping HTTP/1.1\r\nHost: x\r\n\r\n",
    "two-spaces": b"GET  /ping HTTP/1.1\r\nHost: x\r\n\r\n",
    "tab": b"GET\t/ping HTTP/1.1\r\nHost: x\r\n\r\n",
    "no-host": b"GET /ping HTTP/1.1\r\n\r\n",
    "two-hosts": b"GET /ping HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n",
    "list-of-hosts": b"GET /ping HTTP/1.1\r\nHost: x, y\r\n\r\n",
    "path-in-host": b"GET /ping HTTP/1.1\r\nHost: x/y\r\n\r\n",
    "user-in-host": b"GET /ping HTTP/1.1\r\nHost: me@x\r\n\r\n",
    "absolute": b"GET http://x/ping HTTP/1.1\r\nHost: x\r\n\r\n",
    "asterisk": b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
    "authority": b"CONNECT x:443 HTTP/1.1\r\nHost: x\r\n\r\n",
    "double-slash": b"GET //ping HTTP/1.1\r\nHost: x\r\n\r\n",
    "dot-segment": b"GET /v2/../ping HTTP/1.1\r\nHost: x\r\n\r\n",
    "encoded-dots": b"GET /v2/%2e%2E/ping HTTP/1.1\r\nHost: x\r\n\r\n",
    "encoded-slashes": b"GET /v2%2f%2fping HTTP/1.1\r\nHost: x\r\n\r\n",
    "nul": b"GET /ping\x00 HTTP/1.1\r\nHost: x\r\n\r\n",
    "encoded-nul": b"GET /ping%00 HTTP/1.1\r\nHost: x\r\n\r\n",
    "non-ascii": "GET /pïng HTTP/1.1\r\nHost: x\r\n\r\n".encode(),
    "fragment": b"GET /ping#x HTTP/1.1\r\nHost: x\r\n\r\n",
    "bare-line-feeds": b"GET /ping HTTP/1.1\nHost: x\n\n",
    "bare-line-feed": b"GET /ping HTTP/1.1\r\nHost: x\nA: b\r\n\r\n",
    "bare-carriage-return": b"GET /ping HTTP/1.1\r\nHost: x\rA: b\r\n\r\n",
    "folded": b"GET /ping HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n",
    "folded-first": b"GET /ping HTTP/1.1\r\n Host: x\r\n\r\n",
    "space-before-colon": b"GET /ping HTTP/1.1\r\nHost : x\r\n\r\n",
    "no-name": b"GET /ping HTTP/1.1\r\nHost: x\r\n: b\r\n\r\n",
    "no-colon": b"GET /ping HTTP/1.1\r\nHost: x\r\nA\r\n\r\n",
    "non-ascii-name": "GET /ping HTTP/1.1\r\nHost: x\r\nÄ: b\r\n\r\n".encode("latin-1"),
    "nul-in-value": b"GET /ping HTTP/1.1\r\nHost: x\r\nA: \x00\r\n\r\n",
    "length-and-chunks": POST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two-lengths": POST + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
    "list-of-lengths": POST + b"Content-Length: 3, 3\r\n\r\nabc",
    "signed-length": POST + b"Content-Length: +3\r\n\r\nabc",
    "negative-length": POST + b"Content-Length: -3\r\n\r\n",
    "hexadecimal-length": POST + b"Content-Length: 0x3\r\n\r\nabc",
    "empty-length": POST + b"Content-Length:\r\n\r\n",
    "spaced-length": POST + b"Content-Length: 1 3\r\n\r\n",
    "chunks-of-http-1.0": (
        b"POST /invocations HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    ),
    "two-content-types": POST + JSON + b"Content-Length: 2\r\n\r\n{}",
    "chunk-without-size": POST + b"Transfer-Encoding: chunked\r\n\r\n\r\n\r\n",
    "chunk-0x": POST + b"Transfer-Encoding: chunked\r\n\r\n0x3\r\nabc\r\n0\r\n\r\n",
    "chunk-signed": POST + b"Transfer-Encoding: chunked\r\n\r\n+3\r\nabc\r\n0\r\n\r\n",
    "chunk-negative": POST + b"Transfer-Encoding: chunked\r\n\r\n-3\r\nabc\r\n0\r\n\r\n",
    "chunk-too-long": POST + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n",
    "chunk-line-feed": POST + b"Transfer-Encoding: chunked\r\n\r\n3\nabc\r\n0\r\n\r\n",
    "chunk-endless-extension": POST + b"Transfer-Encoding: chunked\r\n\r\n3;" + b"a" * 2000,
    "chunk-overflow": POST + b"Transfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFFF\r\n",
    "trailer-without-colon": POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\nabc\r\n\r\n",
    "too-many-trailers": POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n" + b"a: b\r\n" * 101,
}
OTHERWISE = {
    "line-too-long": (414, b"GET /" + b"a" * 8190 + b" HTTP/1.1\r\nHost: x\r\n\r\n"),
    "line-without-end": (414, b"GET /" + b"a" * 9000),
    "field-too-long": (431, b"GET /ping HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 8190 + b"\r\n\r\n"),
    "too-many-fields": (431, b"GET /ping HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 100 + b"\r\n"),
    "head-without-end": (431, b"GET /ping HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 25_000),
    "unknown-coding": (501, POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
    "unknown-expectation": (417, POST + b"Expect: miracles\r\nContent-Length: 2\r\n\r\n{}"),
    "declared-terabyte": (413, POST + b"Content-Length: 999999999999\r\n\r\n"),
    "chunk-of-a-terabyte": (413, POST + b"Transfer-Encoding: chunked\r\n\r\nFFFFFFFFFF\r\n"),
}


@pytest.mark.parametrize(
    ("status", "sent"),
    [
        *(pytest.param(400, sent, id=name) for name, sent in REFUSED.items()),
        *(pytest.param(status, sent, id=name) for name, (status, sent) in OTHERWISE.items()),
    ],
)
def test_ambiguous_or_oversized_requests_are_refused_and_close_the_connection(
    connect, status, sent
):
    connection = connect(PING + sent)
    assert read_answer(connection)[0] == 200
    got, headers, document = read_answer(connection)
    assert got == status
    assert headers["connection"] == "close"
    assert document.get("error_code", "BAD_REQUEST") in ("BAD_REQUEST", "NOT_IMPLEMENTED")
    assert document["error" if b" /v2" in sent else "message"]
    assert is_closed(connection)


def test_options_are_answered_without_a_body(connect):
    connection = connect(b"OPTIONS /ping HTTP/1.1\r\nHost: x\r\n\r\n" + PING)
    status, headers, _ = read_answer(connection, has_body=False)
    assert status == 204
    assert headers["allow"] == "GET, HEAD, OPTIONS"
    assert headers.keys() == {"date", "connection", "allow"}
    assert read_answer(connection)[0] == 200


@pytest.mark.parametrize("method", ["PUT", "DELETE", "TRACE", "PATCH", "BREW"])
def test_a_method_that_a_route_does_not_take_keeps_the_connection(connect, method):
    connection = connect(b"%s /invocations HTTP/1.1\r\nHost: x\r\n\r\n" % method.encode() + PING)
    status, headers, _ = read_answer(connection)
    assert status == 405
    assert headers["allow"] == "POST, OPTIONS"
    assert read_answer(connection)[0] == 200


LATE = {
    b"GET /ping HT": 408,
    b"GET /ping HTTP/1.1\r\nHost:": 408,
    POST + b"Content-Length: 9\r\n\r\n{": 408,
    POST + b"Transfer-Encoding: chunked\r\n\r\n3\r\n{": 408,
    b"": 0,
}


def test_a_request_that_does_not_come_has_its_time(connect):
    """The cases run at the same time, because each takes seconds."""
    connections = {sent: connect() for sent in LATE}
    for sent, connection in connections.items():
        connection.sendall(sent)
    for sent, connection in connections.items():
        if LATE[sent]:
            assert read_answer(connection)[0] == LATE[sent]
        assert is_closed(connection)


def test_a_request_that_trickles_in_has_its_time_too(connect):
    connection = connect(PING)
    assert read_answer(connection)[0] == 200
    began = time.monotonic()
    with contextlib.suppress(OSError):
        for byte in POST + b"A: " + b"a" * 10_000:
            connection.sendall(bytes([byte]))
            connection.settimeout(0.05)
            with contextlib.suppress(TimeoutError):
                if connection.recv(12) == b"HTTP/1.1 408":
                    break
    assert 1.5 < time.monotonic() - began < 15


def test_a_client_that_sends_no_more_is_still_answered(connect):
    connection = connect(post() + PING + post())
    connection.shutdown(socket.SHUT_WR)
    assert [read_answer(connection)[0] for _ in range(3)] == [200, 200, 200]
    assert is_closed(connection)


def test_a_stream_behind_a_request_is_read_to_its_end(connect):
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


def test_a_client_that_sends_no_more_after_many_small_chunks_is_answered(connect):
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


def test_a_body_sent_after_an_unread_100_is_not_parsed_as_a_request(app):
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


def test_a_request_whose_thread_lacks_memory_is_answered(app, monkeypatch):
    def fail(*asked):
        raise MemoryError

    monkeypatch.setattr(app, "handle", fail)
    (answer,) = talk(app, lambda connection: connection.data_received(post()), 1)
    assert answer.startswith(b"HTTP/1.1 503")


def test_a_machine_without_a_further_thread_answers_by_those_that_are_there(app, monkeypatch):
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


def test_a_truncated_body_gets_an_error_with_the_bytes_received(connect):
    connection = connect(POST + b"Content-Length: 9\r\n\r\n{")
    connection.shutdown(socket.SHUT_WR)
    status, _, document = read_answer(connection)
    assert status == 400
    assert document["message"] == "only 1 of the 9 bytes of the body arrived in time"
    assert is_closed(connection)


def test_a_client_that_takes_no_answers_is_let_go_and_nothing_piles_up(running, connect):
    (worker,) = read_workers(running.state_dir)

    def resident():
        return int(Path(f"/proc/{worker.pid}/statm").read_text().split()[1]) * 4096

    before = resident()
    connection = connect()
    connection.settimeout(0.5)
    body = json.dumps({"inputs": [[1, 2, 3]] * 5000}).encode()
    sent = 0
    with contextlib.suppress(TimeoutError):
        while True:
            sent += connection.send(post(body))
    assert sent < 50_000_000
    assert resident() - before < 50_000_000

    def is_reset():
        try:
            return connection.send(b"x") < 0
        except TimeoutError:
            return False
        except OSError:
            return True

    wait_until(is_reset, what="the end of the connection")


def test_a_large_body_does_not_hold_up_small_requests(connect):
    """The longest gap between two responses to a neighbour is shorter than the time of
    the large requests.
    """
    large = connect()
    small = connect()
    body = json.dumps({"inputs": [[1, 2, 3]] * 9000}).encode()
    stop = threading.Event()

    def ask():
        while not stop.is_set():
            large.sendall(post(body))
            assert read_answer(large)[0] == 200

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        for _ in range(50):
            small.sendall(PING)
            assert read_answer(small)[0] == 200
    finally:
        stop.set()
        thread.join()


@pytest.mark.long
def test_a_worker_that_hangs_is_replaced(tmp_path, bias_folders):
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


def test_the_dates_of_answers_are_those_of_http(connect):
    connection = connect(PING)
    date = read_answer(connection)[1]["date"]
    assert re.fullmatch(r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", date)
