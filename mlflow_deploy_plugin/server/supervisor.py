"""`onnxserve serve`: a small supervisor (process 1 in the image) of gunicorn and the agent.

Order of things: take the state folder and the port, start the agent, wait until it has resolved and fetched, start
gunicorn on the socket, say so when every worker is ready. An agent that crashes is started anew. So is a gunicorn that
was killed after it had been ready: on the same socket, which keeps new clients meanwhile, once no worker of the old one
lives. One that leaves in good order takes everything along, and so does one that is killed again and again. On SIGTERM
gunicorn finishes what is in flight, then the agent ships what was captured and ends.
"""

import fcntl
import http.client
import logging
import math
import os
import signal
import socket
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mlflow_deploy_plugin.errors import AlreadyExists, DeploymentFailed, InvalidConfig
from mlflow_deploy_plugin.processes import (
    SupervisedChild,
    SupervisedChildren,
    adopt_orphans,
    watched_signals,
)
from mlflow_deploy_plugin.server.gunicorn_conf import gunicorn_command
from mlflow_deploy_plugin.server.listener import (
    open_listener,
    reachable_host,
    reachable_url,
    reserve_grpc_port,
)
from mlflow_deploy_plugin.spec import ServerSpec, load_specs
from mlflow_deploy_plugin.statedir import (
    AGENT,
    SERVER,
    SPEC,
    SPOOL,
    WANTED,
    AgentState,
    Phase,
    ServerState,
    Wanted,
    is_alive,
    read_state,
    read_workers,
    write_state,
)

_log = logging.getLogger(__name__)

_LOCK = "server.lock"
_TICK_SECONDS = 0.1
_AGENT_END_SECONDS = 30.0
_CRASHES_BEFORE_READY = 3
_LONGEST_RESTART_SECONDS = 30.0
_STABLE_SECONDS = 60.0
_MAX_DEATHS = 4
"""Of gunicorn, each within `_STABLE_SECONDS` of its start; it is started anew at once, then after 0.5 and 1 s."""
_ORPHAN_SECONDS = 2.0
"""What the workers of a killed gunicorn have to finish the requests in flight, while nobody takes new ones."""


@contextmanager
def claim_state_dir(state_dir: Path) -> Iterator[None]:
    """Holds the state folder for one server; the kernel lets go of it however the process ends.

    Raises:
        AlreadyExists: a server runs in it.
        InvalidConfig: it cannot be written, or the disk is full.
    """
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
        lock = os.open(state_dir / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise InvalidConfig(f"the state folder {state_dir} cannot be written: {error.strerror}") from None
    try:
        _lock(lock, state_dir)
        yield
    except OSError as error:
        raise InvalidConfig(f"no server can run in the state folder {state_dir}: {error.strerror or error}") from None
    finally:
        os.close(lock)


def _lock(lock: int, state_dir: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise AlreadyExists(f"a server runs in the state folder {state_dir} already") from None


def supervise(state_dir: Path, follow: bool, announce: Callable[[str], None]) -> None:
    """Serves what `state_dir/spec.yaml` says until SIGTERM or SIGINT; returns after an orderly end.

    Call it with the folder `claimed`, in a process without other threads.

    Raises:
        InvalidConfig: the spec is none, or one of its ports cannot be used.
        RuntimeMissing: it asks for gRPC, and grpcio is not installed.
        DeploymentFailed: the server did not become ready (the message says why), or gunicorn is gone for good.
    """
    server = load_specs((state_dir / SPEC).read_text())[0].server
    with reserve_grpc_port(server):
        listener = open_listener(server.host, server.port)
        previous = signal.pthread_sigmask(signal.SIG_BLOCK, watched_signals())
        adopt_orphans()
        try:
            _Supervisor(state_dir, server, listener, follow, announce).run()
        finally:
            listener.close()
            (state_dir / SERVER).unlink(missing_ok=True)
            signal.pthread_sigmask(signal.SIG_SETMASK, previous)


class _Stop(Exception):
    """SIGTERM or SIGINT came."""


class _Supervisor:
    def __init__(
        self,
        state_dir: Path,
        server: ServerSpec,
        listener: socket.socket,
        follow: bool,
        announce: Callable[[str], None],
    ) -> None:
        self._state_dir = state_dir
        self._server = server
        self._listener = listener
        self._announce = announce
        self._agent_command = [sys.executable, "-m", "mlflow_deploy_plugin.agent", str(state_dir)]
        if not follow:
            self._agent_command.append("--no-follow")
        self._port = int(listener.getsockname()[1])
        self._url = reachable_url(server.host, self._port, "https" if server.certfile else "http")
        self._started_at = time.time()
        self._children = SupervisedChildren()
        self._signals = watched_signals()
        self._agent: SupervisedChild | None = None
        self._agent_started = 0.0
        self._agent_crashes = 0
        self._restart_agent_at = 0.0
        self._gunicorn: SupervisedChild | None = None
        self._gunicorn_started = 0.0
        self._gunicorn_deaths = 0
        self._restart_gunicorn_at = math.inf
        self._kill_orphans_at = math.inf
        self._restarts = 0
        self._is_ready = False  # it was, once
        self._phase: Phase = "starting"

    def run(self) -> None:
        self._write("starting")
        # an earlier agent's account could pass for this one's: in a container the process ids are the same every time
        (self._state_dir / AGENT).unlink(missing_ok=True)
        try:
            self._start_agent()
            self._wait_until(self._agent_has_looked)
            self._start_gunicorn()
            self._wait_until(self._answers)
            self._is_ready = True
            self._write("serving")
            self._announce(self._describe())
            self._wait_until(lambda: False)
        except _Stop:
            _log.info("ending: requests in flight are finished")
        finally:
            with suppress(OSError):  # a full disk does not make an orderly end a failure
                self._write("stopping")
            self._end()

    def _wait_until(self, done: Callable[[], bool]) -> None:
        """Waits for signals and minds the children, until `done`.

        Raises:
            _Stop, DeploymentFailed
        """
        while not done():
            received = signal.sigtimedwait(self._signals, 1.0 if self._phase == "serving" else _TICK_SECONDS)
            if received is not None and received.si_signo != signal.SIGCHLD:
                raise _Stop
            self._children.reap()
            self._mind_gunicorn()
            self._mind_agent()

    def _mind_gunicorn(self) -> None:
        if self._gunicorn is None:
            return
        if self._restart_gunicorn_at < math.inf:
            self._restart_gunicorn(self._gunicorn)
        elif self._gunicorn.exit_status is not None:
            self._mourn_gunicorn(self._gunicorn, self._gunicorn.exit_status)
        elif self._is_ready and self._phase == "starting" and self._answers():
            with suppress(OSError):
                self._write("serving")

    def _mourn_gunicorn(self, dead: SupervisedChild, exit_status: int) -> None:
        """
        Raises:
            DeploymentFailed: it is not to be started anew.
        """
        if not self._is_ready:
            raise DeploymentFailed(f"gunicorn {dead.exit_reason} before a worker was ready; the log says why")
        if exit_status == 0:  # somebody has told it to
            raise DeploymentFailed(f"gunicorn {dead.exit_reason} while serving; the log says why")
        now = time.monotonic()
        self._gunicorn_deaths = 1 if now - self._gunicorn_started > _STABLE_SECONDS else self._gunicorn_deaths + 1
        if self._gunicorn_deaths >= _MAX_DEATHS:
            raise DeploymentFailed(
                f"gunicorn {dead.exit_reason}, for the {_MAX_DEATHS}th time in a row; the log says why"
            )
        pause = 2.0 ** (self._gunicorn_deaths - 3) if self._gunicorn_deaths > 1 else 0.0
        _log.error("gunicorn %s; it is started anew in %.1f s, and new clients wait", dead.exit_reason, pause)
        dead.signal_group(signal.SIGTERM)
        self._restart_gunicorn_at, self._kill_orphans_at = now + pause, now + _ORPHAN_SECONDS
        self._restarts += 1
        with suppress(OSError):  # a full disk keeps nobody from being served
            self._write("starting")

    def _restart_gunicorn(self, dead: SupervisedChild) -> None:
        """As soon as it is due, and nothing of the one before lives."""
        if not self._has_orphans(dead) and time.monotonic() >= self._restart_gunicorn_at:
            self._start_gunicorn()

    def _has_orphans(self, dead: SupervisedChild) -> bool:
        """Whether a worker of it lives; those whose time is up are killed."""
        return dead.signal_group(signal.SIGKILL if time.monotonic() >= self._kill_orphans_at else 0)

    def _end_orphans(self, dead: SupervisedChild) -> None:
        while self._has_orphans(dead) and time.monotonic() < self._kill_orphans_at + _ORPHAN_SECONDS:
            signal.sigtimedwait(self._signals, _TICK_SECONDS)
            self._children.reap()

    def _mind_agent(self) -> None:
        if self._agent is None:
            if time.monotonic() >= self._restart_agent_at:
                self._start_agent()
            return
        if self._agent.exit_status is None:
            return
        state = self._agent_state()
        if state is not None and state.fatal and not self._is_ready:
            raise DeploymentFailed(state.error)
        lived = time.monotonic() - self._agent_started
        self._agent_crashes = 1 if lived > _STABLE_SECONDS else self._agent_crashes + 1
        how = self._agent.exit_reason
        if not self._is_ready and self._agent_crashes >= _CRASHES_BEFORE_READY:
            raise DeploymentFailed(f"the agent {how} again and again; the log says why")
        pause = min(2.0 ** min(self._agent_crashes - 1, 10), _LONGEST_RESTART_SECONDS)
        _log.error("the agent %s; it is started anew in %.0f s, and serving goes on", how, pause)
        self._agent = None
        self._restart_agent_at = time.monotonic() + pause

    def _start_agent(self) -> None:
        self._agent = self._children.start(self._agent_command)
        self._agent_started = time.monotonic()

    def _start_gunicorn(self) -> None:
        descriptor = self._listener.fileno()
        command = gunicorn_command(self._state_dir, self._server, self._port, descriptor)
        self._gunicorn = self._children.start(command, descriptors=[descriptor])
        self._gunicorn_started = time.monotonic()
        self._restart_gunicorn_at = math.inf

    def _agent_has_looked(self) -> bool:
        state = self._agent_state()
        return state is not None and not state.fatal

    def _agent_state(self) -> AgentState | None:
        """What the agent that runs (or just ended) has written; an earlier one's account does not count."""
        state = read_state(self._state_dir / AGENT, AgentState)
        return state if state is not None and self._agent is not None and state.pid == self._agent.pid else None

    def _answers(self) -> bool:
        """The HTTP side answers, and every worker has dealt with what is wanted, so that something of it is served."""
        wanted = read_state(self._state_dir / WANTED, Wanted) or Wanted()
        accounts = read_workers(self._state_dir)  # those of a killed gunicorn's workers too
        workers = [worker for worker in accounts if worker.generation == wanted.generation and is_alive(worker.pid)]
        loaded = [
            w for w in workers if not w.endpoints or any(v.version for e in w.endpoints.values() for v in e.values())
        ]
        return len(loaded) >= self._server.workers and self._pings()

    def _pings(self) -> bool:
        """Whether /ping answers 200; over TLS whoever answers is trusted, since it answers on our own socket."""
        connection = self._connection()
        try:
            connection.request("GET", "/ping")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        host = reachable_host(self._server.host)
        if not self._server.certfile:
            return http.client.HTTPConnection(host, self._port, timeout=5)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return http.client.HTTPSConnection(host, self._port, timeout=5, context=context)

    def _end(self) -> None:
        """gunicorn first, so that the agent ships what the last requests left; nobody is left behind."""
        self._listener.close()  # gunicorn's alone now: when it lets go, connections are refused
        if self._gunicorn is not None:
            self._end_child(self._gunicorn, self._server.graceful_timeout_seconds + 5.0)
            if self._restart_gunicorn_at < math.inf:  # it was killed, and its workers may write to the spool still
                self._end_orphans(self._gunicorn)
        if self._agent is not None:
            self._end_child(self._agent, _AGENT_END_SECONDS)
        if (self._agent is None or self._agent.exit_status) and any((self._state_dir / SPOOL).glob("*.seg")):
            # it was killed, or had not yet begun: the disk that the rows lie on may go with this process
            self._outlast(self._children.start([*self._agent_command, "--ship"]), _AGENT_END_SECONDS)

    def _end_child(self, child: SupervisedChild, patience: float) -> None:
        self._children.reap()
        child.signal(signal.SIGTERM)
        self._outlast(child, patience)

    def _outlast(self, child: SupervisedChild, patience: float) -> None:
        deadline = time.monotonic() + patience
        while child.exit_status is None and time.monotonic() < deadline:
            signal.sigtimedwait(self._signals, _TICK_SECONDS)
            self._children.reap()
        if child.exit_status is None:
            _log.error("process %d does not end within %.0f s and is killed", child.pid, patience)
            child.signal_group(signal.SIGKILL)
            while child.exit_status is None:
                signal.sigtimedwait(self._signals, _TICK_SECONDS)
                self._children.reap()

    def _describe(self) -> str:
        wanted = read_state(self._state_dir / WANTED, Wanted) or Wanted()
        if not wanted.endpoints:
            return f"onnxserve: every endpoint is unloaded at {self._url}"
        return "\n".join(
            f"onnxserve: {name} = "
            + ", ".join(f"{v.model} version {v.version}" + _aspect(v.aspects) for v in endpoint.variants.values())
            + f" at {self._url}"
            for name, endpoint in wanted.endpoints.items()
        )

    def _write(self, phase: Phase) -> None:
        state = ServerState.model_validate(
            {
                "pid": os.getpid(),
                "host": self._server.host,
                "port": self._port,
                "started_at": self._started_at,
                "phase": phase,
                "restarts": self._restarts,
            }
        )
        write_state(self._state_dir / SERVER, state)
        self._phase = phase


def _aspect(aspects: dict[str, str]) -> str:
    shown = aspects.get("stage") or (f"@{aspects['alias']}" if "alias" in aspects else aspects.get("tag", ""))
    return f" ({shown})" if shown else ""
