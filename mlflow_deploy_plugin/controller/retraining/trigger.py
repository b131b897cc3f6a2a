"""Whether an alarm starts a retraining: cool-down, budget, one at a time; and retrainings that a person asks for."""

import logging
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import select

from mlflow_deploy_plugin.controller.crontab import crontab_trigger
from mlflow_deploy_plugin.controller.leadership import controller_name
from mlflow_deploy_plugin.controller.retraining.plan import (
    RetrainPlan,
    cause_of,
    plan_for,
    refused_event,
    started_event,
)
from mlflow_deploy_plugin.controller.retraining.served import served_model, served_version
from mlflow_deploy_plugin.controller.rollouts.start import main_variant
from mlflow_deploy_plugin.controller.snapshot import take_snapshot
from mlflow_deploy_plugin.deployments.lifecycle import Deployments
from mlflow_deploy_plugin.deployments.monitor_checks import check_project
from mlflow_deploy_plugin.errors import AlreadyExists, InvalidConfig, NotFound, NotReady, OnnxserveError
from mlflow_deploy_plugin.inference_log.windows import Window
from mlflow_deploy_plugin.monitoring.alerts import announce
from mlflow_deploy_plugin.monitoring.result import MonitorResult
from mlflow_deploy_plugin.registry import LoggedRun, parse_model_uri
from mlflow_deploy_plugin.spec import EndpointSpec, MonitorSpec, RetrainSpec, duration_seconds
from mlflow_deploy_plugin.store import AuditEvent, Endpoint, Store, current_actor
from mlflow_deploy_plugin.store.audit import write_event
from mlflow_deploy_plugin.store.database import utc_now
from mlflow_deploy_plugin.store.retrainings import Retraining, Retrainings
from mlflow_deploy_plugin.store.tables import AuditRow

_log = logging.getLogger(__name__)

_BUDGET = timedelta(days=30)


class _NeedsAPerson(InvalidConfig):
    """The next alarm would start nothing either: training again and again has not helped, or the project is gone."""


def retrain_on_alarm(
    deployments: Deployments,
    judgement: MonitorResult,
    run: LoggedRun,
    spec: MonitorSpec,
    clock: Callable[[], datetime] = utc_now,
) -> Retraining | None:
    """Writes a retraining down where the judgement is an alarm and its monitor's spec asks for one.

    An alarm that starts nothing (cool-down, budget, one under way, a version that is no longer served) stands in the
    audit trail with the reason.

    Returns:
        What was written down, now or when the same judgement was considered before; None for nothing.

    Raises:
        StoreUnavailable: nothing was written; to be asked again.
    """
    if spec.retrain is None or not judgement.is_alarm:
        return None
    actor, cause = controller_name(), cause_of(judgement, run)
    plan = plan_for(
        spec.retrain, judgement.endpoint, judgement.model, judgement.version, spec.every, judgement.window, actor
    )
    known = _known(Retrainings(deployments.store), plan, cause)
    if known is not None:  # a controller was killed between this and writing down that the window is judged
        return known
    try:
        _check_served(deployments, judgement)
        _check_budget(Retrainings(deployments.store), plan.model, spec.retrain, clock())
        _check_project(plan)
        return _add(deployments.store, judgement.monitor, plan, cause, clock())
    except (NotFound, InvalidConfig, NotReady, AlreadyExists) as error:
        if isinstance(error, _NeedsAPerson):
            text = f"{plan.endpoint}: {error.message}"
            announce(deployments.store, plan.endpoint, judgement.monitor, text, run.url)
        record_refusal(deployments.store, refused_event(plan, cause, error.message, clock()))
        return None


def request_retraining(
    deployments: Deployments,
    endpoint: str,
    monitor: str | None = None,
    mode: str | None = None,
    why: str = "",
    window: Window | None = None,
    actor: str | None = None,
    kind: str = "asked",
) -> Retraining:
    """Writes down the retraining that a person wants, whatever cool-down and budget say.

    Args:
        monitor: whose spec says how; default: the only one that has `retrain`.
        mode: default: the spec's.
        window: default: the latest whole one of the monitor's length that has rows.

    Raises:
        NotFound / RegistryUnavailable: no such endpoint or monitor, or nobody says which version is served.
        InvalidConfig: no monitor says how the model is trained, its project is not there, or the endpoint serves no
            registered model.
        AlreadyExists: the model is being trained already.
    """
    actor = actor or current_actor()
    observed = deployments.get_endpoint(endpoint)
    name, found = _monitor_of(observed.endpoint.spec, monitor)
    assert found.retrain is not None
    retrain = found.retrain.model_copy(update={"mode": mode}) if mode else found.retrain
    check_project(retrain.project, retrain.entry_point, retrain.parameters)
    model = served_model(observed)
    plan = plan_for(retrain, endpoint, model, served_version(observed), found.every, window, actor)
    said = why if kind != "asked" else f"asked by {actor}" + (f": {why}" if why else "")
    return _add(deployments.store, name, plan, {"kind": kind, "monitor": name, "why": said}, utc_now())


def record_refusal(store: Store, event: AuditEvent) -> None:
    """Keeps in the audit trail that nothing is trained; of a monitor once for the same reason: an hourly one would fill
    it.
    """
    _log.info("%s: no retraining: %s", event.endpoint, event.why)
    of_monitor = AuditRow.detail["monitor"].as_string() == event.detail["monitor"]
    earlier = select(AuditRow).where(AuditRow.endpoint == event.endpoint, of_monitor).order_by(AuditRow.id.desc())
    try:
        with store.transaction() as session:
            last = session.scalars(earlier.where(AuditRow.action.startswith("retrain.")).limit(1)).first()
            if last is None or (last.action, last.why) != (event.action, event.why):
                write_event(session, event)
    except OnnxserveError as error:
        _log.warning("not in the audit trail: %s (%s)", event.why, error.message)


def _monitor_of(spec: EndpointSpec, monitor: str | None) -> tuple[str, MonitorSpec]:
    able = {name: one for name, one in spec.monitors.items() if one.retrain is not None}
    if monitor is not None and spec.monitor(monitor).retrain is None:
        raise InvalidConfig(f"monitor {monitor!r} does not say how the model is trained: it has no `retrain`")
    if monitor is None and len(able) != 1:
        names = ", ".join(sorted(able))
        raise InvalidConfig(
            f"endpoint {spec.name!r} has several monitors with `retrain`: say --monitor, one of {names}"
            if able
            else f"no monitor of endpoint {spec.name!r} says how the model is trained: "
            f"onnxserve endpoint update {spec.name} -C monitors.NAME.retrain.project=PROJECT"
        )
    name = monitor or next(iter(able))
    return name, able[name]


def _known(retrainings: Retrainings, plan: RetrainPlan, cause: dict[str, Any]) -> Retraining | None:
    """The retraining that the same judgement has started already."""
    same = ("monitor", "window", "revision")
    for one in retrainings.find(plan.endpoint, plan.model):
        if one.cause.get("kind") == cause["kind"] and all(one.cause.get(name) == cause[name] for name in same):
            return one
    return None


def _check_served(deployments: Deployments, judgement: MonitorResult) -> None:
    """Raises InvalidConfig: what was judged is not what answers now, as far as this machine can see."""
    observed = deployments.get_endpoint(judgement.endpoint)
    spec = observed.endpoint.spec
    main = main_variant(spec)
    reference = parse_model_uri(spec.variants[main].model)
    if not reference.is_registered or reference.name != judgement.model:
        raise InvalidConfig(f"the window was answered by {judgement.model}, which is not the registered model served")
    served = take_snapshot(observed).versions.get(main)
    if served is not None and served != judgement.version:
        raise InvalidConfig(f"the alarm is of version {judgement.version}, and version {served} is served now")


def _check_budget(retrainings: Retrainings, model: str, spec: RetrainSpec, now: datetime) -> None:
    """Raises InvalidConfig: it is too early, or it has been tried too often."""
    found = retrainings.find(model=model)
    if not found:
        return
    free_at = found[-1].created_at + timedelta(seconds=duration_seconds(spec.cooldown))
    if free_at > now:
        raise InvalidConfig(f"model {model} cools down until {free_at:%Y-%m-%d %H:%M:%S}Z ({spec.cooldown})")
    # what failed before anything was trained has cost nothing
    recent = sum(one.created_at > now - _BUDGET for one in found if one.has_trained)
    if recent >= spec.max_runs:
        raise _NeedsAPerson(
            f"model {model} was trained {recent} times in 30 days, and max_runs is {spec.max_runs}: somebody has to "
            "look; `onnxserve retrain NAME` starts one by hand"
        )


def _check_project(plan: RetrainPlan) -> None:
    """Raises _NeedsAPerson: it is not there any more, or is another one by now."""
    try:
        check_project(plan.project, plan.entry_point, plan.parameters)
    except InvalidConfig as error:
        raise _NeedsAPerson(f"it cannot be trained: {error.message}") from None


def _add(store: Store, monitor: str, plan: RetrainPlan, cause: dict[str, Any], now: datetime) -> Retraining:
    event = started_event(plan, cause, now)
    return Retrainings(store).add(plan.endpoint, monitor, plan.model, cause, plan.to_json(), "waiting", event)


_KIND = "schedule"
_told: dict[tuple[str, str, str], str] = {}
"""By store, endpoint and monitor, what was said last."""


def request_scheduled(deployments: Deployments, actor: str, now: datetime | None = None) -> None:
    """Writes down the retrainings whose time has come; of several times that have passed, one.

    Where the model is being trained already it waits for the end of that. What is wrong is logged, once.
    """
    now = now or utc_now()
    for endpoint in deployments.store.endpoints():
        for monitor, spec in endpoint.spec.monitors.items():
            if spec.retrain is None or spec.retrain.schedule is None:
                continue
            key = (deployments.settings.store_url, endpoint.name, monitor)
            try:
                if _is_due(deployments, endpoint, monitor, spec, spec.retrain.schedule, now):
                    why = f"schedule {spec.retrain.schedule} of monitor {monitor}"
                    request_retraining(deployments, endpoint.name, monitor, why=why, actor=actor, kind=_KIND)
                _told.pop(key, None)
            except AlreadyExists:
                continue
            except OnnxserveError as error:
                if _told.get(key) == error.message:
                    continue
                if isinstance(error, InvalidConfig):  # which stays so until somebody changes it
                    _keep(deployments, endpoint, monitor, spec.retrain.schedule, error.message, actor, now)
                _log.warning("%s, monitor %s: no retraining: %s", endpoint.name, monitor, error.message)
                _told[key] = error.message


def _keep(
    deployments: Deployments, endpoint: Endpoint, monitor: str, schedule: str, reason: str, actor: str, now: datetime
) -> None:
    """People are told, and it stands in the history; both once for the same."""
    announce(deployments.store, endpoint.name, monitor, f"{endpoint.name}: no retraining: {reason}")
    detail = {"monitor": monitor, "schedule": schedule}
    record_refusal(
        deployments.store, AuditEvent(now, actor, "retrain.refused", endpoint.name, "", "", why=reason, detail=detail)
    )


def _is_due(
    deployments: Deployments, endpoint: Endpoint, monitor: str, spec: MonitorSpec, schedule: str, now: datetime
) -> bool:
    earlier = [
        one.created_at
        for one in Retrainings(deployments.store).find(endpoint.name)
        if one.monitor == monitor and one.cause.get("kind") == _KIND
    ]
    since = max([endpoint.created_at, *earlier])
    fires = crontab_trigger(schedule, spec.time_zone).get_next_fire_time(None, since)
    return fires is not None and fires <= now
