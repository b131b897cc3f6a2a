"""An endpoint within the process of another application, as a WSGI application.

The endpoint works like a worker of `onnxserve serve`. The agent is a child process, so
that MLflow is not loaded here.
"""

import atexit
import logging
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from mlflow_deploy_plugin.core.errors import DeploymentFailed
from mlflow_deploy_plugin.core.processes.child import Child, Crashes, exit_reason, signal_process
from mlflow_deploy_plugin.core.spec.document import dump_spec
from mlflow_deploy_plugin.core.spec.parts import EndpointSpec
from mlflow_deploy_plugin.core.statedir.files import (
    AGENT,
    SPEC,
    claim_free_state_dir,
    read_state,
    write_atomically,
)
from mlflow_deploy_plugin.core.statedir.metric_files import make_metrics_folder, remove_metrics
from mlflow_deploy_plugin.core.statedir.models import AgentState
from mlflow_deploy_plugin.serve.assembly import open_server
from mlflow_deploy_plugin.serve.http.app import ServerApp
from mlflow_deploy_plugin.serve.http.responses import RawResponse, error_response
from mlflow_deploy_plugin.serve.messages import RawRequest

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

logger = logging.getLogger(__name__)

_PAGES = re.compile(r"/(?:docs|requests|pages/.*|endpoints/[^/]+(?:/docs|/requests)?)?")
_TICK_SECONDS = 0.05
_AGENT_END_SECONDS = 30.0


class EmbeddedModel:
    """An endpoint in this process. The endpoint is ready when the constructor returns.

    Raises DeploymentFailed if the model cannot be loaded, and InvalidConfig if the
    folder cannot be written.

    Args:
        folder: the state folder; if another process uses this folder, `FOLDER.2`,
            `FOLDER.3` and so on are tried.
        follow: True to follow a stage or alias; False to resolve it once; None to serve
            the version in the folder's WANTED without an agent, with the pages at `/`
            and `/docs`.
        wait_seconds: the time limit for the registry and the load.
    """

    def __init__(
        self,
        spec: EndpointSpec,
        folder: Path,
        follow: bool | None,
        wait_seconds: float,
    ) -> None:
        self._held = ExitStack()
        self._process = os.getpid()
        atexit.register(self.close)
        try:
            self.state_dir = self._held.enter_context(claim_free_state_dir(folder))
            write_atomically(self.state_dir / SPEC, dump_spec(spec).encode())
            # Process ids are reused, so that the states of an earlier run could seem to
            # belong to this run.
            (self.state_dir / AGENT).unlink(missing_ok=True)
            shutil.rmtree(self.state_dir / "workers", ignore_errors=True)
            deadline = time.monotonic() + wait_seconds
            limit = f"within {wait_seconds:g} s"
            if follow is not None:
                agent = _AgentKeeper(self.state_dir, follow)
                self._held.callback(agent.stop)
                while not agent.is_ready():
                    _wait(deadline, f"the model was not resolved in the registry {limit}")
            self._held.callback(os.close, make_metrics_folder(self.state_dir))
            self._held.callback(remove_metrics, self.state_dir)
            server = open_server(self.state_dir)
            self._held.callback(server.close)
            while not server.repository.wait_until_applied(_TICK_SECONDS):
                _wait(deadline, f"the model was not loaded {limit}")
            if reason := server.repository.not_ready_reason():
                raise DeploymentFailed(reason)
            self.app = ServerApp(server) if follow is None else MountedApp(server)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Unload the model, ship the captured requests, and stop the agent. All
        requests must have ended.
        """
        # A forked child must not close its parent's model when it exits.
        if os.getpid() == self._process:
            self._held.close()
        atexit.unregister(self.close)


class MountedApp(ServerApp):
    """A server without the pages, because their links do not contain the mount
    prefix.
    """

    def handle(self, raw: RawRequest) -> RawResponse:
        if _PAGES.fullmatch(raw.path):
            message = "an embedded model has no pages; use `onnxserve serve` for pages"
            return error_response(raw.path, 404, "ENDPOINT_NOT_FOUND", message)
        return super().handle(raw)


class _AgentKeeper:
    """A thread that runs the agent, and starts it again after a crash."""

    def __init__(self, state_dir: Path, follow: bool) -> None:
        self._state_dir = state_dir
        self._command = [sys.executable, "-m", "mlflow_deploy_plugin.serve.agent", str(state_dir)]
        self._command += ["--parent", str(os.getpid())]
        if not follow:
            self._command.append("--no-follow")
        self._child: Child | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="onnxserve-agent", daemon=True)
        self._thread.start()

    def is_ready(self) -> bool:
        """Return True once the agent has written its state. Raises DeploymentFailed if
        the state is a fatal error.
        """
        state = read_state(self._state_dir / AGENT, AgentState)
        if state is not None and state.fatal:
            raise DeploymentFailed(state.error)
        return state is not None

    def stop(self) -> None:
        """Let the agent ship the remaining requests and exit; kill it after a time
        limit.
        """
        self._stopping.set()
        if (child := self._child) is not None and child.exit_status is None:
            signal_process(child.pid, signal.SIGTERM)
            child.kill_after(_AGENT_END_SECONDS)
        self._thread.join()

    def _keep(self) -> None:
        """Run the agent until `stop`; pause before each new start."""
        crashes = Crashes()
        while not self._stopping.is_set():
            started_at = None
            try:
                self._child = Child(self._command)
            except OSError as error:
                reason = f"cannot be started: {error.strerror}"
            else:
                started_at = self._child.started_at
                if self._stopping.is_set():  # `stop` may have run before this child started.
                    signal_process(self._child.pid, signal.SIGTERM)
                reason = exit_reason(self._child.wait() or 0)
            pause = crashes.add(started_at)
            if not self._stopping.wait(0):
                logger.error("the agent %s; it is restarted in %.0f s", reason, pause)
                self._stopping.wait(pause)


@dataclass(eq=False)
class WsgiApp:
    """The WSGI application (PEP 3333) of Flask, which can be mounted at any prefix."""

    _model: EmbeddedModel

    def __call__(
        self,
        environ: "WSGIEnvironment",
        start_response: "StartResponse",
    ) -> Iterable[bytes]:
        path = environ.get("PATH_INFO") or "/"
        # RAW_URI as gunicorn
        target = {
            "SCRIPT_NAME": "",
            "RAW_URI": quote(path.encode("latin-1"), safe="/:@"),
        }
        return self._model.app({**environ, **target}, start_response)

    def close(self) -> None:
        self._model.close()


def _wait(deadline: float, message: str) -> None:
    if time.monotonic() > deadline:
        raise DeploymentFailed(message)
    time.sleep(_TICK_SECONDS)
