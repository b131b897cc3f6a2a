"""The content of the console page, from the store, the servers of the endpoints and the
registry of this MLflow.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice, zip_longest
from operator import attrgetter
from types import MappingProxyType
from typing import TYPE_CHECKING

from mlflow_deploy_plugin.core.errors import (
    InvalidConfig,
    NotFound,
    OnnxserveError,
    Refused,
    RegistryUnavailable,
)
from mlflow_deploy_plugin.core.messages import one_line
from mlflow_deploy_plugin.core.registry import transitions
from mlflow_deploy_plugin.core.registry.model_uri import (
    parse_model_uri,
    registered_model_names,
    registered_model_uris,
)
from mlflow_deploy_plugin.core.registry.policy import GatePolicy, policy_from_tags
from mlflow_deploy_plugin.core.registry.resolution import all_versions, stage_of
from mlflow_deploy_plugin.core.registry.tags import GateStatus, gate_status_of
from mlflow_deploy_plugin.core.registry.transitions import ROLLED_BACK_TAG, StageOrAlias
from mlflow_deploy_plugin.core.settings import Settings
from mlflow_deploy_plugin.core.spec.parts import EndpointSpec, VariantSpec
from mlflow_deploy_plugin.core.statedir.history import Span
from mlflow_deploy_plugin.core.store.alerts import Alert, Alerts
from mlflow_deploy_plugin.core.store.monitor_tables import Monitors
from mlflow_deploy_plugin.core.store.store import Endpoint, Rollout, Store, UnreadableEndpoint
from mlflow_deploy_plugin.ship.deployments.endpoints import ObservedEndpoint
from mlflow_deploy_plugin.ship.deployments.lifecycle import Deployments
from mlflow_deploy_plugin.ship.deployments.server_metrics import (
    MetricsByServer,
    ServerMetrics,
    VersionCounters,
    total_metrics,
)
from mlflow_deploy_plugin.ship.deployments.unapproved import answers_of
from mlflow_deploy_plugin.ui import access, actions
from mlflow_deploy_plugin.ui.approvals import RequestRow, request_rows
from mlflow_deploy_plugin.ui.event_words import EventRow, event_rows
from mlflow_deploy_plugin.ui.guard import mlflow_stores, moves
from mlflow_deploy_plugin.ui.mlflow_pages import MlflowPages
from mlflow_deploy_plugin.ui.pictures import (
    Pictures,
    Timeline,
    endpoint_pictures,
    monitor_timelines,
)

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

_EVENTS = 10
_EVENTS_READ = 120
"""The caller may not see all events, and a promotion with its steps is one line."""
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
    """A stage or @alias for a promotion.

    Attributes:
        refusal: the reason why the promotion is not possible, or empty.
        obstacle: the reason in a few words, or empty.
        effect: sentences about the moved versions, the gate and the endpoints.
    """

    place: str
    refusal: str = ""
    obstacle: str = ""
    needs_approvals: bool = False
    effect: str = ""


@dataclass(frozen=True)
class VersionRow:
    """A version of a registered model.

    Attributes:
        rolled_back: the endpoint and the reason if the version was rolled back, or
            empty.
        targets: the followed stages and aliases (the gated aliases, if no endpoint
            follows one), then the other stages.
        form: the form in which a server would serve the version, with the reason; empty
            except on the page of the model, because its MLmodel file must be read.
    """

    number: str
    stage: str
    aliases: tuple[str, ...]
    standing: GateStatus
    rolled_back: str
    targets: tuple[PromotionTarget, ...]
    form: str = ""


@dataclass(frozen=True)
class ModelCard:
    """A registered model with its newest versions and all versions in Production, in
    Staging or with an alias.

    Attributes:
        gated: the stages and aliases that need a version with a passed gate.
        outside: a sentence per gated place with a version that did not move there
            through this server.
        error: the reason why the model cannot be read; it can then neither be promoted
            nor judged.
        no_gate: the reason why the gate cannot run here, or empty.
    """

    name: str
    may_act: bool
    versions: tuple[VersionRow, ...] = ()
    gated: tuple[str, ...] = ()
    outside: tuple[str, ...] = ()
    error: str = ""
    no_gate: str = ""


@dataclass(frozen=True)
class VariantRow:
    """A variant with its served version, and the counters of all versions that it has
    served since its servers started.

    Attributes:
        page: the URL of the version in MLflow, or empty.
        form: the form that answers: onnx, converting, converted or original; empty if
            the server does not report it.
        form_reason: the proof of the ONNX form, or the reason for an original.
    """

    name: str
    spec: VariantSpec
    version: str
    error: str
    counters: VersionCounters
    page: str
    form: str = ""
    form_reason: str = ""


@dataclass(frozen=True)
class EndpointState:
    """The state of an endpoint's servers or of its data: a word, the reason or an empty
    text, and a mark for the colour if it is not the word.
    """

    word: str
    reason: str = ""
    mark: str = ""


@dataclass(frozen=True)
class Rollback:
    """The rollback that the page offers.

    Attributes:
        is_possible: True if an earlier version is known.
        version: the version or model to which it would return; empty if unknown.
        blocker: the reason why it is not possible now, or empty.
    """

    is_possible: bool
    version: str = ""
    blocker: str = ""


@dataclass(frozen=True)
class EndpointCard:
    """An endpoint on the page.

    Attributes:
        serving: the state of the servers.
        data: the verdict of the monitors on the data; None without monitors.
        no_traffic: the reason why a traffic change is not possible now, or empty.
        unapproved: a sentence for each model that answers without the approvals that it
            requires.
        monitors: the monitors with their newest windows.
        spec: the spec, or None if it cannot be read.
        pictures: the charts, or None if the page's script loads the charts when they
            become visible.
    """

    name: str
    serving: EndpointState
    may_act: bool
    data: EndpointState | None = None
    url: str = ""
    unapproved: tuple[str, ...] = ()
    variants: tuple[VariantRow, ...] = ()
    monitors: tuple[Timeline, ...] = ()
    pictures: Pictures | None = None
    spec: EndpointSpec | None = None
    no_traffic: str = ""
    rollback: Rollback = Rollback(is_possible=False)


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
    only: str,
    model: str,
    span: Span,
    beginning: str,
) -> Overview:
    """Return the content that the caller of the current request may see.

    Args:
        only: a single endpoint, which is shown with all its charts; empty for all.
        model: the model whose endpoints are shown; empty for all. The versions of this
            model are shown also without an endpoint, because its first promotion comes
            before its endpoint.
        beginning: a name that is sorted onto the requested page.

    Raises NotFound if the endpoint `only` does not exist or the caller may not see it,
    and StoreUnavailable.
    """
    deployments = Deployments(store, settings, lambda line: None)
    if only and (only not in store.names() or access.hidden_endpoints(store, [only])):
        raise actions.no_endpoint(only)
    endpoints = store.endpoints()
    visible = _visible_endpoints(store, endpoints, only, model, beginning)
    alerts, rollouts, events = _visible_activity(store, only)
    observed = deployments.list_endpoints(visible.on_page)
    cards = _draw_cards(deployments, observed, pages, span, is_single=bool(only))
    cards += [
        EndpointCard(item.name, EndpointState("unreadable", item.reason), may_act=False)
        for item in visible.unreadable
        if item.name in visible.on_page
    ]
    models = set[str]()
    for item in observed:
        models |= {*registered_model_names(item.endpoint.spec)}
    if model and access.may_read(model):
        models.add(model)
    # Of the endpoints that the caller may see, the names by model and by the stage or
    # @alias that they follow.
    followers: defaultdict[str, defaultdict[str, dict[str, None]]] = defaultdict(
        lambda: defaultdict(dict)
    )
    for endpoint in endpoints:
        if not all(map(access.may_list, registered_model_names(endpoint.spec))):
            continue
        for uri in registered_model_uris(endpoint.spec):
            if uri.kind in ("stage", "alias"):
                place = uri.place.title() if uri.kind == "stage" else uri.place
                followers[uri.name][place][endpoint.name] = None
    return Overview(
        endpoints=tuple(sorted(cards, key=lambda card: card.name)),
        pages=visible.pages(),
        shown=visible.page_index,
        alerts=alerts,
        models=tuple(
            _model_card(store, name, followers.get(name, {}), shows_forms=name == model)
            for name in sorted(models)
        ),
        rollouts=rollouts,
        events=events,
        requests=tuple(request_rows(store, models if only or model else None)),
        # The page of a model shows no count, which would reveal whether endpoints serve
        # a model of that name.
        hidden=0 if model else visible.hidden,
    )


@dataclass(frozen=True)
class _VisibleEndpoints:
    """The endpoints that the caller may see.

    Attributes:
        names: all names in the order of the pages.
        page_index: the index of the requested page.
        on_page: the endpoints on this page.
        unreadable: the endpoints whose specs cannot be read.
        hidden: the number of endpoints that the caller may not see.
    """

    names: list[str]
    page_index: int
    on_page: list[str]
    unreadable: list[UnreadableEndpoint]
    hidden: int

    def pages(self) -> tuple[tuple[str, str], ...]:
        """Return the first and the last name of each page."""
        pages = [self.names[start : start + _SHOWN] for start in range(0, len(self.names), _SHOWN)]
        return tuple((names[0], names[-1]) for names in pages)


def _visible_endpoints(
    store: Store,
    endpoints: Sequence[Endpoint],
    only: str,
    model: str,
    beginning: str,
) -> _VisibleEndpoints:
    """Return the endpoints that the caller may see: only the endpoint `only` or those
    of `model` if set, on the page that contains the name `beginning`.
    """
    stored = [
        item
        for item in endpoints
        if only in ("", item.name) and (not model or model in registered_model_names(item.spec))
    ]
    unreadable = [item for item in store.unreadable() if only in ("", item.name) and not model]
    names = [
        item.name for item in stored if all(map(access.may_list, registered_model_names(item.spec)))
    ]
    # The models of unreadable endpoints are unknown, so only administrators may see
    # these endpoints.
    names += [item.name for item in unreadable if access.is_administrator()]
    names.sort()
    page_index = max(bisect_right(names, beginning) - 1, 0) // _SHOWN
    listed = names[page_index * _SHOWN :][:_SHOWN]
    unseen = access.hidden_endpoints(store, listed)  # This hides endpoints of deleted models too.
    return _VisibleEndpoints(
        names,
        page_index,
        [name for name in listed if name not in unseen],
        unreadable,
        hidden=len(stored) + len(unreadable) - len(names) + len(unseen),
    )


def _visible_activity(
    store: Store, only: str
) -> tuple[tuple[Alert, ...], tuple[Rollout, ...], tuple[EventRow, ...]]:
    """Return the alerts, and the newest rollouts and events, of all endpoints or of the
    endpoint `only`. More rows are read than shown, because the caller may not see all.
    """
    registry = store.login.registry
    history = transitions.event_history(store, only or None, None, registry, newest_first=True)
    events = [*islice(history, _EVENTS_READ)]
    rollouts = store.rollouts(only or None, limit=_ROLLOUTS * 3)
    alerts = Alerts(store).firing(only or None)
    endpoints = {rollout.endpoint for rollout in rollouts} | {alert.endpoint for alert in alerts}
    hidden = access.hidden_endpoints(store, endpoints)
    newest_rollouts = [rollout for rollout in reversed(rollouts) if rollout.endpoint not in hidden]
    visible_events = access.visible_events(store, transitions.without_step_events(events))
    return (
        tuple(alert for alert in alerts if alert.endpoint not in hidden),
        tuple(newest_rollouts[:_ROLLOUTS]),
        event_rows(visible_events[:_EVENTS]),
    )


def _draw_cards(
    deployments: Deployments,
    observed: Sequence[ObservedEndpoint],
    pages: MlflowPages,
    span: Span,
    is_single: bool,
) -> list[EndpointCard]:
    """Return the card of each endpoint. Of several endpoints, only the first have
    pictures.
    """
    read_metrics = partial(deployments.server_metrics, timeout_seconds=_METRICS_SECONDS)
    draw = partial(
        endpoint_pictures,
        deployments=deployments,
        pages=pages,
        span=span,
        only_traffic=not is_single,
    )
    with ThreadPoolExecutor(max_workers=_ASKED_AT_ONCE) as pool:
        metrics = list(pool.map(read_metrics, observed))
        if is_single:
            pictures = list(map(draw, observed))
        else:
            pictures = list(pool.map(draw, observed[:_DRAWN]))
    return [
        _endpoint_card(endpoint, counted, drawn, pages, deployments.store)
        for endpoint, counted, drawn in zip_longest(observed, metrics, pictures)
    ]


def _endpoint_card(
    observed: ObservedEndpoint,
    metrics: MetricsByServer,
    pictures: Pictures | None,
    pages: MlflowPages,
    store: Store,
) -> EndpointCard:
    """Return the card of an endpoint. Its metrics are of each server, and `pictures` is
    None if the page loads them later.
    """
    spec = observed.endpoint.spec
    may_act = access.may_act_on(registered_model_names(spec))
    total = total_metrics(metrics)
    monitors = monitor_timelines(spec, store, pages, _LOOKED_AT)
    silent = [
        f"{server}: {answer.reason}"
        for server, answer in metrics.items()
        if isinstance(answer, Refused)
    ]
    rollback = Rollback(is_possible=False)
    if may_act:
        # If the registry or a server does not answer, the button stays enabled, because
        # its target may be found later.
        try:
            target = actions.rollback_target_of(store, observed, mlflow_stores.registry(), metrics)
            rollback = Rollback(is_possible=True, version=target.version)
        except RegistryUnavailable:
            rollback = Rollback(is_possible=True)  # Pressing the button reports the error.
        except NotFound:
            # A silent server may later report an earlier version.
            rollback = Rollback(is_possible=bool(silent))
        except InvalidConfig as error:
            rollback = Rollback(is_possible=True, blocker="" if silent else error.message)
    reason = (
        observed.observation.reason
        or "; ".join(observed.observation.errors.values())
        or observed.observation.registry_error
    )
    if observed.observation.state == "observed":
        serving = EndpointState("observed", reason, "degraded" if reason else "healthy")
    elif observed.observation.state != "running":
        serving = EndpointState(observed.observation.state, reason)
    else:
        reason = "; ".join(silent) or reason or observed.observation.shipping_error
        if silent and len(silent) == len(metrics):
            serving = EndpointState("silent", reason)
        elif reason:
            serving = EndpointState("degraded", reason)
        else:
            serving = EndpointState("healthy")
    return EndpointCard(
        name=spec.name,
        serving=serving,
        data=_data_state(spec, store, monitors),
        url=observed.observation.url,
        unapproved=tuple(map(str, answers_of(observed.endpoint))),
        variants=tuple(_variant_row(observed, name, total, pages) for name in spec.variants),
        monitors=monitors,
        pictures=pictures,
        may_act=may_act,
        spec=spec,
        no_traffic=actions.traffic_blocker(store, observed) if may_act else "",
        rollback=rollback,
    )


def _data_state(
    spec: EndpointSpec,
    store: Store,
    monitors: Sequence[Timeline],
) -> EndpointState | None:
    """Return `alarm` while a monitor raises an alarm, otherwise the worst of the latest
    verdicts.
    """
    # Undecided, failed and accepted windows, and windows by hand, do not count.
    alarms = []
    for state in Monitors(store).states(spec.name):
        monitor = spec.monitors.get(state.monitor)
        if monitor is None or state.consecutive < monitor.consecutive:
            continue
        more = f", {state.consecutive} in a row" if state.consecutive > 1 else ""
        alarms.append(f"the monitor {state.monitor} raises an alarm{more}")
    if alarms:
        return EndpointState("alarm", "; ".join(alarms))
    latest = [timeline.latest for timeline in monitors if timeline.latest is not None]
    for mark in ("alarm", "failed", "changed", "undecided", "fine"):
        words = {verdict.state for verdict in latest if verdict.mark == mark}
        if words:
            return EndpointState(", ".join(sorted(words)), mark=mark)
    return EndpointState("not judged yet") if monitors else None


def _variant_row(
    observed: ObservedEndpoint,
    name: str,
    metrics: ServerMetrics,
    pages: MlflowPages,
) -> VariantRow:
    """Return a variant with the versions that its workers have loaded, or `–`."""
    spec = observed.endpoint.spec.variants[name]
    observation = observed.observation
    loaded = {worker.loaded(observed.endpoint.name, name).version for worker in observation.workers}
    version = ", ".join(sorted(loaded - {""})) or "–"
    model = parse_model_uri(spec.model).name
    aspects: Mapping[str, str] = {}
    if observation.wanted is not None and name in observation.wanted.variants:
        wanted = observation.wanted.variants[name]
        model = wanted.model
        if wanted.version == version:  # Another version may answer with another form.
            aspects = wanted.aspects
    counters = VersionCounters()
    for (variant, _), counted in metrics.by_version(observed.endpoint.name).items():
        if variant == name:
            counters = counters.plus(counted)
    return VariantRow(
        name=name,
        spec=spec,
        version=version,
        error=observation.errors.get(name, ""),
        counters=counters,
        page=pages.version(model, version) if version.isdigit() else "",
        form=aspects.get("form", ""),
        # A wrapped version has no conversion, so its own proof is shown.
        form_reason=aspects.get("form_reason", aspects.get("parity", "")),
    )


_Followers = Mapping[str, Iterable[str]]
"""The endpoints that follow a stage or @alias of a model."""


def _model_card(
    store: Store, name: str, followers: _Followers, shows_forms: bool = False
) -> ModelCard:
    """Return the card of a model. If the model or its policy cannot be read, the card
    has the error.
    """
    from mlflow.exceptions import MlflowException

    may_act = access.may_act_on([name])
    try:
        model = mlflow_stores.registry().get_registered_model(name)
        entries = all_versions(mlflow_stores.registry(), name)
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
    places = [] if error else _places(set(followers), applied)
    holders: dict[StageOrAlias, frozenset[str]] = {}
    for place in places:
        if place.alias:
            numbers = {model.aliases.get(place.alias)} - {None}
        else:
            numbers = {entry.version for entry in entries if entry.current_stage == place.stage}
        holders[place] = frozenset(map(str, numbers))
    gated = policy.gated_places if policy is not None else ()
    rows = [*_version_rows(model, entries, applied, holders, followers)]
    if shows_forms:
        rows = [replace(row, form=_form_of(name, row.number)) for row in rows]
    return ModelCard(
        name,
        may_act,
        versions=tuple(rows),
        gated=tuple(map(str, gated)),
        outside=tuple(map(attrgetter("why"), moves.outside_changes(store, model))),
        error=error,
        no_gate=error or actions.gate_blocker(applied, bool(access.caller().user)),
    )


def _form_of(name: str, number: str) -> str:
    """Return the form in which a server would serve a version, with the reason, from
    its MLmodel file. The servers of all registered models are not in the store.
    """
    # The import takes two seconds, and only the page of a model needs it.
    from mlflow_deploy_plugin.wrap.flavor.registry_forms import form_of

    try:
        with mlflow_stores.known_to_mlflow():
            address = mlflow_stores.registry().get_model_version_download_uri(name, number)
        form = form_of("", "", mlflow_stores.read_mlmodel_at(address))
    except OnnxserveError as error:
        return f"unreadable: {error.message}"
    return f"{form.form}: {form.reason}"


def _version_rows(
    model: "RegisteredModel",
    entries: Iterable["ModelVersion"],
    policy: GatePolicy,
    holders: Mapping[StageOrAlias, frozenset[str]],
    followers: _Followers,
) -> Iterator[VersionRow]:
    """Yield the newest versions, and the versions in a stage or with an alias."""
    for index, entry in enumerate(entries):
        number = str(entry.version)
        aliases = [alias for alias, holder in model.aliases.items() if str(holder) == number]
        stage = stage_of(entry)
        targets = (
            promotion_target(
                model.name, number, place, entry.tags, policy, versions, stage, followers
            )
            for place, versions in holders.items()
        )
        if index < _VERSIONS or stage in ("Production", "Staging") or aliases:
            yield VersionRow(
                number,
                stage,
                tuple(sorted(aliases)),
                standing=gate_status_of(entry.tags),
                rolled_back=entry.tags.get(ROLLED_BACK_TAG, ""),
                targets=tuple(targets),
            )


def _places(followed: set[str], policy: GatePolicy) -> list[StageOrAlias]:
    """Return the places that a version may be promoted to: those that endpoints follow
    or, without such places, the gated aliases; then the other stages.
    """
    names = followed or {f"@{alias}" for alias in policy.gated_aliases}
    ordered = sorted(names, key=lambda name: (not name.startswith("@"), name))
    ordered += [stage for stage in ("Production", "Staging", "Archived") if stage not in names]
    return list(map(transitions.parse_stage_or_alias, ordered))


def promotion_target(
    model: str,
    version: str,
    place: StageOrAlias,
    tags: Mapping[str, str],
    policy: GatePolicy,
    holders: frozenset[str],
    stage: str = "",
    followers: _Followers = MappingProxyType({}),
) -> PromotionTarget:
    """Return the target of a version, which has the `stage` now, for a stage or alias
    that the versions `holders` have now.
    """
    if refusal := transitions.rolled_back_refusal(model, version, place, tags):
        return PromotionTarget(str(place), refusal, "it was rolled back")
    status = gate_status_of(tags)
    is_gated = policy.gates(place)
    if holders == {version} and (status.passed or not is_gated):
        return PromotionTarget(str(place), "already there", "already there")
    before = ", ".join(sorted(holders - {version}, key=int)) or "none"
    gate = "not asked"
    if is_gated:
        gate = status.state or "runs first"
    names = ", ".join(followers.get(str(place), ["no endpoint"]))
    effect = f"{place}: version {before} → {version}. Gate: {gate}. Will serve it: {names}."
    if place.stage not in ("", stage) and stage in followers:
        effect += f" Will no longer find it in {stage}: {', '.join(followers[stage])}."
    needs_approvals = policy.approvals_for(place) is not None
    return PromotionTarget(str(place), needs_approvals=needs_approvals, effect=effect)
