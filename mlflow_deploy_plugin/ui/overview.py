"""The content of the page: endpoints, versions, traffic, health, rollouts, monitors, gate, audit trail."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from mlflow_deploy_plugin.deployments import (
    Deployments,
    ObservedEndpoint,
    ServerMetrics,
    VersionCounters,
    fetch_server_metrics,
)
from mlflow_deploy_plugin.errors import Refused, StoreUnavailable
from mlflow_deploy_plugin.registry import parse_model_uri, registered_model_names
from mlflow_deploy_plugin.settings import Settings
from mlflow_deploy_plugin.store import AuditEvent, Rollout, Store
from mlflow_deploy_plugin.ui.blockers import rollback_blocker, traffic_blocker
from mlflow_deploy_plugin.ui.mlflow_pages import MlflowPages, MonitorVerdict
from mlflow_deploy_plugin.ui.model_cards import ModelCard, model_cards
from mlflow_deploy_plugin.ui.permissions import (
    caller,
    hidden_endpoints,
    is_administrator,
    may_act_on,
    may_read,
    visible_events,
)

_EVENTS = 40
_ROLLOUTS = 10
_METRICS_SECONDS = 1.5
_ASKED_AT_ONCE = 8


@dataclass(frozen=True)
class VariantRow:
    """A variant with the version that answers and its counters; `page` is the version's page in MLflow, or empty."""

    name: str
    model_uri: str
    model: str
    version: str
    weight: int
    shadow: bool
    error: str
    counters: VersionCounters
    page: str


@dataclass(frozen=True)
class EndpointCard:
    """An endpoint as the page shows it.

    Attributes:
        health: one word; `reason` says why it is not `healthy`.
        no_traffic: why a change of traffic would be refused now; empty if it would not.
        no_rollback: why a rollback would be refused now; empty if it would not.
    """

    name: str
    health: str
    reason: str
    may_act: bool
    url: str = ""
    variants: tuple[VariantRow, ...] = ()
    verdicts: tuple[MonitorVerdict, ...] = ()
    gate_required: bool = False
    no_traffic: str = ""
    no_rollback: str = ""


@dataclass(frozen=True)
class Overview:
    """The page's content; `error` says why there is none."""

    endpoints: tuple[EndpointCard, ...] = ()
    models: tuple[ModelCard, ...] = ()
    updatable: frozenset[str] = frozenset()
    rollouts: tuple[Rollout, ...] = ()
    events: tuple[AuditEvent, ...] = ()
    error: str = ""
    hidden: int = 0


def build_overview(store: Store, settings: Settings, registry: Any, pages: MlflowPages) -> Overview:
    """Return the content that the caller of the request at hand may see."""
    try:
        observed = list(Deployments(store, settings, lambda line: None).list_endpoints())
        unreadable = store.unreadable()
        events = store.events(limit=_EVENTS * 3)
        rollouts = store.rollouts()
    except StoreUnavailable as error:
        return Overview(error=error.message)
    readable = [one for one in observed if all(may_read(name) for name in registered_model_names(one.endpoint.spec))]
    urls = {one.endpoint.name: one.observation.url for one in readable if one.observation.url}
    with ThreadPoolExecutor(max_workers=_ASKED_AT_ONCE) as pool:
        asked = pool.map(partial(fetch_server_metrics, timeout_seconds=_METRICS_SECONDS), urls.values())
        metrics = dict(zip(urls, asked, strict=True))
    has_account = bool(caller().user)
    models = model_cards(registry, [one.endpoint.spec for one in readable], pages.report, has_account)
    cards = [_card(one, metrics.get(one.endpoint.name), pages, store, registry) for one in readable]
    if is_administrator():  # nobody knows their models
        cards += [EndpointCard(one.name, "unreadable", one.reason, may_act=False) for one in unreadable]
    hidden = hidden_endpoints(store, [rollout.endpoint for rollout in rollouts])
    return Overview(
        endpoints=tuple(sorted(cards, key=lambda card: card.name)),
        models=tuple(models),
        updatable=frozenset(model.name for model in models if may_act_on([model.name])),
        rollouts=tuple([one for one in reversed(rollouts) if one.endpoint not in hidden][:_ROLLOUTS]),
        events=tuple(visible_events(store, events)[::-1][:_EVENTS]),
        hidden=len(observed) + len(unreadable) - len(cards),
    )


def _card(
    one: ObservedEndpoint, metrics: ServerMetrics | Refused | None, pages: MlflowPages, store: Store, registry: Any
) -> EndpointCard:
    spec, observation = one.endpoint.spec, one.observation
    may_act = may_act_on(registered_model_names(spec))
    reason = observation.reason or "; ".join(observation.errors.values()) or observation.registry_error
    health: str = observation.state
    if observation.state == "running" and isinstance(metrics, Refused):
        health, reason = "silent", f"{observation.url}: {metrics.reason}"
    elif observation.state == "running":
        health = "degraded" if reason else "healthy"
    return EndpointCard(
        name=spec.name,
        health=health,
        reason=reason,
        url=observation.url,
        variants=tuple(_row(one, name, metrics, pages) for name in spec.variants),
        verdicts=tuple(pages.verdicts(spec.name, one.endpoint.created_at)),
        may_act=may_act,
        gate_required=bool(spec.require),
        no_traffic=traffic_blocker(store, one) if may_act else "",
        # a rollback would ask a silent server again, and wait
        no_rollback=rollback_blocker(store, one, registry) if may_act and not isinstance(metrics, Refused) else "",
    )


def _row(one: ObservedEndpoint, name: str, metrics: ServerMetrics | Refused | None, pages: MlflowPages) -> VariantRow:
    spec, observation = one.endpoint.spec.variants[name], one.observation
    wanted = observation.wanted.variants.get(name) if observation.wanted is not None else None
    loaded = {
        worker.endpoints[one.endpoint.name][name].version
        for worker in observation.workers
        if name in worker.endpoints.get(one.endpoint.name, {})
    }
    version = ", ".join(sorted(loaded - {""})) or "–"
    model = wanted.model if wanted is not None else parse_model_uri(spec.model).name
    counters = VersionCounters()
    if isinstance(metrics, ServerMetrics):
        counters = metrics.of(one.endpoint.name, name, model, version)
    return VariantRow(
        name=name,
        model_uri=spec.model,
        model=model,
        version=version,
        weight=spec.weight,
        shadow=spec.shadow,
        error=observation.errors.get(name, ""),
        counters=counters,
        page=pages.version(model, version) if version.isdigit() else "",
    )
