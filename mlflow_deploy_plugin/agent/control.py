"""Control: what commands load and unload, over what the spec says.

spec.yaml stays the truth of whoever deploys. `control.json` keeps what commands have changed of it, so that a restart
finds it again: the endpoints that were unloaded, and those that were added. An added endpoint never takes the place of
one of the spec, and with `model_control_mode: none` in the spec none of it counts.

A load is tried first: only once every worker serves the endpoint is it written down, and one that fails leaves
everything as it was.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mlflow_deploy_plugin.errors import InvalidConfig, NotFound, OnnxserveError
from mlflow_deploy_plugin.server.models.commands import (
    LARGEST_COMMAND_BYTES,
    MOST_WAITING,
    OLDEST_SECONDS,
    answer_of,
    command_files,
)
from mlflow_deploy_plugin.spec import EndpointSpec
from mlflow_deploy_plugin.statedir import (
    ANSWERS,
    COMMANDS,
    CONTROL,
    Command,
    Control,
    read_state,
    write_state,
)

_log = logging.getLogger(__name__)

MOST_ADDED = 1000
"""Endpoints beside the spec's; for a further one, the oldest of those that are unloaded is forgotten."""

Outcome = Callable[[str], OnnxserveError | None]
"""How it went with the endpoint of this name; raises `Pending` while some worker has not dealt with it."""


class Pending(Exception):
    """It is not known yet."""


@dataclass(frozen=True)
class _Taken:
    """A command that is under way; `spec` is what it loads, None for one that unloads."""

    file: Path
    command: Command
    spec: EndpointSpec | None


@dataclass
class EndpointControl:
    """The commands of one server, taken by the agent between two looks at the registry."""

    state_dir: Path
    clock: Callable[[], float] = time.monotonic
    _taken: dict[str, _Taken] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self._control = read_state(self.state_dir / CONTROL, Control) or Control()
        self._answered: deque[str] = deque(maxlen=4 * MOST_WAITING)

    def has_work(self) -> bool:
        """Whether a command waits or is under way; cheap enough to be asked many times a second."""
        return bool(self._taken) or any(file.name not in self._answered for file in command_files(self.state_dir))

    def endpoints(self, specs: Sequence[EndpointSpec]) -> list[EndpointSpec]:
        """What is to be served: the spec's endpoints and the added ones, without those that are unloaded."""
        if not _is_allowed(specs):
            return list(specs)
        loading = {name: taken.spec for name, taken in self._taken.items() if taken.spec is not None}
        known = self._known(specs) | loading
        return [spec for name, spec in known.items() if name in loading or name not in self._control.unloaded]

    def unloaded(self, specs: Sequence[EndpointSpec]) -> tuple[str, ...]:
        """Endpoints that could be loaded again by their name."""
        served = {spec.name for spec in self.endpoints(specs)}
        return tuple(name for name in self._known(specs) if name not in served) if _is_allowed(specs) else ()

    def is_loading(self, endpoint: str) -> bool:
        return endpoint in self._taken and self._taken[endpoint].spec is not None

    def take(self, specs: Sequence[EndpointSpec]) -> list[EndpointSpec] | None:
        """Takes the commands that wait: what is to be looked up anew for them; None: nothing was taken.

        A command to an endpoint that another one is under way for waits for the next round.
        """
        looked_up: list[EndpointSpec] = []
        was_taken = False
        for file, command in self._commands():
            if command.endpoint in self._taken:
                continue
            try:
                spec = self._begin(command, specs)
            except OnnxserveError as error:
                self._answer(file, error)
                continue
            was_taken = True
            self._taken[command.endpoint] = _Taken(file, command, spec)
            looked_up += [spec] if spec is not None else []
        return looked_up if was_taken else None

    def settle(self, specs: Sequence[EndpointSpec], outcome: Outcome) -> None:
        """Answers the commands whose outcome is known."""
        for name, taken in list(self._taken.items()):
            try:
                error = outcome(name)
            except Pending:
                continue
            del self._taken[name]
            if taken.spec is not None and error is None:
                self._keep_loaded(specs, taken.spec)
            self._answer(taken.file, error)
            _log.info("%s %s: %s", taken.command.action, name, error.message if error else "done")

    def _known(self, specs: Sequence[EndpointSpec]) -> dict[str, EndpointSpec]:
        """Every endpoint by name, the spec's first and in its order."""
        own = {spec.name: spec for spec in specs}
        return own | {name: spec for name, spec in self._control.added.items() if name not in own}

    def _begin(self, command: Command, specs: Sequence[EndpointSpec]) -> EndpointSpec | None:
        """What is loaded for the command, or None for one that unloads, which is written down at once."""
        if not _is_allowed(specs):
            raise InvalidConfig("model_control_mode is not explicit in the server's spec")
        known = self._known(specs)
        if command.added is not None:
            if any(spec.name == command.endpoint for spec in specs):
                raise InvalidConfig(f"endpoint {command.endpoint!r} stands in the server's spec; it is changed there")
            added, unloaded = self._control.added, self._control.unloaded
            is_full = len(added) >= MOST_ADDED and not any(name in unloaded for name in added)
            if is_full and command.endpoint not in added:
                raise InvalidConfig(f"{MOST_ADDED} endpoints were added already; unload one of them first")
            return command.added
        if command.endpoint not in known:
            raise NotFound(f"no endpoint {command.endpoint[:100]!r} is known here; say in parameters what it is")
        if command.action == "load":
            return known[command.endpoint]
        out = {*self._control.unloaded, command.endpoint}
        self._keep(tuple(name for name in known if name in out), self._control.added)
        return None

    def _keep_loaded(self, specs: Sequence[EndpointSpec], spec: EndpointSpec) -> None:
        unloaded = tuple(name for name in self._control.unloaded if name != spec.name)
        added = dict(self._control.added)
        if all(own.name != spec.name for own in specs):
            added[spec.name] = spec
            for forgotten in [name for name in added if name in unloaded][: max(0, len(added) - MOST_ADDED)]:
                del added[forgotten]
        self._keep(unloaded, added)

    def _keep(self, unloaded: tuple[str, ...], added: dict[str, EndpointSpec]) -> None:
        control = Control(unloaded=unloaded, added=added)
        if control == self._control:
            return
        self._control = control
        try:
            write_state(self.state_dir / CONTROL, control)
        except OSError as error:
            _log.error("what was loaded or unloaded is forgotten at the next start: %s", error.strerror)

    def _commands(self) -> Iterator[tuple[Path, Command]]:
        """Commands that are to be taken, the oldest first; what nobody waits for any more is removed."""
        under_way = {taken.file.name for taken in self._taken.values()}
        for file in command_files(self.state_dir):
            answer = self.state_dir / ANSWERS / file.name
            if file.name in under_way or file.name in self._answered or answer.exists():
                continue
            try:
                is_small = file.stat().st_size <= LARGEST_COMMAND_BYTES
            except FileNotFoundError:  # its worker has withdrawn it
                continue
            command = read_state(file, Command) if is_small else None
            # one from the future was made before the machine was started anew
            if command is not None and 0 <= self.clock() - command.created_at < OLDEST_SECONDS:
                yield file, command
            else:
                file.unlink(missing_ok=True)
        for answer in (self.state_dir / ANSWERS).glob("[!.]*.json"):
            if not (self.state_dir / COMMANDS / answer.name).exists():
                answer.unlink(missing_ok=True)  # its worker was killed

    def _answer(self, command_file: Path, error: OnnxserveError | None) -> None:
        self._answered.append(command_file.name)
        try:
            write_state(self.state_dir / ANSWERS / command_file.name, answer_of(error))
        except OSError as failure:
            _log.error("a command cannot be answered: %s", failure.strerror)


def _is_allowed(specs: Sequence[EndpointSpec]) -> bool:
    return bool(specs) and specs[0].server.model_control_mode == "explicit"
