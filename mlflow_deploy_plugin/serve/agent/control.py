"""Model control: commands load and unload endpoints in addition to the spec.

`control.json` stores the unloaded and the added endpoints, so that a restart keeps
them; commands never change spec.yaml. An added endpoint cannot replace an endpoint of
the spec, and with `model_control_mode: none` all commands are ignored. A load is saved
in control.json when every worker serves the endpoint. A failed load changes nothing.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from mlflow_deploy_plugin.core.errors import InvalidConfig, NotFound, OnnxserveError
from mlflow_deploy_plugin.core.spec.parts import EndpointSpec
from mlflow_deploy_plugin.core.statedir.commands import (
    MAX_COMMAND_AGE_SECONDS,
    MAX_WAITING,
    command_answer,
    command_files,
)
from mlflow_deploy_plugin.core.statedir.files import (
    ANSWERS,
    COMMANDS,
    CONTROL,
    assert_content,
    read_state,
    write_state,
)
from mlflow_deploy_plugin.core.statedir.models import Command, Control

_log = logging.getLogger(__name__)

MOST_ADDED = 1000
"""The maximum number of added endpoints. A new endpoint replaces the oldest unloaded
endpoint.
"""

_MOST_ANSWERED = 4 * MAX_WAITING

Recorder = Callable[[Command, str], None]
"""A function that writes a command and its error (empty if it succeeded) to the audit
trail.
"""

Outcome = Callable[[Command], OnnxserveError | None]
"""A function that returns a command's error, or None. Raises `Pending` until every
worker is done.
"""


def record_nothing(command: Command, error: str) -> None:
    """Do not record the command."""


class Pending(Exception):
    """The outcome of a command is not known yet."""


def audit_recorder(store_url: str, kind: str) -> Recorder:
    """Return a function that writes commands to the audit trail of a store, each in a
    separate thread. `kind` is what identifies callers: a key or a certificate.
    """

    def write(command: Command, error: str) -> None:
        """Write a command to the audit trail; `error` is empty if it has succeeded. A
        failed write is logged.
        """
        actor = f"{kind} {command.actor}"
        action = command.action
        try:
            # Some images lack SQLAlchemy, which also takes memory.
            from mlflow_deploy_plugin.core.store.database import open_store

            with closing(open_store(store_url)) as opened:
                done = "failed" if error else f"{action}ed"
                opened.record(
                    action,
                    endpoint=command.endpoint,
                    after=done,
                    why=error,
                    actor=actor,
                )
        except (OnnxserveError, ImportError) as failure:
            _log.error(
                "the command of %s to %s %s is not audited: %s",
                actor,
                action,
                command.endpoint,
                failure,
            )

    def record(command: Command, error: str) -> None:
        threading.Thread(target=write, args=(command, error), daemon=True).start()

    return record


@dataclass(frozen=True)
class _RunningCommand:
    """A running command. `spec` is the endpoint that is loaded, or None if an endpoint
    is unloaded.
    """

    file: Path
    command: Command
    spec: EndpointSpec | None


@dataclass
class EndpointControl:
    """The commands of a server, which the agent executes between two polls. `specs` are
    the endpoints of spec.yaml. `listed` returns the endpoint of a registered model, or
    raises NotFound, on a server of all registered models.
    """

    state_dir: Path
    clock: Callable[[], float] = time.monotonic
    record: Recorder = record_nothing
    specs: Sequence[EndpointSpec] = ()
    listed: Callable[[str], EndpointSpec] | None = None
    _running: dict[str, _RunningCommand] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        saved = read_state(self.state_dir / CONTROL, Control)
        self._control = saved or Control()
        self._content = saved.model_dump_json().encode() if saved is not None else None
        """The content of control.json, cached because serializing 1,000 added endpoints
        takes 23 ms.
        """
        self._write_failure = ""
        self._answered: deque[str] = deque(maxlen=_MOST_ANSWERED)
        """The file names of the last answered commands, which must not start again."""

    @property
    def is_busy(self) -> bool:
        return bool(self._running)

    @property
    def endpoints(self) -> list[EndpointSpec]:
        """The endpoints to serve: the spec's and the added endpoints, without the
        unloaded endpoints.
        """
        loading = {
            name: running.spec
            for name, running in self._running.items()
            if running.spec is not None
        }
        if not self._is_allowed:
            return [*self.specs, *loading.values()]
        specs = self._all_endpoints | loading
        return [
            spec
            for name, spec in specs.items()
            if name in loading or name not in self._control.unloaded
        ]

    @property
    def unloaded(self) -> tuple[str, ...]:
        """The endpoints that a command could load by name."""
        served = {spec.name for spec in self.endpoints}
        if self._is_allowed:
            return tuple(name for name in self._all_endpoints if name not in served)
        return ()

    def is_loading(self, endpoint: str) -> bool:
        return endpoint in self._running and self._running[endpoint].spec is not None

    def take(self) -> list[EndpointSpec] | None:
        """Start the waiting commands, and return the endpoints to load, or None if no
        command was started. A command waits while another command for the same endpoint
        is running.
        """
        loading = []
        has_started = False
        under_way = {running.file.name for running in self._running.values()}
        for file in command_files(self.state_dir):  # The oldest command is the first.
            answer = self.state_dir / ANSWERS / file.name
            if file.name in under_way or file.name in self._answered or answer.exists():
                continue
            command = read_state(file, Command)
            # A creation time in the future means that the machine was restarted after
            # the command was written.
            if (
                command is None
                or not 0 <= self.clock() - command.created_at < MAX_COMMAND_AGE_SECONDS
            ):
                file.unlink(missing_ok=True)  # No worker waits for the answer any more.
                continue
            if command.endpoint in self._running:
                continue
            try:
                spec = self._start(command)
            except OnnxserveError as error:
                self._answer(file, error)
                continue
            has_started = True
            self._running[command.endpoint] = _RunningCommand(file, command, spec)
            if spec is not None:
                loading.append(spec)
        for answer in (self.state_dir / ANSWERS).glob("[!.]*.json"):
            if not (self.state_dir / COMMANDS / answer.name).exists():
                answer.unlink(missing_ok=True)  # The worker was killed before it read the answer.
        return loading if has_started else None

    def settle(self, outcome: Outcome) -> None:
        """Answer, log and record the running commands that have ended."""
        self._assert_file()
        for name, running in list(self._running.items()):
            try:
                error = outcome(running.command)
            except Pending:
                continue
            del self._running[name]
            if running.command.action == "fetch":
                self._answer(running.file, error)
                continue
            if running.spec is not None and error is None:
                loaded = running.spec
                unloaded = tuple(entry for entry in self._control.unloaded if entry != loaded.name)
                added = dict(self._control.added)
                if not self._is_in_spec(loaded.name):
                    added[loaded.name] = loaded
                    # Forget the oldest unloaded endpoints above the limit.
                    surplus = max(0, len(added) - MOST_ADDED)
                    unloaded_added = [entry for entry in added if entry in unloaded]
                    for entry in unloaded_added[:surplus]:
                        del added[entry]
                self._save(unloaded, added)
            self._answer(running.file, error)
            command = running.command
            message = error.message if error else ""
            by_actor = f" by {command.actor}" if command.actor else ""
            _log.info("%s %s%s: %s", command.action, name, by_actor, message or "done")
            self.record(command, message)

    @property
    def _is_allowed(self) -> bool:
        return bool(self.specs) and self.specs[0].server.model_control_mode == "explicit"

    def _is_in_spec(self, endpoint: str) -> bool:
        return any(spec.name == endpoint for spec in self.specs)

    @property
    def _all_endpoints(self) -> dict[str, EndpointSpec]:
        configured = {spec.name: spec for spec in self.specs}
        return configured | {
            name: spec for name, spec in self._control.added.items() if name not in configured
        }

    def _start(self, command: Command) -> EndpointSpec | None:
        """Return the endpoint that the command loads, or None for an unload, which is
        saved immediately. Raises InvalidConfig if the command is not allowed, and
        NotFound for an unknown endpoint.
        """
        if command.action == "fetch" and self.listed is not None:
            return self.listed(command.endpoint)
        if not self._is_allowed:
            raise InvalidConfig("model_control_mode is not explicit in the server's spec")
        endpoints = self._all_endpoints
        if command.added is not None:
            name = command.endpoint
            if self._is_in_spec(name):
                raise InvalidConfig(f"endpoint {name!r} is in the server's spec; change it there")
            added = self._control.added
            is_full = len(added) >= MOST_ADDED and not set(added) & set(self._control.unloaded)
            if is_full and name not in added:
                raise InvalidConfig(
                    f"{MOST_ADDED} endpoints were already added; unload one of them first",
                )
            return command.added
        if command.endpoint not in endpoints:
            shown = repr(command.endpoint[:100])
            raise NotFound(
                f"there is no endpoint {shown}; a new endpoint needs the parameter model_uri or "
                "config",
            )
        if command.action == "load":
            return endpoints[command.endpoint]
        unloaded = {*self._control.unloaded, command.endpoint}
        self._save(
            tuple(name for name in endpoints if name in unloaded),
            self._control.added,
        )
        return None

    def _save(
        self,
        unloaded: tuple[str, ...],
        added: dict[str, EndpointSpec],
    ) -> None:
        """Set the unloaded and the added endpoints, and write them to control.json."""
        control = Control(unloaded=unloaded, added=added)
        if control == self._control:
            return
        self._control = control
        self._content = control.model_dump_json().encode()
        self._assert_file()

    def _assert_file(self) -> None:
        """Write control.json if it does not have the current content. The next round
        repeats a failed write.
        """
        failure = ""
        try:
            if self._content is not None:
                assert_content(self.state_dir / CONTROL, self._content)
        except OSError as error:
            failure = str(error.strerror)
        if failure and failure != self._write_failure:
            _log.error(
                "loaded and unloaded endpoints cannot be saved for the next start: %s",
                failure,
            )
        self._write_failure = failure

    def _answer(self, command_file: Path, error: OnnxserveError | None) -> None:
        """Write the answer to a command, which a worker waits for; None if the command
        has succeeded.
        """
        self._answered.append(command_file.name)
        try:
            write_state(self.state_dir / ANSWERS / command_file.name, command_answer(error))
        except OSError as failure:
            _log.error("a command cannot be answered: %s", failure.strerror)
