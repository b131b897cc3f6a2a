"""Tests that the supervisor's process is ended together with its orphaned processes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mlflow_deploy_plugin.core.settings import Settings
from mlflow_deploy_plugin.core.statedir.files import LOG
from mlflow_deploy_plugin.ship.deployments.backends import supervisor
from mlflow_deploy_plugin.ship.deployments.backends.local import is_port_free
from mlflow_deploy_plugin.ship.deployments.backends.supervisor import (
    final_error,
    last_error,
    server_environment,
)
from tests.support.tracking import tracking_at
from tests.support.waiting import wait_until

_LISTENER = """
import socket, threading, time
listener = socket.create_server(("127.0.0.1", 0))
memory = bytearray(100_000_000)
memory[::4096] = b"1" * len(memory[::4096])  # as a worker with a model: it takes a moment to end
for _ in range(20):
    threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
print(listener.getsockname()[1], flush=True)
time.sleep(600)
"""


_EMPTIED = """
import os
print("one", flush=True)
while os.fstat(1).st_size:
    pass
print("two", flush=True)
"""


def test_truncated_log_begins_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(supervisor, "command", lambda state_dir: [sys.executable, "-c", _EMPTIED])
    pid = supervisor.start(tmp_path, os.environ)
    log = tmp_path / LOG
    wait_until(lambda: log.read_text() == "one\n", 30)

    os.truncate(log, 0)

    os.waitpid(pid, 0)
    assert log.read_text() == "two\n"


@pytest.mark.parametrize("is_dying", [False, True])
def test_port_is_free_after_stop(tmp_path, is_dying):
    command = [sys.executable, "-c", _LISTENER]
    with subprocess.Popen(
        command, cwd=tmp_path, start_new_session=True, stdout=subprocess.PIPE
    ) as left:
        assert left.stdout is not None
        port = int(left.stdout.readline())
        if is_dying:
            os.kill(left.pid, signal.SIGKILL)

        supervisor.stop(tmp_path, left.pid, patience_seconds=0)

        assert is_port_free("127.0.0.1", port)


@pytest.mark.parametrize(
    ("said", "kept"), [("sqlite:///here.db", "sqlite:///{}/here.db"), ("mlruns", "{}/mlruns")]
)
def test_registry_of_the_first_start_is_kept(tmp_path, monkeypatch, said, kept):
    monkeypatch.chdir(tmp_path)
    settings = Settings(home=Path("home"), log_uri="log")
    state_dir = tmp_path / "state"
    with tracking_at(said):
        first = server_environment(state_dir, settings)
    with tracking_at("http://elsewhere:5000"):
        second = server_environment(state_dir, settings)

    assert first["MLFLOW_TRACKING_URI"] == second["MLFLOW_TRACKING_URI"] == kept.format(tmp_path)
    assert first["ONNXSERVE_HOME"] == str(tmp_path / "home")
    assert first["ONNXSERVE_LOG_URI"] == str(tmp_path / "log")
    assert first["PATH"]


@pytest.mark.parametrize(
    ("log", "said"),
    [
        (
            "2026-11-20 08:00:00,1 [agent] INFO fine\nError: no such model\nonnxserve: goodbye\n",
            "no such model",
        ),
        (
            "2026-11-20 08:00:00,123 ERROR 12 mlflow_deploy_plugin.serve.models.repository: "
            "cannot load\n",
            "cannot load",
        ),
        ("[2026-11-20 08:00:00 +0000] [7] [CRITICAL] WORKER TIMEOUT\nlast\n", "WORKER TIMEOUT"),
        (
            "Traceback (most recent call last):\n  File x\nModuleNotFoundError: No module\n",
            "ModuleNotFoundError: No module",
        ),
        (
            "usage: gunicorn [OPTIONS]\ngunicorn: error: unrecognized arguments: --x\nINFO agent\n"
            "Error: gunicorn ended with status 2 before every worker was ready; the log says why\n",
            (
                "gunicorn ended with status 2 before every worker was ready: gunicorn: error: "
                "unrecognized arguments: --x"
            ),
        ),
        (
            "INFO x\nError: gunicorn was killed; the log says why\n",
            "gunicorn was killed; the log says why",
        ),
        ("Killed\n\n", "Killed"),
        (
            "exec /opt/onnxserve/bin/onnxserve: exec format error\n",
            (
                "the image is for another processor: onnxserve build-docker --platform linux/amd64 "
                "(or linux/arm64)"
            ),
        ),
        ("", ""),
        (None, ""),
    ],
)
def test_error_line_is_found_without_timestamp(tmp_path, log, said):
    if log is not None:
        (tmp_path / LOG).write_text(log)

    assert last_error(tmp_path) == said


@pytest.mark.parametrize(
    ("log", "said"), [("INFO x\nError: gone\n", "gone"), ("Error: old\nINFO serving\n", "")]
)
def test_final_error_is_the_last_line(tmp_path, log, said):
    (tmp_path / LOG).write_text(log)

    assert final_error(tmp_path) == said
