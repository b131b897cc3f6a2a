"""The listening socket that servers share during a replacement."""

import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

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


def test_servers_share_one_queue(holder, tmp_path, free_port):
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


def test_shared_listener_needs_path_and_holder(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_WAIT_SECONDS", 0.1)
    with shared_listener(None) as none:
        assert none is None
    with (
        pytest.raises(DeploymentFailed, match="listening socket"),
        shared_listener(tmp_path / "door"),
    ):
        pass


@pytest.mark.long
def test_server_is_replaced_under_load(
    holder, serve, bias_folders, free_port, tmp_path, monkeypatch
):
    monkeypatch.setenv("ONNXSERVE_LISTENER", str(tmp_path / "door"))
    earlier = serve(str(bias_folders["1"]), state="earlier").wait_ready()
    url = f"http://127.0.0.1:{free_port}/invocations"
    answers = Counter()
    is_over = threading.Event()

    def ask():
        with requests.Session() as session:
            while not is_over.is_set():
                try:
                    answer = session.post(url, json={"inputs": [[0.0, 0.0, 0.0]]}, timeout=20)
                    answers[answer.text] += 1
                except requests.RequestException as error:
                    answers[repr(error)] += 1
                is_over.wait(0.002)

    with ThreadPoolExecutor(4) as clients:
        for _ in range(4):
            clients.submit(ask)
        later = serve(str(bias_folders["1"]), state="later").wait_ready()
        assert earlier.end() == 0
        before = answers.total()
        wait_until(lambda: answers.total() > before + 100)
        is_over.set()

    (answer,) = answers
    assert answer.startswith('{"predictions"')
    holder.kill()
    wait_until(
        lambda: later.process.poll() is not None,
        what="the server ends, to be started on another socket",
    )
    assert later.process.returncode == 1
