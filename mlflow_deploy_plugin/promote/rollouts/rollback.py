"""Rollback: restore the earlier version of an endpoint in the registry and on the
servers with one call.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import chain
from types import MappingProxyType
from typing import Any

from mlflow_deploy_plugin.core.errors import DeploymentFailed, InvalidConfig, NotFound
from mlflow_deploy_plugin.core.registry import transitions
from mlflow_deploy_plugin.core.registry.audit_trail import newest_events
from mlflow_deploy_plugin.core.registry.connection import registry_address
from mlflow_deploy_plugin.core.registry.model_uri import ModelURI, parse_model_uri
from mlflow_deploy_plugin.core.registry.tags import tag_version
from mlflow_deploy_plugin.core.registry.transitions import ROLLED_BACK_TAG, PreviousVersion
from mlflow_deploy_plugin.core.spec.document import load_stored_specs
from mlflow_deploy_plugin.core.store.audit import move_detail
from mlflow_deploy_plugin.core.store.store import Store
from mlflow_deploy_plugin.core.store.tables import Json
from mlflow_deploy_plugin.promote.rollouts.commands import abort_rollout, requested_uri
from mlflow_deploy_plugin.promote.rollouts.plan import plan_of
from mlflow_deploy_plugin.promote.rollouts.snapshot import main_variant, take_snapshot
from mlflow_deploy_plugin.ship.deployments.endpoints import ObservedEndpoint
from mlflow_deploy_plugin.ship.deployments.lifecycle import Deployments
from mlflow_deploy_plugin.ship.deployments.server_metrics import MetricsByServer, total_metrics
from mlflow_deploy_plugin.ship.deployments.unapproved import has_answered

_SERVED_SECONDS = 60.0
_POLL_SECONDS = 0.05
_REQUESTED = "requested by the user"


@transitions.one_act()
def rollback(
    deployments: Deployments,
    endpoint: str,
    why: str = "",
    actor: str | None = None,
    to: str | None = None,
) -> dict[str, str]:
    """Restore the version that `endpoint` served before, and return when it answers
    requests.

    A live rollout is only aborted. Otherwise, the stage, alias or tag that the endpoint
    follows is moved to the earlier version, and the newer version is archived. If the
    endpoint follows nothing, its earlier model is set. A tag excludes the newer version
    from later rollbacks.

    `to` is a version, or a model URI if the endpoint follows nothing. If `to` is None,
    the earlier version or model is found. The result has the keys model, from, to,
    source (of the earlier version) and seconds.

    Raises NotFound, InvalidConfig if several deployments answer or MLflow rejects the
    earlier version, and DeploymentFailed if the earlier version cannot be served; the
    newer version is then kept in the registry and served.
    """
    by = actor or deployments.store.user
    begun = time.monotonic()
    store = deployments.store
    observed = deployments.get_endpoint(endpoint)
    reason = f"rolled back by {by}: {why}" if why else f"rolled back by {by}"
    try:
        plan = plan_of(abort_rollout(deployments, endpoint, reason, by))
        move = Move(plan.model, plan.version, plan.before_version, "the live rollout was aborted")
    except NotFound:
        if store.rollouts(endpoint, live=True):
            raise
        # There was no live rollout, or it has just ended.
        move = _move_back(deployments, observed, why, by, to)
    figures = {
        "model": move.model,
        "from": move.before,
        "to": move.after,
        "source": move.source,
        "seconds": f"{time.monotonic() - begun:.1f}",
    }
    store.record(
        "rollback",
        endpoint=endpoint,
        model=move.model,
        version=move.after,
        before=version_or_uri(move.before),
        after=version_or_uri(move.after),
        why=why,
        detail=figures | move.detail,
        actor=by,
    )
    return figures


def foresee_rollback(deployments: Deployments, endpoint: str, to: str | None = None) -> "Move":
    """Return what `rollback` would do, without a change. The model is the URI of the
    stage, alias or tag that would move. Raises like `rollback`.
    """
    observed = deployments.get_endpoint(endpoint)
    live = deployments.store.rollouts(endpoint, live=True)
    if live:
        plan = plan_of(live[0])
        source = "the live rollout would be aborted"
        return Move(plan.model, plan.version, plan.before_version, source)
    return _move_back(deployments, observed, "", "", to, is_trial=True)


def version_or_uri(text: str) -> str:
    return f"version {text}" if text.isdigit() else text


def rollback_target(
    store: Store,
    observed: ObservedEndpoint,
    registry: Any = None,
    metrics: MetricsByServer = MappingProxyType({}),
) -> PreviousVersion:
    """Return the current target of `rollback`: a version, or the model URI if the
    endpoint follows nothing.

    `registry` is MLflow's registry store inside MLflow's server, and None in a client.
    Raises InvalidConfig if several deployments answer, and NotFound without an earlier
    version.
    """
    spec = observed.endpoint.spec
    if live := store.rollouts(spec.name, live=True):
        before = str(live[0].spec.get("before_version", ""))
        return PreviousVersion(before, "the live rollout is aborted")
    served = _Served(store, observed, lambda: metrics, registry)
    if not served.reference.followed:
        return served.earlier_model()
    _, earlier = served.current_and_earlier()
    return earlier


@dataclass(frozen=True)
class Move:
    """A rollback of a model, from one version or model URI to another. `source` is the
    source that named the earlier version.
    """

    model: str
    before: str
    after: str
    source: str
    detail: Json = field(default_factory=dict)


def _move_back(
    deployments: Deployments,
    observed: ObservedEndpoint,
    why: str,
    actor: str,
    to: str | None,
    is_trial: bool = False,
) -> Move:
    """Restore the earlier version or model of an endpoint without a rollout. `to` is
    the version or model that the user names, or None. With `is_trial`, nothing is
    changed.
    """
    spec = observed.endpoint.spec
    metrics = partial(deployments.server_metrics, observed)
    served = _Served(deployments.store, observed, metrics)
    reference = served.reference
    if reference.followed:
        return _move_reference(deployments, served, why, actor, to, is_trial)
    if to:
        if to.isdecimal() and reference.kind not in ("version", "latest"):
            raise InvalidConfig(
                f"--to {to}: the endpoint does not serve a registered model; use models:/NAME/{to}"
            )
        earlier = PreviousVersion(requested_uri(to, reference.name), _REQUESTED)
    else:
        earlier = served.earlier_model()
    model = earlier.version
    if model == served.model:
        raise InvalidConfig(f"endpoint {spec.name!r} already serves {model}")
    move = Move(parse_model_uri(model).name, served.model, model, earlier.source)
    if is_trial:
        return move
    config = {f"variants.{served.main}.model": model}
    # A model that answered before must not wait for people. A model that a user names,
    # or that had no traffic, may.
    restores = not to and has_answered(deployments.store, spec.name, model)
    deployments.update_endpoint(spec.name, config, why or "rollback", actor, restores=restores)
    return move


def _move_reference(
    deployments: Deployments,
    served: "_Served",
    why: str,
    actor: str,
    to: str | None,
    is_trial: bool,
) -> Move:
    """Move the stage, alias or tag to the earlier version, and wait until it is served.

    The newer version is marked as rolled back. If the earlier version cannot be served,
    the newer version is restored in the registry. `to` is the version that the user
    names, or None.
    """
    reference = served.reference
    endpoint = served.observed.endpoint.name
    if to:
        requested = parse_model_uri(requested_uri(to, reference.name))
        if (requested.kind, requested.name) != ("version", reference.name):
            raise InvalidConfig(
                f"--to {to}: the endpoint follows {reference.name}; specify one of its versions, "
                "for example 6"
            )
        earlier = PreviousVersion(requested.selector, _REQUESTED)
        current = served.current()
    else:
        current, earlier = served.current_and_earlier()
    if earlier.version == current:
        raise InvalidConfig(f"{served.model} is already version {current}")
    if is_trial:
        return Move(served.model, current, earlier.version, earlier.source)
    transitions.move_version(reference, earlier.version)
    deployments.poll_registry(reference.name)
    if served.observed.observation.state in ("running", "starting"):
        try:
            deadline = time.monotonic() + _SERVED_SECONDS
            snapshot = take_snapshot(deployments.get_endpoint(endpoint))
            while snapshot.versions.get(served.main) != earlier.version:
                refusal = snapshot.refused.get((served.main, earlier.version))
                if cause := refusal or snapshot.errors.get(served.main):
                    raise DeploymentFailed(
                        f"{endpoint}: version {earlier.version} could not be restored: {cause}"
                    )
                if time.monotonic() > deadline:
                    raise DeploymentFailed(
                        f"{endpoint}: the registry names version {earlier.version} again, but it "
                        f"is not served after {_SERVED_SECONDS:g} s: "
                        f"{snapshot.reason or 'no reason is known'}"
                    )
                time.sleep(_POLL_SECONDS)
                snapshot = take_snapshot(deployments.get_endpoint(endpoint))
        except DeploymentFailed as error:
            if not current:
                raise
            # Let the registry name the served version.
            transitions.move_version(reference, current)
            deployments.poll_registry(reference.name)
            raise DeploymentFailed(
                f"{error.message}; version {current} was restored in the registry"
            ) from None
    if current:
        reason = why or f"rolled back by {actor}"
        tag_version(reference.name, current, ROLLED_BACK_TAG, f"{endpoint}: {reason}")
    detail = move_detail(reference.place, current)
    return Move(reference.name, current, earlier.version, earlier.source, detail)


@dataclass(frozen=True)
class _Served:
    """The model of an endpoint, and the sources that name what it served before.

    Attributes:
        metrics: returns the counters of the endpoint's servers. It is called only if
            the audit trail does not name the version.
        registry: MLflow's registry store inside MLflow's server; None in a client.
    """

    store: Store
    observed: ObservedEndpoint
    metrics: Callable[[], MetricsByServer]
    registry: Any = None

    @cached_property
    def main(self) -> str:
        """The only variant that answers. Raises InvalidConfig if there are several."""
        return main_variant(self.observed.endpoint.spec)

    @property
    def model(self) -> str:
        return self.observed.endpoint.spec.variants[self.main].model

    @cached_property
    def reference(self) -> ModelURI:
        return parse_model_uri(self.model)

    def current(self) -> str:
        """Return the version that the reference names; if there is none, the served
        version, or an empty text.
        """
        followed = transitions.current_version(self.reference, self.registry)
        return followed or take_snapshot(self.observed).versions.get(self.main, "")

    def current_and_earlier(self) -> tuple[str, PreviousVersion]:
        """Return the current version, and the version that was served before it, by the
        most reliable source. Raises NotFound if no source names one.
        """
        name = self.observed.endpoint.name
        current = self.current()
        for earlier in self._earlier_versions(current):
            try:
                was_rolled_back = transitions.was_rolled_back(
                    self.reference.name, earlier.version, self.registry
                )
            except NotFound:  # The version was deleted.
                continue
            if not was_rolled_back:
                return current, earlier
        raise NotFound(
            f"the audit trail, the server and MLflow at {registry_address()} have no record of "
            f"what endpoint {name!r} served before version {current} of {self.reference.name}: "
            f"use `onnxserve rollback {name} --to VERSION`"
        )

    def _earlier_versions(self, current: str) -> Iterator[PreviousVersion]:
        """Yield the versions except `current` that may have been served before, from
        the most reliable source on.
        """
        followed = self._versions_in_trail()
        last = next(followed, "")
        listed = f"listed before version {current} in the audit trail"
        in_trail = (
            PreviousVersion(version, listed)
            for version in chain([last], followed)
            if version not in ("", current)
        )
        if last == current:  # The audit trail has the last change.
            yield from in_trail
        counted = total_metrics(self.metrics())
        endpoint = self.observed.endpoint.name
        answered = counted.versions_by_last_answer(endpoint, self.main, self.reference.name)
        registered = transitions.previous_in_registry(self.reference, current, self.registry)
        skipped = ""
        if registered is not None and registered.version not in answered:
            skipped = (
                f"; skipped version {registered.version}: {registered.source}, but it answered no "
                "request here"
            )
        source = (
            f"the last version to answer before version {current}, by the server's metrics{skipped}"
        )
        yield from (PreviousVersion(version, source) for version in answered if version != current)
        if registered is not None:
            yield PreviousVersion(
                registered.version, f"{registered.source}, according to the registry"
            )
        yield from in_trail

    def _versions_in_trail(self) -> Iterator[str]:
        """Yield the followed versions, newest first: the new and the previous version
        of each move.

        Only signed moves of this model count. A move to an empty stage has no previous
        version. Before the endpoint was converted to an alias
        (`Deployments.follow_alias`), the moves of its former stage count.
        """
        name = self.observed.endpoint.name
        conversions = self.store.events(name, actions=("follow",), newest_first=True)
        converted = next(
            (event for event in conversions if self.main in event.detail["stages"]), None
        )
        for event in newest_events(self.store, self.reference.name):
            if event.ends_model:
                break
            moved = event.detail.get("moved")
            if moved is None:
                continue
            place = self.reference.place
            if converted is not None and event.at <= converted.at:
                place = converted.detail["stages"][self.main]
            is_own = moved["place"].lower() == place.lower()
            if event.action in ("rollout.end", "rollback"):
                is_own = event.endpoint == name
            if is_own:
                yield from filter(None, (event.version, moved["before"]))

    def earlier_model(self) -> PreviousVersion:
        """Return the earlier model of the main variant, from the audit trail since the
        endpoint was created.

        Skip models that failed, and models that were rolled back and not deployed
        again.
        """
        endpoint = self.observed.endpoint.name
        main = self.main
        taken_back: set[str] = set()
        models: list[str] = []
        for event in self.store.events(endpoint):
            if event.action == "create":
                taken_back = set()
                models = []
            if event.action == "rollback":
                taken_back.add(str(event.detail.get("from")))
            elif event.detail.get("undone") and models:
                models.pop()  # The previous change failed and was undone.
            elif text := event.detail.get("spec"):
                (spec,) = load_stored_specs(text)
                served = [spec.variants[main].model] if main in spec.variants else []
                if served != models[-1:]:  # A model that is deployed again is not taken back.
                    taken_back.difference_update(served)
                models += served
        for model in reversed(models):
            if model not in {self.model, *taken_back}:
                return PreviousVersion(model, "the previous model in the audit trail")
        raise NotFound(
            f"the audit trail has no earlier model of {main} in endpoint {endpoint!r}: "
            f"use `onnxserve rollback {endpoint} --to MODEL`"
        )
