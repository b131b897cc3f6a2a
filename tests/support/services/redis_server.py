"""A real Redis on a free port, for a test session."""

import shutil
import socket
import subprocess
from contextlib import contextmanager

import pytest

from tests.support.waiting import free_port, wait_until


@contextmanager
def redis_server(folder):
    """Yield the URL when Redis responds; skip the test if redis-server is not
    installed.
    """
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("no redis-server is installed: apt-get install redis-server")
    port = free_port()
    process = subprocess.Popen(
        [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)],
        stdout=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: _answers(port), what="redis-server")
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.terminate()
        process.wait(timeout=20)


def _answers(port):
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
    except OSError:
        return False
