"""Deployments on this machine: one detached supervisor an endpoint, in a state folder of its own.

Declarative: `apply` compares the spec with what runs and does what is missing, so that the same call after a crash
finishes the work. The caller holds the endpoint's lock (`lifecycle.py`).
"""

import errno
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from types import FrameType

from mlflow_deploy_plugin.deployments.backends import DeploymentState, Observation, supervisor
from mlflow_deploy_plugin.deployments.backends.readiness import (
    AppliedSpec,
    read_applied_spec,
    read_previous_state,
    served_spec,
    server_url,
    wait_until_served,
)
from mlflow_deploy_plugin.deployments.backends.supervisor import final_error, server_environment
from mlflow_deploy_plugin.errors import DeploymentFailed, InvalidConfig
from mlflow_deploy_plugin.processes import exit_reason
from mlflow_deploy_plugin.settings import Settings
from mlflow_deploy_plugin.spec import EndpointSpec, ServerSpec, apply_config, dump_spec
from mlflow_deploy_plugin.statedir import (
    AGENT,
    LOG,
    LOOK,
    SERVER,
    SPEC,
    AgentState,
    ServerState,
    is_locked,
    read_state,
    write_atomically,
)

FIRST_PORT = 8080
_PORTS_TRIED = 1000
_STOP_MARGIN_SECONDS = 40  # beyond the time for requests: the agent ships the captured rows
_STARTING = "the server is being started"
_EMPTY = "no deployment yet; `mlflow deployments create -t onnxserve --endpoint {name} …` adds one"
_STOPPED = "stopped"
"""A file in the state folder: the server was stopped on purpose, so that it is not missed."""


def state_dir(name: str, settings: Settings) -> Path:
    """Return the state folder of an endpoint's server."""
    return settings.deployments_path / name


def lock_path(name: str, settings: Settings) -> Path:
    """Return the lock file of an endpoint; a process that changes the endpoint holds it."""
    return settings.deployments_path / f".{name}.lock"


def apply(spec: EndpointSpec, settings: Settings, progress: Callable[[str], None]) -> None:
    """Serve `spec`, whose port is set, and wait until every worker does.

    The running server applies a change of variants or capture itself; a change of the `server` part restarts it.

    Raises:
        InvalidConfig: another program has its port; the server that runs goes on.
        DeploymentFailed: it did not become ready. A server that was started for it is stopped; the folder stays.
    """
    folder = state_dir(spec.name, settings)
    begun = time.monotonic()
    before = read_previous_state(folder)
    pid = _running_pid(folder)
    if before.spec is None or before.spec.server != spec.server:
        pid = None  # workers read the server part when they start
    is_new = pid is None
    if pid is None:
        if before.spec is None or _address(before.spec) != _address(spec):
            check_port(*_address(spec))  # an error is raised before anything is stopped
        stop(spec.name, settings)  # also the workers of a supervisor that was killed, which still hold the port
        check_port(*_address(spec))
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomically(folder / SPEC, dump_spec(spec).encode())
        (folder / _STOPPED).unlink(missing_ok=True)
        progress(f"{spec.name}: starting the server on port {spec.server.port}")
        pid = supervisor.start(folder, server_environment(folder, settings))
    else:
        write_atomically(folder / SPEC, dump_spec(spec).encode())
    try:
        wait_until_served(spec, folder, before, pid, settings.ready_timeout_seconds, progress)
    except BaseException:
        if is_new:
            _end(folder, pid, spec.server)
        raise
    progress(f"{spec.name}: ready at {server_url(spec.server)} after {time.monotonic() - begun:.1f} s")


def observe(spec: EndpointSpec, settings: Settings) -> Observation:
    """Return the state of the endpoint's server now."""
    folder = state_dir(spec.name, settings)
    if not spec.variants:
        return Observation("empty", _EMPTY.format(name=spec.name))
    log = str(folder / LOG)
    server = read_state(folder / SERVER, ServerState)
    if server is None or server.pid != _supervisor_pid(folder):
        state, reason = _state_without_server(spec.name, folder, settings)
        return Observation(state, reason, log=log)
    applied = read_applied_spec(folder, spec)
    agent = read_state(folder / AGENT, AgentState)
    state, reason = _server_state(server, applied)
    return Observation(
        state=state,
        reason=reason,
        url=server_url(spec.server),
        pid=server.pid,
        started_at=server.started_at,
        restarts=server.restarts,
        wanted=applied.wanted,
        workers=applied.workers,
        errors=applied.errors,
        refused=agent.refused if agent is not None else (),
        registry_error=agent.error if agent is not None else "",
        shipping_error=agent.shipping.error if agent is not None else "",
        log=log,
    )


def stop(name: str, settings: Settings) -> None:
    """End the server; requests in flight are finished, or killed when their time is up. The folder stays."""
    folder = state_dir(name, settings)
    server = read_state(folder / SERVER, ServerState)
    spec = served_spec(folder)
    for pid in (_supervisor_pid(folder), server.pid if server is not None else None):
        if pid is not None:
            _end(folder, pid, spec.server if spec is not None else ServerSpec())
    if folder.exists():
        (folder / _STOPPED).touch()


def remove(name: str, settings: Settings) -> None:
    """End the server and remove its state folder; shipped rows stay in the inference log."""
    stop(name, settings)
    shutil.rmtree(state_dir(name, settings), ignore_errors=True)


def poll_registry(name: str, settings: Settings) -> None:
    """Make the endpoint's agent ask the registry at once instead of at its next poll."""
    with suppress(OSError):  # it has no server, or the disk is full: the next poll comes anyway
        (state_dir(name, settings) / LOOK).touch()


def is_running(name: str, settings: Settings) -> bool:
    """Return True if the endpoint's server lives, ready or not, and is not stopping."""
    return _running_pid(state_dir(name, settings)) is not None


def choose_port(host: str, reserved: Collection[int]) -> int:
    """Return the first free port from 8080 up that no other deployment has reserved.

    Raises:
        DeploymentFailed: none is free.
    """
    for port in range(FIRST_PORT, FIRST_PORT + _PORTS_TRIED):
        if port not in reserved and is_port_free(host, port):
            return port
    raise DeploymentFailed(
        f"no port from {FIRST_PORT} to {FIRST_PORT + _PORTS_TRIED - 1} is free: give one by -C server.port=…"
    )


def check_port(host: str, port: int) -> None:
    """Raise InvalidConfig if another program listens on the port."""
    if not is_port_free(host, port):
        raise InvalidConfig(
            f"port {port} on {host} is in use: choose another by -C server.port=…; of a deployment that is there, by "
            "`onnxserve endpoint update NAME -C server.port=…`"
        )


def is_port_free(host: str, port: int) -> bool:
    """Return True if a server could listen there now; raise InvalidConfig if `host` is no address of this machine."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            # as gunicorn does: closing connections do not count
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return False
        raise InvalidConfig(f"cannot listen on {host}:{port}: {error.strerror}") from None
    return True


def serve_in_foreground(spec: EndpointSpec, progress: Callable[[str], None]) -> None:
    """Serve `spec` until Ctrl-C or SIGTERM, with the server's log on this terminal; nothing is kept.

    Raises:
        DeploymentFailed: the port is in use, or the server ended by itself with an error.
    """
    if spec.server.port is None:
        spec = apply_config(spec, {"server.port": choose_port(spec.server.host, [])})
    check_port(*_address(spec))
    with tempfile.TemporaryDirectory(prefix="onnxserve-") as folder:
        write_atomically(Path(folder) / SPEC, dump_spec(spec).encode())
        progress(f"{spec.name}: starting the server at {server_url(spec.server)}, Ctrl-C stops it")
        status = _run_to_end(supervisor.command(Path(folder)))
    if status not in (0, -signal.SIGTERM, -signal.SIGINT, 128 + signal.SIGTERM, 128 + signal.SIGINT):
        raise DeploymentFailed(f"{spec.name}: the server {exit_reason(status)}; its log above says why")


def _run_to_end(command: list[str]) -> int:
    """Return the command's exit status. SIGTERM is passed on; Ctrl-C reaches it by itself, it shares our terminal."""
    process = subprocess.Popen(command)

    def pass_on(number: int, _frame: FrameType | None) -> None:
        os.kill(process.pid, number)

    before = signal.signal(signal.SIGTERM, pass_on)
    try:
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:
                continue  # the command is stopping: wait for its exit
    finally:
        signal.signal(signal.SIGTERM, before)


def _address(spec: EndpointSpec) -> tuple[str, int]:
    return spec.server.host, spec.server.port or 0


def _end(folder: Path, pid: int, server: ServerSpec) -> None:
    supervisor.stop(folder, pid, server.graceful_timeout_seconds + _STOP_MARGIN_SECONDS)
    (folder / SERVER).unlink(missing_ok=True)  # a supervisor that was killed leaves it


def _running_pid(folder: Path) -> int | None:
    """Return the process id of a supervisor that lives and is not stopping."""
    server = read_state(folder / SERVER, ServerState)
    return None if server is not None and server.phase == "stopping" else _supervisor_pid(folder)


def _supervisor_pid(folder: Path) -> int | None:
    """Return the process id of the living supervisor."""
    server = read_state(folder / SERVER, ServerState)
    if server is not None and supervisor.is_alive(folder, server.pid):
        return server.pid
    return supervisor.find(folder)


def _state_without_server(name: str, folder: Path, settings: Settings) -> tuple[DeploymentState, str]:
    """Return state and reason of an endpoint whose state folder names no living server."""
    if is_locked(lock_path(name, settings)) or supervisor.find(folder) is not None:
        return "starting", _STARTING
    if (folder / _STOPPED).exists():
        return "stopped", f"`onnxserve start {name}` starts it"
    last_line = f"; last in its log: {line}" if (line := final_error(folder)) else ""
    return "failed", f"the server is gone; `onnxserve start {name}` brings it back{last_line}"


def _server_state(server: ServerState, applied: AppliedSpec) -> tuple[DeploymentState, str]:
    """Return state and reason of a server whose supervisor lives; the reason is empty if all is well."""
    if server.phase == "stopping":
        return "stopped", "it finishes the requests in flight"
    for name in applied.missing:
        if name in applied.errors:
            return "failed", applied.errors[name]
    if server.phase == "starting" or not any(worker.endpoints for worker in applied.workers):
        return "starting", applied.pending or _STARTING
    return "running", applied.pending  # a new version is being loaded while the one before answers
