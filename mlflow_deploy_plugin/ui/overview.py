"""The content of the console page, from the store, the servers of the endpoints and the
registry of this MLflow.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from typing import TYPE_CHECKING

from mlflow_deploy_plugin.core.errors import InvalidConfig, NotFound, Refused, RegistryUnavailable
from mlflow_deploy_plugin.core.messages import one_line
from mlflow_deploy_plugin.core.registry import transitions
from mlflow_deploy_plugin.core.registry.model_uri import (
    parse_model_uri,
    registered_model_names,
    registered_model_uris,
)
from mlflow_deploy_plugin.core.registry.policy import GatePolicy, policy_from_tags
from mlflow_deploy_plugin.core.registry.resolution import all_versions
from mlflow_deploy_plugin.core.registry.tags import GateStatus, gate_status_of
from mlflow_deploy_plugin.core.registry.transitions import ROLLED_BACK_TAG, StageOrAlias
from mlflow_deploy_plugin.core.settings import Settings
from mlflow_deploy_plugin.core.spec.parts import EndpointSpec, VariantSpec
from mlflow_deploy_plugin.core.statedir.history import Span
from mlflow_deploy_plugin.core.store.alerts import Alert, Alerts
from mlflow_deploy_plugin.core.store.monitors import Monitors
from mlflow_deploy_plugin.core.store.store import Rollout, Store
from mlflow_deploy_plugin.ship.deployments.endpoints import ObservedEndpoint
from mlflow_deploy_plugin.ship.deployments.lifecycle import Deployments
from mlflow_deploy_plugin.ship.deployments.server_metrics import (
    MetricsByServer,
    ServerMetrics,
    VersionCounters,
    total_metrics,
)
from mlflow_deploy_plugin.ship.deployments.unapproved import answers_of
from mlflow_deploy_plugin.ui import access, actions, guard
from mlflow_deploy_plugin.ui.approvals import RequestRow, request_rows
from mlflow_deploy_plugin.ui.event_words import EventRow, event_rows
from mlflow_deploy_plugin.ui.mlflow_pages import MlflowPages
from mlflow_deploy_plugin.ui.pictures import (
    Pictures,
    Timeline,
    endpoint_pictures,
    monitor_timelines,
)

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

_EVENTS = 40
_ROLLOUTS = 10
_VERSIONS = 6
_LOOKED_AT = 4
"""The number of newest windows per monitor that are searched for the latest verdict."""
_DRAWN = 6
"""The number of endpoints whose charts are part of the page. The script loads the other
endpoints' charts on demand.
"""
_SHOWN = 30
"""The number of endpoints per page, in the order of their names."""
_METRICS_SECONDS = 1.5
_ASKED_AT_ONCE = 8


@dataclass(frozen=True)
class PromotionTarget:
    """A stage or @alias for a promotion. `refusal` is the reason why the promotion is
    not possible, or empty.
    """

    place: str
    refusal: str = ""
    needs_approvals: bool = False


@dataclass(frozen=True)
class VersionRow:
    """A version of a registered model.

    `rolled_back` contains the endpoint and the reason if the version was rolled back,
    or is empty. `targets` contains the followed stages and aliases (the gated aliases,
    if no endpoint follows one), then the other stages.
    """

    number: str
    stage: str
    aliases: tuple[str, ...]
    standing: GateStatus
    rolled_back: str
    targets: tuple[PromotionTarget, ...]


@dataclass(frozen=True)
class ModelCard:
    """A registered model with its newest versions and all versions in Production, in
    Staging or with an alias.

    Attributes:
        gated: the stages and aliases that need a version with a passed gate.
        error: the reason why the model cannot be read; it can then neither be promoted
            nor judged.
        no_gate: the reason why the gate cannot run here, or empty.
    """

    name: str
    may_act: bool
    versions: tuple[VersionRow, ...] = ()
    gated: tuple[str, ...] = ()
    error: str = ""
    no_gate: str = ""


@dataclass(frozen=True)
class VariantRow:
    """A variant with its served version, and the counters of all versions that it has
    served since its servers started.

    `page` is the URL of the version in MLflow, or empty.
    """

    name: str
    spec: VariantSpec
    version: str
    error: str
    counters: VersionCounters
    page: str


@dataclass(frozen=True)
class EndpointCard:
    """An endpoint on the page.

    Attributes:
        health: a word for the state, such as `alarm` while a monitor has an alarm. If
            the word is not `healthy`, `reason` contains the reason.
        no_traffic / no_rollback: the reason why a traffic change or a rollback is not
            possible now, or empty.
        has_rollback: True if an earlier version is known.
        unapproved: a sentence for each model that answers without the approvals that it
            requires.
        rollback_to: the version or model to which a rollback would return; empty if
            unknown.
        monitors: the monitors with their newest windows.
        spec: the spec, or None if it cannot be read.
        pictures: the charts, or None if the page's script loads the charts when they
            become visible.
    """

    name: str
    health: str
    reason: str
    may_act: bool
    url: str = ""
    unapproved: tuple[str, ...] = ()
    variants: tuple[VariantRow, ...] = ()
    monitors: tuple[Timeline, ...] = ()
    pictures: Pictures | None = None
    spec: EndpointSpec | None = None
    no_traffic: str = ""
    has_rollback: bool = False
    no_rollback: str = ""
    rollback_to: str = ""


@dataclass(frozen=True)
class Overview:
    """The content of the page.

    Attributes:
        pages: the names of the first and the last endpoint on each page.
        shown: the index of this page in `pages`.
        alerts: all firing alerts of the endpoints on all pages, oldest first.
        hidden: the number of endpoints that the caller may not see.
    """

    endpoints: tuple[EndpointCard, ...] = ()
    pages: tuple[tuple[str, str], ...] = ()
    shown: int = 0
    alerts: tuple[Alert, ...] = ()
    models: tuple[ModelCard, ...] = ()
    rollouts: tuple[Rollout, ...] = ()
    events: tuple[EventRow, ...] = ()
    requests: tuple[RequestRow, ...] = ()
    hidden: int = 0


def build_overview(
    store: Store,
    settings: Settings,
    pages: MlflowPages,
    only: str = "",
    model: str = "",
    span: Span = "hour",
    beginning: str = "",
) -> Overview:
    """Return the content that the caller of the current request may see.

    `only` is a single endpoint, shown with all its charts. `model` restricts the page
    to the endpoints of a model, and shows the versions of this model also without an
    endpoint, because its first promotion comes before its endpoint. Without `only` and
    `model`, all endpoints are shown. `beginning` is a name that is sorted onto the
    requested page.

    Raises NotFound if the endpoint `only` does not exist or the caller may not see it,
    and StoreUnavailable.
    """
    deployments = Deployments(store, settings, lambda line: None)
    if only and (only not in store.names() or access.hidden_endpoints(store, [only])):
        raise actions.no_endpoint(only)
    stored = [
        item
        for item in store.endpoints()
        if only in ("", item.name) and (not model or model in registered_model_names(item.spec))
    ]
    unreadable = [item for item in store.unreadable() if only in ("", item.name) and not model]
    seen = [
        item.name for item in stored if all(map(access.may_list, registered_model_names(item.spec)))
    ]
    # The models of unreadable endpoints are unknown, so only administrators may see
    # these endpoints.
    names = sorted([*seen, *(item.name for item in unreadable if access.is_administrator())])
    page_index = max(bisect_right(names, beginning) - 1, 0) // _SHOWN
    listed = names[page_index * _SHOWN :][:_SHOWN]
    unseen = access.hidden_endpoints(store, listed)  # This hides endpoints of deleted models too.
    on_page = [name for name in listed if name not in unseen]
    events = [*transitions.event_history(store, only or None, None, _EVENTS * 3)]
    rollouts = store.rollouts(only or None, limit=_ROLLOUTS * 3)
    alerts = Alerts(store).firing(only or None)
    readable = deployments.list_endpoints(on_page)
    with ThreadPoolExecutor(max_workers=_ASKED_AT_ONCE) as pool:
        metrics = list(
            pool.map(
                partial(deployments.server_metrics, timeout_seconds=_METRICS_SECONDS),
                readable,
            ),
        )
        draw = partial(
            endpoint_pictures,
            deployments=deployments,
            pages=pages,
            span=span,
            only_traffic=not only,
        )
        drawn = list(map(draw, readable) if only else pool.map(draw, readable[:_DRAWN]))
    specs = [observed.endpoint.spec for observed in readable]
    cards = [
        _endpoint_card(observed, counted, pictures, pages, store)
        for observed, counted, pictures in zip_longest(readable, metrics, drawn)
    ]
    cards += [
        EndpointCard(item.name, "unreadable", item.reason, False)
        for item in unreadable
        if item.name in on_page
    ]
    of_endpoint = (
        {name for spec in specs for name in registered_model_names(spec)} if only else None
    )
    endpoints = [*(rollout.endpoint for rollout in rollouts), *(alert.endpoint for alert in alerts)]
    hidden = access.hidden_endpoints(store, endpoints)
    return Overview(
        endpoints=tuple(sorted(cards, key=lambda card: card.name)),
        pages=tuple((names[at], names[at:][:_SHOWN][-1]) for at in range(0, len(names), _SHOWN)),
        shown=page_index,
        alerts=tuple(alert for alert in alerts if alert.endpoint not in hidden),
        models=tuple(_model_cards(specs, model)),
        rollouts=tuple(
            [rollout for rollout in reversed(rollouts) if rollout.endpoint not in hidden][
                :_ROLLOUTS
            ],
        ),
        events=event_rows(
            access.visible_events(store, transitions.without_step_events(events))[::-1][:_EVENTS],
        ),
        requests=tuple(request_rows(store, {model} if model else of_endpoint)),
        # The page of a model shows no count, which would reveal whether endpoints serve
        # a model of that name.
        hidden=0 if model else len(stored) + len(unreadable) - len(names) + len(unseen),
    )


def _endpoint_card(
    observed: ObservedEndpoint,
    metrics: MetricsByServer,
    pictures: Pictures | None,
    pages: MlflowPages,
    store: Store,
) -> EndpointCard:
    spec = observed.endpoint.spec
    observation = observed.observation
    may_act = access.may_act_on(registered_model_names(spec))
    reason = (
        observation.reason or "; ".join(observation.errors.values()) or observation.registry_error
    )
    health: str = observation.state
    total = total_metrics(metrics)
    silent = [
        f"{server}: {answer.reason}"
        for server, answer in metrics.items()
        if isinstance(answer, Refused)
    ]
    if observation.state == "running":
        reason = "; ".join(silent) or reason or observation.shipping_error
        health = "degraded" if reason else "healthy"
        if silent and len(silent) == len(metrics):
            health = "silent"
    monitors = monitor_timelines(spec, store, pages, _LOOKED_AT)
    if health == "healthy" and (alarms := _alarms(spec, store)):
        health = "alarm"
        reason = "; ".join(alarms)
    no_rollback = ""
    rollback_to = ""
    has_rollback = may_act
    if may_act:
        try:
            rollback_to = actions.rollback_target_of(
                store,
                observed,
                guard.registry(),
                metrics,
            ).version
        except RegistryUnavailable:
            pass  # Pressing the button reports the error.
        except NotFound:
            has_rollback = bool(silent)  # A silent server may later report an earlier version.
        except InvalidConfig as error:
            no_rollback = "" if silent else error.message
    return EndpointCard(
        name=spec.name,
        health=health,
        reason=reason,
        url=observation.url,
        unapproved=tuple(map(str, answers_of(observed.endpoint))),
        variants=tuple(_variant_row(observed, name, total, pages) for name in spec.variants),
        monitors=monitors,
        pictures=pictures,
        may_act=may_act,
        spec=spec,
        no_traffic=actions.traffic_blocker(store, observed) if may_act else "",
        has_rollback=has_rollback,
        no_rollback=no_rollback,
        rollback_to=rollback_to,
    )


def _alarms(spec: EndpointSpec, store: Store) -> list[str]:
    """Return a sentence for each monitor with an alarm, with the number of its alarms
    in a row.

    A monitor with the field `consecutive` raises an alarm only after this number of
    windows. Undecided, failed and accepted windows, and windows by hand, do not count.
    """
    sentences = []
    for state in Monitors(store).states(spec.name):
        monitor = spec.monitors.get(state.monitor)
        if monitor is None or state.consecutive < monitor.consecutive:
            continue
        more = f", {state.consecutive} in a row" if state.consecutive > 1 else ""
        sentences.append(f"the monitor {state.monitor} raises an alarm{more}")
    return sentences


def _variant_row(
    observed: ObservedEndpoint,
    name: str,
    metrics: ServerMetrics,
    pages: MlflowPages,
) -> VariantRow:
    spec = observed.endpoint.spec.variants[name]
    observation = observed.observation
    requested = observation.wanted.variants.get(name) if observation.wanted is not None else None
    loaded = {worker.loaded(observed.endpoint.name, name).version for worker in observation.workers}
    version = ", ".join(sorted(loaded - {""})) or "–"
    model = requested.model if requested is not None else parse_model_uri(spec.model).name
    counters = VersionCounters()
    for (of_endpoint, of_variant, _, _), counted in metrics.counters.items():
        if (of_endpoint, of_variant) == (observed.endpoint.name, name):
            counters = counters.plus(counted)
    return VariantRow(
        name=name,
        spec=spec,
        version=version,
        error=observation.errors.get(name, ""),
        counters=counters,
        page=pages.version(model, version) if version.isdigit() else "",
    )


def _model_cards(specs: Iterable[EndpointSpec], model: str) -> list[ModelCard]:
    """Return the models that the endpoints serve, and the `model` of the page if the
    caller may read it.
    """
    followed: defaultdict[str, set[str]] = defaultdict(set)
    if model and access.may_read(model):
        followed[model] = set()
    for spec in specs:
        for reference in registered_model_uris(spec):
            places = {"stage": {reference.selector.title()}, "alias": {f"@{reference.selector}"}}
            followed[reference.name] |= places.get(reference.kind, set())
    return [_model_card(name, places) for name, places in sorted(followed.items())]


def _holders(
    model: "RegisteredModel",
    versions: Iterable["ModelVersion"],
    place: StageOrAlias,
) -> frozenset[str]:
    if place.alias:
        return frozenset(
            str(number) for alias, number in model.aliases.items() if alias == place.alias
        )
    return frozenset(
        str(version.version) for version in versions if version.current_stage == place.stage
    )


def _model_card(name: str, followed: set[str]) -> ModelCard:
    from mlflow.exceptions import MlflowException

    may_act = access.may_act_on([name])
    try:
        model = guard.registry().get_registered_model(name)
        entries = all_versions(guard.registry(), name)
    except MlflowException as failure:
        return ModelCard(name, may_act, error=one_line(failure, 300))
    entries.sort(key=lambda version: int(version.version), reverse=True)
    error = ""
    policy = None
    try:
        policy = policy_from_tags(name, model.tags)
    except InvalidConfig as failure:
        error = failure.message
    applied = policy or GatePolicy()  # `onnxserve promote` uses the same policy.
    followed = followed or {f"@{alias}" for alias in applied.gated_aliases}
    stages = [stage for stage in ("Production", "Staging", "Archived") if stage not in followed]
    names = [*sorted(followed, key=lambda place: (not place.startswith("@"), place)), *stages]
    holders = {
        place: _holders(model, entries, place)
        for place in map(transitions.parse_stage_or_alias, names)
    }
    versions = []
    for index, entry in enumerate(entries):
        number = str(entry.version)
        standing = gate_status_of(entry.tags)
        aliases = tuple(
            sorted(alias for alias, version in model.aliases.items() if str(version) == number),
        )
        if (
            index >= _VERSIONS
            and entry.current_stage not in ("Production", "Staging")
            and not aliases
        ):
            continue
        targets = tuple(
            PromotionTarget(
                str(place),
                actions.promotion_blocker(name, number, place, entry.tags, applied, held),
                applied.approvals_for(place) is not None,
            )
            for place, held in holders.items()
            if not error
        )
        stage = "" if entry.current_stage == "None" else entry.current_stage
        versions.append(
            VersionRow(
                number,
                stage,
                aliases,
                standing,
                entry.tags.get(ROLLED_BACK_TAG, ""),
                targets,
            ),
        )
    gated = tuple(map(str, policy.gated_places)) if policy is not None else ()
    no_gate = error or actions.gate_blocker(applied, bool(access.caller().user))
    return ModelCard(name, may_act, tuple(versions), gated, error, no_gate)
