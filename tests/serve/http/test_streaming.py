"""JSON Lines that are answered while they arrive."""

import contextlib
import json
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest
import requests

from mlflow_deploy_plugin.core.spec.parts import ServerSpec
from tests.support.servers import gunicorn, one_endpoint
from tests.support.waiting import wait_until

LIMIT = 1_000_000
LINE = b"[1, 2, %d]\n"
HEAD = b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: application/jsonl\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.fixture(scope="module")
def running(tmp_path_factory, bias_folders):
    state_dir = tmp_path_factory.mktemp("state")
    spec = ServerSpec(max_body_bytes=LIMIT, request_timeout_seconds=3)
    with gunicorn(state_dir, one_endpoint(bias_folders["1"]), spec) as running:
        yield running
        assert "Traceback" not in running.log.read_text()


Post = Callable[..., requests.Response]


@pytest.fixture
def post(running):
    def post(body, path="/invocations", **headers):
        return running.post(
            path, data=body, headers={"Content-Type": "application/jsonl", **headers}, timeout=60
        )

    return post


@pytest.fixture
def connect(running):
    """Open connections. At the end, check that the server still answers."""
    address = running.address
    with contextlib.ExitStack() as opened:
        yield lambda: opened.enter_context(socket.create_connection(address, timeout=30))
        with socket.create_connection(address, timeout=30) as last:
            last.sendall(CHUNKED + chunk(LINE % 3) + chunk())
            assert (
                read_all(last, b"0\r\n\r\n").partition(b"\r\n\r\n")[2]
                == chunk(b"[1006.0]\n") + chunk()
            )


def chunk(piece=b""):
    return b"%X\r\n%b\r\n" % (len(piece), piece)


def read_all(connection, end=b""):
    """Return the received bytes up to these bytes, or until the connection ends."""
    content = b""
    while not (end and content.endswith(end)) and (piece := connection.recv(65536)):
        content += piece
    return content


def test_a_body_without_a_declared_length_is_answered_line_by_line(post):
    pieces = (LINE % number for number in range(2500))
    response = post(pieces, **{"X-Request-Id": "mine"})
    assert response.status_code == 200, response.text
    assert [json.loads(line) for line in response.content.splitlines()] == [
        [1003.0 + n] for n in range(2500)
    ]
    headers = response.headers
    assert headers["Transfer-Encoding"] == "chunked"
    assert headers["Content-Type"] == "application/jsonl"
    assert headers["X-Request-Id"] == "mine"
    assert headers["X-Model-Name"] == "m"
    assert headers["X-Model-Version"] == "1"


def test_a_client_that_sends_no_more_after_many_small_chunks_is_answered(connect):
    connection = connect()
    connection.sendall(
        CHUNKED + b"".join(chunk(b"%c" % byte) for byte in LINE % 3 * 1000) + chunk()
    )
    connection.shutdown(socket.SHUT_WR)
    assert read_all(connection).count(b"1006.0") == 1000


def test_a_stream_larger_than_the_limit_is_accepted_if_each_line_is_within_it(post):
    line = b"[1, 2, 3" + b" " * 20 + b"]\n"  # The response is below the limit.
    body = line * (2 * LIMIT // len(line))
    response = post(body, "/endpoints/e/invocations")
    assert response.status_code == 200
    assert response.content == b"[1006.0]\n" * body.count(b"\n")
    refused = post(b"[1, 2, " + b" " * LIMIT + b"3]\n" + body)
    assert refused.status_code == 413
    assert "line 1 is" in refused.json()["message"]


def test_an_answer_comes_before_the_body_has_ended(connect):
    connection = connect()
    connection.sendall(CHUNKED)
    for number in range(3):
        connection.sendall(chunk(LINE % number))
        assert read_all(connection, b"]\n\r\n").endswith(chunk(b"[%.1f]\n" % (1003 + number)))
    connection.sendall(chunk() + b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b"HTTP/1.1 200 OK" in read_all(connection, b"\r\n\r\n\n")


@pytest.mark.parametrize(
    ("lines", "status", "words"),
    [
        (b"", 400, "no rows"),
        (b"{", 400, "line 1: it is not valid JSON"),
        (b'["far", 2, 3]\n', 400, "line 1: column 'a'"),
    ],
)
def test_an_error_in_the_first_line_is_an_ordinary_error(post, lines, status, words):
    response = post(iter([lines] if lines else []))
    assert response.status_code == status
    assert words in response.json()["message"]


def test_a_later_error_is_the_last_line_of_an_unfinished_response(connect):
    connection = connect()
    good = LINE % 3 * 20_000
    connection.sendall(CHUNKED + chunk(good) + chunk(b"[1, 2]\n") + chunk())
    content = read_all(connection)
    head, _, body = content.partition(b"\r\n\r\n")
    assert b"200 OK" in head
    assert not body.endswith(chunk())
    last = json.loads(body.strip().splitlines()[-1])
    assert last["error_code"] == "BAD_REQUEST"
    assert "line 20001" in last["message"]


def test_a_client_that_falls_silent_or_leaves_holds_nothing(connect):
    silent = connect()
    silent.sendall(CHUNKED + chunk(LINE % 3))
    for _ in range(6):  # more than the limit
        leaver = connect()
        leaver.sendall(CHUNKED + chunk(LINE % 3 * 1000))
        leaver.close()
    content = read_all(silent)
    assert b"408" in content or b"in time" in content
    assert not content.endswith(chunk())


def test_a_stream_may_last_longer_than_the_time_for_a_request(connect):
    connection = connect()
    connection.sendall(CHUNKED)
    until = time.monotonic() + 5
    pieces = 0
    while time.monotonic() < until:
        connection.sendall(chunk(LINE % 3 * 6600))
        pieces += 1
        time.sleep(0.4)
    connection.sendall(chunk())
    # Some numbers are split between chunks.
    assert read_all(connection, chunk()).count(b"006.0") > 6599 * pieces


@pytest.mark.long
def test_the_model_has_all_the_time_between_two_pieces(tmp_path, bias_folders):
    slow: Any = {
        "max_batch_size": 64,
        "max_queue_delay_microseconds": 4_000_000,
        "request_timeout_seconds": 2,
    }
    with gunicorn(tmp_path, one_endpoint(bias_folders["1"]), ServerSpec(**slow)) as running:
        line = b"[1, 2, 3" + b" " * 60_000 + b"]\n"
        response = running.post(
            "/invocations",
            data=iter([line, line, line]),
            headers={"Content-Type": "application/jsonl"},
            timeout=60,
        )
        assert response.content == b"[1006.0]\n" * 3


def test_a_client_that_does_not_read_until_it_has_sent_is_answered(connect):
    connection = connect()
    body = LINE % 3 * 80_000
    connection.sendall(
        CHUNKED
        + b"".join(chunk(body[start : start + 65_500]) for start in range(0, len(body), 65_500))
    )
    connection.sendall(chunk())
    content = read_all(connection, b"\r\n0\r\n\r\n")
    assert content.count(b"[1006.0]\n") + content.count(b"\r\n") >= 80_000


@pytest.mark.long
def test_there_are_as_many_streams_as_may_be(connect, post):
    open_streams: list[socket.socket] = []

    def open_stream():
        """Try to open a stream, because the streams of closed clients may not have
        ended yet.
        """
        stream = connect()
        stream.sendall(CHUNKED + chunk(LINE % 3))
        is_open = b"200 OK" in read_all(stream, b"\n")
        open_streams.extend([stream] * is_open)
        return len(open_streams) == 4

    wait_until(open_stream)
    refused = post(iter([LINE % 3]))
    assert refused.status_code == 429
    assert refused.headers["Retry-After"] == "1"
    for stream in open_streams:
        stream.sendall(chunk())  # before the server's time limit
        assert read_all(stream, chunk()).endswith(chunk())
    wait_until(lambda: post(iter([LINE % 3])).status_code == 200)
