"""Following: the spec and the registry determine the wanted versions, which wanted.json
passes to the workers. A server of all registered models has their list there, and
fetches a model when a worker asks for it.

A round checks all inputs without blocking: the spec, commands
(`serve/agent/control.py`), results of the registry and fetched versions
(`serve/agent/resolver.py`), and the workers' reports. References to a stage, alias or
tag are polled repeatedly; a pinned reference is polled until it is resolved. If a newer
version fails, the version that was served remains wanted.
"""

import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from dataclasses import dataclass, field
from pathlib import Path

from mlflow_deploy_plugin.core.errors import InvalidConfig, NotReady, OnnxserveError
from mlflow_deploy_plugin.core.registry.connection import redact_addresses
from mlflow_deploy_plugin.core.registry.model_uri import model_pattern
from mlflow_deploy_plugin.core.registry.resolution import REFUSED
from mlflow_deploy_plugin.core.spec.document import load_stored_specs
from mlflow_deploy_plugin.core.spec.parts import EndpointSpec, VariantSpec
from mlflow_deploy_plugin.core.statedir.commands import command_files
from mlflow_deploy_plugin.core.statedir.files import (
    AGENT,
    LOOK,
    SPEC,
    WANTED,
    assert_content,
    assert_state,
    is_alive,
    read_state,
    read_workers,
    take_load_deaths,
)
from mlflow_deploy_plugin.core.statedir.models import (
    AgentState,
    Command,
    FetchedVersion,
    LoadedVariant,
    RefusedVersion,
    ShippingState,
    Wanted,
    WantedEndpoint,
    WantedVariant,
    WorkerState,
)
from mlflow_deploy_plugin.serve.agent.control import (
    EndpointControl,
    Pending,
    Recorder,
    record_nothing,
)
from mlflow_deploy_plugin.serve.agent.feed import FeedFollower
from mlflow_deploy_plugin.serve.agent.followed import (
    FollowedModel,
    RejectionCause,
    carry_over,
    checkpoint,
    model_ref,
    restore_checkpoint,
)
from mlflow_deploy_plugin.serve.agent.forms import CONVERTING, FORM
from mlflow_deploy_plugin.serve.agent.keys import KeyFetcher
from mlflow_deploy_plugin.serve.agent.model_list import ModelList
from mlflow_deploy_plugin.serve.agent.permitted_steps import LETHAL, MOST_DEATHS, StepsPermits
from mlflow_deploy_plugin.serve.agent.resolver import PyfuncPolicy, VersionResolver

_log = logging.getLogger(__name__)

_ROUND_SECONDS = 0.25
_COMMAND_SECONDS = 0.05
"""The pause between two rounds: the normal pause, and the pause while a caller waits
for a command.
"""
_FIRST_POLL_SECONDS = 5.0
"""The time that the agent waits for the registry after a restart before it serves the
earlier versions.
"""
_LISTEN_SECONDS = 0.02
"""The pause between two looks for commands if callers wait for models to be fetched."""


@dataclass(frozen=True)
class _Converting:
    """A registered model of a list: its mark, the endpoint in its file, and the
    originals of the variants that are being converted.
    """

    mark: str
    wanted: WantedEndpoint
    originals: dict[str, FetchedVersion]


@dataclass
class Follower:
    """The state of following across rounds. `wall_clock` returns seconds since 1970 for
    agent.json.
    """

    state_dir: Path
    resolver: VersionResolver
    wall_clock: Callable[[], float]
    shipping: Callable[[], ShippingState] = ShippingState
    key_fetchers: Sequence[KeyFetcher] = ()
    record: Recorder = record_nothing
    feed: FeedFollower = field(default_factory=lambda: FeedFollower(threading.Event()))

    def __post_init__(self) -> None:
        self._wanted = read_state(self.state_dir / WANTED, Wanted) or Wanted()
        self._encoded = Wanted(), b""
        """The last wanted state, and its JSON: 10,000 listed models take 3 ms."""
        self._control = EndpointControl(self.state_dir, record=self.record)
        self._list: ModelList | None = None
        """The registered models to serve if the spec has a pattern."""
        self._converting: dict[str, _Converting] = {}
        """The registered models whose originals were written while they are converted.
        """
        self._specs: list[EndpointSpec] = []
        self._is_forced = False
        self._spec_text = ""
        self._spec_error = ""
        self._steps_errors: dict[str, str] = {}
        """The errors of steps that workers could not import, by endpoint."""
        self._written: AgentState | None = None
        self._deaths = Counter[Path]()
        """Folder of a version, or digest of steps → number of workers that died while
        they loaded the version or imported the steps.
        """
        self._has_loaded = False
        self._has_failed = False
        self._permits = StepsPermits(self.resolver.poll_pool, time.monotonic, self._deaths)
        # Discard the deaths of workers of an earlier server that was killed.
        take_load_deaths(self.state_dir)

    def round(self) -> AgentState:
        """Check all inputs once, write each state file that has changed or was lost,
        and return the agent's state. In this state, `fatal` means that no version can
        be served and that waiting does not help.
        """
        is_first = self._written is None
        self._update_specs()
        look_file = self.state_dir / LOOK
        if look_file.exists():
            # Delete the file before the poll, so that a later request is not lost.
            look_file.unlink(missing_ok=True)
            self.resolver.poll_now()
            self._permits.check_now()
            if self._list is not None:
                self._list.is_stale = True
        changes = self.feed.take()
        self.resolver.take_feed(self.feed.covered, changes)
        if changes:
            self._permits.check_now()
        if self._list is not None:
            self._list.is_stale = self._list.is_stale or self._list.uri in changes
            self._list.round(is_covered=self._list.uri in self.feed.covered)
            self._write_converted(self._list)
        has_restored = any(model.version is not None for model in self.resolver.models.values())
        self.resolver.advance()
        # Wait for versions in the first round, because workers cannot start without a
        # version.
        if is_first:
            deadline = time.monotonic() + _FIRST_POLL_SECONDS
            while pending := self.resolver.pending():
                is_settled = all(model.is_settled for model in self.resolver.models.values())
                # After the deadline, wait only for a version that the server lacks.
                if time.monotonic() >= deadline and (is_settled or not self._lacks_versions()):
                    break
                wait(pending, _ROUND_SECONDS, FIRST_COMPLETED)
                self.resolver.advance()
        fatal = is_first and not has_restored and self._lacks_versions()
        if not fatal:
            self._update_wanted()
            fatal = self._roll_back_unloadable()
            self._update_wanted()
            fatal = fatal or bool(self._permits.errors and not self._wanted.generation)
            if self._wanted.generation:
                if self._list is None:  # Each fetch of a listed model is checked.
                    checkpoint(self.state_dir, self.resolver.models)
                if self._wanted != self._encoded[0]:
                    self._encoded = self._wanted, self._wanted.model_dump_json().encode()
                assert_content(self.state_dir / WANTED, self._encoded[1])
            self._control.settle(self._outcome)
        return self._publish(fatal)

    def wait(self, stop: threading.Event) -> None:
        """Wait until the next round is due: a poll or fetch has ended, or the pause is
        over. `stop` ends the wait.
        """
        seconds = _COMMAND_SECONDS if self._control.is_busy else _ROUND_SECONDS
        if pending := self.resolver.pending():
            wait(pending, seconds, FIRST_COMPLETED)
        elif self._list is not None:
            # A caller waits for the model that a worker asks for.
            until = time.monotonic() + seconds
            while not (stop.is_set() or command_files(self.state_dir)):
                if self.feed.arrived.wait(_LISTEN_SECONDS) or time.monotonic() >= until:
                    break
        elif not stop.is_set():
            self.feed.arrived.wait(seconds)

    def _update_specs(self) -> None:
        """Read the spec if it has changed, and start the waiting commands. Poll the
        models to load immediately. If the spec cannot be read, the last spec remains in
        use.
        """
        try:
            text = (self.state_dir / SPEC).read_text()
            if text != self._spec_text:
                self._spec_text = text
                self._set_specs(load_stored_specs(text))
                self._spec_error = ""
        except (OSError, UnicodeDecodeError) as error:
            self._spec_error = f"{SPEC} cannot be read: {error}"
        except OnnxserveError as error:
            self._spec_error = f"{SPEC}: {error.message}"
        commanded = self._control.take()
        specs = self._control.endpoints
        if specs != self._specs:
            # Models that were followed before keep their state. Versions that were
            # served before a restart remain served, independent of the registry's
            # answer.
            models_before = self.resolver.models
            if not self._specs and self._list is None:
                builds_environments = self.resolver.pyfunc_policy.builds_environments
                models_before = restore_checkpoint(self.state_dir, builds_environments)
            self._specs = specs
            self._permits.errors.clear()  # An endpoint may have been removed.
            models = {}
            for spec, name, variant in self._variants():
                endpoint = self._wanted.endpoints.get(spec.name)
                wanted = endpoint.variants.get(name) if endpoint is not None else None
                ref = model_ref(spec, variant)
                models[ref] = carry_over(ref, wanted, models_before)
            self.resolver.models = {ref: models[ref] for ref in sorted(models)}
            if self._list is not None:
                self._set_policy(specs)
            else:
                self.feed.uris = frozenset(ref.uri for ref in models if ref.is_followed)
        for spec in commanded or ():
            for variant in spec.variants.values():
                self._model(spec, variant).retry_now()
        self._is_forced = self._is_forced or commanded is not None

    def _set_specs(self, specs: list[EndpointSpec]) -> None:
        """Use the endpoints of spec.yaml, or list registered models if it has a
        pattern. Raises InvalidConfig for a pattern that cannot be used.
        """
        pattern = model_pattern(specs)
        if self._written is not None and (pattern is None) != (self._list is None):
            raise InvalidConfig(
                "a change to or from a pattern of registered models takes effect at the next start"
            )
        if pattern is None:
            self._control.specs = specs
            self._set_policy(specs)
            return
        resolver = self.resolver
        self._list = ModelList(
            self.state_dir,
            resolver.poll_pool,
            resolver.polling,
            specs[0],
            pattern,
            self._wanted.listed,
        )
        self._control.listed = self._list.spec
        self.feed.uris = frozenset({self._list.uri})

    def _set_policy(self, specs: Sequence[EndpointSpec]) -> None:
        allow_pickle = self.resolver.pyfunc_policy.allow_pickle
        self.resolver.set_pyfunc_policy(PyfuncPolicy(specs, allow_pickle))

    def _lacks_versions(self) -> bool:
        """Return True if the server lacks the list or the versions to start. Of several
        endpoints, one must have a version.
        """
        if self._list is not None:
            return self._list.listed is None
        lacking = [model.version is None for model in self.resolver.models.values()]
        if len(self._specs) > 1:
            return all(lacking)
        return not self._control.specs or any(lacking)

    def _update_wanted(self) -> None:
        """Set the wanted versions, in a new generation if they have changed or a
        command was started. Nothing changes while no version can be served, except that
        refused steps end. A list of registered models keeps its generation.
        """
        if self._list is not None:
            self._wanted = Wanted(generation=1, listed=self._list.listed)
            return
        before = self._wanted
        endpoints = {}
        for spec in self._specs:
            # Workers must not receive an endpoint of a load command before its models
            # are on this disk.
            is_new = spec.name not in before.endpoints and self._control.is_loading(spec.name)
            if is_new and not (self._is_settled(spec) and self._failure(spec) is None):
                continue
            endpoints[spec.name] = self._wanted_endpoint(spec)
        unloaded = self._control.unloaded
        is_refused = any(
            name in before.endpoints and not endpoints[name].variants
            for name in self._permits.errors
        )
        has_variants = any(endpoint.variants for endpoint in endpoints.values())
        if not (unloaded or is_refused or has_variants):
            return
        is_same = before.generation and (endpoints, unloaded) == (before.endpoints, before.unloaded)
        if is_same and not self._is_forced:
            return
        self._wanted = Wanted(
            generation=before.generation + 1,
            endpoints=endpoints,
            unloaded=unloaded,
        )
        self._is_forced = False
        for name, endpoint in endpoints.items():
            if endpoint == before.endpoints.get(name):
                continue
            for wanted in endpoint.variants.values():
                _log.info(
                    "endpoint %s: %s version %s is wanted",
                    name,
                    wanted.model,
                    wanted.version,
                )

    def _wanted_endpoint(self, spec: EndpointSpec) -> WantedEndpoint:
        """Return the endpoint with the versions that are on this disk."""
        earlier = self._wanted.endpoints.get(spec.name, WantedEndpoint())
        served = earlier.variants
        variants = {}
        errors = {}
        for label, variant in spec.variants.items():
            model = self._model(spec, variant)
            if model.is_lethal:
                errors[label] = _for_callers(model.message(variant.model), variant.model)
            elif model.version is not None:
                fetched = vars(model.version)
                if not spec.requirements:
                    fetched = {**fetched, "digest": ""}
                variants[label] = WantedVariant(
                    model_uri=variant.model,
                    weight=variant.weight,
                    shadow=variant.shadow,
                    **fetched,
                )
            elif label in served:
                # The model of the spec was changed, and the new model cannot be fetched
                # yet.
                variants[label] = served[label]
            elif message := model.message(variant.model):
                errors[label] = _for_callers(message, variant.model)
        models = frozenset(variant.model for variant in variants.values())
        used = None
        if served and models.issubset(variant.model for variant in served.values()):
            used = earlier.serve
        serve = self._permits.permitted(spec, models, used)
        if serve is None:  # Never serve the versions without their steps.
            if served and used is None and spec.name in self._permits.unknown:
                return earlier
            errors = dict.fromkeys(
                spec.variants, self._permits.errors.get(spec.name, "its steps are being checked")
            )
            return WantedEndpoint(errors=errors)
        return WantedEndpoint(
            variants=variants,
            capture=spec.capture,
            serve=serve,
            sticky=spec.sticky,
            guard=spec.guard,
            errors=errors,
        )

    def _roll_back_unloadable(self) -> bool:
        """Restore the previous version of a model if the workers could not load the
        wanted version. Return True if a version without a predecessor failed, no worker
        has ever loaded a version, and of several endpoints none may still have one.
        """
        workers = [
            worker
            for worker in self._living_workers()
            if worker.generation == self._wanted.generation
        ]
        deaths = take_load_deaths(self.state_dir)
        self._deaths.update(deaths)
        if self._list is not None:
            if deaths:
                self._list.refuse({of for of in deaths if self._deaths[of] >= MOST_DEATHS}, LETHAL)
            return False
        # All workers may have died since.
        self._has_loaded = self._has_loaded or any(worker.has_versions for worker in workers)
        has_failed = False
        self._steps_errors.clear()
        for spec, name, variant in self._variants():
            model = self._model(spec, variant)
            if model.version is None:
                continue
            failed = _failed_variant(workers, spec.name, name)
            if failed.is_error_of_steps:
                # The version is not the cause.
                self._steps_errors[spec.name] = f"endpoint {spec.name}: {failed.error}"
                has_failed = has_failed or not self._has_loaded
                continue
            error = failed.error
            cause: RejectionCause = "load"
            if not error and self._deaths[model.version.folder] >= MOST_DEATHS:
                del self._deaths[model.version.folder]  # Count from zero.
                error = LETHAL
                cause = "death"
            if not error or model.unloadable == model.version.identity:
                continue
            if model.version.original is not None:
                self.resolver.refuse_form(model.version.original, error)
                model.version = model.version.original
                continue
            # The caller of a load command receives the error.
            is_commanded = self._control.is_loading(spec.name)
            has_failed = has_failed or not (model.previous or self._has_loaded or is_commanded)
            model.roll_back(error, cause)
        self.resolver.advance()  # Start writing the error to the version's tag.
        self._has_failed = self._has_failed or has_failed
        if len(self._specs) > 1:
            may_load = any(model.may_load for model in self.resolver.models.values())
            return self._has_failed and not self._has_loaded and not may_load
        return has_failed

    def _outcome(self, command: Command) -> OnnxserveError | None:
        """Return the error of a command; None if it has succeeded. Raises Pending until
        the versions are fetched and all workers have applied them.
        """
        endpoint = command.endpoint
        spec = next((spec for spec in self._specs if spec.name == endpoint), None)
        if spec is not None:
            error = self._failure(spec)
            if error is not None:
                return error
            if not self._is_settled(spec):
                raise Pending
            if self._list is not None:
                wanted = self._wanted_endpoint(spec)
                # The worker that asks for a model reports its error.
                reason = self._permits.errors.pop(endpoint, "")
                if not (wanted.variants or reason):
                    raise Pending
                if not reason and REFUSED in command.mark.split():
                    self._list.is_stale = True
                    reason = f"its steps (sha256 {spec.serve.digest}) are being checked"
                if reason:
                    self._permits.check_now()  # The next command needs a new result.
                    return NotReady(reason)
                try:
                    self._list.write(endpoint, command.mark, wanted)
                except OSError as failure:
                    return NotReady(f"the state folder cannot be written: {failure.strerror}")
                fetched = {
                    name: self._model(spec, spec.variants[name]).version for name in wanted.variants
                }
                originals = {
                    name: version
                    for name, version in fetched.items()
                    if version is not None and version.aspects.get(FORM) == CONVERTING
                }
                self._converting[endpoint] = _Converting(command.mark, wanted, originals)
                return None
        workers = self._living_workers()
        if any(worker.generation != self._wanted.generation for worker in workers):
            raise Pending
        # The next round processes an error that a worker has just reported.
        for name in spec.variants if spec else ():
            failed = _failed_variant(workers, endpoint, name)
            if failed.is_error_of_steps:
                return InvalidConfig(failed.error)
            if failed.error:
                raise Pending
        return None

    def _write_converted(self, listed: ModelList) -> None:
        """Write the ONNX forms of registered models that were converted after their
        originals were written.
        """
        for name, entry in list(self._converting.items()):
            versions = {
                label: self.resolver.form_of(entry.wanted.variants[label].model_uri, version)
                for label, version in entry.originals.items()
            }
            if any(version.aspects.get(FORM) == CONVERTING for version in versions.values()):
                continue
            del self._converting[name]
            variants = dict(entry.wanted.variants)
            for label, version in versions.items():
                want = variants[label]
                changes = {
                    "folder": version.folder,
                    "digest": want.digest and version.digest,
                    "python": version.python,
                    "aspects": want.aspects | version.aspects,
                }
                variants[label] = want.model_copy(update=changes)
            is_current = listed.listed is not None and listed.listed.models.get(name) == entry.mark
            if variants != entry.wanted.variants and is_current:
                try:
                    changed = entry.wanted.model_copy(update={"variants": variants})
                    listed.write(name, entry.mark, changed)
                except OSError as failure:
                    _log.error("the ONNX form of %s cannot be written: %s", name, failure.strerror)

    def _failure(self, spec: EndpointSpec) -> OnnxserveError | None:
        """Return the error that prevents a model of the endpoint from being served;
        None if there is none. The error's message may be sent to callers.
        """
        for variant in spec.variants.values():
            model = self._model(spec, variant)
            failure = model.failure(variant.model) if model.is_settled else None
            if failure is not None:
                return type(failure)(redact_addresses(failure.message))
        return None

    def _is_settled(self, spec: EndpointSpec) -> bool:
        return all(self._model(spec, variant).is_settled for variant in spec.variants.values())

    def _living_workers(self) -> list[WorkerState]:
        return [worker for worker in read_workers(self.state_dir) if is_alive(worker.pid)]

    def _variants(self) -> Iterator[tuple[EndpointSpec, str, VariantSpec]]:
        """Yield each variant of each endpoint to serve, with its endpoint and name."""
        for spec in self._specs:
            for name, variant in spec.variants.items():
                yield spec, name, variant

    def _model(self, spec: EndpointSpec, variant: VariantSpec) -> FollowedModel:
        return self.resolver.models[model_ref(spec, variant)]

    def _publish(self, fatal: bool) -> AgentState:
        """Write agent.json and the keys. Log an error when it appears, changes or ends.
        A fatal error is left to the supervisor.
        """
        for fetcher in self.key_fetchers:
            fetcher.assert_file()
        model_errors = [model.message(ref.uri) for ref, model in self.resolver.models.items()]
        polls = self.resolver.finished_polls + self.feed.messages
        if self._list is not None:
            # The worker that asks for a model reports its error.
            model_errors = [self._list.error]
            polls += self._list.count
        steps_errors = self._permits.errors | self._steps_errors
        errors = [self._spec_error, *steps_errors.values(), *model_errors]
        # Several references may have the same error.
        errors = list(dict.fromkeys(filter(None, errors)))
        before = self._written
        checked_at = self.wall_clock()
        if before is not None and before.looks == polls:
            checked_at = before.checked_at
        refused = []
        for spec, name, variant in self._variants():
            model = self._model(spec, variant)
            wanted = self._wanted.endpoints.get(spec.name)
            details = vars(model.rejection) if model.rejection is not None else {}
            if model.version and wanted and not wanted.variants and spec.name in steps_errors:
                reason = steps_errors[spec.name]
                details = {**vars(model.version), "cause": "steps", "reason": reason}
            if details:
                refused.append(RefusedVersion(endpoint=spec.name, variant=name, **details))
        state = AgentState(
            pid=os.getpid(),
            checked_at=checked_at,
            looks=polls,
            error="; ".join(errors),
            errors=len(errors),
            fatal=fatal,
            refused=tuple(refused),
            shipping=self.shipping(),
            keys_fetched_at=min((fetcher.fetched_at for fetcher in self.key_fetchers), default=0.0),
        )
        logged_error = before.error if before is not None else ""
        if state.error and state.error != logged_error and not fatal:
            _log.warning("%s", state.error)
        elif logged_error and not state.error:
            _log.info("all models of the spec are resolved and served")
        assert_state(self.state_dir / AGENT, state)
        self._written = state
        return state


def _for_callers(message: str, model_uri: str) -> str:
    """Return a message of a model without the addresses and folders of its operator."""
    if model_uri.startswith("/"):
        message = message.replace(model_uri, Path(model_uri).name)
    return redact_addresses(message)


def _failed_variant(workers: Sequence[WorkerState], endpoint: str, variant: str) -> LoadedVariant:
    """Return the state of a variant in a worker that could not load it, with its error;
    empty if no worker has reported an error.
    """
    for worker in workers:
        loaded = worker.loaded(endpoint, variant)
        if loaded.error:
            return loaded
    return LoadedVariant()
