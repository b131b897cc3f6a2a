"""A rollout as a state machine: what is to be done next, from what is planned, how far it is, and what is seen.

    starting → stepping ⇄ paused → promoting → promoted
        └──────────┴──────────┴────────┴─────→ rolling_back → rolled_back
                                                            (abandoned: the endpoint is gone)

Nothing happens here: `decide` is a function of its arguments. Whoever runs a rollout writes the progress down, then
does the action, which may be done again at any time; so a new controller goes on from what is written, whatever the one
before was doing when it ended. Time is seconds during which the step was watched, added up from look to look: nobody's
clock is compared with anybody's, and a step during which nobody watched does not end by that.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Literal, cast

from mlflow_deploy_plugin.controller.rollouts.evidence import (
    StepEvidence,
    add_counters,
    begin_step,
    figures,
    missing_evidence,
    rejection,
)
from mlflow_deploy_plugin.controller.rollouts.plan import RolloutPlan
from mlflow_deploy_plugin.controller.snapshot import EndpointSnapshot
from mlflow_deploy_plugin.store import AuditEvent, Rollout

RolloutState = Literal[
    "starting", "stepping", "paused", "promoting", "promoted", "rolling_back", "rolled_back", "abandoned"
]
RolloutAction = Literal["wait", "prepare", "set_traffic", "promote", "finish", "roll_back"]

ENDED: tuple[RolloutState, ...] = ("promoted", "rolled_back", "abandoned")
START_SECONDS = 600.0
PROMOTE_SECONDS = 300.0
MAX_FAILURES = 5


@dataclass(frozen=True)
class Progress:
    """How far a rollout is.

    Attributes:
        elapsed: seconds of the state, or of the step, during which it was watched.
        reason: why it is in this state, or what it waits for.
        trouble: why the last action has failed; empty where it has not.
        failures: how often in a row.
    """

    state: RolloutState = "starting"
    step: int = 0
    elapsed: float = 0.0
    ledger: StepEvidence = field(default_factory=StepEvidence)
    reason: str = ""
    trouble: str = ""
    failures: int = 0


@dataclass(frozen=True)
class Decision:
    """What is next.

    Attributes:
        progress: is written down before the action is done.
        action: to be done again until it succeeds.
        then: what is written down once the action is done; None: `progress` stands.
    """

    progress: Progress
    action: RolloutAction = "wait"
    then: Progress | None = None


def decide(plan: RolloutPlan, progress: Progress, seen: EndpointSnapshot, seconds: float) -> Decision:
    """The next thing to do.

    Args:
        seconds: since the last decision of the same watcher; 0 for its first.
    """
    if progress.state in ENDED:
        return Decision(progress)
    if seen.variants is None or plan.main not in seen.variants:
        what = "the endpoint" if seen.variants is None else f"the deployment {plan.main}"
        return Decision(replace(progress, state="abandoned", reason=f"{what} was deleted"))
    if seen.state == "stopped":
        return Decision(replace(progress, reason=f"waits for the server: {seen.reason or 'it is stopped'}"))
    if progress.state == "rolling_back":
        return _roll_back(progress)
    if reason := _moved(plan, progress, seen):
        return _roll_back(_turned_back(progress, reason))
    match progress.state:
        case "starting":
            return _start(plan, progress, seen, seconds)
        case "promoting":
            return _promote(plan, progress, seen, seconds)
        case _:
            return _step(plan, progress, seen, seconds)


def after_failure(
    plan: RolloutPlan, progress: Progress, action: RolloutAction, reason: str, is_passing: bool
) -> Progress:
    """How far it is after an action that failed.

    Args:
        is_passing: it may do better next time: the registry or the store did not answer.
    """
    is_worth_another = action == "set_traffic" and progress.failures + 1 < MAX_FAILURES
    if is_passing or is_worth_another or action in ("finish", "roll_back"):
        return replace(progress, trouble=reason, failures=progress.failures + 1)
    what = {"prepare": f"version {plan.version} cannot be served", "promote": "the promotion was refused"}
    return _turned_back(progress, f"{what.get(action, 'the traffic cannot be changed')}: {reason}")


def after_success(progress: Progress) -> Progress:
    """How far it is after an action that went well."""
    return replace(progress, trouble="", failures=0)


def paused(progress: Progress, reason: str) -> Progress | None:
    """The step goes on until somebody resumes; None where there is none that could."""
    return replace(progress, state="paused", reason=reason) if progress.state == "stepping" else None


def resumed(progress: Progress) -> Progress | None:
    return replace(progress, state="stepping", reason="") if progress.state == "paused" else None


def aborted(progress: Progress, reason: str) -> Progress | None:
    """None where it has ended; one that is going back already goes on with that, for the reason it has."""
    if progress.state == "rolling_back":
        return progress
    return None if progress.state in ENDED else _turned_back(progress, reason)


def step_weights(plan: RolloutPlan, step: int) -> dict[str, int]:
    """The traffic of a step."""
    return {plan.main: 100 - plan.steps[step], plan.candidate: plan.steps[step]}


def to_figures(plan: RolloutPlan, progress: Progress) -> dict[str, Any]:
    """What is written down beside state, step and reason: for people, and `ledger` to go on from."""
    shown = figures(plan, progress.ledger)
    trouble = {"trouble": progress.trouble, "failures": progress.failures} if progress.failures else {}
    return {"elapsed": round(progress.elapsed, 3), **trouble, **shown, "ledger": progress.ledger.to_json()}


def from_figures(
    plan: RolloutPlan, state: RolloutState, step: int, written: Mapping[str, Any], reason: str
) -> Progress:
    """The progress that `to_figures` has written."""
    ledger = StepEvidence.from_json(plan, step, written.get("ledger", {}))
    trouble, failures = str(written.get("trouble", "")), int(written.get("failures", 0))
    return Progress(state, step, float(written.get("elapsed", 0)), ledger, reason, trouble, failures)


def _moved(plan: RolloutPlan, progress: Progress, seen: EndpointSnapshot) -> str:
    """Whether somebody has changed what the rollout begins from; empty where all is as it was."""
    assert seen.variants is not None
    model, version = seen.variants[plan.main].model, seen.versions.get(plan.main, plan.before_version)
    is_promoting = progress.state == "promoting"
    if model != plan.before_uri and not (is_promoting and model == plan.to_uri):
        return f"the model of {plan.main} was changed to {model} meanwhile"
    if version != plan.before_version and not (is_promoting and version == plan.version):
        return f"version {version} was promoted meanwhile"
    return ""


def _start(plan: RolloutPlan, progress: Progress, seen: EndpointSnapshot, seconds: float) -> Decision:
    added = [name for name in (plan.candidate, plan.shadow) if name]
    troubles = (seen.errors.get(name) or seen.refused.get((name, plan.version)) for name in added)
    if error := next(filter(None, troubles), ""):
        return _roll_back(_turned_back(progress, f"version {plan.version} cannot be served: {error}"))
    if any(seen.versions.get(name) != plan.version for name in added) or seen.numbers is None:
        reason = f"loading version {plan.version}"
        waiting = replace(progress, elapsed=progress.elapsed + seconds, reason=reason)
        if waiting.elapsed > START_SECONDS:
            return _roll_back(_turned_back(progress, f"version {plan.version} was not there in {START_SECONDS:g} s"))
        assert seen.variants is not None
        return Decision(waiting, "wait" if all(name in seen.variants for name in added) else "prepare")
    ledger = begin_step(plan, 0, add_counters(plan, 0, progress.ledger, seen.numbers))
    return Decision(Progress("stepping", 0, 0.0, ledger), "set_traffic")


def _step(plan: RolloutPlan, progress: Progress, seen: EndpointSnapshot, seconds: float) -> Decision:
    if error := seen.errors.get(plan.candidate, ""):
        return _roll_back(_turned_back(progress, f"version {plan.version} cannot be served any more: {error}"))
    if seen.numbers is None:
        return Decision(replace(progress, reason=f"waits for the server: {seen.reason or 'it gives no numbers'}"))
    ledger = add_counters(plan, progress.step, progress.ledger, seen.numbers)
    progress = replace(progress, ledger=ledger)
    if reason := rejection(plan, ledger):
        return _roll_back(_turned_back(progress, reason))
    assert seen.variants is not None
    if plan.candidate not in seen.variants or (plan.shadow and plan.shadow not in seen.variants):
        return _roll_back(_turned_back(progress, "somebody has removed the candidate"))
    if any(seen.variants[name].weight != weight for name, weight in step_weights(plan, progress.step).items()):
        return Decision(progress, "set_traffic")
    if progress.state == "paused":
        return Decision(progress)
    progress = replace(
        progress, elapsed=progress.elapsed + seconds, reason=missing_evidence(plan, progress.step, ledger)
    )
    if progress.elapsed < plan.every or progress.reason:
        return Decision(progress)
    if progress.step + 1 == len(plan.steps):
        return Decision(replace(progress, state="promoting", elapsed=0.0, reason=""), "promote")
    following = progress.step + 1
    return Decision(Progress("stepping", following, 0.0, begin_step(plan, following, ledger)), "set_traffic")


def _promote(plan: RolloutPlan, progress: Progress, seen: EndpointSnapshot, seconds: float) -> Decision:
    assert seen.variants is not None
    is_moved = plan.kind != "pinned" or seen.variants[plan.main].model == plan.to_uri
    if is_moved and seen.versions.get(plan.main) == plan.version:
        reason = f"version {plan.version} is served in place of {plan.before_version}"
        return Decision(progress, "finish", replace(progress, state="promoted", reason=reason))
    if refusal := seen.refused.get((plan.main, plan.version)):
        return _roll_back(_turned_back(progress, f"{plan.main} does not serve version {plan.version}: {refusal}"))
    waiting = replace(progress, elapsed=progress.elapsed + seconds, reason=f"waits until {plan.main} serves it")
    if waiting.elapsed > PROMOTE_SECONDS:
        why = seen.errors.get(plan.main) or seen.reason
        late = f"{plan.main} did not get version {plan.version} in {PROMOTE_SECONDS:g} s"
        return _roll_back(_turned_back(progress, f"{late}: {why}" if why else late))
    return Decision(waiting, "promote")


def _roll_back(progress: Progress) -> Decision:
    return Decision(progress, "roll_back", replace(progress, state="rolled_back"))


def _turned_back(progress: Progress, reason: str) -> Progress:
    return replace(after_success(progress), state="rolling_back", elapsed=0.0, reason=reason)


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
