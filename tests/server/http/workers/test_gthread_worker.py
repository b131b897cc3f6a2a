"""Clients that are slow, or worse, against real gunicorn."""

import contextlib
import io
import math
import os
import re
import resource
import signal
import socket
import struct
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mlflow_deploy_plugin.server.http.workers import gthread_worker
from mlflow_deploy_plugin.spec import ServerSpec, WorkerClass
from mlflow_deploy_plugin.statedir import read_workers
from tests.support.waiting import wait_until

ROW = {"instances": [[1, 2, 3]]}
PING = b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n"
PLACES = 1000
"""gunicorn's --worker-connections."""


def status(pid: int, field: str) -> str:
    """Return the first word of a field of the process's status."""
    found = re.search(rf"^{field}:\s*(\w+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return found[1] if found else ""


def is_stopped(pid: int) -> bool:
    return status(pid, "State") == "T"


def trickle(connection: socket.socket, stop: threading.Event) -> None:
    """Send a byte now and then: there is never a second without one."""
    with contextlib.suppress(OSError):
        while not stop.wait(0.2):
            connection.sendall(b" ")


BEGUN = (b"GET /ping HTTP/1.1\r\nX:", b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Length: 9999\r\n\r\n{")


def test_clients_whose_requests_trickle_in_do_not_hold_the_threads_for_ever(
    tmp_path: Path, bias_folders: dict[str, Path], tools: Any
) -> None:
    """There are as many clients of either kind as threads."""
    tools.want(tmp_path, 1, {"e": {"v": tools.variant(bias_folders["1"], "1")}})
    spec = ServerSpec(worker_class="gthread", threads=2, request_timeout_seconds=1)
    stop = threading.Event()
    with tools.gunicorn(tmp_path, spec) as running, contextlib.ExitStack() as slow:
        slow.callback(stop.set)
        for begun in BEGUN * 2:
            connection = slow.enter_context(
                socket.create_connection(("127.0.0.1", int(running.url.rpartition(":")[2])))
            )
            connection.sendall(begun)
            threading.Thread(target=trickle, args=(connection, stop)).start()
        started = time.monotonic()
        assert running.post(json=ROW).status_code == 200
        assert time.monotonic() - started < 20
        assert "Traceback" not in running.log.read_text()


@pytest.mark.parametrize("kind", ["fast", "gthread"])
def test_clients_that_are_connected_and_not_accepted_yet_are_answered_after_sigterm(
    tmp_path: Path, bias_folders: dict[str, Path], tools: Any, kind: WorkerClass
) -> None:
    tools.want(tmp_path, 1, {"e": {"v": tools.variant(bias_folders["1"], "1")}})

    def is_told_to_end() -> bool:
        return bool(int(status(worker.pid, "ShdPnd"), 16) >> (signal.SIGTERM - 1) & 1)

    with tools.gunicorn(tmp_path, ServerSpec(worker_class=kind)) as running, contextlib.ExitStack() as waiting:
        (worker,) = read_workers(tmp_path)
        address = ("127.0.0.1", int(running.url.rpartition(":")[2]))
        os.kill(worker.pid, signal.SIGSTOP)
        # not before: of two pending signals the lower number comes first, and that is SIGTERM
        wait_until(lambda: is_stopped(worker.pid), what="the worker's stop")
        clients = [waiting.enter_context(socket.create_connection(address, timeout=30)) for _ in range(20)]
        for client in clients:
            client.sendall(PING)
        running.process.send_signal(signal.SIGTERM)
        wait_until(is_told_to_end, what="SIGTERM")
        os.kill(worker.pid, signal.SIGCONT)
        assert {client.recv(12) for client in clients} == {b"HTTP/1.1 200"}


POST = b"POST /invocations HTTP/1.1\r\nHost: x\r\n"


@pytest.mark.parametrize(
    ("come", "is_whole"),
    [
        (b"", False),
        (POST, False),
        (POST + b"\r\n", True),
        (POST + b"Content-Length: 2\r\n\r\n{", False),
        (POST + b"Content-Length: 2\r\n\r\n{}", True),
        (POST + b"Content-Length: 2\r\n\r\n{}" + POST, True),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{", False),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", True),
        (b"no request\r\n\r\n", True),
    ],
)
@pytest.mark.parametrize("read_before", [0, 10])
def test_a_request_that_waits_for_a_thread_lags_behind_unless_it_is_whole(
    come: bytes, is_whole: bool, read_before: int
) -> None:
    ours, client = socket.socketpair()
    unreader = SimpleNamespace(buf=io.BytesIO(come[:read_before]))
    conn: Any = SimpleNamespace(
        sock=ours, cfg=SimpleNamespace(is_ssl=False), initialized=True, parser=SimpleNamespace(unreader=unreader)
    )
    left = come[read_before:]
    with ours, client:
        client.sendall(left)
        lag = gthread_worker._lag_unread(conn, 5.0)
        assert not left or ours.recv(1000, socket.MSG_DONTWAIT) == left
    assert lag == (-math.inf if is_whole else 5.0 - len(come) / 1024)


def reset(connection: socket.socket) -> None:
    """Close the connection so that the server's next read of it fails."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def test_a_client_that_resets_while_it_waits_for_a_thread_ends_no_worker(
    tmp_path: Path, bias_folders: dict[str, Path], tools: Any
) -> None:
    tools.want(tmp_path, 1, {"e": {"v": tools.variant(bias_folders["1"], "1")}})
    spec = ServerSpec(worker_class="gthread", threads=1)
    with tools.gunicorn(tmp_path, spec) as running:
        (worker,) = read_workers(tmp_path)
        address = ("127.0.0.1", int(running.url.rpartition(":")[2]))
        os.kill(worker.pid, signal.SIGSTOP)
        wait_until(lambda: is_stopped(worker.pid), what="the worker's stop")
        clients = [socket.create_connection(address) for _ in range(3)]
        for client in clients:
            client.sendall(PING + BEGUN[0])
        os.kill(worker.pid, signal.SIGCONT)
        for client in clients:
            assert client.recv(100).startswith(b"HTTP/1.1 200")
        time.sleep(0.2)  # the first one's second request holds the thread, and those of the others have been read
        for client in clients[1:]:
            reset(client)
        time.sleep(2.5)  # requests that wait are judged once a second
        clients[0].close()
        assert running.post(json=ROW).status_code == 200
        assert "Traceback" not in running.log.read_text()
        assert {state.pid for state in read_workers(tmp_path)} == {worker.pid}


def test_a_client_that_is_replaced_in_the_moment_it_asks_ends_no_worker(
    tmp_path: Path, bias_folders: dict[str, Path], tools: Any
) -> None:
    """The selector reports the new client and the request of the idle one together."""
    tools.want(tmp_path, 1, {"e": {"v": tools.variant(bias_folders["1"], "1")}})
    with tools.gunicorn(tmp_path, ServerSpec(worker_class="gthread")) as running, contextlib.ExitStack() as clients:
        (worker,) = read_workers(tmp_path)
        address = ("127.0.0.1", int(running.url.rpartition(":")[2]))

        def connect() -> socket.socket:
            return clients.enter_context(socket.create_connection(address, timeout=20))

        idle = [connect() for _ in range(PLACES - 1)]
        assert running.post(json=ROW).status_code == 200  # so all of them have been accepted; one place is left
        os.kill(worker.pid, signal.SIGSTOP)
        wait_until(lambda: is_stopped(worker.pid), what="the worker's stop")
        new = connect()
        for client in idle[:8]:  # the request before took the first of them
            with contextlib.suppress(OSError):
                client.sendall(PING)
        os.kill(worker.pid, signal.SIGCONT)
        new.sendall(PING)
        assert new.recv(100).startswith(b"HTTP/1.1 200")
        assert "Traceback" not in running.log.read_text()
        assert {state.pid for state in read_workers(tmp_path)} == {worker.pid}


def test_a_worker_without_a_file_left_takes_that_of_the_client_that_was_idle_the_longest(
    tmp_path: Path, bias_folders: dict[str, Path], tools: Any
) -> None:
    tools.want(tmp_path, 1, {"e": {"v": tools.variant(bias_folders["1"], "1")}})
    with tools.gunicorn(tmp_path, ServerSpec(worker_class="gthread")) as running, contextlib.ExitStack() as clients:
        (worker,) = read_workers(tmp_path)
        highest = max(int(path.name) for path in Path(f"/proc/{worker.pid}/fd").iterdir())
        resource.prlimit(worker.pid, resource.RLIMIT_NOFILE, (highest + 20, highest + 20))
        address = ("127.0.0.1", int(running.url.rpartition(":")[2]))
        for _ in range(60):
            clients.enter_context(socket.create_connection(address, timeout=20))
        last = clients.enter_context(socket.create_connection(address, timeout=20))
        last.sendall(PING)
        assert last.recv(100).startswith(b"HTTP/1.1 200")
        assert "Traceback" not in running.log.read_text()
        assert {state.pid for state in read_workers(tmp_path)} == {worker.pid}
