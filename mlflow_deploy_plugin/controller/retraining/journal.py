"""The events that the audit trail keeps of a retraining: each link of the chain, with its cause."""

from dataclasses import replace
from datetime import datetime
from typing import Any

from mlflow_deploy_plugin.controller.retraining.plan import RetrainingState, RetrainPlan
from mlflow_deploy_plugin.store import AuditEvent
from mlflow_deploy_plugin.store.retrainings import Retraining

ENDED: tuple[RetrainingState, ...] = ("promoted", "proposed", "left", "rolled_back", "failed")


def plan_of(retraining: Retraining) -> RetrainPlan:
    return RetrainPlan.from_json(retraining.spec)


def started_event(plan: RetrainPlan, cause: dict[str, Any], now: datetime) -> AuditEvent:
    """The event of a retraining's beginning: what it was caused by."""
    detail = {key: cause[key] for key in ("monitor", "window", "verdict", "report") if cause.get(key)}
    event = _event("retrain.start", plan, "", plan.actor, now, cause["why"], detail)
    return replace(event, before=f"version {plan.base_version}", after=f"{plan.mode} training")


def refused_event(plan: RetrainPlan, cause: dict[str, Any], why: str, now: datetime) -> AuditEvent:
    """The event of an alarm that starts nothing."""
    detail = {key: cause[key] for key in ("monitor", "window", "verdict", "report") if cause.get(key)}
    return _event("retrain.refused", plan, "", plan.actor, now, why, detail)


def run_event(retraining: Retraining, actor: str, now: datetime) -> AuditEvent:
    """The event of the run that trains."""
    figures = retraining.figures
    names = ("held_out_rows", "window", "attempt")
    detail = {"retraining": retraining.id} | {name: figures[name] for name in names if name in figures}
    plan = plan_of(retraining)
    why = f"retraining {retraining.id} learns {figures['rows']:,} labelled rows up to {figures['window'].split('/')[1]}"
    event = _event("retrain.run", plan, "", actor, now, why, detail)
    return replace(event, before=f"version {plan.base_version}", after=f"run {retraining.run_id}")


def version_event(retraining: Retraining, actor: str, now: datetime) -> AuditEvent:
    """The event of the version that the run registered."""
    plan = plan_of(retraining)
    why = f"run {retraining.run_id} of retraining {retraining.id} has registered it"
    event = _event("retrain.version", plan, retraining.version, actor, now, why, {"retraining": retraining.id})
    return replace(event, before=f"version {plan.base_version}", after=f"version {retraining.version}")


def ended_event(retraining: Retraining, actor: str, now: datetime) -> AuditEvent:
    """The event of the end: what came of it."""
    plan, detail = plan_of(retraining), {"retraining": retraining.id, "state": retraining.state}
    if retraining.run_id:
        detail |= {"run_id": retraining.run_id}
    if retraining.rollout_id is not None:
        detail |= {"rollout": retraining.rollout_id}
    event = _event("retrain.end", plan, retraining.version, actor, now, retraining.reason, detail)
    return replace(event, after=retraining.state.replace("_", " "))


def retraining_summary(retraining: Retraining) -> str:
    """Where a retraining is, in one line."""
    plan = plan_of(retraining)
    version = f" version {retraining.version}" if retraining.version else ""
    line = f"{retraining.endpoint}: retraining {retraining.id} of {plan.model}, {plan.mode}: "
    line += f"{retraining.state.replace('_', ' ')}{version}"
    return f"{line}; {retraining.reason}" if retraining.reason else line


def _event(
    action: str, plan: RetrainPlan, version: str, actor: str, now: datetime, why: str, detail: dict[str, Any]
) -> AuditEvent:
    return AuditEvent(now, actor, action, plan.endpoint, plan.model, version, why=why, detail=detail)
