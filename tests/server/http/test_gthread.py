"""Clients that are slow, or worse, against real gunicorn."""

import contextlib
import os
import re
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from mlflow_deploy_plugin.server.state import read_workers
from mlflow_deploy_plugin.spec import ServerSpec, WorkerClass
from support.waiting import wait_until

ROW = {"instances": [[1, 2, 3]]}


def trickle(connection: socket.socket, stop: threading.Event) -> None:
    """Sends a byte now and then: there is never a second without news."""
    with contextlib.suppress(OSError):
        while not stop.wait(0.2):
            connection.sendall(b" ")


BEGUN = (b"GET /ping HTTP/1.1\r\nX:", b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Length: 9999\r\n\r\n{")


def test_clients_whose_requests_trickle_in_do_not_hold_the_threads_for_ever(
    tmp_path: Path, bias_folders: dict[str, Path], tools: Any
) -> None:
    """Of either kind as many as there are threads."""
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

    def status(field: str) -> str:
        found = re.search(rf"^{field}:\s*(\w+)", Path(f"/proc/{worker.pid}/status").read_text(), re.MULTILINE)
        return found[1] if found else ""

    def is_told_to_end() -> bool:
        return bool(int(status("ShdPnd"), 16) >> (signal.SIGTERM - 1) & 1)

    with tools.gunicorn(tmp_path, ServerSpec(worker_class=kind)) as running, contextlib.ExitStack() as waiting:
        (worker,) = read_workers(tmp_path)
        address = ("127.0.0.1", int(running.url.rpartition(":")[2]))
        os.kill(worker.pid, signal.SIGSTOP)
        # not before: of two pending signals the lower number comes first, and that is SIGTERM
        wait_until(lambda: status("State") == "T", what="the worker's stop")
        clients = [waiting.enter_context(socket.create_connection(address, timeout=30)) for _ in range(20)]
        for client in clients:
            client.sendall(b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n")
        running.process.send_signal(signal.SIGTERM)
        wait_until(is_told_to_end, what="SIGTERM")
        os.kill(worker.pid, signal.SIGCONT)
        assert {client.recv(12) for client in clients} == {b"HTTP/1.1 200"}
