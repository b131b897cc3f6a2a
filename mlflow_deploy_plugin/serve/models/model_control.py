"""Model control: a request to a worker loads an endpoint into the memory of all
workers, or unloads it.

Only the agent writes the wanted state. Therefore a worker writes a command file
(`core/statedir/commands.py`), and the agent (`serve/agent/control.py`) answers once all
workers have applied the change.
"""

import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from mlflow_deploy_plugin.core.errors import (
    DeadlineExceeded,
    InvalidConfig,
    NotReady,
    TooManyRequests,
)
from mlflow_deploy_plugin.core.spec.parts import EndpointSpec, ModelControlMode
from mlflow_deploy_plugin.core.statedir.commands import (
    COMMAND_TIMEOUT_SECONDS,
    MAX_WAITING,
    command_error,
    command_files,
)
from mlflow_deploy_plugin.core.statedir.files import (
    AGENT,
    ANSWERS,
    COMMANDS,
    is_alive,
    read_state,
    write_state,
)
from mlflow_deploy_plugin.core.statedir.models import AgentState, Command, CommandAnswer

_MAX_COMMAND_BYTES = 256 * 1024
_AGENT_SECONDS = 30.0
"""The longest downtime of the agent: after a crash it is restarted within a second, and
then imports MLflow, which took more than 10 s with six busy processes per core.
"""
_POLL_SECONDS = 0.02
_POLLS = 50
"""The shortest pause between two looks for the answer, and the share of the time since
the command by which it is longer.
"""


@dataclass(eq=False)
class ModelControl:
    """The part of a worker that loads and unloads endpoints on request, if the mode is
    "explicit".

    Attributes:
        max_waiting: the maximum number of this worker's requests that wait for an
            answer, each in its thread.
        timeout_seconds: the longest wait for a command.
        agent_seconds: the longest downtime of the agent, which is restarted after a
            crash.
    """

    state_dir: Path
    mode: ModelControlMode
    max_waiting: int
    timeout_seconds: float = COMMAND_TIMEOUT_SECONDS
    agent_seconds: float = _AGENT_SECONDS

    def __post_init__(self) -> None:
        self._waiting = threading.BoundedSemaphore(self.max_waiting)

    def load(self, endpoint: str, added: EndpointSpec | None = None, actor: str = "") -> None:
        """Load the endpoint into all workers. If it is already loaded, resolve its
        versions again.

        `added` is the endpoint if the spec lacks it; `actor` is the name of the
        caller's key.

        Raises:
            InvalidConfig: model control is off, or `added` is too large or already in
                the spec.
            NotFound: the endpoint or the model does not exist.
            ModelError: the model cannot be served.
            NotReady, RegistryUnavailable: the agent, or the registry, does not respond.
            TooManyRequests: too many commands are in progress.
            DeadlineExceeded: the command takes longer than a request can wait, and
                continues.
        """
        self._run(
            Command(
                action="load",
                endpoint=endpoint,
                added=added,
                actor=actor,
                created_at=time.monotonic(),
            )
        )

    def unload(self, endpoint: str, actor: str = "") -> None:
        """Unload the endpoint from all workers. Raises the errors of `load`."""
        self._run(
            Command(action="unload", endpoint=endpoint, actor=actor, created_at=time.monotonic())
        )

    def fetch(self, model: str, mark: str) -> None:
        """Bring the version of a listed registered model onto this disk. Raises the
        errors of `load`.
        """
        self._run(Command(action="fetch", endpoint=model, mark=mark, created_at=time.monotonic()))

    def _run(self, command: Command) -> None:
        """Write the command to a file and wait for the agent's answer. Raises the
        errors of `load`.
        """
        if self.mode != "explicit" and command.action != "fetch":
            raise InvalidConfig(
                f"this server does not allow requests to {command.action} endpoints; to allow "
                "them, start it with server.model_control_mode: explicit in its spec (-C "
                "server.model_control_mode=explicit)"
            )
        size = len(command.model_dump_json())
        if size > _MAX_COMMAND_BYTES:
            name = command.endpoint[:100]
            raise InvalidConfig(
                f"endpoint {name!r} has {size} bytes as JSON; at most {_MAX_COMMAND_BYTES} are "
                "allowed"
            )
        # Limit this worker's waiting requests, to leave threads for predictions.
        if not self._waiting.acquire(blocking=False):
            raise TooManyRequests(
                "other endpoints are being loaded or unloaded; retry in a moment", 1
            )
        try:
            if len(command_files(self.state_dir)) >= MAX_WAITING:
                raise TooManyRequests(
                    f"{MAX_WAITING} endpoints wait to be loaded or unloaded; retry later", 1
                )
            name = f"{time.monotonic_ns():020d}-{os.urandom(8).hex()}.json"
            file = self.state_dir / COMMANDS / name
            answer_file = self.state_dir / ANSWERS / name
            try:
                write_state(file, command)
            except OSError as error:
                raise NotReady(f"the command cannot be written: {error.strerror}") from None
            try:
                began = time.monotonic()
                agent_seen_at = began
                while (answer := read_state(answer_file, CommandAnswer)) is None:
                    now = time.monotonic()
                    agent = read_state(self.state_dir / AGENT, AgentState)
                    if agent is not None and is_alive(agent.pid):
                        agent_seen_at = now
                    if now - agent_seen_at > self.agent_seconds:
                        raise NotReady(
                            f"the agent that must {command.action} the endpoint is not running; "
                            "retry later"
                        )
                    if now - began > self.timeout_seconds:
                        raise DeadlineExceeded(
                            f"the {command.action} of {command.endpoint!r} takes longer than "
                            f"{self.timeout_seconds:.0f} s and continues; /v2/repository/index "
                            "shows the result"
                        )
                    # Many threads may wait for slow downloads.
                    time.sleep(max(_POLL_SECONDS, (now - began) / _POLLS))
            finally:
                # Delete the command first: the agent repeats it if it has no answer.
                file.unlink(missing_ok=True)
                answer_file.unlink(missing_ok=True)
        finally:
            self._waiting.release()
        refusal = command_error(answer)
        if refusal is not None:
            raise refusal
