"""Starts retrainings after an alarm (if cool-down and budget permit), by a schedule,
and for a user.

A model has at most one live retraining. If an alarm or a schedule starts no retraining,
the audit trail has the reason.
"""

import logging
from dataclasses import asdict
from datetime import UTC, datetime, timedelta

from mlflow_deploy_plugin.core.errors import (
    AlreadyExists,
    InvalidConfig,
    NotFound,
    NotReady,
    OnnxserveError,
)
from mlflow_deploy_plugin.core.processes.durable_work import next_fire
from mlflow_deploy_plugin.core.spec.monitors import MonitorSpec, RetrainSpec
from mlflow_deploy_plugin.core.spec.types import length_of
from mlflow_deploy_plugin.core.store.audit import AuditEvent
from mlflow_deploy_plugin.core.store.retrainings import Retraining, Retrainings
from mlflow_deploy_plugin.core.store.store import Store
from mlflow_deploy_plugin.core.store.tables import Json
from mlflow_deploy_plugin.promote.rollouts.leadership import controller_name
from mlflow_deploy_plugin.promote.rollouts.snapshot import (
    main_variant,
    served_model,
    served_version,
    take_snapshot,
)
from mlflow_deploy_plugin.serve.inference_log.windows import Window
from mlflow_deploy_plugin.ship.deployments.config import check_project
from mlflow_deploy_plugin.ship.deployments.lifecycle import Deployments
from mlflow_deploy_plugin.watch.alerts.record import announce
from mlflow_deploy_plugin.watch.result import MonitorResult
from mlflow_deploy_plugin.watch.retraining.plan import RetrainPlan, plan_for

_log = logging.getLogger(__name__)

_BUDGET = timedelta(days=30)
_SCHEDULED = "schedule"
_ALARM_IDENTITY = ("kind", "monitor", "window", "revision")


class _NeedsAPerson(InvalidConfig):
    """An alarm cannot start a retraining before a user acts: the budget is used up, or
    the project is missing.
    """


def retrain_on_alarm(
    deployments: Deployments,
    result: MonitorResult,
    spec: MonitorSpec,
) -> Retraining | None:
    """Start a retraining if the result is an alarm and the monitor's spec has
    `retrain`.

    If an earlier call with the same result has started the retraining, return this
    retraining. Return None if the cool-down, the budget, a live retraining or a version
    that is no longer served prevents the retraining. Raises StoreUnavailable if the
    retraining was not stored; the call may then be repeated.
    """
    if spec.retrain is None or not result.is_alarm:
        return None
    store = deployments.store
    retrainings = Retrainings(store)
    actor = controller_name()
    plan = plan_for(
        spec.retrain,
        result.endpoint,
        result.model,
        result.version,
        spec.every,
        result.window,
        actor,
    )
    cause: Json = {
        "kind": "alarm",
        "monitor": result.monitor,
        "monitor_kind": result.kind,
        "window": str(result.window),
        "revision": result.revision,
        "verdict": result.state,
        "version": result.version,
        "run_id": result.run.run_id,
        "report": result.run.url or f"run {result.run.run_id}",
        "why": f"monitor {result.monitor}, {result.window}: {result.state}: {result.reason}",
    }
    for earlier in retrainings.find(plan.endpoint, plan.model):
        # An alarm is processed twice if a controller is killed before it has stored the
        # window's verdict.
        if all(earlier.cause.get(name) == cause[name] for name in _ALARM_IDENTITY):
            return earlier
    try:
        _check_no_rollout(store, plan.endpoint)
        observed = deployments.get_endpoint(result.endpoint)
        if served_model(observed) != result.model:
            raise InvalidConfig(
                f"{result.model} answered the window, but it is not the registered model that is "
                "served",
            )
        served = take_snapshot(observed).versions.get(main_variant(observed.endpoint.spec))
        if served is not None and served != result.version:
            raise InvalidConfig(
                f"the alarm is for version {result.version}, but version {served} is served now",
            )
        _check_budget(retrainings, plan.model, spec.retrain, store.now())
        try:
            check_project(plan.project, plan.entry_point, plan.parameters)
        except InvalidConfig as error:
            raise _NeedsAPerson(f"the model cannot be trained: {error.message}") from None
        return _add(store, plan, cause)
    except (NotFound, InvalidConfig, NotReady, AlreadyExists) as error:
        if isinstance(error, _NeedsAPerson):
            announce(
                store,
                plan.endpoint,
                result.monitor,
                f"{plan.endpoint}: {error.message}",
                result.run.url,
            )
        event = AuditEvent(
            store.now(),
            actor,
            "retrain.refused",
            plan.endpoint,
            plan.model,
            why=error.message,
            detail=_cause_detail(cause),
        )
        _record_refusal(store, event)
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
    """Start the retraining that a user requests, without a cool-down or budget.

    By default, `monitor` is the only monitor with `retrain`, `mode` is the spec's mode,
    and `window` is the latest complete window of the monitor's length that has rows.

    Raises NotFound, RegistryUnavailable, InvalidConfig if no monitor specifies the
    training, its project is missing or no registered model is served, and AlreadyExists
    during a training of the model or a rollout of the endpoint.
    """
    actor = actor or deployments.store.user
    observed = deployments.get_endpoint(endpoint)
    spec = observed.endpoint.spec
    name = monitor
    if name is None:
        able = sorted(
            name for name, monitor_spec in spec.monitors.items() if monitor_spec.retrain is not None
        )
        if not able:
            raise InvalidConfig(
                f"no monitor of endpoint {spec.name!r} specifies how to train the model: "
                f"onnxserve endpoint update {spec.name} -C monitors.NAME.retrain.project=PROJECT",
            )
        if len(able) > 1:
            raise InvalidConfig(
                f"endpoint {spec.name!r} has several monitors with `retrain`: set --monitor to one "
                f"of {', '.join(able)}",
            )
        name = able[0]
    selected = spec.monitor(name)
    if selected.retrain is None:
        raise InvalidConfig(
            f"monitor {name!r} does not specify how to train the model: it has no `retrain`",
        )
    retrain = selected.retrain
    if mode:
        retrain = retrain.model_copy(update={"mode": mode})
    check_project(retrain.project, retrain.entry_point, retrain.parameters)
    _check_no_rollout(deployments.store, endpoint)
    model = served_model(observed)
    plan = plan_for(
        retrain, endpoint, model, served_version(observed), selected.every, window, actor
    )
    reason = why
    if kind == "asked":
        reason = f"requested by {actor}: {why}" if why else f"requested by {actor}"
    return _add(
        deployments.store,
        plan,
        {"kind": kind, "monitor": name, "why": reason},
    )


class RetrainingSchedule:
    """Starts retrainings by `retrain.schedule` in the specs of monitors, independent of
    the monitors' results.
    """

    def __init__(self, deployments: Deployments, actor: str) -> None:
        self._deployments = deployments
        self._actor = actor
        self._logged: dict[tuple[str, str], str] = {}
        self._first_look = datetime.max.replace(tzinfo=UTC)

    def request_due(self, now: datetime | None = None) -> None:
        """Start due retrainings of models that are not being trained or rolled out. Log
        a repeated error only once, and announce and record one that a user must mend.
        """
        now = now or self._deployments.store.now()
        self._first_look = min(self._first_look, now)
        for endpoint in self._deployments.store.endpoints():
            for monitor, spec in endpoint.spec.monitors.items():
                if spec.retrain is None or spec.retrain.schedule is None:
                    continue
                key = (endpoint.name, monitor)
                schedule = spec.retrain.schedule
                try:
                    # The time since the last scheduled retraining, or since the
                    # endpoint's creation if there is none, decides.
                    times = [endpoint.created_at]
                    times += [
                        retraining.created_at
                        for retraining in Retrainings(self._deployments.store).find(endpoint.name)
                        if retraining.monitor == monitor
                        and retraining.cause.get("kind") == _SCHEDULED
                    ]
                    # Times in the future were set by a wrong clock: use the time of the
                    # first call instead.
                    past = [time for time in times if time <= now]
                    if len(past) < len(times):
                        past.append(self._first_look)
                    since = max(past)
                    if next_fire(schedule, spec.time_zone, since) <= now:
                        request_retraining(
                            self._deployments,
                            endpoint.name,
                            monitor,
                            why=f"schedule {schedule} of monitor {monitor}",
                            actor=self._actor,
                            kind=_SCHEDULED,
                        )
                    self._logged.pop(key, None)
                except AlreadyExists:
                    continue
                except OnnxserveError as error:
                    if self._logged.get(key) == error.message:
                        continue
                    self._logged[key] = error.message
                    _log.warning("%s, monitor %s: no retraining: %s", *key, error.message)
                    if isinstance(error, InvalidConfig):  # A user must change the spec.
                        announce(
                            self._deployments.store,
                            *key,
                            f"{endpoint.name}: no retraining: {error.message}",
                        )
                        event = AuditEvent(
                            now,
                            self._actor,
                            "retrain.refused",
                            endpoint.name,
                            why=error.message,
                            detail={"monitor": monitor, "schedule": schedule},
                        )
                        _record_refusal(self._deployments.store, event)


def _record_refusal(store: Store, event: AuditEvent) -> None:
    """Log the reason why no retraining starts, and record it in the audit trail unless
    the last reason was the same.
    """
    _log.info("%s: no retraining: %s", event.endpoint, event.why)
    try:
        store.record_unless_repeated(event)
    except OnnxserveError as error:
        _log.warning("the audit trail was not written: %s (%s)", event.why, error.message)


def _check_no_rollout(store: Store, endpoint: str) -> None:
    """Raise AlreadyExists if the endpoint has a live rollout, whose outcome decides the
    version to retrain.
    """
    for rollout in store.rollouts(endpoint, live=True):
        raise AlreadyExists(f"rollout {rollout.id} of endpoint {endpoint!r} is live")


def _check_budget(retrainings: Retrainings, model: str, spec: RetrainSpec, now: datetime) -> None:
    """Raise InvalidConfig during the cool-down or if the budget is used up. Retrainings
    in the future are ignored.
    """
    started = [
        retraining for retraining in retrainings.find(model=model) if retraining.created_at <= now
    ]
    if not started:
        return
    free_at = started[-1].created_at + length_of(spec.cooldown)
    if free_at > now:
        raise InvalidConfig(
            f"model {model} cools down until {free_at:%Y-%m-%d %H:%M:%S}Z (cooldown "
            f"{spec.cooldown})",
        )
    # A retraining that failed before its training does not use up the budget.
    recent = sum(
        retraining.created_at > now - _BUDGET for retraining in started if retraining.has_trained
    )
    if recent >= spec.max_runs:
        raise _NeedsAPerson(
            f"model {model} was trained {recent} times in 30 days, and max_runs is "
            f"{spec.max_runs}: check why; `onnxserve retrain run NAME` starts a retraining by hand",
        )


def _add(store: Store, plan: RetrainPlan, cause: Json) -> Retraining:
    """Store a new retraining with an event of the audit trail. Raises AlreadyExists if
    a retraining of the model is live.
    """
    event = AuditEvent(
        store.now(),
        plan.actor,
        "retrain.start",
        plan.endpoint,
        plan.model,
        before=f"version {plan.base_version}",
        after=f"{plan.mode} training",
        why=cause["why"],
        detail=_cause_detail(cause),
    )
    return Retrainings(store).add(
        plan.endpoint,
        cause["monitor"],
        plan.model,
        cause,
        asdict(plan),
        event,
    )


def _cause_detail(cause: Json) -> Json:
    return {key: cause[key] for key in ("monitor", "window", "verdict", "report") if cause.get(key)}
