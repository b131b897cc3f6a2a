"""Deployments on this machine: one detached supervisor per endpoint, each with a
separate state folder.
"""

import errno
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mlflow_deploy_plugin.core.errors import DeploymentFailed, InvalidConfig
from mlflow_deploy_plugin.core.processes.child import exit_reason, read_log_tail
from mlflow_deploy_plugin.core.spec.document import apply_config, dump_spec
from mlflow_deploy_plugin.core.spec.parts import ContainerSpec, EndpointSpec, ServerSpec
from mlflow_deploy_plugin.core.statedir.files import (
    LOG,
    SERVER,
    SPEC,
    read_state,
    refuse_windows,
    write_atomically,
)
from mlflow_deploy_plugin.core.statedir.metric_files import remove_metrics
from mlflow_deploy_plugin.core.statedir.models import ServerState
from mlflow_deploy_plugin.ship.deployments.backends import supervisor
from mlflow_deploy_plugin.ship.deployments.backends.served_state import (
    STOPPED,
    MachineBackend,
    server_url,
    written_server,
)
from mlflow_deploy_plugin.ship.deployments.backends.supervisor import (
    final_error,
    last_error,
    server_environment,
)
from mlflow_deploy_plugin.ship.deployments.backends.targets import Observation, Progress

FIRST_PORT = 8080
_PORTS_TRIED = 1000
_POLL_SECONDS = 0.1


@dataclass
class LocalBackend(MachineBackend):
    def apply(self, spec: EndpointSpec, progress: Progress) -> str:
        """Serve `spec`, whose port is set. Raises the errors of `Backend.apply`. The
        folder is kept after an error.
        """
        if spec.container != ContainerSpec():
            raise InvalidConfig(
                "container.… is only for targets that run an image, such as -t onnxserve:/docker"
            )
        folder = self.settings.state_dir(spec.name)
        before = self.state_before(folder)
        pid = _running_pid(folder)
        if before.spec is None or before.spec.server != spec.server:
            pid = None  # A changed server section needs a new server.
        is_new = pid is None
        if pid is None:
            if before.spec is None or _address(before.spec) != _address(spec):
                check_port(*_address(spec))  # Check before the server is stopped.
            self.stop(spec.name)  # Free the port from workers of a killed supervisor.
            check_port(*_address(spec))
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomically(folder / SPEC, dump_spec(spec).encode())
        if pid is None:
            (folder / STOPPED).unlink(missing_ok=True)
            progress(f"{spec.name}: starting the server on port {spec.server.port}")
            pid = supervisor.start(folder, server_environment(folder, self.settings))

        def why_ended() -> str:
            if supervisor.is_alive(folder, pid):
                return ""
            last_words = last_error(folder) or "its log is empty"
            return f"the server has ended: {last_words}"

        try:
            self.wait_until_served(spec, folder, before, why_ended, progress)
        except BaseException:
            if is_new:
                _end(folder, pid, spec.server)
            raise
        return server_url(spec.server)

    def observe(self, spec: EndpointSpec) -> Observation:
        folder = self.settings.state_dir(spec.name)
        log = str(folder / LOG)
        server = read_state(folder / SERVER, ServerState)
        if server is None or not supervisor.is_alive(folder, server.pid):
            line = final_error(folder)
            last_line = f" (last in its log: {line})" if line else ""
            return self.observe_absent(spec.name, f"the server is gone{last_line}", log)
        return self.observe_server(spec, folder, server, log)

    def stop(self, name: str) -> None:
        """Stop the server, and keep its folder. Open requests are completed, or aborted
        after the grace period.
        """
        folder = self.settings.state_dir(name)
        server = read_state(folder / SERVER, ServerState)
        pids = [_supervisor_pid(folder)]
        if server is not None:
            pids.append(server.pid)
        for pid in pids:
            if pid is not None:
                _end(folder, pid, written_server(folder))
        remove_metrics(folder)  # A killed gunicorn does not remove the metrics from shared memory.
        if folder.exists():
            (folder / STOPPED).touch()

    def remove(self, name: str) -> None:
        self.stop(name)
        shutil.rmtree(self.settings.state_dir(name), ignore_errors=True)

    def is_running(self, name: str) -> bool:
        return _running_pid(self.settings.state_dir(name)) is not None

    def logs(self, name: str, lines: int, follow: bool) -> Iterator[str]:
        folder = self.settings.state_dir(name)
        yield from read_log_tail(folder / LOG)[-lines:]
        if not follow or not (folder / LOG).exists():
            return
        with (folder / LOG).open(errors="replace") as log:
            log.seek(0, os.SEEK_END)
            part = ""
            while True:
                # Check liveness before reading: after a False, one more read returns
                # the rest of the log.
                is_alive = self.is_running(name)
                if os.fstat(log.fileno()).st_size < log.tell():
                    log.seek(0)  # The log was truncated, so read it from the start.
                while line := log.readline():
                    part += line
                    if part.endswith("\n"):
                        yield part.rstrip("\n")
                        part = ""
                if not is_alive:
                    return
                time.sleep(_POLL_SECONDS)


def choose_port(host: str, reserved: Collection[int | None]) -> int:
    """Return the first free port from 8080 that is not reserved. Raises
    DeploymentFailed if no port is free.
    """
    for port in range(FIRST_PORT, FIRST_PORT + _PORTS_TRIED):
        if port not in reserved and is_port_free(host, port):
            return port
    raise DeploymentFailed(
        f"no port from {FIRST_PORT} to {FIRST_PORT + _PORTS_TRIED - 1} is free: set a port with "
        "-C server.port=…"
    )


def check_port(host: str, port: int) -> None:
    """Raise InvalidConfig if another program listens on the port."""
    if not is_port_free(host, port):
        raise InvalidConfig(
            f"port {port} on {host} is in use: set another port with -C server.port=…; for an "
            "existing deployment, use `onnxserve endpoint update NAME -C server.port=…`"
        )


def is_port_free(host: str, port: int) -> bool:
    """Return True if a server can listen on the port. Raises InvalidConfig if `host` is
    not a local address.
    """
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = addresses[0]
        with socket.socket(family, kind, protocol) as probe:
            # With this option, which gunicorn also sets, closing connections do not
            # occupy the port.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return False
        raise InvalidConfig(f"cannot listen on {host}:{port}: {error.strerror}") from None
    return True


def serve_in_foreground(spec: EndpointSpec, progress: Progress) -> None:
    """Serve `spec` until Ctrl-C or SIGTERM, with the server's log on this terminal. No
    state is stored.

    Raises DeploymentFailed if the port is in use, or if the server ended with an error.
    """
    refuse_windows()
    if spec.server.port is None:
        spec = apply_config(spec, {"server.port": choose_port(spec.server.host, [])})
    check_port(*_address(spec))
    with tempfile.TemporaryDirectory(prefix="onnxserve-") as folder:
        write_atomically(Path(folder) / SPEC, dump_spec(spec).encode())
        progress(f"{spec.name}: starting the server at {server_url(spec.server)}; Ctrl-C stops it")
        process = subprocess.Popen(supervisor.command(Path(folder)))
        # The server receives Ctrl-C because it shares the terminal. SIGTERM must be
        # forwarded.
        before = signal.signal(signal.SIGTERM, lambda number, _frame: os.kill(process.pid, number))
        status = None
        try:
            while status is None:
                with suppress(KeyboardInterrupt):  # Ctrl-C also stops the server, so wait for it.
                    status = process.wait()
        finally:
            signal.signal(signal.SIGTERM, before)
    if status not in (
        0,
        -signal.SIGTERM,
        -signal.SIGINT,
        128 + signal.SIGTERM,
        128 + signal.SIGINT,
    ):
        raise DeploymentFailed(f"{spec.name}: the server {exit_reason(status)}; see its log above")


def _address(spec: EndpointSpec) -> tuple[str, int]:
    return spec.server.host, spec.server.port or 0


def _end(folder: Path, pid: int, server: ServerSpec) -> None:
    supervisor.stop(folder, pid, server.stop_seconds)
    (folder / SERVER).unlink(missing_ok=True)  # A killed supervisor leaves this file.


def _running_pid(folder: Path) -> int | None:
    """Return the process id of a server that is not stopping; None without one."""
    server = read_state(folder / SERVER, ServerState)
    if server is not None and server.phase == "stopping":
        return None
    return _supervisor_pid(folder)


def _supervisor_pid(folder: Path) -> int | None:
    """Return the process id of the folder's supervisor, even if it is not written yet;
    None if none runs.
    """
    server = read_state(folder / SERVER, ServerState)
    if server is not None and supervisor.is_alive(folder, server.pid):
        return server.pid
    return supervisor.find(folder)
