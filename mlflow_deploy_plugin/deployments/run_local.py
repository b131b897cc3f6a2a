"""A deployment in the foreground: the same supervisor, ended by Ctrl-C, nothing kept."""

import os
import signal
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from mlflow_deploy_plugin.deployments.backends import supervisor
from mlflow_deploy_plugin.deployments.backends.ports import check_port, choose_port
from mlflow_deploy_plugin.deployments.backends.readiness import server_url
from mlflow_deploy_plugin.errors import DeploymentFailed
from mlflow_deploy_plugin.server.state import SPEC, write_atomically
from mlflow_deploy_plugin.spec import EndpointSpec, apply_config, dump_spec


def serve_in_foreground(spec: EndpointSpec, progress: Callable[[str], None]) -> None:
    """Serves `spec` until Ctrl-C or SIGTERM, with the server's log on this terminal.

    Raises:
        DeploymentFailed: the port is in use, or the server ended by itself with an error.
    """
    if spec.server.port is None:
        spec = apply_config(spec, {"server.port": choose_port(spec.server.host, [])})
    check_port(spec.server.host, spec.server.port or 0)
    with tempfile.TemporaryDirectory(prefix="onnxserve-") as folder:
        state_dir = Path(folder)
        write_atomically(state_dir / SPEC, dump_spec(spec).encode())
        progress(f"{spec.name}: serving at {server_url(spec.server)}, Ctrl-C stops it")
        status = _run(supervisor.command(state_dir))
    if status not in (0, -signal.SIGTERM, -signal.SIGINT, 128 + signal.SIGTERM, 128 + signal.SIGINT):
        raise DeploymentFailed(f"{spec.name}: the server ended with status {status}; its log above says why")


def _run(command: list[str]) -> int:
    """Runs the command to its end. SIGTERM is passed on; Ctrl-C reaches it by itself, it shares our terminal."""
    process = subprocess.Popen(command)

    def pass_on(number: int, frame: FrameType | None) -> None:
        os.kill(process.pid, number)

    before = signal.signal(signal.SIGTERM, pass_on)
    try:
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:
                continue  # it stops as we speak; its exit is what we wait for
    finally:
        signal.signal(signal.SIGTERM, before)
