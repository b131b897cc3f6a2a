"""Advances retrainings, each by one step at a time and without waiting for another.

Every state is stored before the work of the next one begins. Every step first checks whether its work is already done,
so it may be repeated after a crash.

    waiting       the rows are collected and the MLflow run is created
    running       `mlflow run` trains; it outlives the controller, and the next controller adopts it
    registered    the run has registered a version; the gate compares it with the served version
    gated         by the spec's `then`: a rollout, a proposal, or nothing
    rolling_out   the rollout brings the version into service
    promoted, proposed, left, rolled_back, failed         final

`training.py` has the first two steps.
"""

import logging
from collections.abc import Hashable
from dataclasses import replace
from datetime import timedelta
from functools import partial

from mlflow_deploy_plugin.controller.leadership import reaches
from mlflow_deploy_plugin.controller.retraining import training
from mlflow_deploy_plugin.controller.retraining.plan import RetrainingContext, RetrainPlan, plan_of
from mlflow_deploy_plugin.controller.retraining.trigger import RetrainingSchedule
from mlflow_deploy_plugin.controller.rollouts.commands import RolloutRequest, start_rollout
from mlflow_deploy_plugin.controller.snapshot import ServedModelChanged, answering_version
from mlflow_deploy_plugin.controller.work import TRANSIENT_ERRORS, WorkRunner
from mlflow_deploy_plugin.errors import AlreadyExists, InvalidConfig, NotReady, OnnxserveError, StoreUnavailable
from mlflow_deploy_plugin.gate import choose_policy
from mlflow_deploy_plugin.gate.policy import PolicyChoice
from mlflow_deploy_plugin.gate.run import gate_version
from mlflow_deploy_plugin.messages import one_line
from mlflow_deploy_plugin.registry import registered_version, resolve
from mlflow_deploy_plugin.registry.tags import CANDIDATE_TAG, PASSED_STATES, tag_version
from mlflow_deploy_plugin.store import Retraining, Retrainings, Rollout
from mlflow_deploy_plugin.store.retrainings import WaitsFor

_log = logging.getLogger(__name__)

MAX_DEFECTS = 6
"""The unexpected errors in a row, about a minute's, that end a retraining: otherwise it would block its model."""
_AT_ONCE = 32
_LOOK_SECONDS = 1.0
_RETRY_SECONDS = 10.0
MAX_SERVER_WAIT = timedelta(hours=1)
"""The longest wait for an endpoint's server to run; after that the version is proposed to a person."""


def judge_version(context: RetrainingContext, one: Retraining) -> None:
    """Judge the version by its model's policy against the served version, and store the verdict.

    If the policy names no dataset, the newest labelled rows of the window are used, which neither version has learned.
    """
    plan = plan_of(one)
    served = answering_version(context.deployments, plan.endpoint, plan.model)
    against = served if served not in ("", one.version) else plan.base_version
    choice = choose_policy(plan.model)
    policy, dataset = choice.policy, one.figures.dataset
    if dataset and not policy.evaluation.dataset:
        update = {"dataset": dataset, "target": one.figures.target or ""}
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
    measured = {
        name: float(value)
        for check in evaluations
        for name, value in check.figures.items()
        if isinstance(value, int | float)
    }
    figures = replace(
        one.figures,
        evaluation={**one.figures.evaluation, **measured},
        gate=verdict.state,
        gate_reason=verdict.reason,
        gate_report=gated.report,
        against=against,
        gated_at=context.now(),
        compared=not is_skipped or "evaluation" in verdict.policy.get("skip", ()),
    )
    context.write(replace(one, state="gated", figures=figures, reason=""))


def deploy_version(context: RetrainingContext, one: Retraining) -> None:
    plan = plan_of(one)
    if one.figures.gate not in PASSED_STATES:
        context.finish(one, "left", f"it has not passed its gate: {one.figures.gate_reason}")
        return
    served = answering_version(context.deployments, plan.endpoint, plan.model)
    against = one.figures.against or plan.base_version
    passed = _passed_text(one)
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
    elif plan.then == "rollout" and one.figures.compared is not False:
        _roll_out(context, one, plan)
    elif plan.then in ("rollout", "propose"):
        how = f"`onnxserve rollout {plan.endpoint} --to {one.version}` brings it"
        if plan.then == "rollout":
            lacks = "too few labelled rows, of one answer alone, or without a column of the model"
            how = f"{lacks}, to compare it with what is served: {how}"
        context.finish(one, "proposed", f"{passed}: {how}")
    else:
        context.finish(one, "left", f"{passed} and is left as it is")


def watch_rollout(context: RetrainingContext, one: Retraining) -> None:
    rollout = context.deployments.store.rollout(one.rollout_id or 0)
    if rollout is None:
        context.fail(one, f"rollout {one.rollout_id} is gone")
    elif not rollout.is_live:
        context.end(one, "promoted" if rollout.state == "promoted" else "rolled_back", rollout.reason)


def _roll_out(context: RetrainingContext, one: Retraining, plan: RetrainPlan) -> None:
    if others := context.deployments.store.rollouts(plan.endpoint, live=True):
        context.wait(one, f"waits for the end of rollout {others[0].id} of the endpoint")
    elif not reaches(context.deployments, plan.endpoint):
        why = "its server is out of reach from here, and no controller that reaches it has begun the rollout"
        _wait_for_server(context, one, why, "local_controller")
    else:
        request = RolloutRequest(
            to=f"models:/{plan.model}/{one.version}",
            steps=plan.steps,
            every=plan.step_every,
            min_requests=plan.min_requests,
            why=f"retraining {one.id}: {one.cause['why']}",
        )
        try:
            rollout = start_rollout(context.deployments, plan.endpoint, request, context.actor)
        except AlreadyExists as error:  # another one has begun just now
            context.wait(one, error.message)
        except NotReady as error:
            _wait_for_server(context, one, error.message)
        else:
            _follow(context, one, rollout)


def _follow(context: RetrainingContext, one: Retraining, rollout: Rollout) -> None:
    tag_version(one.model, one.version, CANDIDATE_TAG, f"rollout {rollout.id} of endpoint {one.endpoint}")
    context.write(replace(one, state="rolling_out", rollout_id=rollout.id, reason=""))


def _passed_text(one: Retraining) -> str:
    gate = (one.figures.gate or "").replace("passed", "passed its gate")
    return f"it has {gate} ({one.figures.gate_reason})"


def _wait_for_server(context: RetrainingContext, one: Retraining, why: str, waits_for: WaitsFor = "") -> None:
    since = one.figures.gated_at or one.created_at
    if context.now() - since < MAX_SERVER_WAIT:
        context.wait(one, f"waits for the endpoint: {why}", waits_for)
        return
    context.finish(
        one,
        "proposed",
        f"{_passed_text(one)}, and the endpoint has not been ready for a rollout "
        f"for {MAX_SERVER_WAIT.total_seconds():g} s ({why}): `onnxserve rollout {one.endpoint} --to {one.version}` "
        "brings it",
    )


_STEPS = {
    "waiting": training.start_training,
    "running": training.watch_training,
    "registered": judge_version,
    "gated": deploy_version,
    "rolling_out": watch_rollout,
}


class RetrainingRunner:
    def __init__(self, context: RetrainingContext, retry_seconds: float = _RETRY_SECONDS) -> None:
        self._context = context
        self._retry_seconds = retry_seconds
        self._schedule = RetrainingSchedule(context.deployments, context.actor)
        # a step may take minutes: its thread is a daemon, which may be cut off anywhere
        self.work = WorkRunner("retraining", _AT_ONCE, retry_seconds, self._end_if_defective)

    def advance(self) -> None:
        """Add the scheduled retrainings, and start a step of each live one, without waiting; call it repeatedly."""
        self._schedule.request_due()
        for one in Retrainings(self._context.deployments.store).find(live=True):
            self.start(one)

    def start(self, one: Retraining) -> None:
        self.work.start(one.id, partial(self._attempt, one))

    def _attempt(self, one: Retraining) -> float:
        """Take step after step until one has to be waited for; return the seconds until the next attempt."""
        retrainings = Retrainings(self._context.deployments.store)
        current: Retraining | None = one
        try:
            while current is not None and current.is_live and try_step(self._context, current):
                before, current = current.state, retrainings.get(one.id)
                if current is None or not current.is_live or current.state == before:
                    return _LOOK_SECONDS
        except OnnxserveError as error:
            _log.warning("retraining %d: %s", one.id, error.message)
        return self._retry_seconds

    def _end_if_defective(self, number: Hashable, error: Exception, defects: int) -> None:
        if defects < MAX_DEFECTS:
            return
        assert isinstance(number, int)
        try:
            current = Retrainings(self._context.deployments.store).get(number)
            if current is not None and current.is_live:
                self._context.fail(current, f"{type(error).__name__}: {one_line(error, 300)}")
        except OnnxserveError as failure:
            _log.warning("retraining %d: %s", number, failure.message)


def start_rollouts_at(context: RetrainingContext, place: str) -> None:
    """Start the rollouts that wait for a controller that reaches the servers of this place; call it repeatedly."""
    for one in Retrainings(context.deployments.store).find(live=True):
        if one.waits_for == "local_controller" and reaches(context.deployments, one.endpoint, place):
            try_step(context, one)


def try_step(context: RetrainingContext, one: Retraining) -> bool:
    """Take one step. Return False if it cannot be taken now; any other failure ends the retraining."""
    try:
        if one.state != "rolling_out" and (reason := _end_reason(context, one)):
            training.end_training(one)
            context.fail(one, reason)
            return True
        try:
            _STEPS[one.state](context, one)
        except ServedModelChanged as error:
            context.finish(one, "left", error.message)
    except (*TRANSIENT_ERRORS, NotReady) as error:
        reason = one_line(error.message)
        if one.reason != reason:
            _log.warning("retraining %d, %s: again every %g s: %s", one.id, one.state, _RETRY_SECONDS, error.message)
        if not isinstance(error, StoreUnavailable):
            context.wait(one, reason)
        return False
    except OnnxserveError as error:
        context.fail(one, one_line(error.message))
    return True


def _end_reason(context: RetrainingContext, one: Retraining) -> str:
    """Return why it cannot go on: its endpoint was deleted, or its plan cannot be read; empty if it can.

    While the endpoint's spec cannot be read, only a running training is watched. Raises NotReady if it should be tried
    again.
    """
    try:
        stored = context.deployments.store.endpoint(one.endpoint)
        if stored is None or stored.created_at > one.created_at:  # another endpoint may have the name by now
            return f"endpoint {one.endpoint!r} was deleted meanwhile"
    except InvalidConfig as error:
        if one.state != "running" or not one.reason:
            raise NotReady(error.message) from None
    try:
        plan_of(one)
    except InvalidConfig as error:
        return f"{error.message}: `onnxserve retrain {one.endpoint}` starts another"
    return ""
