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
from mlflow_deploy_plugin.core.store.tables import Json
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
    plan: RolloutPlan, progress: Progress, snapshot: EndpointSnapshot | None, seconds: float
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
        cause = snapshot.reason or "the server is stopped"
        return Decision(replace(progress, reason=f"waiting for the server: {cause}"))
    if progress.state == "rolling_back":
        return Decision(progress, "roll_back", replace(progress, state="rolled_back"))
    model = snapshot.variants[plan.main].model
    version = snapshot.versions.get(plan.main, plan.before_version)
    if model not in (plan.before_uri, plan.to_uri):
        reason = f"the model of {plan.main} was changed to {model} during the rollout"
    elif version not in (plan.before_version, plan.version):
        reason = f"version {version} was promoted during the rollout"
    else:
        reason = ""
    if reason:
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
    plan: RolloutPlan, progress: Progress, action: RolloutAction, reason: str, is_transient: bool
) -> Progress:
    """Return the progress after a failed action.

    The action is retried after a transient failure. A change of the traffic is also
    retried some times, and the end of a rollout always. After any other failure, the
    rollout is rolled back.
    """
    failures = progress.failures + 1
    has_more_attempts = action == "set_traffic" and failures < MAX_FAILURES
    if is_transient or has_more_attempts or action in ("finish", "roll_back"):
        return replace(progress, trouble=reason, failures=failures)
    causes = {
        "prepare": f"version {plan.version} cannot be served",
        "promote": "the promotion was refused",
    }
    cause = causes.get(action, "the traffic cannot be changed")
    return _turned_back(progress, f"{cause}: {reason}")


def after_success(progress: Progress) -> Progress:
    """Return the progress without the trouble of earlier attempts."""
    return replace(progress, trouble="", failures=0)


def paused(progress: Progress, reason: str) -> Progress | None:
    """Return the progress of a paused step; None if the rollout cannot be paused in its
    current state.
    """
    if progress.state == "stepping":
        return replace(progress, state="paused", reason=reason)
    return None


def resumed(progress: Progress) -> Progress | None:
    """Return the progress of a resumed step; None if the rollout is not paused."""
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
    return {plan.main: 100 - plan.steps[step], plan.candidate: plan.steps[step]}


def _is_promoted(plan: RolloutPlan, snapshot: EndpointSnapshot) -> bool:
    """Return True if the main deployment has the new model, or serves the version."""
    if plan.kind == "pinned":
        return snapshot.variants[plan.main].model == plan.to_uri
    return snapshot.versions.get(plan.main) == plan.version


def _start(
    plan: RolloutPlan, progress: Progress, snapshot: EndpointSnapshot, seconds: float
) -> Decision:
    """Add the deployments, wait until they are loaded and all counters are read, and
    then begin the first step.
    """
    added = [name for name in (plan.candidate, plan.shadow) if name]
    for name in added:
        if error := snapshot.errors.get(name) or snapshot.refused.get((name, plan.version)):
            return _roll_back(progress, f"version {plan.version} cannot be served: {error}")
    is_loaded = all(snapshot.versions.get(name) == plan.version for name in added)
    # Each server's first counters are needed.
    if not is_loaded or snapshot.unread or not snapshot.counters:
        reason = f"loading version {plan.version}"
        late = f"version {plan.version} was not loaded within {START_SECONDS:g} s"
        if is_loaded:
            reason = f"waiting for the server: {_silence_reason(snapshot)}"
            late += f": {_silence_reason(snapshot)}"
        waiting = replace(progress, elapsed=progress.elapsed + seconds, reason=reason)
        if waiting.elapsed > START_SECONDS:
            return _roll_back(progress, late)
        if all(name in snapshot.variants for name in added):
            return Decision(waiting, "wait")
        return Decision(waiting, "prepare")
    evidence = begin_step(plan, 0, add_counters(plan, 0, progress.evidence, snapshot.counters))
    reason = missing_evidence(plan, 0, evidence)
    return Decision(Progress("stepping", evidence=evidence, reason=reason), "set_traffic")


def _step(
    plan: RolloutPlan, progress: Progress, snapshot: EndpointSnapshot, seconds: float
) -> Decision:
    """Judge the step, and begin the next one, or promote, when its time is over and
    its evidence suffices.
    """
    if error := snapshot.errors.get(plan.candidate):
        return _roll_back(progress, f"version {plan.version} can no longer be served: {error}")
    if not snapshot.counters:
        reason = f"waiting for the server: {_silence_reason(snapshot)}"
        return Decision(replace(progress, reason=reason))
    evidence = add_counters(plan, progress.step, progress.evidence, snapshot.counters)
    progress = replace(progress, evidence=evidence)
    if reason := rejection(plan, evidence):
        return _roll_back(progress, reason)
    added = {plan.candidate, plan.shadow or plan.candidate}
    if not added <= snapshot.variants.keys():
        return _roll_back(progress, "the candidate was removed by a user")
    weights = step_weights(plan, progress.step)
    if any(snapshot.variants[name].weight != weight for name, weight in weights.items()):
        return Decision(progress, "set_traffic")
    if progress.state == "paused":
        return Decision(progress)
    reason = missing_evidence(plan, progress.step, evidence)
    if snapshot.unread:  # Wait, because the missing counters may show that the candidate is worse.
        reason = f"waiting for a server: {snapshot.unread}"
    progress = replace(progress, elapsed=progress.elapsed + seconds, reason=reason)
    if progress.elapsed < plan.every or progress.reason:
        return Decision(progress)
    following = progress.step + 1
    if following == len(plan.steps):
        return Decision(replace(progress, state="promoting", elapsed=0.0, reason=""), "promote")
    begun = Progress("stepping", following, evidence=begin_step(plan, following, evidence))
    return Decision(begun, "set_traffic")


def _promote(
    plan: RolloutPlan, progress: Progress, snapshot: EndpointSnapshot, seconds: float
) -> Decision:
    """Repeat the promotion until the main deployment serves the version, and then end
    the rollout. Roll back if the version is refused, or not served in time.
    """
    if _is_promoted(plan, snapshot) and snapshot.versions.get(plan.main) == plan.version:
        reason = f"version {plan.version} is served instead of {plan.before_version}"
        return Decision(progress, "finish", replace(progress, state="promoted", reason=reason))
    if refusal := snapshot.refused.get((plan.main, plan.version)):
        return _roll_back(progress, f"{plan.main} does not serve version {plan.version}: {refusal}")
    waiting = replace(
        progress, elapsed=progress.elapsed + seconds, reason=f"waiting until {plan.main} serves it"
    )
    if waiting.elapsed > PROMOTE_SECONDS:
        late = f"{plan.main} did not load version {plan.version} within {PROMOTE_SECONDS:g} s"
        cause = snapshot.errors.get(plan.main) or snapshot.reason
        if cause:
            late += f": {cause}"
        return _roll_back(progress, late)
    return Decision(waiting, "promote")


def _silence_reason(snapshot: EndpointSnapshot) -> str:
    return snapshot.reason or snapshot.unread or "the server's metrics are not available"


def _roll_back(progress: Progress, reason: str) -> Decision:
    turned = _turned_back(progress, reason)
    return Decision(turned, "roll_back", replace(turned, state="rolled_back"))


def _turned_back(progress: Progress, reason: str) -> Progress:
    return replace(after_success(progress), state="rolling_back", elapsed=0.0, reason=reason)


def progress_of(rollout: Rollout) -> Progress:
    """Return the progress that is stored in the rollout."""
    written = rollout.figures
    ledger = written.get("ledger", {})
    evidence = StepEvidence.from_json(plan_of(rollout), rollout.step, ledger)
    return Progress(
        state=cast(RolloutState, rollout.state),
        step=rollout.step,
        elapsed=float(written.get("elapsed", 0)),
        evidence=evidence,
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
    trouble: Json = {}
    if progress.failures:
        trouble = {"trouble": progress.trouble, "failures": progress.failures}
    judged = figures(plan_of(rollout), progress.evidence)
    seconds = round((now - rollout.created_at).total_seconds(), 1)
    trace = list(rollout.figures.get("trace", []))
    if criteria := judged.get("criteria", {}):
        shares = {
            text: round(test["log_evidence"] / test["log_evidence_needed"], 4)
            for text, test in criteria.items()
        }
        trace.append([seconds, progress.step, shares])
    # A long rollout keeps the last point in each of equal intervals.
    if len(trace) < 2 * _TRACED_POINTS:
        thinned = trace
    else:
        last_points = {int(_TRACED_POINTS * point[0] / max(seconds, 1)): point for point in trace}
        thinned = list(last_points.values())
    return replace(
        rollout,
        state=progress.state,
        step=progress.step,
        step_at=now if is_new_step else rollout.step_at,
        figures={
            "elapsed": round(progress.elapsed, 3),
            **trouble,
            **judged,
            "trace": thinned,
            "ledger": progress.evidence.to_json(),
        },
        reason=progress.reason,
        ended_at=now if progress.state in ENDED else None,
    )


def rollout_summary(rollout: Rollout) -> str:
    """Return a line about the rollout, also if its plan cannot be read."""
    state = rollout.state.replace("_", " ")
    try:
        plan = plan_of(rollout)
    except InvalidConfig as error:
        reason = rollout.reason or error.message
        return f"{rollout.endpoint}: rollout {rollout.id}: {state}; {reason}"
    line = f"{rollout.endpoint}: version {plan.before_version} → {plan.version}: {state}"
    if rollout.state in ("stepping", "paused"):
        line += f" {plan.steps[rollout.step]} % (step {rollout.step + 1} of {len(plan.steps)})"
    if rollout.reason:
        line += f"; {rollout.reason}"
    trouble = rollout.figures.get("trouble", "")
    return f"{line}; retrying: {trouble}" if trouble else line


def started_event(plan: RolloutPlan, now: datetime) -> AuditEvent:
    """Return the audit event of a rollout that starts now."""
    steps = ", ".join(f"{step} %" for step in plan.steps)
    return AuditEvent(
        now,
        plan.actor,
        "rollout.start",
        plan.endpoint,
        plan.model,
        plan.version,
        before=f"version {plan.before_version}",
        after=f"version {plan.version} by {steps}",
        why=plan.why,
        detail={"steps": list(plan.steps), "every": plan.every, "abort_on": plan.abort_on},
    )


def progress_event(
    rollout: Rollout, progress: Progress, actor: str, now: datetime
) -> AuditEvent | None:
    """Return the audit event of the change from `rollout` to `progress`; None if the
    change is not audited.
    """
    plan = plan_of(rollout)
    is_new_step = (rollout.state, rollout.step) != (progress.state, progress.step)
    if progress.state in ENDED:
        action = "rollout.end"
        before = f"version {plan.before_version}"
        after = f"version {plan.version}" if progress.state == "promoted" else before
    elif progress.state in ("stepping", "paused") and is_new_step:
        action = "rollout.step"
        before = "0 %" if rollout.state == "starting" else f"{plan.steps[rollout.step]} %"
        after = f"{plan.steps[progress.step]} %"
        if rollout.state == "paused" or progress.state == "paused":
            before = rollout.state
            after = progress.state
    else:
        return None  # Avoid computing the figures in this usual case.
    detail = {
        "rollout": rollout.id,
        "state": progress.state,
        **figures(plan, progress_of(rollout).evidence),
    }
    if progress.state == "promoted":
        detail |= move_detail("", plan.before_version)
    return AuditEvent(
        now,
        actor,
        action,
        plan.endpoint,
        plan.model,
        plan.version,
        before,
        after,
        progress.reason,
        detail,
    )
