"""Tests of servers that send too much or too slowly, in each way that HTTP allows."""

import gzip
import os
import socket
import subprocess
import sys
import threading
import time
from itertools import chain, repeat
from socketserver import StreamRequestHandler, ThreadingTCPServer

import pytest
import requests
from urllib3 import Retry

from mlflow_deploy_plugin.core.errors import RegistryUnavailable
from mlflow_deploy_plugin.core.registry import answers
from mlflow_deploy_plugin.core.registry.answers import bounded_answers
from mlflow_deploy_plugin.core.registry.connection import registry_errors
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


@pytest.fixture
def busy(monkeypatch):
    """Return a function that calls a server which asks for a pause, with the limits of
    a command or the agent, and returns the error and the seconds.
    """

    def call(pause, is_agent, retries="0"):
        monkeypatch.setattr(Retry, "increment", Retry.increment)
        monkeypatch.setattr(answers, "_PAUSE_SECONDS", 1.5)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", retries)
        answers.limit_retries.__wrapped__(is_agent)
        begun = time.monotonic()
        answer = 429, "application/json", "{}", ("Retry-After", pause)
        with answering(lambda *_: answer) as url:
            monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
            with pytest.raises(RegistryUnavailable) as raised, registry_errors("run a"):
                MlflowRest(url, url).get_run("a")
        return raised.value.message, time.monotonic() - begun

    return call


@pytest.mark.parametrize(
    ("pause", "is_agent", "retries", "named", "least", "most"),
    [
        ("1", True, "0", "the status 429", 1, 30),
        ("3600", False, "2", "the status 429 and asks for a pause of 3600 s", 0, 30),
        ("3600", True, "2", "the status 429 and asks for a pause of 3600 s", 1.5, 30),
        ("Wed, 21 Oct 2099 07:28:00 GMT", False, "2", "asks for a pause of", 0, 30),
        ("soon", False, "2", "Invalid Retry-After header: soon", 0, 30),
    ],
)
def test_retry_after_is_limited_and_named(busy, pause, is_agent, retries, named, least, most):
    message, seconds = busy(pause, is_agent, retries)
    assert named in message
    assert least <= seconds < most


@pytest.mark.long
@pytest.mark.parametrize("registry", ["databricks", "databricks-uc"])
def test_absent_databricks_is_called_once(registry, tmp_path):
    pytest.importorskip("databricks.sdk")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        host = f"127.0.0.1:{silent.getsockname()[1]}"
        databricks = {"DATABRICKS_HOST": f"http://{host}", "DATABRICKS_TOKEN": "secret"}
        command = [sys.executable, "-m", "mlflow_deploy_plugin.cli"]
        addresses = {"MLFLOW_TRACKING_URI": "databricks", "MLFLOW_REGISTRY_URI": registry}
        ended = subprocess.run(
            [*command, "fetch", "models:/a.b.c/1", tmp_path],
            check=False,
            env=os.environ | databricks | addresses,
            capture_output=True,
            text=True,
        )
        silent.setblocking(False)
        silent.accept()
        with pytest.raises(BlockingIOError):
            silent.accept()
    assert f"{host} does not answer within 3 s; check DATABRICKS_HOST" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
