"""Start and stop the MLflow server of the demo. Only processes that the demo has
started are stopped.

A process is identified by its id and start time, because the id may be reused by a
different process.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import requests

from mlflow_deploy_plugin.core.errors import DeploymentFailed
from projects.demo.workspace import Workspace

READY_SECONDS = 90.0
STOP_SECONDS = 15.0
_WITHOUT_JOBS = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # Idle job workers take a gigabyte.
_POLL_SECONDS = 0.2
_LOG_LINES = 15


def start_mlflow(workspace: Workspace) -> str:
    """Start MLflow's server with its UI on a free port, wait until it answers, and
    return its URL.

    Raises:
        DeploymentFailed: the server does not start; the message contains the end of its
            log.
    """
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    log = workspace.mlflow / "server.log"
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--app-name", "onnxserve"),
        *("--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", f"sqlite:///{workspace.mlflow / 'mlflow.db'}"),
        *("--artifacts-destination", str(workspace.mlflow / "artifacts")),
    ]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=workspace.mlflow,
            env=os.environ | _WITHOUT_JOBS,
            start_new_session=True,
        )
    remembered = {
        "pid": process.pid,
        "created": psutil.Process(process.pid).create_time(),
        "url": url,
    }
    workspace.server_file.write_text(json.dumps(remembered))
    deadline = time.monotonic() + READY_SECONDS
    while not _answers(url):
        if process.poll() is not None or time.monotonic() > deadline:
            stop_mlflow(workspace)
            raise DeploymentFailed(
                f"the MLflow server did not start; its log ends with:\n{_tail(log)}",
            )
        time.sleep(_POLL_SECONDS)
    return url


def stop_mlflow(workspace: Workspace) -> bool:
    """Stop the MLflow server of this workspace and its children. Return True if a
    server was running.
    """
    process = _remembered(workspace)
    if process is None:
        workspace.server_file.unlink(missing_ok=True)
        return False
    family = [process, *process.children(recursive=True)]
    for member in family:
        _send(member, signal.SIGTERM)
    _, alive = psutil.wait_procs(family, timeout=STOP_SECONDS)
    for member in alive:
        _send(member, signal.SIGKILL)
    psutil.wait_procs(alive, timeout=STOP_SECONDS)
    workspace.server_file.unlink(missing_ok=True)
    return True


def mlflow_url(workspace: Workspace) -> str | None:
    """Return the URL of the workspace's MLflow server, or None if no server runs."""
    if _remembered(workspace) is None:
        return None
    return str(json.loads(workspace.server_file.read_text())["url"])


def _remembered(workspace: Workspace) -> psutil.Process | None:
    try:
        remembered = json.loads(workspace.server_file.read_text())
        process = psutil.Process(remembered["pid"])
        same = abs(process.create_time() - remembered["created"]) < 1
    except (OSError, ValueError, KeyError, TypeError, psutil.NoSuchProcess):
        return None
    if same and process.status() != psutil.STATUS_ZOMBIE:
        return process
    return None


def _send(process: psutil.Process, number: signal.Signals) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def _answers(url: str) -> bool:
    try:
        return requests.get(f"{url}/health", timeout=2).status_code == 200
    except requests.RequestException:
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-_LOG_LINES:])
