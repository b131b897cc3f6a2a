"""A rollout as a state machine: `decide` returns the next action for a plan, a progress
and a snapshot.

    starting → stepping ⇄ paused → promoting → promoted
        └──────────┴──────────┴────────┴─────→ rolling_back → rolled_back
                               (abandoned: the endpoint was deleted)

`decide` has no side effects. A controller stores the progress before it does the
action. A new controller continues from the stored progress, because actions may be
repeated. Time is measured as the sum of the seconds during which a controller watched
the step: clocks of machines are not compared, and time without a controller does not
count.
"""

from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Literal, cast

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.store.audit import AuditEvent, move_detail
from mlflow_deploy_plugin.core.store.store import Rollout
from mlflow_deploy_plugin.promote.rollouts.evidence import (
    StepEvidence,
    add_counters,
    begin_step,
    figures,
    missing_evidence,
    rejection,
)
from mlflow_deploy_plugin.promote.rollouts.plan import RolloutPlan, plan_of
from mlflow_deploy_plugin.promote.rollouts.snapshot import EndpointSnapshot

RolloutState = Literal[
    "starting",
    "stepping",
    "paused",
    "promoting",
    "promoted",
    "rolling_back",
    "rolled_back",
    "abandoned",
]
RolloutAction = Literal["wait", "prepare", "set_traffic", "promote", "finish", "roll_back"]

ENDED: tuple[RolloutState, ...] = ("promoted", "rolled_back", "abandoned")
START_SECONDS = 600.0
PROMOTE_SECONDS = 300.0
MAX_FAILURES = 5
_TRACED_POINTS = 120


@dataclass(frozen=True)
class Progress:
    """The progress of a rollout.

    Attributes:
        elapsed: the watched time in the state or step, in seconds.
        trouble: the reason of the last failed action.
        failures: the number of consecutive failures.
    """

    state: RolloutState = "starting"
    step: int = 0
    elapsed: float = 0.0
    evidence: StepEvidence = field(default_factory=StepEvidence)
    reason: str = ""
    trouble: str = ""
    failures: int = 0


@dataclass(frozen=True)
class Decision:
    """The next action of a rollout, which is repeated until it succeeds.

    Attributes:
        progress: the progress that is stored before the action.
        then: the progress that is stored after the action; None if `progress` remains
            stored.
    """

    progress: Progress
    action: RolloutAction = "wait"
    then: Progress | None = None


def decide(
    plan: RolloutPlan,
    progress: Progress,
    snapshot: EndpointSnapshot | None,
    seconds: float,
) -> Decision:
    """Return the next action of the rollout. `snapshot` is None if the endpoint does
    not exist.

    `seconds` is the time since the last decision of the same controller, or 0 for the
    controller's first decision.
    """
    if progress.state in ENDED:
        return Decision(progress)
    if snapshot is None or plan.main not in snapshot.variants:
        what = "the endpoint" if snapshot is None else f"the deployment {plan.main}"
        return Decision(replace(progress, state="abandoned", reason=f"{what} was deleted"))
    if snapshot.state == "stopped":
        reason = f"waiting for the server: {snapshot.reason or 'the server is stopped'}"
        return Decision(replace(progress, reason=reason))
    if progress.state == "rolling_back":
        return Decision(progress, "roll_back", replace(progress, state="rolled_back"))
    if reason := _moved(plan, snapshot):
        return _roll_back(progress, reason)
    # A user may have promoted the version.
    if progress.state != "promoting" and _is_promoted(plan, snapshot):
        progress = replace(progress, state="promoting", elapsed=0.0, reason="")
    match progress.state:
        case "starting":
            return _start(plan, progress, snapshot, seconds)
        case "promoting":
            return _promote(plan, progress, snapshot, seconds)
        case _:
            return _step(plan, progress, snapshot, seconds)


def after_failure(
    plan: RolloutPlan,
    progress: Progress,
    action: RolloutAction,
    reason: str,
    is_transient: bool,
) -> Progress:
    """Return the progress after a failed action. If `is_transient` is True, the action
    is retried.
    """
    is_worth_another = action == "set_traffic" and progress.failures + 1 < MAX_FAILURES
    if is_transient or is_worth_another or action in ("finish", "roll_back"):
        return replace(progress, trouble=reason, failures=progress.failures + 1)
    what = {
        "prepare": f"version {plan.version} cannot be served",
        "promote": "the promotion was refused",
    }
    return _turned_back(progress, f"{what.get(action, 'the traffic cannot be changed')}: {reason}")


def after_success(progress: Progress) -> Progress:
    return replace(progress, trouble="", failures=0)


def paused(progress: Progress, reason: str) -> Progress | None:
    """Return the progress of a paused step; None if the rollout cannot be paused in its
    current state.
    """
    if progress.state == "stepping":
        return replace(progress, state="paused", reason=reason)
    return None


def resumed(progress: Progress) -> Progress | None:
    if progress.state == "paused":
        return replace(progress, state="stepping", reason="")
    return None


def aborted(progress: Progress, reason: str) -> Progress | None:
    """Return the progress of an aborted rollout; None if the rollout has ended. A
    rollback keeps its reason.
    """
    if progress.state == "rolling_back":
        return progress
    if progress.state in ENDED:
        return None
    return _turned_back(progress, reason)


def step_weights(plan: RolloutPlan, step: int) -> dict[str, int]:
    return {
        plan.main: 100 - plan.steps[step],
        plan.candidate: plan.steps[step],
    }


def _moved(plan: RolloutPlan, snapshot: EndpointSnapshot) -> str:
    """Return the change if a user has moved the main deployment to another version or
    model; empty otherwise.
    """
    model = snapshot.variants[plan.main].model
    version = snapshot.versions.get(plan.main, plan.before_version)
    if model not in (plan.before_uri, plan.to_uri):
        return f"the model of {plan.main} was changed to {model} during the rollout"
    if version not in (plan.before_version, plan.version):
        return f"version {version} was promoted during the rollout"
    return ""


def _is_promoted(plan: RolloutPlan, snapshot: EndpointSnapshot) -> bool:
    if plan.kind == "pinned":
        return snapshot.variants[plan.main].model == plan.to_uri
    return snapshot.versions.get(plan.main) == plan.version


def _start(
    plan: RolloutPlan,
    progress: Progress,
    snapshot: EndpointSnapshot,
    seconds: float,
) -> Decision:
    added = [name for name in (plan.candidate, plan.shadow) if name]
    troubles = (
        snapshot.errors.get(name) or snapshot.refused.get((name, plan.version)) for name in added
    )
    if error := next(filter(None, troubles), ""):
        return _roll_back(progress, f"version {plan.version} cannot be served: {error}")
    is_loaded = all(snapshot.versions.get(name) == plan.version for name in added)
    # Each server's first counters are needed.
    if not is_loaded or snapshot.unread or not snapshot.counters:
        if is_loaded:
            reason = f"waiting for the server: {_silence(snapshot)}"
        else:
            reason = f"loading version {plan.version}"
        waiting = replace(progress, elapsed=progress.elapsed + seconds, reason=reason)
        if waiting.elapsed > START_SECONDS:
            why = f": {_silence(snapshot)}" if is_loaded else ""
            return _roll_back(
                progress,
                f"version {plan.version} was not loaded within {START_SECONDS:g} s{why}",
            )
        if all(name in snapshot.variants for name in added):
            return Decision(waiting, "wait")
        return Decision(waiting, "prepare")
    evidence = begin_step(plan, 0, add_counters(plan, 0, progress.evidence, snapshot.counters))
    return Decision(Progress("stepping", 0, 0.0, evidence), "set_traffic")


def _step(
    plan: RolloutPlan,
    progress: Progress,
    snapshot: EndpointSnapshot,
    seconds: float,
) -> Decision:
    if error := snapshot.errors.get(plan.candidate, ""):
        return _roll_back(progress, f"version {plan.version} can no longer be served: {error}")
    if not snapshot.counters:
        return Decision(replace(progress, reason=f"waiting for the server: {_silence(snapshot)}"))
    evidence = add_counters(plan, progress.step, progress.evidence, snapshot.counters)
    progress = replace(progress, evidence=evidence)
    if reason := rejection(plan, evidence):
        return _roll_back(progress, reason)
    if plan.candidate not in snapshot.variants or (
        plan.shadow and plan.shadow not in snapshot.variants
    ):
        return _roll_back(progress, "the candidate was removed by a user")
    if any(
        snapshot.variants[name].weight != weight
        for name, weight in step_weights(plan, progress.step).items()
    ):
        return Decision(progress, "set_traffic")
    if progress.state == "paused":
        return Decision(progress)
    reason = missing_evidence(plan, progress.step, evidence)
    if snapshot.unread:  # Wait, because the missing counters may show that the candidate is worse.
        reason = f"waiting for a server: {snapshot.unread}"
    progress = replace(progress, elapsed=progress.elapsed + seconds, reason=reason)
    if progress.elapsed < plan.every or progress.reason:
        return Decision(progress)
    if progress.step + 1 == len(plan.steps):
        return Decision(replace(progress, state="promoting", elapsed=0.0, reason=""), "promote")
    following = progress.step + 1
    return Decision(
        Progress("stepping", following, 0.0, begin_step(plan, following, evidence)),
        "set_traffic",
    )


def _promote(
    plan: RolloutPlan,
    progress: Progress,
    snapshot: EndpointSnapshot,
    seconds: float,
) -> Decision:
    if _is_promoted(plan, snapshot) and snapshot.versions.get(plan.main) == plan.version:
        reason = f"version {plan.version} is served instead of {plan.before_version}"
        return Decision(progress, "finish", replace(progress, state="promoted", reason=reason))
    if refusal := snapshot.refused.get((plan.main, plan.version)):
        return _roll_back(progress, f"{plan.main} does not serve version {plan.version}: {refusal}")
    waiting = replace(
        progress,
        elapsed=progress.elapsed + seconds,
        reason=f"waiting until {plan.main} serves it",
    )
    if waiting.elapsed > PROMOTE_SECONDS:
        why = snapshot.errors.get(plan.main) or snapshot.reason
        late = f"{plan.main} did not load version {plan.version} within {PROMOTE_SECONDS:g} s"
        return _roll_back(progress, f"{late}{why and f': {why}'}")
    return Decision(waiting, "promote")


def _silence(snapshot: EndpointSnapshot) -> str:
    return snapshot.reason or snapshot.unread or "the server's metrics are not available"


def _roll_back(progress: Progress, reason: str) -> Decision:
    turned = _turned_back(progress, reason)
    return Decision(turned, "roll_back", replace(turned, state="rolled_back"))


def _turned_back(progress: Progress, reason: str) -> Progress:
    return replace(after_success(progress), state="rolling_back", elapsed=0.0, reason=reason)


def progress_of(rollout: Rollout) -> Progress:
    written = rollout.figures
    return Progress(
        state=cast(RolloutState, rollout.state),
        step=rollout.step,
        elapsed=float(written.get("elapsed", 0)),
        evidence=StepEvidence.from_json(
            plan_of(rollout),
            rollout.step,
            written.get("ledger", {}),
        ),
        reason=rollout.reason,
        trouble=str(written.get("trouble", "")),
        failures=int(written.get("failures", 0)),
    )


def with_progress(rollout: Rollout, progress: Progress, now: datetime) -> Rollout:
    """Return a copy of the rollout with this progress.

    The figures are for users, except for `ledger`, the evidence to continue from. The
    charts use `trace`: per decision, the seconds since the rollout began, the step, and
    per criterion the share of the required evidence.
    """
    is_new_step = (rollout.state, rollout.step) != (progress.state, progress.step)
    if progress.failures:
        trouble = {"trouble": progress.trouble, "failures": progress.failures}
    else:
        trouble = {}
    judged = figures(plan_of(rollout), progress.evidence)
    trace = list(rollout.figures.get("trace", []))
    seconds = round((now - rollout.created_at).total_seconds(), 1)
    if criteria := judged.get("criteria", {}):
        shares = {
            text: round(test["log_evidence"] / test["log_evidence_needed"], 4)
            for text, test in criteria.items()
        }
        trace.append([seconds, progress.step, shares])
    # Keep the last point in each of `_TRACED_POINTS` equal intervals.
    if len(trace) >= 2 * _TRACED_POINTS:
        trace = list(
            {int(_TRACED_POINTS * point[0] / max(seconds, 1)): point for point in trace}.values(),
        )
    return replace(
        rollout,
        state=progress.state,
        step=progress.step,
        step_at=now if is_new_step else rollout.step_at,
        figures={
            "elapsed": round(progress.elapsed, 3),
            **trouble,
            **judged,
            "trace": trace,
            "ledger": progress.evidence.to_json(),
        },
        reason=progress.reason,
        ended_at=now if progress.state in ENDED else None,
    )


def rollout_summary(rollout: Rollout) -> str:
    try:
        plan = plan_of(rollout)
    except InvalidConfig as error:
        state = rollout.state.replace("_", " ")
        return (
            f"{rollout.endpoint}: rollout {rollout.id}: {state}; {rollout.reason or error.message}"
        )
    line = (
        f"{rollout.endpoint}: version {plan.before_version} → {plan.version}: "
        f"{rollout.state.replace('_', ' ')}"
    )
    if rollout.state in ("stepping", "paused"):
        line += f" {plan.steps[rollout.step]} % (step {rollout.step + 1} of {len(plan.steps)})"
    if rollout.reason:
        line += f"; {rollout.reason}"
    trouble = rollout.figures.get("trouble", "")
    return f"{line}; retrying: {trouble}" if trouble else line


def started_event(plan: RolloutPlan, now: datetime) -> AuditEvent:
    steps = ", ".join(f"{step} %" for step in plan.steps)
    detail = {
        "steps": list(plan.steps),
        "every": plan.every,
        "abort_on": plan.abort_on,
    }
    event = _event("rollout.start", plan, plan.actor, now)
    return replace(event, after=f"version {plan.version} by {steps}", why=plan.why, detail=detail)


def progress_event(
    rollout: Rollout,
    progress: Progress,
    actor: str,
    now: datetime,
) -> AuditEvent | None:
    """Return the audit event of the change from `rollout` to `progress`; None if the
    change is not audited.
    """
    plan = plan_of(rollout)
    if progress.state in ENDED:
        after = plan.version if progress.state == "promoted" else plan.before_version
        event = replace(_event("rollout.end", plan, actor, now), after=f"version {after}")
    elif progress.state in ("stepping", "paused") and (rollout.state, rollout.step) != (
        progress.state,
        progress.step,
    ):
        before = "0 %" if rollout.state == "starting" else f"{plan.steps[rollout.step]} %"
        after = f"{plan.steps[progress.step]} %"
        if rollout.state == "paused" or progress.state == "paused":
            before = rollout.state
            after = progress.state
        event = replace(_event("rollout.step", plan, actor, now), before=before, after=after)
    else:
        return None  # Avoid computing the figures in this usual case.
    detail = {
        "rollout": rollout.id,
        "state": progress.state,
        **figures(plan, progress_of(rollout).evidence),
    }
    if progress.state == "promoted":
        detail |= move_detail("", plan.before_version)
    return replace(event, why=progress.reason, detail=detail)


def _event(action: str, plan: RolloutPlan, actor: str, now: datetime) -> AuditEvent:
    before = f"version {plan.before_version}"
    return AuditEvent(now, actor, action, plan.endpoint, plan.model, plan.version, before)
