"""Tests of servers that send too much or too slowly, in each way that HTTP allows."""

import gzip
import threading
import time
from itertools import chain, repeat
from socketserver import StreamRequestHandler, ThreadingTCPServer

import pytest
import requests
from urllib3 import Retry

from mlflow_deploy_plugin.core.registry.answers import bounded_answers, wait_after_refusals
from mlflow_deploy_plugin.core.registry.rest import MlflowRest
from tests.support.refusals import refused
from tests.support.services.listener import answering
from tests.support.waiting import wait_until

MOST = 100_000
SECONDS = 0.5
HEAD = b"HTTP/1.1 200 OK\r\n"
ZEROS = bytes(65536)


def trickled(content):
    for byte in content:
        time.sleep(0.02)
        yield bytes([byte])


def endless(head, piece=ZEROS):
    """Return a function that yields this head, and then the piece again and again."""
    return lambda: chain([head], repeat(piece))


ENDLESS = {
    "length": endless(HEAD + b"Content-Length: 600000000\r\n\r\n"),
    "chunks": endless(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"10000\r\n" + ZEROS + b"\r\n"),
    "until closed": endless(HEAD + b"Connection: close\r\n\r\n"),
}
REDIRECTION = b"HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 600000000\r\n\r\n"


def packed():
    body = gzip.compress(bytes(10 * MOST))
    yield HEAD + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body) + body


def slow_head():
    yield from trickled(HEAD + b"X-Long: " + b"x" * 1000)


def slow_body():
    yield HEAD + b"Content-Length: 1000\r\n\r\n"
    yield from trickled(bytes(1000))


def slow_body_until_closed():
    yield HEAD + b"Connection: close\r\n\r\n"
    yield from trickled(bytes(1000))


def largest():
    yield HEAD + b"Content-Length: %d\r\n\r\n" % MOST + bytes(MOST)


@pytest.fixture
def serve():
    """Yield a function that starts a server with this response for each request and
    returns its address.
    """
    started: list[ThreadingTCPServer] = []

    def start(answer):
        class Service(StreamRequestHandler):
            def handle(self):
                while self.rfile.readline().strip():
                    pass
                try:
                    for piece in answer():
                        self.wfile.write(piece)
                except OSError:
                    pass  # The client may have closed the connection.

        server = ThreadingTCPServer(("127.0.0.1", 0), Service)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.02,)).start()
        started.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}/"

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("answer", [*ENDLESS.values(), packed], ids=[*ENDLESS, "packed"])
def test_oversized_body_is_refused(serve, answer):
    with bounded_answers(MOST), refused(requests.RequestException, "100,000 bytes"):
        requests.get(serve(answer), timeout=5)


def test_redirection_body_is_bounded(serve):
    url = serve(endless(REDIRECTION))
    with requests.Session() as session:
        session.max_redirects = 3
        with bounded_answers(MOST), pytest.raises(requests.TooManyRedirects):
            session.get(url, timeout=5)


@pytest.mark.parametrize("answer", [slow_head, slow_body, slow_body_until_closed])
def test_slow_answer_is_refused(serve, answer):
    url = serve(answer)
    began = time.monotonic()
    with (
        bounded_answers(seconds=SECONDS),
        refused(requests.RequestException, "not complete", "0.5 s"),
    ):
        requests.get(url, timeout=0.2)
    assert time.monotonic() - began < 5


def test_longer_read_timeout_extends_deadline(serve):
    def late():
        time.sleep(2 * SECONDS)
        yield from largest()

    with bounded_answers(MOST, SECONDS):
        assert len(requests.get(serve(late), timeout=10 * SECONDS).content) == MOST


def test_complete_answer_cancels_deadline(serve):
    url = serve(largest)
    with bounded_answers(MOST, seconds=3600):
        assert len(requests.get(url, timeout=5).content) == MOST
        wait_until(
            lambda: not any(isinstance(thread, threading.Timer) for thread in threading.enumerate())
        )


def test_refused_call_waits_for_retry_after(monkeypatch):
    monkeypatch.setattr(Retry, "increment", Retry.increment)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    wait_after_refusals.__wrapped__()
    begun = time.monotonic()
    busy = 429, "application/json", "{}", ("Retry-After", "1")
    with answering(lambda *_: busy) as url, pytest.raises(requests.RequestException):
        MlflowRest(url, url).get_run("a")
    assert time.monotonic() - begun >= 1
