"""Following: spec and registry → the versions that are wanted.

One round looks at everything and never waits: the spec (read again when it changes), commands (`agent/control.py`),
what the registry has said and what has been fetched (`agent/resolver.py`), and what the workers say about the versions
they were given. References to a stage, an alias or a tag are asked for again and again; pinned ones until they are
resolved, and never again. Whatever fails, what was served is wanted on.
"""

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from dataclasses import dataclass
from pathlib import Path

from mlflow_deploy_plugin.agent.control import EndpointControl, Pending
from mlflow_deploy_plugin.agent.followed import (
    FollowedModel,
    ModelRef,
    carry_over,
    checkpoint,
    model_ref,
    restore_checkpoint,
    wanted_variant,
)
from mlflow_deploy_plugin.agent.resolver import VersionResolver
from mlflow_deploy_plugin.agent.verify import pyfunc_policy
from mlflow_deploy_plugin.errors import OnnxserveError
from mlflow_deploy_plugin.registry.connection import redact_addresses
from mlflow_deploy_plugin.spec import EndpointSpec, VariantSpec, load_specs
from mlflow_deploy_plugin.statedir import (
    AGENT,
    LOOK,
    SPEC,
    WANTED,
    AgentState,
    Followed,
    RefusedVersion,
    ShippingState,
    Wanted,
    WantedEndpoint,
    WorkerState,
    is_alive,
    read_state,
    read_workers,
    take_load_deaths,
    write_state,
)

_MOST_DEATHS = 2
"""Of one version; a single one may have been anybody's doing."""


class Workers:
    """The workers of one server."""

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir
        take_load_deaths(state_dir)  # of an earlier server that was killed as a whole
        self._deaths: list[Path] = []

    def living(self) -> list[WorkerState]:
        """Their accounts, as they stand now."""
        return [worker for worker in read_workers(self._state_dir) if is_alive(worker.pid)]

    def hear_of_deaths(self) -> None:
        """Takes note of what workers have died of since the last time, for `died_of`."""
        self._deaths += take_load_deaths(self._state_dir)

    def died_of(self, folder: Path | None) -> str:
        """Why the version in this folder is not given to the workers again, which it keeps from living."""
        if folder is None or self._deaths.count(folder) < _MOST_DEATHS:
            return ""
        self._deaths = [died for died in self._deaths if died != folder]
        return f"{_MOST_DEATHS} workers have died while they loaded it: of a crash, or for want of memory"


def load_error(workers: Sequence[WorkerState], endpoint: str, variant: str) -> str:
    """Why some worker could not load what is wanted of a variant; empty: all could, or have not tried yet."""
    loaded = (worker.endpoints.get(endpoint, {}).get(variant) for worker in workers)
    return next((entry.error for entry in loaded if entry is not None and entry.error), "")


_log = logging.getLogger(__name__)

_FIRST_LOOK_SECONDS = 5.0
"""What a restart waits for the registry before it serves what it has served before."""


@dataclass
class Follower:
    """The agent's memory from round to round.

    Attributes:
        wall_clock: seconds since 1970, for agent.json.
        shipping: how shipping goes, which stands in agent.json too.
    """

    state_dir: Path
    pursuit: VersionResolver
    wall_clock: Callable[[], float]
    shipping: Callable[[], ShippingState] = ShippingState

    def __post_init__(self) -> None:
        self._wanted = read_state(self.state_dir / WANTED, Wanted) or Wanted()
        # what was served before a restart is served on, whatever the registry says or does not say
        self._restored = restore_checkpoint(self.state_dir)
        self._followed = Followed()
        self._control = EndpointControl(self.state_dir)
        self._own_specs: list[EndpointSpec] = []
        self._specs: list[EndpointSpec] = []
        self._is_forced = False
        self._spec_text = ""
        self._spec_error = ""
        self._written: AgentState | None = None
        self._workers = Workers(self.state_dir)

    def round(self) -> AgentState:
        """Looks once; writes wanted.json and agent.json where they change.

        Returns:
            What stands in agent.json now; `fatal` means that there is nothing to be served and no use in waiting.
        """
        first = self._written is None
        self._read_spec()
        self._take_commands()
        self._look_if_asked()
        restored = any(tracked.version is not None for tracked in self.pursuit.tracked.values())
        self.pursuit.advance()
        if first:
            self._wait_for_the_first_look(None if self._something_lacks() else _FIRST_LOOK_SECONDS)
        fatal = first and not restored and self._something_lacks()
        if not fatal:
            self._write_wanted()
            fatal = self._hear_workers()
            self._write_wanted()
            self._control.settle(self._own_specs, self._outcome)
            if self.pursuit.has_told:
                self._remember()
        errors = list(self._errors())
        before, looks = self._written, self.pursuit.ended
        state = AgentState(
            pid=os.getpid(),
            checked_at=before.checked_at if before is not None and before.looks == looks else self.wall_clock(),
            looks=looks,
            error="; ".join(errors),
            errors=len(errors),
            fatal=fatal,
            refused=tuple(self._refused()),
            shipping=self.shipping(),
        )
        self._report(state)
        return state

    def _wait_for_the_first_look(self, seconds: float | None) -> None:
        """Where a version lacks there is nothing else to do; what was served before is not kept from serving."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while under_way := self.pursuit.under_way():
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return
            wait(under_way, left, FIRST_COMPLETED)
            self.pursuit.advance()

    def _errors(self) -> Iterator[str]:
        """All that is wrong, each thing once."""
        of_models = [tracked.words(wish.uri) for wish, tracked in self.pursuit.tracked.items()]
        yield from dict.fromkeys(text for text in [self._spec_error, *of_models] if text)

    def _refused(self) -> Iterator[RefusedVersion]:
        for spec, name, variant in self._variants():
            if (trouble := self._tracked(spec, variant).trouble) is not None:
                yield RefusedVersion(
                    endpoint=spec.name,
                    variant=name,
                    model=trouble.model,
                    version=trouble.version,
                    cause=trouble.cause,
                    reason=trouble.reason,
                )

    def _tracked(self, spec: EndpointSpec, variant: VariantSpec) -> FollowedModel:
        return self.pursuit.tracked[model_ref(spec, variant)]

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
            self.pursuit.agree(pyfunc_policy(self._own_specs))
            self._spec_error = ""
        except (OSError, UnicodeDecodeError) as error:
            self._spec_error = f"{SPEC} cannot be read: {error}"
        except OnnxserveError as error:
            self._spec_error = f"{SPEC}: {error.message}"

    def _take_commands(self) -> None:
        """What a command loads is looked up at once, and tried again where it was refused."""
        anew = self._control.take(self._own_specs)
        specs = self._control.endpoints(self._own_specs)
        if specs != self._specs:
            self._specs = specs
            known = self._restored | self.pursuit.tracked
            self._restored = {}
            wishes = {model_ref(spec, one): self._known(spec, name, known) for spec, name, one in self._variants()}
            self.pursuit.tracked = {wish: wishes[wish] for wish in sorted(wishes)}
        for spec in anew or ():
            for variant in spec.variants.values():
                self._tracked(spec, variant).look_anew()
        self._is_forced = self._is_forced or anew is not None

    def _known(self, spec: EndpointSpec, name: str, known: Mapping[ModelRef, FollowedModel]) -> FollowedModel:
        endpoint = self._wanted.endpoints.get(spec.name)
        served = endpoint.variants.get(name) if endpoint is not None else None
        return carry_over(model_ref(spec, spec.variants[name]), served, known)

    def _variants(self) -> Iterator[tuple[EndpointSpec, str, VariantSpec]]:
        for spec in self._specs:
            for name, variant in spec.variants.items():
                yield spec, name, variant

    def _look_if_asked(self) -> None:
        file = self.state_dir / LOOK
        if file.exists():
            file.unlink(missing_ok=True)  # before the look: what is moved after it is asked for anew
            self.pursuit.look_now()

    def has_work(self) -> bool:
        """Whether there is a reason for the next round to come soon."""
        has_come = any(future.done() for future in self.pursuit.under_way())
        return has_come or self._control.has_work() or (self.state_dir / LOOK).exists()

    def _outcome(self, endpoint: str) -> OnnxserveError | None:
        """How loading or unloading went; see `control.Outcome`."""
        spec = next((spec for spec in self._specs if spec.name == endpoint), None)
        if spec and (error := self._failure(spec)):
            return error
        if spec and not self._is_settled(spec):
            raise Pending
        workers = self._workers.living()
        is_behind = any(worker.generation != self._wanted.generation for worker in workers)
        if is_behind or any(load_error(workers, endpoint, name) for name in (spec.variants if spec else ())):
            raise Pending  # an error that has just come is dealt with in the next round
        return None

    def _failure(self, spec: EndpointSpec) -> OnnxserveError | None:
        """Why a model of the endpoint is not to be had, or not to be loaded, in words that any caller may read."""
        failures = (
            self._tracked(spec, variant).failure(variant.model)
            for variant in spec.variants.values()
            if self._tracked(spec, variant).is_settled
        )
        failure = next((failure for failure in failures if failure is not None), None)
        return None if failure is None else type(failure)(redact_addresses(failure.message))

    def _is_settled(self, spec: EndpointSpec) -> bool:
        return all(self._tracked(spec, variant).is_settled for variant in spec.variants.values())

    def _write_wanted(self) -> None:
        endpoints = {spec.name: self._wanted_endpoint(spec) for spec in self._specs if not self._is_vain(spec)}
        unloaded = self._control.unloaded(self._own_specs)
        before = self._wanted
        is_same = before.generation and (endpoints, unloaded) == (before.endpoints, before.unloaded)
        has_none = not unloaded and not any(endpoint.variants for endpoint in endpoints.values())
        if (is_same and not self._is_forced) or has_none:
            return
        self._wanted = Wanted(generation=before.generation + 1, endpoints=endpoints, unloaded=unloaded)
        self._remember()
        write_state(self.state_dir / WANTED, self._wanted)
        self._is_forced = False
        for name in [name for name in endpoints if endpoints[name] != before.endpoints.get(name)]:
            for variant in endpoints[name].variants.values():
                _log.info("endpoint %s: %s version %s is wanted", name, variant.model, variant.version)

    def _remember(self) -> None:
        self._followed = checkpoint(self.state_dir, self.pursuit.tracked, self._followed)
        self.pursuit.has_told = False

    def _is_vain(self, spec: EndpointSpec) -> bool:
        """Whether a command loads the endpoint that cannot be had (yet): no worker is to hear of it."""
        is_new = self._control.is_loading(spec.name) and spec.name not in self._wanted.endpoints
        return is_new and (self._failure(spec) is not None or not self._is_settled(spec))

    def _wanted_endpoint(self, spec: EndpointSpec) -> WantedEndpoint:
        served = self._wanted.endpoints.get(spec.name, WantedEndpoint(variants={})).variants
        variants, errors = {}, {}
        for name, variant in spec.variants.items():
            tracked = self._tracked(spec, variant)
            if tracked.version is not None:
                variants[name] = wanted_variant(variant, tracked.version)
            elif name in served:  # its model was changed to one that cannot be had (yet)
                variants[name] = served[name]
            elif words := tracked.words(variant.model):
                errors[name] = redact_addresses(words)
        return WantedEndpoint(variants=variants, capture=spec.capture, sticky=spec.sticky, errors=errors)

    def _hear_workers(self) -> bool:
        """Goes back to the previous version where workers could not load the wanted one.

        Returns:
            True when a version failed, no earlier one is there, and no worker has anything that answers.
        """
        workers = [worker for worker in self._workers.living() if worker.generation == self._wanted.generation]
        self._workers.hear_of_deaths()
        nothing_loaded = not any(v.version for w in workers for e in w.endpoints.values() for v in e.values())
        failed = False
        for spec, name, variant in self._variants():
            tracked = self._tracked(spec, variant)
            folder = tracked.version.folder if tracked.version is not None else None
            error = load_error(workers, spec.name, name) or self._workers.died_of(folder)
            if not error or tracked.version is None or tracked.unloadable == tracked.version.identity:
                continue
            is_commanded = self._control.is_loading(spec.name)  # whoever commanded it is told
            failed = failed or (tracked.previous is None and nothing_loaded and not is_commanded)
            tracked.refuse(error)
        self.pursuit.advance()  # so that the version's tag says it
        return failed

    def _something_lacks(self) -> bool:
        """Whether there is no use in a start; one of many endpoints keeps no other from serving."""
        lacking = [tracked.version is None for tracked in self.pursuit.tracked.values()]
        if len(self._specs) > 1:
            return all(lacking)
        return not self._own_specs or any(lacking)
