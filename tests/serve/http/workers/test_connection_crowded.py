"""More clients than connections: idle connections are closed for clients that send
requests.
"""

import contextlib
import resource
import socket
import ssl
import threading
import time

import pytest

from mlflow_deploy_plugin.core.spec.parts import ServerSpec
from tests.support.models import write_model
from tests.support.servers import gunicorn, variant
from tests.support.serving import is_answered
from tests.support.waiting import wait_until

PLACES = 1000
"""gunicorn's --worker-connections."""
PING = b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n"
HALF_A_HEAD = PING[:20]
HALF_A_BODY = b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n{"
LONG_BYTES = 16 * 2**21
LONG = "\n".join(f"t{n + 1} = StringConcat(t{n}, t{n})" for n in range(21))
LONG = (
    f'long (float[N,1] x) => (string[M] y) <string[1] t0 = {{"0123456789abcdef"}}> {{\n{LONG}\n'
    "y = Identity(t21) }"
)
"""A graph that answers every request with a text of 32 MiB."""
SECONDS = 20.0
"""A third of the time limit for receiving a request."""


@pytest.fixture(params=["plain"])
def connect(request, tmp_path, bias_folders, certificate):
    """Open a connection to a worker, and send bytes; over TLS if the parameter is
    "tls".
    """
    spec = ServerSpec()
    tls = None
    if request.param == "tls":
        cert, key = map(str, certificate)
        spec = ServerSpec(certfile=cert, keyfile=key)
        tls = ssl.create_default_context(cafile=cert)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 4 * PLACES)), hard))
    long = variant(write_model(tmp_path / "model", LONG))
    endpoints = {"e": {"v": variant(bias_folders["1"])}, "long": {"v": long}}
    with gunicorn(tmp_path, endpoints, spec) as running, contextlib.ExitStack() as opened:

        def connected(sent=b""):
            connection = socket.create_connection(running.address, timeout=SECONDS)
            if tls is not None:
                connection = tls.wrap_socket(connection, server_hostname="127.0.0.1")
            opened.enter_context(connection)
            connection.sendall(sent)
            return connection

        yield connected
        assert "Traceback" not in running.log.read_text()
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def asks(connection):
    connection.sendall(PING)
    return is_answered(connection)


@pytest.mark.long
def test_idle_clients_are_evicted_first(connect):
    silent = [connect() for _ in range(PLACES + 50)]
    connection = connect()
    began = time.monotonic()
    for _ in range(50):
        assert asks(connection)
        assert asks(connect())
    assert time.monotonic() - began < SECONDS
    silent[0].settimeout(SECONDS)
    assert silent[0].recv(1) == b""  # It was closed first.
    silent[-1].setblocking(False)
    with pytest.raises(BlockingIOError):
        silent[-1].recv(1)


@pytest.mark.long
def test_active_clients_are_not_evicted(connect):
    asking = [connect(PING) for _ in range(20)]
    assert all(is_answered(connection) for connection in asking)
    for number in range(PLACES + 200):
        connect()
        if number % 100 == 0:
            assert [asks(connection) for connection in asking] == [True] * 20, number


@pytest.mark.long
@pytest.mark.parametrize("begun", [HALF_A_HEAD, HALF_A_BODY], ids=["heads", "bodies"])
def test_slow_requests_are_evicted(connect, begun):
    slow = [connect(begun) for _ in range(PLACES)]
    stop = threading.Event()

    def trickle():
        while not stop.wait(0.3):
            for connection in slow:
                with contextlib.suppress(OSError):
                    connection.send(b"a")

    thread = threading.Thread(target=trickle)
    thread.start()
    try:
        began = time.monotonic()
        clients = [connect(PING) for _ in range(20)]
        assert all(is_answered(client) for client in clients)
        assert time.monotonic() - began < SECONDS
    finally:
        stop.set()
        thread.join()


@pytest.mark.long
def test_active_upload_is_not_evicted(connect):
    body = b" " * 400_000
    upload = connect(
        b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    )
    for start in range(0, len(body), 4000):
        upload.sendall(body[start : start + 4000])
        for _ in range(20):
            connect()
    wait_until(lambda: upload.recv(12) == b"HTTP/1.1 415", what="its answer")


def ask_long(connection, more=b""):
    """Request 32 MiB, and wait for the first byte of the response."""
    body = b'{"inputs": {"x": [[1]]}}'
    head = (
        b"POST /endpoints/long/invocations HTTP/1.1\r\nHost: x\r\n"
        b"Content-Type: application/json\r\n"
    )
    connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body + more)
    assert connection.recv(1) == b"H"


def take(connection, size=2 * LONG_BYTES):
    """Read this number of bytes, or fewer if the connection or the long text ends;
    return the number.
    """
    count = 0
    with contextlib.suppress(ConnectionError):
        while count < min(size, LONG_BYTES + 1):
            piece = connection.recv(min(2**20, size - count))
            count += len(piece)
            if not piece:
                break
    return count


@pytest.mark.long
@pytest.mark.parametrize("connect", ["plain", "tls"], indirect=True)
def test_unread_answers_of_few_clients_are_held(connect):
    """At most the responses of eight clients wait: 256 MiB."""
    slow = [connect() for _ in range(12)]
    for connection in slow:
        ask_long(connection)
    assert asks(connect())
    assert take(slow[0]) < LONG_BYTES < take(slow[-1])


@pytest.mark.long
def test_half_read_answers_count_for_the_rest(connect):
    clients = [connect() for _ in range(12)]
    first = LONG_BYTES // 2
    for connection in clients:
        ask_long(connection)
        assert take(connection, first) == first
    assert [take(connection, LONG_BYTES - first) for connection in clients] == [
        LONG_BYTES - first
    ] * 12


@pytest.mark.long
def test_answer_read_late_is_whole(connect):
    connection = connect()
    ask_long(connection, more=PING)
    got = b""
    while not got.endswith(b"\r\n\r\n\n"):
        piece = connection.recv(2**20)
        assert piece
        got = got[-1000:] + piece
    assert b"0123456789abcdef" in got[:2000]
    assert b"HTTP/1.1 200 OK" in got[-1000:]
