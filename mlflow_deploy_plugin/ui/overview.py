"""The content of the page, from the store, the endpoints' servers and this MLflow server's own registry."""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from mlflow_deploy_plugin.deployments import (
    Deployments,
    MetricsByServer,
    ObservedEndpoint,
    ServerMetrics,
    VersionCounters,
    total_metrics,
)
from mlflow_deploy_plugin.errors import InvalidConfig, NotFound, Refused, RegistryUnavailable
from mlflow_deploy_plugin.gate.policy import GatePolicy, policy_from_tags
from mlflow_deploy_plugin.messages import one_line
from mlflow_deploy_plugin.registry import all_versions, parse_model_uri
from mlflow_deploy_plugin.registry.model_uri import registered_model_names, registered_model_uris
from mlflow_deploy_plugin.registry.tags import GateStatus, gate_status_of
from mlflow_deploy_plugin.registry.transitions import (
    ROLLED_BACK_TAG,
    StageOrAlias,
    event_history,
    parse_stage_or_alias,
    without_step_events,
)
from mlflow_deploy_plugin.settings import Settings
from mlflow_deploy_plugin.spec import EndpointSpec, VariantSpec
from mlflow_deploy_plugin.statedir import Span
from mlflow_deploy_plugin.store import Alert, Alerts, AuditEvent, Rollout, Store
from mlflow_deploy_plugin.ui.access import (
    caller,
    hidden_endpoints,
    is_administrator,
    may_act_on,
    may_list,
    visible_events,
)
from mlflow_deploy_plugin.ui.actions import (
    ALREADY_THERE,
    gate_blocker,
    no_endpoint,
    promotion_blocker,
    rollback_target_of,
    traffic_blocker,
)
from mlflow_deploy_plugin.ui.mlflow_pages import MlflowPages
from mlflow_deploy_plugin.ui.pictures import Pictures, Timeline, endpoint_pictures, monitor_timelines

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel
    from mlflow.store.model_registry.abstract_store import AbstractStore as Registry

Link = Callable[[str], str]
"""Returns the address of a gate's report by its tag."""
_EVENTS = 40
_ROLLOUTS = 10
_VERSIONS = 6
_LOOKED_AT = 4
"""Windows of a monitor among which its latest verdict is looked for."""
_DRAWN = 6
"""Endpoints whose pictures come with the page. The others' are drawn when a reader comes to them."""
_SHOWN = 30
"""Endpoints of one page, in the order of their names."""
_METRICS_SECONDS = 1.5
_ASKED_AT_ONCE = 8


@dataclass(frozen=True)
class PromotionTarget:
    """A stage or @alias to promote a version to; `refusal`: why the version may not go there; empty if it may."""

    place: str
    refusal: str = ""

    @property
    def shown(self) -> str:
        """Return the entry of a list, which has no room for the whole reason."""
        if not self.refusal:
            return self.place
        return f"{self.place} – {ALREADY_THERE if self.refusal == ALREADY_THERE else 'it was rolled back'}"


@dataclass(frozen=True)
class VersionRow:
    """One version of a registered model.

    `rolled_back` has the endpoint that it was rolled back from, and the reason; empty if it was not. `targets` has the
    followed stages and aliases, and the other stages.
    """

    number: str
    stage: str
    aliases: tuple[str, ...]
    standing: GateStatus
    report: str = ""
    rolled_back: str = ""
    targets: tuple[PromotionTarget, ...] = ()


@dataclass(frozen=True)
class ModelCard:
    """A registered model with its newest versions, and all with an alias or in Production or Staging.

    Attributes:
        gated: the stages and aliases that only a passed version may take.
        error: why the model is unknown; nothing can be promoted or judged then.
        no_gate: why the gate would be refused here; empty if it would not.
    """

    name: str
    versions: tuple[VersionRow, ...] = ()
    gated: tuple[str, ...] = ()
    error: str = ""
    no_gate: str = ""


@dataclass(frozen=True)
class VariantRow:
    """A variant with the version that answers and its counters; `page` is the version's page in MLflow, or empty."""

    name: str
    spec: VariantSpec
    version: str
    error: str
    counters: VersionCounters
    page: str


@dataclass(frozen=True)
class EndpointCard:
    """An endpoint as the page shows it.

    Attributes:
        health: one word, with the `reason` if it is not `healthy`.
        no_traffic / no_rollback: why a change of traffic, or a rollback, would be refused now; empty if it would not.
        has_rollback: an earlier version is known.
        rollback_to: the version or model that a rollback brings back; empty if unknown.
        monitors: with their newest windows; none on a page of one endpoint, which has a picture of all.
        spec: None if it cannot be read.
        pictures: None if the page's script loads them once they are in sight.
    """

    name: str
    health: str
    reason: str
    may_act: bool
    url: str = ""
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
    """The page's content.

    Attributes:
        pages: the first and the last endpoint of each page.
        shown: the index of this page among them.
        alerts: all firing alerts, of endpoints of all pages; the oldest first.
        hidden: the number of endpoints that the caller may not see.
    """

    endpoints: tuple[EndpointCard, ...] = ()
    pages: tuple[tuple[str, str], ...] = ()
    shown: int = 0
    alerts: tuple[Alert, ...] = ()
    models: tuple[ModelCard, ...] = ()
    updatable: frozenset[str] = frozenset()
    rollouts: tuple[Rollout, ...] = ()
    events: tuple[AuditEvent, ...] = ()
    hidden: int = 0


def build_overview(
    store: Store,
    settings: Settings,
    registry: "Registry",
    pages: MlflowPages,
    only: str = "",
    model: str = "",
    span: Span = "hour",
    beginning: str = "",
) -> Overview:
    """Return the content that the caller of the request at hand may see.

    `only` is the only endpoint to show, with all its pictures; `model` is the registered model whose endpoints are
    shown; empty: all. `beginning` is a name on the requested page, or between two names there.

    Raises NotFound if there is no endpoint `only`, or the caller may not see it; and StoreUnavailable.
    """
    deployments = Deployments(store, settings, lambda line: None)
    if only and (only not in store.names() or hidden_endpoints(store, [only])):
        raise no_endpoint(only)
    stored = [
        one
        for one in store.endpoints()
        if only in ("", one.name) and (not model or model in registered_model_names(one.spec))
    ]
    unreadable = [one for one in store.unreadable() if only in ("", one.name) and not model]
    seen = [one.name for one in stored if all(map(may_list, registered_model_names(one.spec)))]
    names = sorted([*seen, *(one.name for one in unreadable if is_administrator())])  # their models are unknown
    shown = max(bisect_right(names, beginning) - 1, 0) // _SHOWN
    listed = names[shown * _SHOWN :][:_SHOWN]
    unseen = hidden_endpoints(store, listed)  # such as those whose model was deleted
    on_page = [name for name in listed if name not in unseen]
    events = [*event_history(store, only or None, None, _EVENTS * 3)]
    rollouts = store.rollouts(only or None, limit=_ROLLOUTS * 3)
    alerts = Alerts(store).firing(only or None)
    readable = deployments.list_endpoints(on_page)
    with ThreadPoolExecutor(max_workers=_ASKED_AT_ONCE) as pool:
        metrics = list(pool.map(partial(deployments.server_metrics, timeout_seconds=_METRICS_SECONDS), readable))
        draw = partial(endpoint_pictures, deployments=deployments, pages=pages, span=span, only_traffic=not only)
        drawn = list(map(draw, readable) if only else pool.map(draw, readable[:_DRAWN]))
    has_account = bool(caller().user)
    specs = [one.endpoint.spec for one in readable]
    models = model_cards(registry, specs, pages.report, has_account)
    cards = [
        _endpoint_card(one, counted, pages, store, registry, bool(only))
        for one, counted in zip(readable, metrics, strict=True)
    ]
    for index, pictures in enumerate(drawn):
        cards[index] = replace(cards[index], pictures=pictures)
    cards += [EndpointCard(one.name, "unreadable", one.reason, False) for one in unreadable if one.name in on_page]
    named = [*(rollout.endpoint for rollout in rollouts), *(alert.endpoint for alert in alerts)]
    hidden = hidden_endpoints(store, named)
    return Overview(
        endpoints=tuple(sorted(cards, key=lambda card: card.name)),
        pages=tuple((names[at], names[at:][:_SHOWN][-1]) for at in range(0, len(names), _SHOWN)),
        shown=shown,
        alerts=tuple(one for one in alerts if one.endpoint not in hidden),
        models=tuple(models),
        updatable=frozenset(model.name for model in models if may_act_on([model.name])),
        rollouts=tuple([one for one in reversed(rollouts) if one.endpoint not in hidden][:_ROLLOUTS]),
        events=tuple(visible_events(store, without_step_events(events))[::-1][:_EVENTS]),
        # The page of one model does not count them: a count would reveal if a model of that name is served.
        hidden=0 if model else len(stored) + len(unreadable) - len(names) + len(unseen),
    )


def _endpoint_card(
    one: ObservedEndpoint,
    metrics: MetricsByServer,
    pages: MlflowPages,
    store: Store,
    registry: "Registry",
    is_alone: bool,
) -> EndpointCard:
    spec, observation = one.endpoint.spec, one.observation
    may_act = may_act_on(registered_model_names(spec))
    reason = observation.reason or "; ".join(observation.errors.values()) or observation.registry_error
    health: str = observation.state
    total = total_metrics(metrics)
    silent = [f"{server}: {found.reason}" for server, found in metrics.items() if isinstance(found, Refused)]
    if observation.state == "running":
        reason = "; ".join(silent) or reason or observation.shipping_error
        health = "degraded" if reason else "healthy"
        if silent and len(silent) == len(metrics):
            health = "silent"
    no_rollback, rollback_to, has_rollback = "", "", may_act
    if may_act:
        try:
            rollback_to = rollback_target_of(store, one, registry, metrics).version
        except RegistryUnavailable:
            pass  # the button shows the error
        except NotFound:
            has_rollback = bool(silent)  # a server that is silent now may answer the rollback
        except InvalidConfig as error:
            no_rollback = "" if silent else error.message
    return EndpointCard(
        name=spec.name,
        health=health,
        reason=reason,
        url=observation.url,
        variants=tuple(_variant_row(one, name, total, pages) for name in spec.variants),
        monitors=() if is_alone else monitor_timelines(spec, store, pages, _LOOKED_AT),
        may_act=may_act,
        spec=spec,
        no_traffic=traffic_blocker(store, one) if may_act else "",
        has_rollback=has_rollback,
        no_rollback=no_rollback,
        rollback_to=rollback_to,
    )


def _variant_row(one: ObservedEndpoint, name: str, metrics: ServerMetrics, pages: MlflowPages) -> VariantRow:
    spec, observation = one.endpoint.spec.variants[name], one.observation
    wanted = observation.wanted.variants.get(name) if observation.wanted is not None else None
    loaded = {worker.loaded(one.endpoint.name, name).version for worker in observation.workers}
    version = ", ".join(sorted(loaded - {""})) or "–"
    model = wanted.model if wanted is not None else parse_model_uri(spec.model).name
    return VariantRow(
        name=name,
        spec=spec,
        version=version,
        error=observation.errors.get(name, ""),
        counters=metrics.of(one.endpoint.name, name, model, version),
        page=pages.version(model, version) if version.isdigit() else "",
    )


def model_cards(registry: "Registry", specs: Iterable[EndpointSpec], link: Link, has_account: bool) -> list[ModelCard]:
    followed: defaultdict[str, set[str]] = defaultdict(set)
    for spec in specs:
        for reference in registered_model_uris(spec):
            places = {"stage": {reference.selector.title()}, "alias": {f"@{reference.selector}"}}
            followed[reference.name] |= places.get(reference.kind, set())
    return [_model_card(registry, name, places, link, has_account) for name, places in sorted(followed.items())]


def _versions_by_place(
    model: "RegisteredModel", versions: Sequence["ModelVersion"], followed: set[str]
) -> dict[StageOrAlias, frozenset[str]]:
    """Return the versions at each place that a version may be promoted to: followed places first."""
    stages = [stage for stage in ("Production", "Staging", "Archived") if stage not in followed]
    places = [*sorted(followed, key=lambda place: (place.startswith("@"), place)), *stages]
    found = {}
    for place in map(parse_stage_or_alias, places):
        there = [one.version for one in versions if one.current_stage == place.stage]
        if place.alias:
            there = [model.aliases[place.alias]] if place.alias in model.aliases else []
        found[place] = frozenset(map(str, there))
    return found


def _model_card(registry: "Registry", name: str, followed: set[str], link: Link, has_account: bool) -> ModelCard:
    from mlflow.exceptions import MlflowException

    try:
        model = registry.get_registered_model(name)
        found = all_versions(registry, name)
    except MlflowException as failure:
        return ModelCard(name, error=one_line(failure, 300))
    found.sort(key=lambda one: int(one.version), reverse=True)
    error, policy = "", None
    try:
        policy = policy_from_tags(name, model.tags)
    except InvalidConfig as failure:
        error = failure.message
    applied = policy or GatePolicy()  # as for `onnxserve promote`
    holders = _versions_by_place(model, found, followed)
    versions = []
    for index, one in enumerate(found):
        number, standing = str(one.version), gate_status_of(one.tags)
        aliases = tuple(sorted(alias for alias, version in model.aliases.items() if str(version) == number))
        if index >= _VERSIONS and one.current_stage not in ("Production", "Staging") and not aliases:
            continue
        targets = tuple(
            PromotionTarget(str(place), promotion_blocker(name, number, place, one.tags, applied, there))
            for place, there in holders.items()
            if not error
        )
        stage, report, taken_back = one.current_stage, link(standing.report), one.tags.get(ROLLED_BACK_TAG, "")
        stage = "" if stage == "None" else stage
        versions.append(VersionRow(number, stage, aliases, standing, report, taken_back, targets))
    gated = (*policy.gated_stages, *(f"@{alias}" for alias in policy.gated_aliases)) if policy is not None else ()
    return ModelCard(name, tuple(versions), gated, error, error or gate_blocker(applied, has_account))
