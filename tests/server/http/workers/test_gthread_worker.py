"""Clients that are slow, or worse, against real gunicorn."""

import contextlib
import io
import json
import math
import os
import re
import resource
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mlflow_deploy_plugin.server.http.workers import gthread_worker
from mlflow_deploy_plugin.spec import ServerSpec, WorkerClass
from mlflow_deploy_plugin.statedir import read_workers
from tests.support.servers import gunicorn, one_endpoint
from tests.support.serving import is_answered
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


def server_end(pid: int, connection: socket.socket) -> list[list[str]]:
    """Return what the kernel says of the process's end of a connection, as proc_pid_net(5) has it.

    That is one line. While others connect and leave, the kernel may pass it over, or tell it twice.
    """
    ends = [connection.getpeername()[1], connection.getsockname()[1]]  # a connection of others may have one of them
    lines = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    return [line for line in lines if [int(end.partition(":")[2], 16) for end in line[1:3]] == ends]


def is_accepted(pid: int, connection: socket.socket) -> bool:
    inodes = {line[9] for line in server_end(pid, connection)}
    return inodes not in (set(), {"0"})


def is_read(pid: int, connection: socket.socket) -> bool:
    """Return True if the process has read all that was sent to it by this connection."""
    unread = {line[4].partition(":")[2] for line in server_end(pid, connection)}
    return unread == {"00000000"}


def trickle(connection: socket.socket, stop: threading.Event) -> None:
    """Send a byte now and then: there is never a second without one."""
    with contextlib.suppress(OSError):
        while not stop.wait(0.2):
            connection.sendall(b" ")


BEGUN = (b"GET /ping HTTP/1.1\r\nX:", b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Length: 9999\r\n\r\n{")


def test_clients_whose_requests_trickle_in_do_not_hold_the_threads_for_ever(
    tmp_path: Path, bias_folders: dict[str, Path]
) -> None:
    """There are as many clients of either kind as threads."""
    spec = ServerSpec(worker_class="gthread", threads=2, request_timeout_seconds=1)
    stop = threading.Event()
    with gunicorn(tmp_path, one_endpoint(bias_folders["1"]), spec) as running, contextlib.ExitStack() as slow:
        slow.callback(stop.set)
        for begun in BEGUN * 2:
            connection = slow.enter_context(
                socket.create_connection(("127.0.0.1", int(running.url.rpartition(":")[2])))
            )
            connection.sendall(begun)
            threading.Thread(target=trickle, args=(connection, stop)).start()
        assert running.post(json=ROW).status_code == 200  # within 30 s
        assert "Traceback" not in running.log.read_text()


def test_streams_whose_clients_take_nothing_do_not_hold_the_threads_while_others_wait(
    tmp_path: Path, bias_folders: dict[str, Path]
) -> None:
    head = b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: application/jsonlines\r\n"
    rows = b"[1,2,3]\n" * 20_000

    def feed(connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection.sendall(b"%X\r\n%b\r\n" % (len(rows), rows))

    spec = ServerSpec(worker_class="gthread", threads=2, request_timeout_seconds=60, max_body_bytes=100_000)
    with gunicorn(tmp_path, one_endpoint(bias_folders["1"]), spec) as running, contextlib.ExitStack() as slow:
        for _ in range(spec.threads):
            connection = slow.enter_context(
                socket.create_connection(("127.0.0.1", int(running.url.rpartition(":")[2])))
            )
            connection.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n")
            threading.Thread(target=feed, args=[connection]).start()
            assert connection.recv(1) == b"H"
        assert running.post(json=ROW).status_code == 200  # within 30 s
        assert "Traceback" not in running.log.read_text()


def test_the_wait_for_a_thread_counts_towards_the_deadline(tmp_path: Path, bias_folders: dict[str, Path]) -> None:
    tensor = {"name": "X", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}
    with gunicorn(tmp_path, one_endpoint(bias_folders["1"]), ServerSpec(worker_class="gthread", threads=1)) as running:
        (worker,) = read_workers(tmp_path)
        address = "127.0.0.1", int(running.url.rpartition(":")[2])
        with contextlib.ExitStack() as opened:
            holder, waiting = (opened.enter_context(socket.create_connection(address)) for _ in range(2))
            holder.sendall(b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{")
            wait_until(lambda: is_read(worker.pid, holder), what="the only thread")
            body = json.dumps({"inputs": [tensor], "parameters": {"timeout": 200_000}}).encode()
            head = b"POST /v2/models/e/infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
            wait_until(lambda: is_accepted(worker.pid, waiting), what="the client that will wait")
            waiting.sendall(head + body)
            later = opened.enter_context(socket.create_connection(address))
            wait_until(lambda: is_accepted(worker.pid, later), what="what has come before the last client")
            queued = time.monotonic()
            wait_until(lambda: time.monotonic() > queued + 0.5, what="the end of its time")
            holder.sendall(b"}")
            assert waiting.recv(65536).startswith(b"HTTP/1.1 504 ")


@pytest.mark.parametrize("kind", ["fast", "gthread"])
def test_clients_that_are_connected_and_not_accepted_yet_are_answered_after_sigterm(
    tmp_path: Path, bias_folders: dict[str, Path], kind: WorkerClass
) -> None:

    def is_told_to_end() -> bool:
        return bool(int(status(worker.pid, "ShdPnd"), 16) >> (signal.SIGTERM - 1) & 1)

    with (
        gunicorn(tmp_path, one_endpoint(bias_folders["1"]), ServerSpec(worker_class=kind)) as running,
        contextlib.ExitStack() as waiting,
    ):
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


@dataclass(frozen=True)
class LivingWorker:
    """The only worker of a server, which has to outlive the test."""

    running: Any
    pid: int

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", int(self.running.url.rpartition(":")[2])), timeout=20)

    def stop(self) -> None:
        """Let it do nothing, until SIGCONT."""
        os.kill(self.pid, signal.SIGSTOP)
        wait_until(lambda: is_stopped(self.pid), what="the worker's stop")


@pytest.fixture
def living(request: pytest.FixtureRequest, tmp_path: Path, bias_folders: dict[str, Path]) -> Iterator[LivingWorker]:
    """Run a server; the parameter is its number of threads."""
    spec = ServerSpec(worker_class="gthread", threads=getattr(request, "param", 4))
    with gunicorn(tmp_path, one_endpoint(bias_folders["1"]), spec) as running:
        (state,) = read_workers(tmp_path)
        yield LivingWorker(running, state.pid)
        assert "Traceback" not in running.log.read_text()
        assert [left.pid for left in read_workers(tmp_path)] == [state.pid]


def reset(connection: socket.socket) -> None:
    """Close the connection so that the server's next read of it fails."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@pytest.mark.parametrize("living", [1], indirect=True)
def test_a_client_that_resets_while_it_waits_for_a_thread_ends_no_worker(living: LivingWorker) -> None:
    clients = [living.connect() for _ in range(3)]
    for client in clients:
        client.sendall(PING)
        assert is_answered(client)
    living.stop()  # so that the selector reports them together, in this order
    for client in clients:
        client.sendall(PING + BEGUN[0])
    os.kill(living.pid, signal.SIGCONT)
    for client in clients:
        assert is_answered(client)
    time.sleep(0.2)  # the first one's second request holds the thread, and those of the others have been read
    for client in clients[1:]:
        reset(client)
    time.sleep(2.5)  # requests that wait are judged once a second
    clients[0].close()
    assert living.running.post(json=ROW).status_code == 200


def test_a_client_that_is_replaced_in_the_moment_it_asks_ends_no_worker(living: LivingWorker) -> None:
    """The selector reports the new client and the request of the idle one together."""
    with contextlib.ExitStack() as clients:
        idle = [clients.enter_context(living.connect()) for _ in range(PLACES - 1)]
        idle[-1].sendall(PING)
        assert idle[-1].recv(100).startswith(b"HTTP/1.1 200")  # so all of them have been accepted; one place is left
        living.stop()
        new = clients.enter_context(living.connect())
        for client in idle[:8]:  # the first of them is closed for the new one
            client.sendall(PING)
        os.kill(living.pid, signal.SIGCONT)
        new.sendall(PING)
        assert new.recv(100).startswith(b"HTTP/1.1 200")


def test_a_worker_without_a_file_left_takes_that_of_the_client_that_was_idle_the_longest(living: LivingWorker) -> None:
    highest = max(int(path.name) for path in Path(f"/proc/{living.pid}/fd").iterdir())
    resource.prlimit(living.pid, resource.RLIMIT_NOFILE, (highest + 20, highest + 20))
    with contextlib.ExitStack() as clients:
        *_, last = [clients.enter_context(living.connect()) for _ in range(61)]
        last.sendall(PING)
        assert last.recv(100).startswith(b"HTTP/1.1 200")
