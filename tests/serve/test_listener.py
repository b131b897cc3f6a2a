"""The listening socket that servers share during a replacement."""

import fcntl
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace

import pytest
import requests

from mlflow_deploy_plugin.core.errors import DeploymentFailed
from mlflow_deploy_plugin.serve import listener as module
from mlflow_deploy_plugin.serve.listener import shared_listener
from tests.support.waiting import wait_until


@pytest.fixture
def holder(tmp_path, free_port):
    """The process that listens on the port, and sends its socket at `tmp_path/door`."""
    path = tmp_path / "door"
    command = [
        sys.executable,
        "-m",
        "mlflow_deploy_plugin.cli",
        "hold-socket",
        str(path),
        str(free_port),
    ]
    with subprocess.Popen(command) as process:
        wait_until(path.exists)
        yield process
        process.kill()


def test_servers_share_one_queue_of_connections_and_hear_of_its_end(holder, tmp_path, free_port):
    with shared_listener(tmp_path / "door") as first, shared_listener(tmp_path / "door") as second:
        assert first is not None
        assert second is not None
        client = socket.create_connection(("127.0.0.1", free_port), timeout=5)
        first.listener.close()
        accepted, _ = second.listener.accept()
        accepted.close()
        client.close()
        assert not second.is_gone

        holder.send_signal(signal.SIGTERM)

        assert holder.wait(timeout=10) == 0
        wait_until(lambda: second.is_gone)


def test_a_process_with_many_open_files_hears_of_the_end_too(holder, tmp_path):
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, before[1]), before[1]))
    try:
        with shared_listener(tmp_path / "door") as shared:
            assert shared is not None
            beyond_select = fcntl.fcntl(shared.holder, fcntl.F_DUPFD_CLOEXEC, 1500)
            with socket.socket(fileno=beyond_select) as connection:
                assert not replace(shared, holder=connection).is_gone
                holder.kill()
                wait_until(lambda: replace(shared, holder=connection).is_gone)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_without_a_path_no_listener_is_shared_and_a_path_needs_a_holder(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_WAIT_SECONDS", 0.1)
    with shared_listener(None) as none:
        assert none is None
    with (
        pytest.raises(DeploymentFailed, match="listening socket"),
        shared_listener(tmp_path / "door"),
    ):
        pass


@pytest.mark.long
def test_a_server_takes_over_from_another_under_load_without_a_failed_request(
    holder, serve, bias_folders, free_port, tmp_path, monkeypatch
):
    monkeypatch.setenv("ONNXSERVE_LISTENER", str(tmp_path / "door"))
    arguments = str(bias_folders["1"])
    earlier = serve(*arguments, state="earlier").wait_ready()
    answers: Counter[str] = Counter()
    is_over = threading.Event()

    def ask():
        with requests.Session() as session:
            while not is_over.is_set():
                try:
                    url = f"http://127.0.0.1:{free_port}/invocations"
                    answers[
                        session.post(url, json={"inputs": [[0.0, 0.0, 0.0]]}, timeout=20).text
                    ] += 1
                except requests.RequestException as error:
                    answers[repr(error)] += 1
                time.sleep(0.002)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    later = serve(*arguments, state="later").wait_ready()
    assert earlier.end() == 0
    before = answers.total()
    wait_until(lambda: answers.total() > before + 100)
    is_over.set()
    for thread in threads:
        thread.join()

    assert len(answers) == 1, answers
    assert next(iter(answers)).startswith('{"predictions"')
    holder.kill()
    wait_until(
        lambda: later.process.poll() is not None,
        what="the server ends, to be started on another socket",
    )
    assert later.process.returncode == 1
