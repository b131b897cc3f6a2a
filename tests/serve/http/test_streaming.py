"""JSON Lines that are answered while they arrive."""

import contextlib
import socket

import pytest

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
    with contextlib.ExitStack() as opened:

        def connect():
            return opened.enter_context(socket.create_connection(running.address, timeout=30))

        yield connect
        last = connect()
        last.sendall(CHUNKED + chunk(LINE % 3) + chunk())
        assert read_all(last, chunk()).endswith(chunk(b"[1006.0]\n") + chunk())


def chunk(piece=b""):
    return b"%X\r\n%b\r\n" % (len(piece), piece)


def read_all(connection, end=b""):
    """Return the received bytes up to these bytes, or until the connection ends."""
    content = b""
    while not (end and content.endswith(end)) and (piece := connection.recv(65536)):
        content += piece
    return content


def test_lines_are_answered_line_by_line(post):
    response = post((LINE % number for number in range(2500)), **{"X-Request-Id": "mine"})
    assert response.status_code == 200, response.text
    assert response.content == b"".join(b"[%.1f]\n" % (1003 + n) for n in range(2500))
    expected = {
        "Transfer-Encoding": "chunked",
        "Content-Type": "application/jsonl",
        "X-Request-Id": "mine",
        "X-Model-Name": "m",
        "X-Model-Version": "1",
    }
    assert expected.items() <= response.headers.items()


def test_limit_holds_for_each_line(post):
    line = b"[1, 2, 3" + b" " * 20 + b"]\n"  # The response is below the limit.
    body = line * (2 * LIMIT // len(line))
    response = post(body, "/endpoints/e/invocations")
    assert response.status_code == 200
    assert response.content == b"[1006.0]\n" * body.count(b"\n")
    refused = post(b"[1, 2, " + b" " * LIMIT + b"3]\n" + body)
    assert refused.status_code == 413
    assert "line 1 is" in refused.json()["message"]


def test_answer_begins_before_body_ends(connect):
    connection = connect()
    connection.sendall(CHUNKED)
    for number in range(3):
        connection.sendall(chunk(LINE % number))
        assert read_all(connection, b"]\n\r\n").endswith(chunk(b"[%.1f]\n" % (1003 + number)))
    connection.sendall(chunk() + b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b"HTTP/1.1 200 OK" in read_all(connection, b"\r\n\r\n\n")


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (b"", "no rows"),
        (b'["far", 2, 3]\n', "line 1: column 'a'"),
    ],
)
def test_error_in_first_line_is_an_ordinary_error(post, lines, words):
    response = post(iter([lines] if lines else []))
    assert response.status_code == 400
    assert words in response.json()["message"]


def test_client_that_reads_after_sending_is_answered(connect):
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
def test_stream_beyond_most_streams_is_refused(connect, post):
    streams: list[socket.socket] = []

    def has_all_streams():
        """Try to open a stream, because earlier streams may not have ended yet."""
        stream = connect()
        stream.sendall(CHUNKED + chunk(LINE % 3))
        if b"200 OK" in read_all(stream, b"\n"):
            streams.append(stream)
        return len(streams) == 4

    wait_until(has_all_streams)
    refused = post(iter([LINE % 3]))
    assert refused.status_code == 429
    assert refused.headers["Retry-After"] == "1"
    for stream in streams:
        stream.sendall(chunk())  # before the server's time limit
        assert read_all(stream, chunk()).endswith(chunk())
    wait_until(lambda: post(iter([LINE % 3])).status_code == 200)
