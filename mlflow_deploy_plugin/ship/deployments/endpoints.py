"""Endpoints, and the only functions that change them.

The spec is stored before the backend applies it, so that the next `start` or `update`
completes interrupted work. If the spec cannot be applied, store and backend are reset
to the earlier state.
"""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from mlflow_deploy_plugin.core.errors import DeploymentFailed, InvalidConfig, OnnxserveError
from mlflow_deploy_plugin.core.settings import Settings
from mlflow_deploy_plugin.core.spec.document import apply_config, load_stored_specs
from mlflow_deploy_plugin.core.spec.parts import EndpointSpec
from mlflow_deploy_plugin.core.statedir.files import SPEC, locked
from mlflow_deploy_plugin.core.store.holds import require_removable
from mlflow_deploy_plugin.core.store.keys import ApiKeys
from mlflow_deploy_plugin.core.store.leases import held_lease
from mlflow_deploy_plugin.core.store.store import Endpoint, Store, unknown_endpoint
from mlflow_deploy_plugin.ship.deployments.backends.local import choose_port, is_port_free
from mlflow_deploy_plugin.ship.deployments.backends.served_state import lock_path
from mlflow_deploy_plugin.ship.deployments.backends.targets import (
    OBSERVED,
    Backend,
    Observation,
    Target,
    parse_target,
)
from mlflow_deploy_plugin.ship.deployments.unapproved import (
    UnapprovedAnswer,
    as_json,
    current_answers,
    permitted_answers,
)

_PORT_ATTEMPTS = 5


@dataclass(frozen=True)
class ObservedEndpoint:
    endpoint: Endpoint
    observation: Observation


@dataclass(frozen=True)
class Endpoints:
    """The endpoints of the store. A new endpoint is created at `target`."""

    store: Store
    settings: Settings
    progress: Callable[[str], None]
    target: Target

    def backend(self, stored: Endpoint) -> Backend:
        """Return the backend that serves an endpoint. Raises the errors of
        `parse_target` and `Target.backend`.
        """
        return parse_target(stored.target).backend(self.settings)

    def target_of(self, name: str) -> Target:
        """Return the target of an endpoint, even if its spec is unreadable. Raises
        NotFound for an unknown endpoint.
        """
        targets = {item.name: item.target for item in self.store.endpoints()}
        targets |= {item.name: item.target for item in self.store.unreadable()}
        if name not in targets:
            raise unknown_endpoint(name, targets)
        return parse_target(targets[name])

    def observe(self, stored: Endpoint) -> ObservedEndpoint:
        """Return an endpoint with the state of its server, which is `failed` if the
        backend does not answer.

        Its `unapproved` omits the versions that were promoted since the last change of
        the endpoint.
        """
        if stored.unapproved:
            stored = replace(stored, unapproved=as_json(current_answers(self.store, stored)))
        if not (stored.spec.variants or stored.spec.observe):
            create = f"mlflow deployments create -t {stored.target} --endpoint {stored.name} …"
            return ObservedEndpoint(
                stored, Observation("empty", f"it has no deployment; `{create}` adds one")
            )
        try:
            return ObservedEndpoint(stored, self.backend(stored).observe(stored.spec))
        except OnnxserveError as error:
            return ObservedEndpoint(stored, Observation("failed", error.message))

    def serve(self, stored: Endpoint) -> None:
        """Serve a stored endpoint, and report its URL and startup time. Raises the
        errors of `Backend.apply`.
        """
        self._serve(self.backend(stored), stored.spec)

    def create(self, spec: EndpointSpec, why: str = "") -> None:
        """Store the endpoint, and serve it if it has a variant, or undo both. Raises
        like `Deployments.create`.
        """
        # If an SDK is missing, fail before the store changes.
        backend = self.target.backend(self.settings)
        _check_source(self.target, spec)
        unapproved = permitted_answers(self.store, None, spec)
        written: dict[str, Any] = {
            "why": _with_answers(why, unapproved),
            "unapproved": as_json(unapproved),
        }
        # Lock before the name is stored, so that the endpoint cannot be deleted before
        # it is served.
        with self.lock(spec.name, self.target):
            with self._ports(self.target) as with_port:
                stored = self.store.add_endpoint(str(self.target), with_port(spec), **written).spec
            if not stored.variants:
                return
            try:
                self._serve_new(backend, spec, stored)
            except BaseException as error:  # This includes Ctrl-C.
                with contextlib.suppress(OnnxserveError):  # Only the first failure is reported.
                    backend.remove(spec.name)
                self.store.remove_endpoint(spec.name, why=_undo_reason(error))
                raise

    def change(
        self, stored: Endpoint, new: EndpointSpec, restores: bool = False, **audit: Any
    ) -> None:
        """Replace the spec of an endpoint, or restore it on failure. The caller must
        have the lock.

        An endpoint without a variant has no server, and keeps its port. A stopped
        server is started. Changes of monitors and of their budget are only stored.
        `audit` contains `action`, `actor` and `why` for `Store.replace_spec`. For
        `restores`, see `permitted_answers`. Raises the errors of `Deployments.update`.
        """
        old = stored.spec
        _check_source(parse_target(stored.target), new)
        unapproved = permitted_answers(self.store, stored, new, restores=restores)
        audit |= {
            "why": _with_answers(audit.get("why", ""), unapproved),
            "unapproved": as_json(unapproved),
        }
        served = new.model_copy(update={"monitors": old.monitors, "alarms": old.alarms})
        if new != old and served == old:
            self.store.replace_spec(new, **audit)
            return
        backend = self.backend(stored)
        was_running = backend.is_running(old.name)
        with self._ports(parse_target(stored.target)) as with_port:
            new = with_port(new)
            changed = self.store.replace_spec(new, **audit)
        try:
            if new.variants or new.observe is not None:
                self._serve(backend, new)
            else:
                backend.remove(new.name)
        except BaseException as error:
            current = self.store.endpoint(old.name)
            if current is None or current.spec != changed.spec:
                raise  # Another process has changed the endpoint, because the lease expired.
            detail = {"undone": True}  # The mark hides the change from rollbacks.
            undone = {"why": _undo_reason(error), "detail": detail, "unapproved": stored.unapproved}
            self.store.replace_spec(old, **{**audit, **undone})
            with contextlib.suppress(OnnxserveError):  # Only the first failure is reported.
                if was_running:
                    self.progress(f"{old.name}: restoring the previous state")
                    backend.apply(old, lambda line: None)
                elif old.variants:
                    backend.stop(old.name)
                else:
                    backend.remove(old.name)
            raise

    def _serve(self, backend: Backend, spec: EndpointSpec) -> None:
        """Apply a spec, and report the server's URL and startup time."""
        begun = time.monotonic()
        address = backend.apply(spec, self.progress)
        if address:
            self.progress(f"{spec.name}: ready at {address} after {time.monotonic() - begun:.1f} s")

    def _serve_new(self, backend: Backend, requested: EndpointSpec, placed: EndpointSpec) -> None:
        """Serve `placed`, the spec `requested` with a port. If another program has
        taken the port, try another port.
        """
        for attempt in range(_PORT_ATTEMPTS):
            try:
                self._serve(backend, placed)
                return
            except (InvalidConfig, DeploymentFailed):
                host = placed.server.host
                port = placed.server.port
                is_taken = (
                    requested.server.port is None
                    and port is not None
                    and not is_port_free(host, port)
                )
                if not is_taken or attempt == _PORT_ATTEMPTS - 1:
                    raise
                with self._ports(self.target) as with_port:
                    placed = with_port(requested)
                    unapproved = self.store.require_endpoint(placed.name).unapproved
                    why = f"port {port} was taken by another program"
                    self.store.replace_spec(placed, why=why, unapproved=unapproved)

    def remove(self, name: str, why: str = "", is_trial: bool = False) -> None:
        """Stop the server, revoke its keys, and remove the endpoint from the store. The
        caller must have the lock. Raises the error of `require_removable`. With
        `is_trial`, no change is made.
        """
        require_removable(self.store, name)
        if is_trial:
            return
        self.target_of(name).backend(self.settings).remove(name)
        for key in ApiKeys(self.store).withdraw(name):
            self.progress(f"{name}: the key {key} was only for this endpoint, and is revoked")
        self.store.remove_endpoint(name, why=why)

    @contextlib.contextmanager
    def lock(self, name: str, target: Target | None = None) -> Iterator[None]:
        """Lock an endpoint (or a new endpoint at `target`) during a change.

        The lock is a file for the processes of this machine, and also a lease if other
        machines can change the endpoint. Raises NotFound if the endpoint has been
        deleted, and InvalidConfig if the folder of the deployments is not writable.
        """
        target = target or self.target_of(name)
        try:
            with contextlib.ExitStack() as stack:
                stack.enter_context(locked(lock_path(name, self.settings)))
                if not target.is_on_this_machine:
                    # The cache reports each holder of the lease only once.
                    report = cache(
                        lambda holder: self.progress(
                            f"{name}: waiting for {holder}, which is changing it"
                        )
                    )
                    stack.enter_context(held_lease(self.store, f"endpoint/{name}", report))
                yield
        except OSError as error:
            folder = self.settings.deployments_path
            reason = error.strerror or error
            raise InvalidConfig(f"the folder {folder} cannot be used: {reason}") from error

    @contextlib.contextmanager
    def _ports(self, target: Target) -> Iterator[Callable[[EndpointSpec], EndpointSpec]]:
        """Yield a function that adds a port of this machine, which no other endpoint
        has, to a spec.

        Within the `with` block, no other process can choose a port, so the caller must
        store the spec before the block ends. If the server runs on another machine, the
        spec is returned unchanged.
        """
        if not target.is_on_this_machine:
            yield lambda spec: spec
            return
        with locked(self.settings.deployments_path / ".ports.lock"):
            owners = {
                item.spec.server.port: item.name
                for item in self.store.endpoints()
                if parse_target(item.target).is_on_this_machine
            }
            # An endpoint with an unreadable spec may have a running server.
            spec_errors = (yaml.YAMLError, ValueError, RecursionError, LookupError, TypeError)
            for unreadable in self.store.unreadable():
                with contextlib.suppress(*spec_errors):
                    if parse_target(unreadable.target).is_on_this_machine:
                        port = yaml.safe_load(unreadable.text)["server"]["port"]
                        owners[port] = unreadable.name

            def with_port(spec: EndpointSpec) -> EndpointSpec:
                port = spec.server.port
                if port is None and spec.variants:
                    chosen_port = choose_port(spec.server.host, owners)
                    return apply_config(spec, {"server.port": chosen_port})
                if port is not None and owners.get(port, spec.name) != spec.name:
                    raise InvalidConfig(
                        f"port {port} belongs to the deployment {owners[port]!r}: set another "
                        "port with -C server.port=…"
                    )
                return spec

            yield with_port


def left_specs(endpoint: str, settings: Settings) -> list[tuple[Path, EndpointSpec]]:
    """Return each state folder on this machine that has a spec of this endpoint, with
    the spec.

    The folder of a deployed server is first, before the folders of `onnxserve serve`.
    Unreadable specs are skipped.
    """
    specs: list[tuple[Path, EndpointSpec]] = []
    for folder in (settings.state_dir(endpoint), *sorted((settings.home_path / "serve").glob("*"))):
        with contextlib.suppress(OSError, UnicodeDecodeError, InvalidConfig):
            specs += [
                (folder, spec)
                for spec in load_stored_specs((folder / SPEC).read_text())
                if spec.name == endpoint
            ]
    return specs


def _check_source(target: Target, spec: EndpointSpec) -> None:
    """Raise InvalidConfig unless the endpoint has a source if, and only if, it is
    observed.
    """
    if (target.kind == "observed") != (spec.observe is not None):
        raise InvalidConfig(
            f"observe.source: `-t {OBSERVED}`, and no other target, reads the rows of an endpoint "
            "from a source; `onnxserve observe` makes such an endpoint"
        )


def _with_answers(why: str, unapproved: Iterable[UnapprovedAnswer]) -> str:
    """Return the reason of a change, and which versions answer without an approval
    after the change.
    """
    return "; ".join(filter(None, [why, *map(str, unapproved)]))


def _undo_reason(error: BaseException) -> str:
    if isinstance(error, OnnxserveError):
        return f"undone: {error}"
    return f"undone: {type(error).__name__}"
