"""Brings the version that a training registered into service: its gate, then a rollout, a proposal, or nothing."""

from dataclasses import replace
from datetime import datetime, timedelta

from mlflow_deploy_plugin.controller.leadership import is_local
from mlflow_deploy_plugin.controller.retraining.plan import RetrainingContext, RetrainPlan, plan_of
from mlflow_deploy_plugin.controller.snapshot import answering_version
from mlflow_deploy_plugin.errors import AlreadyExists, NotReady
from mlflow_deploy_plugin.gate import PolicyChoice, choose_policy, gate_version
from mlflow_deploy_plugin.registry import CANDIDATE_TAG, registered_version, resolve, tag_version
from mlflow_deploy_plugin.store import Retraining, Rollout, WaitsFor

MAX_SERVER_WAIT = timedelta(hours=1)
"""An endpoint whose server does not run is waited for, so long; then the version is proposed to a person."""


def judge_version(context: RetrainingContext, one: Retraining) -> None:
    """Judge the version by its model's policy against the version that is served, and write the verdict down.

    If the policy names no dataset, it is the newest labelled rows of the window, which neither version has learned: the
    candidate may not be worse on them than the served version, by the policy's own margin and confidence.
    """
    plan = plan_of(one)
    served = answering_version(context.deployments, plan.endpoint, plan.model)
    against = served if served not in ("", one.version) else plan.base_version
    choice = choose_policy(plan.model)
    policy, dataset = choice.policy, one.figures.get("dataset", "")
    if dataset and not policy.evaluation.dataset:
        update = {"dataset": dataset, "target": one.figures.get("target", "")}
        policy = policy.model_copy(update={"evaluation": policy.evaluation.model_copy(update=update)})
        choice = PolicyChoice(policy, f"{choice.where}, on the newest labelled rows", choice.is_models_own)
    gated = gate_version(
        registered_version(plan.model, one.version),
        resolve(f"models:/{plan.model}/{against}"),
        choice,
        context.actor,
        context.deployments.store,
        lambda _: None,
    )
    verdict = gated.verdict
    evaluations = [check for check in verdict.checks if check.name == "evaluation"]
    is_skipped = any(check.state == "skipped" for check in evaluations)
    figures = one.figures | {
        f"evaluation.{name}": float(value)
        for check in evaluations
        for name, value in check.figures.items()
        if isinstance(value, int | float)
    }
    figures |= {
        "gate": verdict.state,
        "gate_reason": verdict.reason,
        "gate_report": gated.report,
        "against": against,
        "gated_at": context.now().isoformat(),
        # compared on labelled rows, or the policy does without
        "compared": not is_skipped or "evaluation" in verdict.policy.get("skip", ()),
    }
    context.write(replace(one, state="gated", figures=figures, reason=""))


def deploy_version(context: RetrainingContext, one: Retraining) -> None:
    """Start the version's rollout, propose it, or leave it, by its gate and the spec's `then`."""
    plan = plan_of(one)
    if one.figures["gate"] != "passed":
        context.finish(one, "left", f"it has not passed its gate: {one.figures['gate_reason']}")
        return
    served = answering_version(context.deployments, plan.endpoint, plan.model)
    against = one.figures.get("against", plan.base_version)
    passed = f"it has passed its gate ({one.figures['gate_reason']})"
    started = [  # by an earlier attempt at this step
        rollout
        for rollout in context.deployments.store.rollouts(plan.endpoint)
        if (rollout.spec.get("model"), rollout.spec.get("version")) == (plan.model, one.version)
        and rollout.created_at >= one.created_at
    ]
    if started:
        _follow(context, one, started[0])
    elif served == one.version:
        context.finish(one, "promoted", "somebody has brought it already: it is served")
    elif served not in ("", against):
        reason = f"version {served} is served now, and it was judged beside {against}"
        context.write(replace(one, state="registered", reason=reason))
    elif plan.then == "rollout" and one.figures.get("compared", True):
        _roll_out(context, one, plan)
    elif plan.then in ("rollout", "propose"):
        how = f"`onnxserve rollout {plan.endpoint} --to {one.version}` brings it"
        if plan.then == "rollout":
            how = f"too few labelled rows, or of one answer alone, to compare it with what is served: {how}"
        context.finish(one, "proposed", f"{passed}: {how}")
    else:
        context.finish(one, "left", f"{passed} and is left as it is")


def watch_rollout(context: RetrainingContext, one: Retraining) -> None:
    """End the retraining if its rollout has ended."""
    rollout = context.deployments.store.rollout(one.rollout_id or 0)
    if rollout is None:
        context.fail(one, f"rollout {one.rollout_id} is gone")
    elif not rollout.is_live:
        context.end(one, "promoted" if rollout.state == "promoted" else "rolled_back", rollout.reason)


def _roll_out(context: RetrainingContext, one: Retraining, plan: RetrainPlan) -> None:
    if others := context.deployments.store.rollouts(plan.endpoint, live=True):
        context.wait(one, f"waits for the end of rollout {others[0].id} of the endpoint")
    elif not is_local(plan.endpoint, context.deployments.settings):
        why = "its server stands on another machine, and no controller there has begun the rollout"
        _wait_for_server(context, one, why, "local_controller")
    else:
        try:
            rollout = context.start_rollout(plan, one.version, f"retraining {one.id}: {one.cause['why']}")
        except AlreadyExists as error:  # another one has begun just now
            context.wait(one, error.message)
        except NotReady as error:
            _wait_for_server(context, one, error.message)
        else:
            _follow(context, one, rollout)


def _follow(context: RetrainingContext, one: Retraining, rollout: Rollout) -> None:
    tag_version(one.model, one.version, CANDIDATE_TAG, f"rollout {rollout.id} of endpoint {one.endpoint}")
    context.write(replace(one, state="rolling_out", rollout_id=rollout.id, reason=""))


def _wait_for_server(context: RetrainingContext, one: Retraining, why: str, waits_for: WaitsFor = "") -> None:
    since = datetime.fromisoformat(one.figures.get("gated_at", one.created_at.isoformat()))
    if context.now() - since < MAX_SERVER_WAIT:
        context.wait(one, f"waits for the endpoint: {why}", waits_for)
        return
    context.finish(
        one,
        "proposed",
        f"it has passed its gate ({one.figures['gate_reason']}), and the endpoint has not been ready for a rollout "
        f"for {MAX_SERVER_WAIT.total_seconds():g} s ({why}): `onnxserve rollout {one.endpoint} --to {one.version}` "
        "brings it",
    )
