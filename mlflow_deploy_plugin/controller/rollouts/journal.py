"""A rollout's progress as the store keeps it, with the events that the audit trail keeps of it."""

from dataclasses import replace
from datetime import datetime
from typing import cast

from mlflow_deploy_plugin.controller.rollouts.evidence import figures
from mlflow_deploy_plugin.controller.rollouts.plan import RolloutPlan
from mlflow_deploy_plugin.controller.rollouts.state_machine import (
    ENDED,
    Progress,
    RolloutState,
    from_figures,
    to_figures,
)
from mlflow_deploy_plugin.store import AuditEvent, Rollout


def plan_of(rollout: Rollout) -> RolloutPlan:
    return RolloutPlan.from_json(rollout.spec)


def progress_of(rollout: Rollout) -> Progress:
    state = cast(RolloutState, rollout.state)
    return from_figures(plan_of(rollout), state, rollout.step, rollout.figures, rollout.reason)


def with_progress(rollout: Rollout, progress: Progress, now: datetime) -> Rollout:
    """The row with this progress, to be written."""
    is_new_step = (rollout.state, rollout.step) != (progress.state, progress.step)
    return replace(
        rollout,
        state=progress.state,
        step=progress.step,
        step_at=now if is_new_step else rollout.step_at,
        figures=to_figures(plan_of(rollout), progress),
        reason=progress.reason,
        ended_at=now if progress.state in ENDED else None,
    )


def started_event(rollout_plan: RolloutPlan, now: datetime) -> AuditEvent:
    """The event of a rollout's beginning."""
    steps = ", ".join(f"{step} %" for step in rollout_plan.steps)
    detail = {"steps": list(rollout_plan.steps), "every": rollout_plan.every, "abort_on": rollout_plan.abort_on}
    event = _event("rollout.start", rollout_plan, rollout_plan.actor, now)
    return replace(event, after=f"version {rollout_plan.version} by {steps}", why=rollout_plan.why, detail=detail)


def progress_event(rollout: Rollout, progress: Progress, actor: str, now: datetime) -> AuditEvent | None:
    """What the audit trail keeps of the change from `rollout`'s row to `progress`; None for nothing."""
    plan = plan_of(rollout)
    if progress.state in ENDED:
        after = plan.version if progress.state == "promoted" else plan.before_version
        event = replace(_event("rollout.end", plan, actor, now), after=f"version {after}")
    elif progress.state in ("stepping", "paused") and (rollout.state, rollout.step) != (progress.state, progress.step):
        shares = ["0 %" if rollout.state == "starting" else f"{plan.steps[rollout.step]} %"]
        shares += [f"{plan.steps[progress.step]} %"]
        if rollout.state == "paused" or progress.state == "paused":
            shares = [rollout.state, progress.state]
        event = replace(_event("rollout.step", plan, actor, now), before=shares[0], after=shares[1])
    else:
        return None  # as at nearly every look: the figures, which take a while, are for events alone
    detail = {"rollout": rollout.id, "state": progress.state, **figures(plan, progress_of(rollout).ledger)}
    return replace(event, why=progress.reason, detail=detail)


def _event(action: str, plan: RolloutPlan, actor: str, now: datetime) -> AuditEvent:
    before = f"version {plan.before_version}"
    return AuditEvent(now, actor, action, plan.endpoint, plan.model, plan.version, before)
