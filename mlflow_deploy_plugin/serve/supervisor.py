"""`onnxserve serve`: a small supervisor (process 1 in the image) of gunicorn and the
agent.

gunicorn imports its modules while the agent resolves and downloads the models, and then
forks its workers. A crashed agent is restarted. A killed gunicorn is restarted on the
same socket when its old workers have exited. The server ends if gunicorn exits by
itself or is killed repeatedly. On SIGTERM, gunicorn finishes the current requests, and
then the agent ships the captured rows.
"""

import errno
import importlib.util
import logging
import math
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from mlflow_deploy_plugin.core.errors import (
    DeploymentFailed,
    InvalidConfig,
    NotInstalled,
    RuntimeMissing,
)
from mlflow_deploy_plugin.core.processes.child import (
    Crashes,
    SupervisedChild,
    SupervisedChildren,
    adopt_orphans,
    awaiting_signals,
    exit_reason,
    signal_group,
)
from mlflow_deploy_plugin.core.settings import load_settings
from mlflow_deploy_plugin.core.spec.document import load_stored_specs
from mlflow_deploy_plugin.core.spec.parts import ServerSpec
from mlflow_deploy_plugin.core.spec.types import is_loopback, reachable_url
from mlflow_deploy_plugin.core.statedir import files
from mlflow_deploy_plugin.core.statedir.models import (
    AgentState,
    Phase,
    ServerState,
    Wanted,
)
from mlflow_deploy_plugin.serve.certificates import open_tls
from mlflow_deploy_plugin.serve.cloud import is_healthy
from mlflow_deploy_plugin.serve.gunicorn_conf import gunicorn_command
from mlflow_deploy_plugin.serve.inference.jobs import has_work
from mlflow_deploy_plugin.serve.listener import SharedListener, shared_listener

_log = logging.getLogger(__name__)

_FIRST_PORT = 8080
_LAST_PORT = 8999
_TICK_SECONDS = 0.1
_AGENT_END_SECONDS = 30.0
_METRICS_MODULE = "mlflow_deploy_plugin.serve.observability.metrics_port"
_METRICS_SECONDS = 5.0
_JOBS_SECONDS = 5.0
"""The time after which all jobs are read although their folder has not changed."""
_CRASHES_BEFORE_READY = 3
_MAX_DEATHS = 4
"""The number of deaths of gunicorn, each within a minute of its start, after which the
server ends.
"""
_ORPHAN_SECONDS = 2.0
"""The time for the workers of a killed gunicorn to finish current requests; new
requests wait.
"""


def supervise(
    state_dir: Path,
    follow: bool,
    announce: Callable[[str], None],
    refresh: Callable[[], None] | None = None,
    jobs_command: Sequence[str] = (),
) -> None:
    """Serve the spec in `state_dir` until SIGTERM or SIGINT; return after a clean end.

    Call it within `claim_state_dir`, in a process without other threads. `refresh` is
    called about once per second while the server serves, and may replace spec.yaml.
    `jobs_command` runs the batch jobs of callers, and is started while there are any.

    Raises:
        InvalidConfig: the spec is invalid, or one of its ports or TLS files cannot be
            used.
        RuntimeMissing, NotInstalled: the spec needs grpcio or PyJWT, which is not
            installed.
        DeploymentFailed: the server did not become ready, or gunicorn exited.
    """
    server = load_stored_specs((state_dir / files.SPEC).read_text())[0].server
    check_exposure(server, announce)
    if server.certfile is not None and server.keyfile is not None:
        open_tls(server.certfile, server.keyfile, server.ca_certs)
    files.make_local_key(state_dir)
    if (
        server.api_keys
        and load_settings().keys_file is None
        and importlib.util.find_spec("sqlalchemy") is None
    ):
        raise NotInstalled(
            "server.api_keys needs the store, which needs SQLAlchemy; or mount the file of "
            "`onnxserve keys export` and set ONNXSERVE_KEYS_FILE to its path",
        )
    if server.jwt_issuer and importlib.util.find_spec("jwt") is None:
        raise NotInstalled("server.jwt_issuer needs PyJWT: pip install 'mlflow-onnxserve[jwt]'")
    with reserve_grpc_port(server), shared_listener(load_settings().listener) as shared:
        # Open the metrics port before a server without `port` takes the first free
        # port.
        port = server.metrics_port
        if port is not None:
            metrics = open_listener(server.host, port, "-C server.metrics_port=…")
        else:
            metrics = None
        # Clients connect to the shared listener; the server's own address is for the
        # readiness check.
        host = server.host if shared is None else "127.0.0.1"
        listener = open_listener(host, server.port)
        adopt_orphans()
        try:
            with awaiting_signals() as wait:
                supervisor = _Supervisor(
                    state_dir,
                    server,
                    listener,
                    shared,
                    metrics,
                    follow,
                    announce,
                    wait,
                    jobs_command,
                )
                supervisor.run(refresh or (lambda: None))
        finally:
            listener.close()
            if metrics is not None:
                metrics.close()
            with suppress(OSError):  # The disk may be read-only.
                (state_dir / files.SERVER).unlink(missing_ok=True)


class _Stop(Exception):
    """SIGTERM or SIGINT was received."""


@dataclass(eq=False)
class _Supervisor:
    """The agent, gunicorn and the process of the metrics port, and the server's state.

    Attributes:
        listener: the server's own socket; None for `shared` or `metrics`: the server
            has no shared socket, or no metrics port.
        announce: prints a line for the user.
        wait_for_signal: waits for seconds, and returns the signal, or None.
    """

    state_dir: Path
    server: ServerSpec
    listener: socket.socket
    shared: SharedListener | None
    metrics: socket.socket | None
    follow: bool
    announce: Callable[[str], None]
    wait_for_signal: Callable[[float], int | None]
    jobs_command: Sequence[str] = ()

    def __post_init__(self) -> None:
        self._agent_command = [
            sys.executable,
            "-m",
            "mlflow_deploy_plugin.serve.agent",
            str(self.state_dir),
        ]
        if not self.follow:
            self._agent_command.append("--no-follow")
        self._port = int(self.listener.getsockname()[1])
        host = self.server.host if self.shared is None else "127.0.0.1"
        self._url = reachable_url(host, self._port, self.server.scheme)
        self._started_at = time.time()
        self._children = SupervisedChildren()
        # gunicorn would report readiness too early
        self._notify_socket = os.environ.pop("NOTIFY_SOCKET", "")
        self._agent: SupervisedChild | None = None
        self._agent_crashes = Crashes()
        self._restart_agent_at = 0.0
        self._gunicorn: SupervisedChild | None = None
        self._gunicorn_deaths = Crashes()
        self._restart_gunicorn_at = math.inf
        self._kill_orphans_at = math.inf
        self._metrics_process: SupervisedChild | None = None
        self._jobs: SupervisedChild | None = None
        self._jobs_folder: tuple[int, int, int] | None = None
        self._read_jobs_at = 0.0
        self._restarts = 0
        self._is_ready = False  # remains True once every worker has answered
        self._phase: Phase = "starting"

    def run(self, refresh: Callable[[], None]) -> None:
        """Start the agent and gunicorn, serve until a signal, and end all children.
        Raises DeploymentFailed if the server cannot become ready, or gunicorn exits.
        """
        self._write("starting")
        # Process ids repeat in a container, so an earlier agent's state file could be
        # mistaken for this agent's.
        (self.state_dir / files.AGENT).unlink(missing_ok=True)
        self._may_fork, held_back = map(
            os.fdopen,
            os.pipe(),
            ("rb", "wb"),
        )
        # On a failure or a signal, gunicorn is stopped before it may fork.
        with self._may_fork, held_back:
            try:
                self._agent = self._children.start(self._agent_command)
                self._start_gunicorn()
                self._wait_until(
                    lambda: (state := self._agent_state()) is not None and not state.fatal,
                )
                held_back.close()
                self._wait_until(self._answers)
                self._is_ready = True
                self._write("serving")
                wanted = files.read_state(self.state_dir / files.WANTED, Wanted) or Wanted()
                lines = []
                for name, endpoint in wanted.endpoints.items():
                    versions = []
                    for variant in endpoint.variants.values():
                        aspects = variant.aspects
                        alias = f"@{aspects['alias']}" if "alias" in aspects else ""
                        followed = aspects.get("stage") or alias or aspects.get("tag")
                        note = f" ({followed})" if followed else ""
                        versions.append(f"{variant.model} version {variant.version}{note}")
                    lines.append(f"onnxserve: {name} = {', '.join(versions)} at {self._url}")
                listed = wanted.listed
                if listed is not None:
                    count = f"{len(listed.models)} registered models"
                    if not listed.is_complete:
                        count += " so far"
                    lines = [f"onnxserve: {count} of {listed.uri} at {self._url}"]
                elif not lines:
                    lines = [f"onnxserve: every endpoint is unloaded at {self._url}"]
                self.announce("\n".join(lines))
                self._notify("READY=1")
                # Wait for a signal, because `refresh` never returns True.
                self._wait_until(refresh)
            except _Stop:
                _log.info("stopping: current requests are finished")
            finally:
                self._notify("STOPPING=1")
                self._write("stopping")
                self._end()

    def _wait_until(self, done: Callable[[], bool | None]) -> None:
        """Wait for signals and check the children, until `done` returns True.

        Raises _Stop, and DeploymentFailed if a child cannot continue: for a fatal error
        of the agent, or repeated crashes, only before the server was ready.
        """
        while not done():
            pause = 1.0 if self._phase == "serving" else _TICK_SECONDS
            if self.wait_for_signal(pause) not in (None, signal.SIGCHLD):
                raise _Stop
            self._children.reap()
            self._check_gunicorn()
            # Start the agent again after a crash and a pause.
            if self._agent is None:
                if time.monotonic() >= self._restart_agent_at:
                    try:
                        self._agent = self._children.start(self._agent_command)
                    except OSError as error:  # The limit of processes or files is reached.
                        self._restart_agent_later(f"cannot be started: {error.strerror}", None)
            elif self._agent.exit_status is not None:
                if (
                    not self._is_ready
                    and (state := self._agent_state()) is not None
                    and state.fatal
                ):
                    raise DeploymentFailed(state.error)
                self._restart_agent_later(
                    exit_reason(self._agent.exit_status), self._agent.started_at
                )
            # Restart the process of the metrics port after it has ended. Scrapes wait
            # meanwhile.
            process = self._metrics_process
            if (
                process is not None
                and process.exit_status is not None
                and time.monotonic() - process.started_at > _METRICS_SECONDS
            ):
                _log.error(
                    "the process of the metrics port %s and is restarted",
                    exit_reason(process.exit_status),
                )
                self._metrics_process = None
            if self.metrics is not None and self._metrics_process is None:
                port = self.metrics.fileno()
                command = [
                    sys.executable,
                    "-m",
                    _METRICS_MODULE,
                    str(self.state_dir),
                    str(port),
                ]
                if self.server.is_on_nvidia:
                    command.append("--gpu")
                # At the limit of processes or files, the next check tries again.
                with suppress(OSError):
                    self._metrics_process = self._children.start(command, [port])
            # A new job changes the folder. Reading 200 kept jobs takes 15 ms.
            folder = files.file_identity(self.state_dir / "jobs")
            may_be_due = folder != self._jobs_folder or time.monotonic() >= self._read_jobs_at
            is_over = self._jobs is None or self._jobs.exit_status is not None
            if self._is_ready and is_over and may_be_due:
                self._jobs_folder = folder
                self._read_jobs_at = time.monotonic() + _JOBS_SECONDS
                with suppress(OSError):
                    if has_work(self.state_dir, self.server.jobs):
                        self._jobs = self._children.start(self.jobs_command)
            if self.shared is not None and self.shared.is_gone:
                raise DeploymentFailed("the process that provides the listening socket has exited")

    def _check_gunicorn(self) -> None:
        """Restart gunicorn after a pause if it was killed; raise DeploymentFailed if it
        has exited.
        """
        gunicorn = self._gunicorn
        now = time.monotonic()
        if gunicorn is None:
            return
        if self._restart_gunicorn_at < math.inf:
            if not self._has_orphans(gunicorn) and now >= self._restart_gunicorn_at:
                self._start_gunicorn()
            return
        if gunicorn.exit_status is None:
            if self._is_ready and self._phase == "starting" and self._answers():
                self._write("serving")
            return
        how = exit_reason(gunicorn.exit_status)
        if not self._is_ready and gunicorn.exit_status >= 0:
            raise DeploymentFailed(f"gunicorn {how} before every worker was ready{files.SEE_LOG}")
        if gunicorn.exit_status == 0:  # Another process has stopped gunicorn with a signal.
            raise DeploymentFailed(f"gunicorn {how} while serving{files.SEE_LOG}")
        self._gunicorn_deaths.add(gunicorn.started_at)
        deaths = self._gunicorn_deaths.in_a_row
        if deaths >= _MAX_DEATHS:
            raise DeploymentFailed(
                f"gunicorn {how}, for the {_MAX_DEATHS}th time in a row{files.SEE_LOG}",
            )
        pause = 2.0 ** (deaths - 3) if deaths > 1 else 0.0
        _log.error("gunicorn %s; it is restarted in %.1f s, and new clients wait", how, pause)
        signal_group(gunicorn.pid, signal.SIGTERM)
        self._restart_gunicorn_at = now + pause
        self._kill_orphans_at = now + _ORPHAN_SECONDS
        self._restarts += 1
        self._write("starting")

    def _has_orphans(self, dead: SupervisedChild) -> bool:
        """Return True if a worker of the dead gunicorn still runs; kill such workers
        after a time limit.
        """
        number = signal.SIGKILL if time.monotonic() >= self._kill_orphans_at else 0
        return signal_group(dead.pid, number)

    def _restart_agent_later(self, how: str, started_at: float | None) -> None:
        """Set the pause before the agent's next start. Raises DeploymentFailed if the
        agent was never ready.
        """
        pause = self._agent_crashes.add(started_at)
        if not self._is_ready and self._agent_crashes.in_a_row >= _CRASHES_BEFORE_READY:
            raise DeploymentFailed(f"the agent {how} repeatedly{files.SEE_LOG}")
        _log.error("the agent %s; it is restarted in %.0f s, and serving continues", how, pause)
        self._agent = None
        self._restart_agent_at = time.monotonic() + pause

    def _start_gunicorn(self) -> None:
        descriptors = [self.listener.fileno()]
        if self.shared is not None:
            descriptors.append(self.shared.listener.fileno())
        may_fork = self._may_fork.fileno()
        command = gunicorn_command(self.state_dir, self.server, *descriptors, may_fork=may_fork)
        self._gunicorn = self._children.start(command, [*descriptors, may_fork])
        self._restart_gunicorn_at = math.inf

    def _agent_state(self) -> AgentState | None:
        """Return the state that the running (or just exited) agent has written, never
        an earlier agent's state.
        """
        state = files.read_state(self.state_dir / files.AGENT, AgentState)
        if state is not None and self._agent is not None and state.pid == self._agent.pid:
            return state
        return None

    def _answers(self) -> bool:
        """Return True if the server is healthy and every worker of this gunicorn serves
        the wanted state.
        """
        if self._restart_gunicorn_at < math.inf:
            return False
        wanted = files.read_state(self.state_dir / files.WANTED, Wanted) or Wanted()
        states = files.read_workers(self.state_dir)  # Workers of a killed gunicorn are included.
        workers = [
            worker
            for worker in states
            if worker.generation == wanted.generation and files.is_alive(worker.pid)
        ]
        loaded = [worker for worker in workers if worker.has_versions or not worker.endpoints]
        return len(loaded) >= self.server.workers and is_healthy(self._url)

    def _end(self) -> None:
        """End gunicorn, then the agent and the metrics process, and ship the rows that
        a killed agent has left.
        """
        # Connections are refused once gunicorn also closes its copy of the socket.
        self.listener.close()
        if self.shared is not None:
            self.shared.listener.close()
        if self._gunicorn is not None:
            self._end_child(self._gunicorn, self.server.graceful_timeout_seconds + 5.0)
            if self._restart_gunicorn_at == math.inf and signal_group(
                self._gunicorn.pid,
                signal.SIGTERM,
            ):
                self._kill_orphans_at = time.monotonic() + _ORPHAN_SECONDS
            # Orphans of a killed gunicorn may still write.
            give_up_at = self._kill_orphans_at + _ORPHAN_SECONDS
            while self._has_orphans(self._gunicorn) and time.monotonic() < give_up_at:
                self.wait_for_signal(_TICK_SECONDS)
                self._children.reap()
        for child in (self._jobs, self._agent, self._metrics_process):
            if child is not None:
                self._end_child(child, _AGENT_END_SECONDS)
        if (self._agent is None or self._agent.exit_status) and any(
            (self.state_dir / files.SPOOL).glob("*.seg"),
        ):
            # A killed agent has not shipped these rows, and a container's disk may be
            # deleted when this process exits.
            self._wait_or_kill(
                self._children.start([*self._agent_command, "--ship"]),
                _AGENT_END_SECONDS,
            )

    def _end_child(self, child: SupervisedChild, seconds: float) -> None:
        """End a child with SIGTERM, and with SIGKILL after a time limit."""
        self._children.reap()
        child.signal(signal.SIGTERM)
        self._wait_or_kill(child, seconds)

    def _wait_or_kill(self, child: SupervisedChild, seconds: float) -> None:
        """Wait until a child has exited; kill its process group after a time limit."""
        kill_at = time.monotonic() + seconds
        while child.exit_status is None:
            if time.monotonic() >= kill_at:
                _log.error(
                    "process %d did not exit within %.0f s and is killed",
                    child.pid,
                    seconds,
                )
                signal_group(child.pid, signal.SIGKILL)
                kill_at = math.inf
            self.wait_for_signal(_TICK_SECONDS)
            self._children.reap()

    def _write(self, phase: Phase) -> None:
        """Set the phase, and write the server's state file. An OSError is raised only
        before the server is ready.
        """
        state = ServerState(
            pid=os.getpid(),
            host=self.server.host,
            port=self._port,
            started_at=self._started_at,
            phase=phase,
            restarts=self._restarts,
        )
        try:
            files.write_state(self.state_dir / files.SERVER, state)
        except OSError:
            # A full disk must neither stop the server nor turn a clean end into a
            # failure.
            if not self._is_ready and phase != "stopping":
                raise
        else:
            self._phase = phase

    def _notify(self, state: str) -> None:
        """Report the state of a service of Type=notify to systemd, as in
        sd_notify(3).
        """
        if self._notify_socket:
            with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
                address = self._notify_socket
                if address.startswith("@"):  # an abstract socket
                    address = f"\0{address[1:]}"
                notified.sendto(state.encode(), address)


def check_exposure(server: ServerSpec, announce: Callable[[str], None]) -> None:
    """Announce a server that other machines can use without keys. Raises InvalidConfig
    if the spec forbids this.
    """
    if server.authenticates or is_loopback(server.host):
        return
    if not server.insecure:
        raise InvalidConfig(
            f"{server.host} is reachable from other machines, and no caller would need a key: set "
            "-C server.api_keys=true (and `onnxserve keys create`) or -C server.jwt_issuer=…; or "
            "set --insecure (-C server.insecure=true) if a proxy authenticates callers",
        )
    announce(f"insecure: everybody who can connect to {server.host} may use this server")


def open_listener(
    host: str,
    port: int | None,
    option: str = "--port (-C server.port=…)",
) -> socket.socket:
    """Open a listening socket on `port`, or on the first free port from 8080, for
    gunicorn to inherit.

    Raises InvalidConfig with the `option` if the port is in use or not permitted, or
    the host is not this machine's.
    """
    candidates = range(_FIRST_PORT, _LAST_PORT + 1) if port is None else [port]
    for candidate in candidates:
        try:
            addresses = socket.getaddrinfo(
                host or None,
                candidate,
                type=socket.SOCK_STREAM,
                flags=socket.AI_PASSIVE,
            )
            family, _, _, _, address = addresses[0]
            # Listen at once, because with SO_REUSEADDR two sockets can bind the same
            # port until one of them listens.
            takes_ipv4 = family == socket.AF_INET6 and socket.has_dualstack_ipv6()
            return socket.create_server(address, family=family, dualstack_ipv6=takes_ipv4)
        except OSError as error:
            if port is None and error.errno == errno.EADDRINUSE:
                continue
            # Name resolution has its own error numbers.
            reason = error.strerror
            if error.errno and not isinstance(error, socket.gaierror):
                reason = os.strerror(error.errno)
            message = f"cannot listen on {host}:{candidate}: {reason}"
            if error.errno == errno.EADDRINUSE:
                message = f"port {candidate} on {host} is in use; set another port with {option}"
            elif error.errno == errno.EACCES:
                message = f"this user may not open port {candidate}, but may open ports from 1024"
            raise InvalidConfig(message) from None
    raise InvalidConfig(
        f"no port from {_FIRST_PORT} to {_LAST_PORT} is free on {host}; specify a port with --port",
    )


@contextmanager
def reserve_grpc_port(spec: ServerSpec) -> Iterator[None]:
    """Reserve `grpc_port`, if it is set, for the workers, which bind it after the fork
    with SO_REUSEPORT.

    With SO_REUSEPORT, another server could silently share the port, so the port is
    first bound without this option. Then a socket that never listens reserves the port
    while a worker is replaced. Raises InvalidConfig if the port or host cannot be used,
    and RuntimeMissing if grpcio is not installed.
    """
    if spec.grpc_port is None:
        yield
        return
    if any(importlib.util.find_spec(name) is None for name in ("grpc", "google.protobuf")):
        raise RuntimeMissing(
            "server.grpc_port is set, and grpcio is not installed: pip install "
            "'mlflow-onnxserve[grpc]'",
        )
    taken = open_listener(spec.host, spec.grpc_port, "-C server.grpc_port=…")
    family = taken.family
    address = taken.getsockname()
    taken.close()
    with socket.socket(family, socket.SOCK_STREAM) as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(address)
        yield
