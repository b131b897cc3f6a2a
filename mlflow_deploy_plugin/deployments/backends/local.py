"""Deployments on this machine: one detached supervisor an endpoint, in a state folder of its own.

Declarative: `apply` compares the spec with what runs and does what is missing, so that the same call after a crash
finishes the work. The caller holds the endpoint's lock (`lifecycle.py`). Whether a server serves its spec is known from
the state files of its processes.
"""

import errno
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil
import requests

from mlflow_deploy_plugin.deployments.backends import DeploymentState, Observation, supervisor
from mlflow_deploy_plugin.deployments.backends.supervisor import final_error, last_error, server_environment
from mlflow_deploy_plugin.deployments.server_client import ServerSession
from mlflow_deploy_plugin.errors import DeploymentFailed, InvalidConfig, OnnxserveError
from mlflow_deploy_plugin.processes import exit_reason, read_log_tail
from mlflow_deploy_plugin.settings import Settings
from mlflow_deploy_plugin.spec import ContainerSpec, EndpointSpec, ServerSpec, apply_config, dump_spec, load_specs
from mlflow_deploy_plugin.statedir import (
    AGENT,
    LOG,
    LOOK,
    SERVER,
    SPEC,
    WANTED,
    AgentState,
    LoadedVariant,
    ServerState,
    Wanted,
    WantedEndpoint,
    WorkerState,
    is_locked,
    read_state,
    read_workers,
    write_atomically,
)

FIRST_PORT = 8080
_PORTS_TRIED = 1000
STARTING = "the server is being started"
EMPTY = "no deployment yet; `mlflow deployments create -t onnxserve --endpoint {name} …` adds one"
STOPPED = "stopped"
"""A file in the state folder: the server was stopped on purpose, so that it is not missed."""
_POLL_SECONDS = 0.1
_PING_SECONDS = 2.0
_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "": "127.0.0.1"}


@dataclass(frozen=True)
class AppliedSpec:
    """The progress of a server's processes in applying the spec of an endpoint.

    Attributes:
        is_resolved: the agent has versions for exactly what the spec says.
        pending: what is still to be done; empty once every worker has applied the whole spec, or failed to.
        errors: variant → why a worker could not load the wanted version.
        missing: the variants with a share of the traffic that have no version in some worker.
        wanted: the versions to be served; None before the agent has found the first.
        workers: the state files of the living workers.
    """

    is_resolved: bool
    pending: str
    errors: dict[str, str]
    missing: tuple[str, ...]
    wanted: WantedEndpoint | None
    workers: tuple[WorkerState, ...]


@dataclass(frozen=True)
class PreviousState:
    """The content of the state folder before a spec is written there, to tell later what is new."""

    spec: EndpointSpec | None
    agent: AgentState | None


def state_dir(name: str, settings: Settings) -> Path:
    """Return the state folder of an endpoint's server."""
    return settings.deployments_path / name


def lock_path(name: str, settings: Settings) -> Path:
    """Return the lock file of an endpoint; a process that changes the endpoint holds it."""
    return settings.deployments_path / f".{name}.lock"


@dataclass(frozen=True)
class LocalBackend:
    """Servers on this machine."""

    settings: Settings

    def apply(self, spec: EndpointSpec, progress: Callable[[str], None]) -> None:
        """Serve `spec`, whose port is set, and wait until every worker does.

        The running server applies a change of variants or capture itself; a change of the `server` part restarts it.

        Raises:
            InvalidConfig: another program has its port; the server that runs goes on.
            DeploymentFailed: it did not become ready. A server that was started for it is stopped; the folder stays.
        """
        if spec.container != ContainerSpec():
            raise InvalidConfig(
                "container.… is for targets that run an image, and this one is not: -t onnxserve:/docker"
            )
        folder = state_dir(spec.name, self.settings)
        begun = time.monotonic()
        before = PreviousState(served_spec(folder), read_state(folder / AGENT, AgentState))
        pid = _running_pid(folder)
        if before.spec is None or before.spec.server != spec.server:
            pid = None  # workers read the server part when they start
        is_new = pid is None
        if pid is None:
            if before.spec is None or _address(before.spec) != _address(spec):
                check_port(*_address(spec))  # an error is raised before anything is stopped
            self.stop(spec.name)  # also the workers of a supervisor that was killed, which still hold the port
            check_port(*_address(spec))
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomically(folder / SPEC, dump_spec(spec).encode())
        if pid is None:
            (folder / STOPPED).unlink(missing_ok=True)
            progress(f"{spec.name}: starting the server on port {spec.server.port}")
            pid = supervisor.start(folder, server_environment(folder, self.settings))
        try:
            wait_until_served(
                spec, folder, before, partial(_why_ended, folder, pid), self.settings.ready_timeout_seconds, progress
            )
        except BaseException:
            if is_new:
                _end(folder, pid, spec.server)
            raise
        progress(f"{spec.name}: ready at {server_url(spec.server)} after {time.monotonic() - begun:.1f} s")

    def observe(self, spec: EndpointSpec) -> Observation:
        """Return the state of the endpoint's server now."""
        folder = state_dir(spec.name, self.settings)
        if not spec.variants:
            return Observation("empty", EMPTY.format(name=spec.name))
        log = str(folder / LOG)
        server = read_state(folder / SERVER, ServerState)
        if server is None or server.pid != _supervisor_pid(folder):
            if is_locked(lock_path(spec.name, self.settings)) or supervisor.find(folder) is not None:
                return Observation("starting", STARTING, log=log)
            if (folder / STOPPED).exists():
                return Observation("stopped", f"`onnxserve start {spec.name}` starts it", log=log)
            last_line = f"; last in its log: {line}" if (line := final_error(folder)) else ""
            gone = f"the server is gone; `onnxserve start {spec.name}` brings it back{last_line}"
            return Observation("failed", gone, log=log)
        applied = read_applied_spec(folder, spec)
        agent = read_state(folder / AGENT, AgentState)
        state, reason = server_state(server, applied)
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

    def stop(self, name: str) -> None:
        """End the server; requests in flight are finished, or killed when their time is up. The folder stays."""
        folder = state_dir(name, self.settings)
        server = read_state(folder / SERVER, ServerState)
        spec = served_spec(folder)
        for pid in (_supervisor_pid(folder), server.pid if server is not None else None):
            if pid is not None:
                _end(folder, pid, spec.server if spec is not None else ServerSpec())
        if folder.exists():
            (folder / STOPPED).touch()

    def remove(self, name: str) -> None:
        """End the server and remove its state folder; shipped rows stay in the inference log."""
        self.stop(name)
        shutil.rmtree(state_dir(name, self.settings), ignore_errors=True)

    def poll_registry(self, name: str) -> None:
        """Make the endpoint's agent ask the registry at once instead of at its next poll."""
        with suppress(OSError):  # it has no server, or the disk is full: the next poll comes anyway
            (state_dir(name, self.settings) / LOOK).touch()

    def is_running(self, name: str) -> bool:
        """Return True if the endpoint's server lives, ready or not, and is not stopping."""
        return _running_pid(state_dir(name, self.settings)) is not None

    def reached(self, spec: EndpointSpec) -> AbstractContextManager[str]:
        """Yield the address of the server."""
        return nullcontext(server_url(spec.server))

    def logs(self, name: str, lines: int, follow: bool) -> Iterator[str]:
        """Yield the last lines of the server's log, and with `follow` those to come until the server ends."""
        folder = state_dir(name, self.settings)
        yield from read_log_tail(folder / LOG)[-lines:]
        if not follow or not (folder / LOG).exists():
            return
        with (folder / LOG).open(errors="replace") as log:
            log.seek(0, os.SEEK_END)
            part = ""
            while True:
                is_alive = self.is_running(name)  # asked first: the end of the log is read after its end
                while line := log.readline():
                    part += line
                    if part.endswith("\n"):
                        yield part.rstrip("\n")
                        part = ""
                if not is_alive:
                    return
                time.sleep(_POLL_SECONDS)


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
        process = subprocess.Popen(supervisor.command(Path(folder)))
        # Ctrl-C reaches it by itself, it shares our terminal; SIGTERM does not
        before = signal.signal(signal.SIGTERM, lambda number, _frame: os.kill(process.pid, number))
        status = None
        try:
            while status is None:
                with suppress(KeyboardInterrupt):  # it is stopping: wait for its exit
                    status = process.wait()
        finally:
            signal.signal(signal.SIGTERM, before)
    if status not in (0, -signal.SIGTERM, -signal.SIGINT, 128 + signal.SIGTERM, 128 + signal.SIGINT):
        raise DeploymentFailed(f"{spec.name}: the server {exit_reason(status)}; its log above says why")


def _address(spec: EndpointSpec) -> tuple[str, int]:
    return spec.server.host, spec.server.port or 0


def _end(folder: Path, pid: int, server: ServerSpec) -> None:
    supervisor.stop(folder, pid, server.stop_seconds)
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


def server_state(server: ServerState, applied: AppliedSpec) -> tuple[DeploymentState, str]:
    """Return state and reason of a server whose supervisor lives; the reason is empty if all is well."""
    if server.phase == "stopping":
        return "stopped", "it finishes the requests in flight"
    for name in applied.missing:
        if name in applied.errors:
            return "failed", applied.errors[name]
    if server.phase == "starting" or not any(worker.endpoints for worker in applied.workers):
        return "starting", applied.pending or STARTING
    return "running", applied.pending  # a new version is being loaded while the one before answers


def served_spec(state_dir: Path) -> EndpointSpec | None:
    """Return the spec that was last written into the state folder."""
    try:
        (spec,) = load_specs((state_dir / SPEC).read_text())
    except (OSError, OnnxserveError):
        return None
    return spec


def server_url(server: ServerSpec) -> str:
    """Return the address at which this machine reaches the server."""
    host = _ANY_ADDRESS.get(server.host, f"[{server.host}]" if ":" in server.host else server.host)
    return f"{server.scheme}://{host}:{server.port}"


def read_applied_spec(
    state_dir: Path, spec: EndpointSpec, lives: Callable[[int], bool] = psutil.pid_exists
) -> AppliedSpec:
    """Read what agent and workers have written about the endpoint of `spec`."""
    workers = tuple(worker for worker in read_workers(state_dir) if lives(worker.pid))
    return compare_applied(spec, read_state(state_dir / WANTED, Wanted) or Wanted(), workers)


def compare_applied(spec: EndpointSpec, wanted: Wanted, workers: tuple[WorkerState, ...]) -> AppliedSpec:
    """Compare the endpoint of `spec` with what the agent and the living workers of its server say."""
    endpoint = wanted.endpoints.get(spec.name)
    found = endpoint or WantedEndpoint(variants={})
    resolved = {name: (v.model_uri, v.weight, v.shadow) for name, v in found.variants.items()}
    given = {name: (v.model, v.weight, v.shadow) for name, v in spec.variants.items()}
    is_changed = (found.capture, found.sticky, resolved) != (spec.capture, spec.sticky, given)
    if endpoint is None or is_changed:
        new = sorted({model for model, _, _ in given.values()} - {model for model, _, _ in resolved.values()})
        pending = f"fetching {', '.join(new)}" if new else "applying the changed spec"
        return AppliedSpec(False, pending, {}, (), endpoint, workers)
    informed = [w.endpoints.get(spec.name, {}) for w in workers if w.generation == wanted.generation]
    errors = {name: variant.error for variants in informed for name, variant in variants.items() if variant.error}
    missing = tuple(
        name
        for name, variant in spec.variants.items()
        if variant.weight > 0 and any(not variants.get(name, LoadedVariant()).version for variants in informed)
    )
    count = spec.server.workers
    is_loaded = len(workers) >= count and all(  # so that only the traffic and its like are still to change
        worker.endpoints.get(spec.name, {}).get(name, LoadedVariant()).version == variant.version
        for worker in workers
        for name, variant in endpoint.variants.items()
    )
    step = "applying the change" if is_loaded else "loading the model"
    pending = "" if len(informed) >= count else f"{step}, {len(informed)} of {count} workers have it"
    return AppliedSpec(True, pending, errors, missing, endpoint, workers)


def wait_until_served(
    spec: EndpointSpec,
    state_dir: Path,
    before: PreviousState,
    why_ended: Callable[[], str],
    seconds: float,
    progress: Callable[[str], None],
    lives: Callable[[int], bool] = psutil.pid_exists,
) -> None:
    """Return when every worker serves `spec` and the server says that it is ready.

    A variant that `spec` changes must be loaded. An unchanged one may go on with the version it had.

    Args:
        why_ended: returns why the server has ended; empty while it lives.
        lives: tells if the worker of a process id does.

    Raises:
        DeploymentFailed: it cannot become ready, or has not in `seconds`; the message says why.
    """
    deadline = time.monotonic() + seconds
    last_line = ""
    while True:
        ended = why_ended()
        applied = read_applied_spec(state_dir, spec, lives)
        if failure := served_failure(applied, spec, before, read_state(state_dir / AGENT, AgentState)):
            raise DeploymentFailed(f"{spec.name}: {failure}")
        if ended:
            raise DeploymentFailed(f"{spec.name}: {ended}")
        pending = applied.pending or _pending_at_server(state_dir, server_url(spec.server))
        if not pending:
            return
        if time.monotonic() > deadline:
            raise DeploymentFailed(
                f"{spec.name}: not ready after {seconds:g} s, still {pending} "
                "(ONNXSERVE_READY_TIMEOUT_SECONDS sets the limit)"
            )
        if pending != last_line:
            progress(f"{spec.name}: {pending}")
            last_line = pending
        time.sleep(_POLL_SECONDS)


def _why_ended(state_dir: Path, pid: int) -> str:
    if supervisor.is_alive(state_dir, pid):
        return ""
    return f"the server has ended: {last_error(state_dir) or 'it left no word in its log'}"


def _loaded_by_variant(spec: EndpointSpec) -> dict[str, tuple[object, ...]]:
    """Return what workers load for each variant: its model, without the excluded columns."""
    return {name: (one.model, spec.capture.drop, spec.capture.mask) for name, one in spec.variants.items()}


def served_failure(applied: AppliedSpec, spec: EndpointSpec, before: PreviousState, agent: AgentState | None) -> str:
    """Return why the server cannot become ready; empty while it may."""
    earlier = _loaded_by_variant(before.spec) if before.spec is not None else {}
    changed = {name for name, loaded in _loaded_by_variant(spec).items() if loaded != earlier.get(name)}
    for name, error in applied.errors.items():
        if name in changed or name in applied.missing:
            return error if name == spec.name else f"deployment {name}: {error}"
    if agent is None or not agent.error or applied.is_resolved:
        return ""
    seen = before.agent
    # the same error as before is about this spec only if the agent has looked since the spec was written
    is_earlier = seen is not None and (seen.pid, seen.error) == (agent.pid, agent.error) and agent.looks <= seen.looks
    return "" if is_earlier else agent.error


def _pending_at_server(state_dir: Path, url: str) -> str:
    """Return what the server still waits for; empty once its supervisor has seen the workers answer and it is ready."""
    server = read_state(state_dir / SERVER, ServerState)
    if server is None or server.phase != "serving":
        return "waiting for the workers to answer"
    try:
        with ServerSession() as session:
            response = session.get(f"{url}/ping", timeout=_PING_SECONDS)
    except requests.RequestException:
        return f"waiting for an answer at {url}"
    return "" if response.ok else "waiting until the server says that it is ready"
