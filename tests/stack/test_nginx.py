"""docker/stack/nginx.conf under Debian's nginx with two servers; the first server dies
during the request.
"""

import subprocess
import sys
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
import requests

from tests.stack.native import COMPOSE, NativeStack

asked: list[str] = []
"""Return the address of each server that received the request."""


class Server(BaseHTTPRequestHandler):
    """Close the connection of the first request without a response, and answer the next
    request.
    """

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        asked.append(self.connection.getsockname()[0])
        if len(asked) > 1:
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    stack = NativeStack(
        tmp_path_factory.mktemp("nginx"), {}, {"max_fails=1 fail_timeout=2s": "max_fails=0"}
    )
    stack.secrets.mkdir()
    make = [
        sys.executable,
        str(COMPOSE.parent / "stack" / "make_secrets.py"),
        "--folder",
        str(stack.secrets),
    ]
    subprocess.run([*make, "--host", stack.addresses["nginx"]], check=True)
    with ExitStack() as started:
        for name in ("server-a", "server-b"):
            server = started.enter_context(
                ThreadingHTTPServer((stack.addresses[name], 8080), Server)
            )
            Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}).start()
            started.callback(server.shutdown)
        started.callback(stack.end)
        stack.start("nginx")
        stack.wait_for("nginx", lambda: post(stack, "/") is not None)
        yield stack


def post(stack, path):
    """Return the status; None if nginx does not listen yet."""
    asked.clear()
    try:
        return requests.post(
            stack.door + path, b"{}", verify=str(stack.secrets / "tls.crt"), timeout=30
        ).status_code
    except requests.ConnectionError:
        return None


@pytest.mark.parametrize(
    "path",
    [
        "/invocations",
        "/endpoints/e/invocations",
        "/v2/models/e/infer",
        "/feedback",
        "/endpoints/e/feedback",
    ],
)
def test_repeatable_requests_are_retried_on_the_other_server(stack, path):
    assert post(stack, path) == 200
    assert set(asked) == {stack.addresses["server-a"], stack.addresses["server-b"]}


def test_nothing_else_comes_twice(stack):
    assert post(stack, "/v2/models/e/explain") == 502
    assert len(asked) == 1
