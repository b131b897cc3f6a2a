"""The version that a training has registered: its gate, and its way into service."""

from dataclasses import replace
from datetime import datetime, timedelta

from mlflow_deploy_plugin.controller.locality import is_local
from mlflow_deploy_plugin.controller.retraining.context import RetrainingContext
from mlflow_deploy_plugin.controller.retraining.plan import RetrainingState, RetrainPlan, plan_of
from mlflow_deploy_plugin.controller.retraining.served import answering_version
from mlflow_deploy_plugin.controller.rollouts.start import RolloutRequest, start_rollout
from mlflow_deploy_plugin.controller.rollouts.state_machine import plan_of as rollout_plan_of
from mlflow_deploy_plugin.errors import AlreadyExists, NotReady
from mlflow_deploy_plugin.gate import GateRun, GateVerdict, PolicyChoice, choose_policy, gate_version
from mlflow_deploy_plugin.registry import CANDIDATE_TAG, registered_version, resolve, tag_version
from mlflow_deploy_plugin.store import Rollout, Store
from mlflow_deploy_plugin.store.retrainings import Retraining

_WAITS = "waits for the endpoint"
MAX_SERVER_WAIT = timedelta(hours=1)
"""For an endpoint whose server does not run; then a person is asked."""


_ELSEWHERE = "its server stands on another machine, and no controller there has begun the rollout"


def awaits_other_controller(one: Retraining) -> bool:
    """Whether its version waits for a controller that sees the server."""
    return one.state == "gated" and one.reason == f"{_WAITS}: {_ELSEWHERE}"


def judge_version(hands: RetrainingContext, one: Retraining) -> None:
    """Its gate, beside what is served now."""
    plan, store = plan_of(one), hands.deployments.store
    served = answering_version(hands.deployments, plan.endpoint, plan.model)
    against = served if served not in ("", one.version) else plan.base_version
    dataset, target = one.figures.get("dataset", ""), one.figures.get("target", "")
    gated = judge_candidate(plan, one.version, against, dataset, target, hands.actor, store)
    figures = one.figures | figures_of(gated.verdict)
    figures |= {"gate": gated.verdict.state, "gate_reason": gated.verdict.reason, "gate_report": gated.report}
    figures |= {"against": against, "gated_at": hands.clock().isoformat()}
    figures |= {"compared": is_compared(gated.verdict)}
    hands.write(replace(one, state="gated", figures=figures, reason=""))


def deploy_version(hands: RetrainingContext, one: Retraining) -> None:
    """What its gate and the spec's `then` make of it: a rollout, a proposal, or nothing."""
    plan = plan_of(one)
    if one.figures["gate"] != "passed":
        hands.finish(one, "left", f"it has not passed its gate: {one.figures['gate_reason']}")
        return
    served = answering_version(hands.deployments, plan.endpoint, plan.model)
    against = one.figures.get("against", plan.base_version)
    if _rollout_of(hands, one, plan) is not None:
        _roll_out(hands, one, plan)
    elif served == one.version:
        hands.finish(one, "promoted", "somebody has brought it already: it is served")
    elif served not in ("", against):
        reason = f"version {served} is served now, and it was judged beside {against}"
        hands.write(replace(one, state="registered", reason=reason))
    elif plan.then == "rollout" and one.figures.get("compared", True):
        _roll_out(hands, one, plan)
    elif plan.then in ("rollout", "propose"):
        where = f"`onnxserve rollout {plan.endpoint} --to {one.version}` brings it"
        if plan.then == "rollout":
            where = f"too few labelled rows, or of one answer alone, to compare it with what is served: {where}"
        hands.finish(one, "proposed", f"it has passed its gate ({one.figures['gate_reason']}): {where}")
    else:
        hands.finish(one, "left", f"it has passed its gate ({one.figures['gate_reason']}) and is left as it is")


def watch_rollout(hands: RetrainingContext, one: Retraining) -> None:
    """Waits for the rollout's end."""
    found = [rollout for rollout in hands.deployments.store.rollouts(one.endpoint) if rollout.id == one.rollout_id]
    if not found:
        hands.fail(one, f"rollout {one.rollout_id} is gone")
    elif not found[0].is_live:
        state: RetrainingState = "promoted" if found[0].state == "promoted" else "rolled_back"
        hands.end(one, state, found[0].reason)


def _roll_out(hands: RetrainingContext, one: Retraining, plan: RetrainPlan) -> None:
    rollout = _rollout_of(hands, one, plan)
    if rollout is None:
        why = f"retraining {one.id}: {one.cause['why']}"
        wish = RolloutRequest(
            f"models:/{plan.model}/{one.version}",
            plan.steps,
            plan.step_every,
            min_requests=plan.min_requests,
            why=why,
        )
        if others := hands.deployments.store.rollouts(plan.endpoint, live=True):
            hands.wait(one, f"waits for the end of rollout {others[0].id} of the endpoint")
            return
        if not is_local(plan.endpoint, hands.deployments.settings):
            _wait_for_server(hands, one, plan, _ELSEWHERE)
            return
        try:
            rollout = start_rollout(hands.deployments, plan.endpoint, wish, hands.actor)
        except AlreadyExists as error:  # another one has begun just now
            hands.wait(one, error.message)
            return
        except NotReady as error:
            _wait_for_server(hands, one, plan, error.message)
            return
    tag_version(plan.model, one.version, CANDIDATE_TAG, f"rollout {rollout.id} of endpoint {plan.endpoint}")
    hands.write(replace(one, state="rolling_out", rollout_id=rollout.id, reason=""))


def _wait_for_server(hands: RetrainingContext, one: Retraining, plan: RetrainPlan, why: str) -> None:
    since = datetime.fromisoformat(one.figures.get("gated_at", one.created_at.isoformat()))
    if hands.clock() - since < MAX_SERVER_WAIT:
        hands.wait(one, f"{_WAITS}: {why}")
        return
    hands.finish(
        one,
        "proposed",
        f"it has passed its gate ({one.figures['gate_reason']}), and the endpoint has not been ready for a rollout "
        f"for {MAX_SERVER_WAIT.total_seconds():g} s ({why}): `onnxserve rollout {plan.endpoint} --to {one.version}` "
        "brings it",
    )


def _rollout_of(hands: RetrainingContext, one: Retraining, plan: RetrainPlan) -> Rollout | None:
    """That an earlier attempt at this step has begun."""
    for rollout in hands.deployments.store.rollouts(plan.endpoint):
        begun = rollout_plan_of(rollout)
        if (begun.model, begun.version) == (plan.model, one.version) and rollout.created_at >= one.created_at:
            return rollout
    return None


def judge_candidate(
    plan: RetrainPlan, version: str, against: str, dataset: str, target: str, actor: str, store: Store
) -> GateRun:
    """Judges the version by its model's policy beside the version `against`, and writes the verdict on it.

    Where the policy names no dataset, the newest labelled rows of the window are it, which neither version has learned:
    the candidate may not be worse on them than what is served, by the policy's own margin and confidence.

    Raises as `gate.run.run_gate`.
    """
    chosen = choose_policy(plan.model)
    policy = chosen.policy
    if dataset and not policy.evaluation.dataset:
        evaluation = policy.evaluation.model_copy(update={"dataset": dataset, "target": target})
        where = f"{chosen.where}, on the newest labelled rows"
        chosen = PolicyChoice(policy.model_copy(update={"evaluation": evaluation}), where, chosen.is_models_own)
    current = resolve(f"models:/{plan.model}/{against}")
    return gate_version(registered_version(plan.model, version), current, chosen, actor, store, lambda _: None)


def is_compared(verdict: GateVerdict) -> bool:
    """Whether the version was compared on labelled rows, or its policy does without."""
    skipped = [check for check in verdict.checks if check.name == "evaluation" and check.state == "skipped"]
    return not skipped or "evaluation" in verdict.policy.get("skip", ())


def figures_of(verdict: GateVerdict) -> dict[str, float]:
    """What the evaluation says in numbers, for the list of retrainings."""
    found = [check for check in verdict.checks if check.name == "evaluation"]
    return {
        f"evaluation.{name}": float(value)
        for check in found
        for name, value in check.figures.items()
        if isinstance(value, int | float)
    }
