"""Following: spec and registry → the versions that are wanted.

One round looks at everything and never waits: the spec (read again when it changes), commands (`agent/control.py`),
every reference whose time has come, and what the workers say about the versions they were given. References to a stage
or an alias come due again and again; pinned ones are looked at until they are resolved, and never again. Whatever
fails, what was served is wanted on.
"""

import logging
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mlflow_deploy_plugin.agent.consent import Consent, consent_of
from mlflow_deploy_plugin.agent.control import EndpointControl, Pending
from mlflow_deploy_plugin.agent.tracked import Tracked, wanted_variant
from mlflow_deploy_plugin.agent.version import FetchedVersion, restored_versions
from mlflow_deploy_plugin.errors import InvalidConfig, ModelError, NotFound, OnnxserveError
from mlflow_deploy_plugin.registry.resolve import ResolvedModel
from mlflow_deploy_plugin.server.state import (
    AGENT,
    SPEC,
    WANTED,
    AgentState,
    ShippingState,
    Wanted,
    WantedEndpoint,
    WorkerState,
    lives,
    read_state,
    read_workers,
    write_state,
)
from mlflow_deploy_plugin.spec import EndpointSpec, load_specs

_log = logging.getLogger(__name__)

_LONGEST_BACKOFF_SECONDS = 30.0
_JITTER = 0.2


class Registry(Protocol):
    """What following needs of the world outside."""

    def resolve(self, model_uri: str) -> ResolvedModel: ...
    def fetch(self, resolved: ResolvedModel) -> FetchedVersion: ...
    def report_failure(self, source: str, error: str) -> None: ...


@dataclass
class Follower:
    """The agent's memory from round to round.

    Attributes:
        follow: False resolves every reference once and then leaves it.
        clock: monotonic seconds.
        wall_clock: seconds since 1970, for agent.json.
        uniform: random between two numbers, to spread the polls of many agents.
        shipping: how shipping goes, which stands in agent.json too.
    """

    state_dir: Path
    registry: Registry
    poll_seconds: float
    follow: bool
    clock: Callable[[], float]
    wall_clock: Callable[[], float]
    uniform: Callable[[float, float], float] = random.uniform
    shipping: Callable[[], ShippingState] = ShippingState

    def __post_init__(self) -> None:
        self._wanted = read_state(self.state_dir / WANTED, Wanted) or Wanted()
        # what was served before a restart is served on, whatever the registry says or does not say
        self._tracked = {uri: Tracked(version) for uri, version in restored_versions(self._wanted).items()}
        self._control = EndpointControl(self.state_dir, self.wall_clock)
        self._own_specs: list[EndpointSpec] = []
        self._consent = Consent()
        self._specs: list[EndpointSpec] = []
        self._is_forced = False
        self._spec_text = ""
        self._spec_error = ""
        self._written: AgentState | None = None

    def round(self) -> AgentState:
        """Looks once; writes wanted.json and agent.json where they change.

        Returns:
            What stands in agent.json now; `fatal` means that there is nothing to be served and no use in waiting.
        """
        first = self._written is None
        self._read_spec()
        self._take_commands()
        restored = any(tracked.version is not None for tracked in self._tracked.values())
        looked = self._look_at_registry()
        fatal = first and not restored and self._something_lacks()
        if not fatal:
            self._write_wanted()
            fatal = self._hear_workers()
            self._write_wanted()
            self._control.settle(self._own_specs, self._outcome)
        state = AgentState(
            pid=os.getpid(),
            checked_at=self.wall_clock() if looked or self._written is None else self._written.checked_at,
            error=self._errors(),
            fatal=fatal,
            shipping=self.shipping(),
        )
        self._report(state)
        return state

    def _errors(self) -> str:
        of_models = [text for tracked in self._tracked.values() for text in (tracked.refusal, tracked.error)]
        return "; ".join(text for text in [self._spec_error, *of_models] if text)

    def _report(self, state: AgentState) -> None:
        """Writes agent.json, and logs an error when it comes, changes and goes; a fatal one the supervisor tells."""
        before = self._written.error if self._written else ""
        if state.error and state.error != before and not state.fatal:
            _log.warning("%s", state.error)
        elif before and not state.error:
            _log.info("all that the spec names is resolved and served")
        if state != self._written:
            write_state(self.state_dir / AGENT, state)
            self._written = state

    def _read_spec(self) -> None:
        try:
            text = (self.state_dir / SPEC).read_text()
            if text == self._spec_text:
                return
            self._spec_text = text
            self._own_specs = load_specs(text)
            self._agree(consent_of(self._own_specs))
            self._spec_error = ""
        except (OSError, UnicodeDecodeError) as error:
            self._spec_error = f"{SPEC} cannot be read: {error}"
        except OnnxserveError as error:
            self._spec_error = f"{SPEC}: {error.message}"

    def _agree(self, consent: Consent) -> None:
        """A version that was refused for want of consent is looked at again where there is one now."""
        for uri in (consent.allowed - self._consent.allowed) | (consent.named - self._consent.named):
            if (tracked := self._tracked.get(uri)) is not None:
                tracked.look_anew()
        self._consent = consent

    def _take_commands(self) -> None:
        """What a command loads is looked up at once, and tried again where it was refused."""
        anew = self._control.take(self._own_specs)
        specs = self._control.endpoints(self._own_specs)
        if specs != self._specs:
            self._specs = specs
            uris = {variant.model for spec in specs for variant in spec.variants.values()}
            self._tracked = {uri: self._tracked.get(uri) or Tracked() for uri in sorted(uris)}
        for spec in anew or ():
            for variant in spec.variants.values():
                self._tracked[variant.model].look_anew()
        self._is_forced = self._is_forced or anew is not None

    def has_work(self) -> bool:
        """Whether there is a reason for the next round to come soon."""
        return self._control.has_work()

    def _outcome(self, endpoint: str) -> OnnxserveError | None:
        """How loading or unloading went; see `control.Outcome`."""
        spec = next((spec for spec in self._specs if spec.name == endpoint), None)
        if spec and (error := self._failure(spec)):
            return error
        workers = [worker for worker in read_workers(self.state_dir) if lives(worker.pid)]
        is_behind = any(worker.generation != self._wanted.generation for worker in workers)
        if is_behind or any(_load_error(workers, endpoint, name) for name in (spec.variants if spec else ())):
            raise Pending  # an error that has just come is dealt with in the next round
        return None

    def _failure(self, spec: EndpointSpec) -> OnnxserveError | None:
        """Why a model of the endpoint is not to be had, or not to be loaded."""
        failures = (self._tracked[variant.model].failure() for variant in spec.variants.values())
        return next((failure for failure in failures if failure is not None), None)

    def _look_at_registry(self) -> bool:
        due = [(uri, tracked) for uri, tracked in self._tracked.items() if tracked.due <= self.clock()]
        for uri, tracked in due:
            try:
                followed = self._look(uri, tracked)
                tracked.failures = 0
                tracked.due = self.clock() + self._pause(0) if followed and self.follow else float("inf")
            except (NotFound, InvalidConfig) as error:  # somebody may put it right at any moment
                tracked.error, tracked.failed = f"{uri}: {error.message}", type(error)
                tracked.due = self.clock() + self._pause(0)
            except OnnxserveError as error:
                tracked.error, tracked.failed = error.message, type(error)
                tracked.failures += 1
                tracked.due = self.clock() + self._pause(tracked.failures)
        return bool(due)

    def _look(self, uri: str, tracked: Tracked) -> bool:
        """Brings `tracked` to what the registry says now; answers whether it has to be looked at again."""
        resolved = self.registry.resolve(uri)
        tracked.error = ""
        if resolved.identity == tracked.refused:
            return resolved.followed
        if tracked.version is None or tracked.version.identity != resolved.identity:
            try:
                fetched = self.registry.fetch(resolved)
                if fetched.runs_code:
                    self._consent.check(uri, resolved.followed)
            except ModelError as error:
                tracked.refused, tracked.refusal = resolved.identity, f"{uri}: {error.message}"
                self.registry.report_failure(resolved.source, error.message)
                return resolved.followed
            if tracked.version is not None and tracked.version.folder != fetched.folder:
                tracked.previous = tracked.version
            tracked.version = fetched
        tracked.refused, tracked.refusal = "", ""
        return resolved.followed

    def _pause(self, failures: int) -> float:
        longest = max(self.poll_seconds, _LONGEST_BACKOFF_SECONDS)
        seconds = min(self.poll_seconds * 2.0 ** min(failures, 10), longest)
        return seconds * self.uniform(1 - _JITTER, 1 + _JITTER)

    def _write_wanted(self) -> None:
        endpoints = {spec.name: self._wanted_endpoint(spec) for spec in self._specs if not self._is_vain(spec)}
        unloaded = self._control.unloaded(self._own_specs)
        before = self._wanted
        is_same = before.generation and (endpoints, unloaded) == (before.endpoints, before.unloaded)
        has_none = not unloaded and not any(endpoint.variants for endpoint in endpoints.values())
        if (is_same and not self._is_forced) or has_none:
            return
        self._wanted = Wanted(generation=before.generation + 1, endpoints=endpoints, unloaded=unloaded)
        write_state(self.state_dir / WANTED, self._wanted)
        self._is_forced = False
        for name in [name for name in endpoints if endpoints[name] != before.endpoints.get(name)]:
            for variant in endpoints[name].variants.values():
                _log.info("endpoint %s: %s version %s is wanted", name, variant.model, variant.version)

    def _is_vain(self, spec: EndpointSpec) -> bool:
        """Whether a command loads the endpoint that cannot be had: no worker is to hear of it."""
        is_new = self._control.is_loading(spec.name) and spec.name not in self._wanted.endpoints
        return is_new and self._failure(spec) is not None

    def _wanted_endpoint(self, spec: EndpointSpec) -> WantedEndpoint:
        served = self._wanted.endpoints.get(spec.name, WantedEndpoint(variants={})).variants
        variants = {}
        for name, variant in spec.variants.items():
            if (version := self._tracked[variant.model].version) is not None:
                variants[name] = wanted_variant(variant, version)
            elif name in served:  # its model was changed to one that cannot be had (yet)
                variants[name] = served[name]
        return WantedEndpoint(variants=variants, capture=spec.capture, sticky=spec.sticky)

    def _hear_workers(self) -> bool:
        """Goes back to the previous version where workers could not load the wanted one.

        Returns:
            True when a version failed, no earlier one is there, and no worker has anything that answers.
        """
        workers = [w for w in read_workers(self.state_dir) if w.generation == self._wanted.generation and lives(w.pid)]
        nothing_loaded = not any(v.version for w in workers for e in w.endpoints.values() for v in e.values())
        failed = False
        for spec in self._specs:
            for name, variant in spec.variants.items():
                tracked = self._tracked[variant.model]
                error = _load_error(workers, spec.name, name)
                if not error or tracked.version is None or tracked.refused == tracked.version.identity:
                    continue
                is_commanded = self._control.is_loading(spec.name)  # whoever commanded it is told
                failed = failed or (tracked.previous is None and nothing_loaded and not is_commanded)
                source = tracked.version.source
                tracked.refuse(variant.model, tracked.version, error)
                self.registry.report_failure(source, error)
        return failed

    def _something_lacks(self) -> bool:
        """Whether there is no use in a start; one of many endpoints keeps no other from serving."""
        lacking = [tracked.version is None for tracked in self._tracked.values()]
        if len(self._specs) > 1:
            return all(lacking)
        return not self._own_specs or any(lacking)


def _load_error(workers: list[WorkerState], endpoint: str, variant: str) -> str:
    loaded = (worker.endpoints.get(endpoint, {}).get(variant) for worker in workers)
    return next((entry.error for entry in loaded if entry is not None and entry.error), "")
