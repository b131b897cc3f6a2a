"""Advances retrainings, each independently and by one step at a time.

Each state is stored before the work of the next state begins. Each step checks first
whether its work is already done, so it may be repeated after a crash.

    waiting       the rows are collected, and the MLflow run is created
    running       `mlflow run` trains; it outlives the controller, and the next
                  controller takes it over
    registered    the run has registered a version, which the gate compares with the
                  served version
    gated         depending on `then` in the spec: a rollout, a proposal, or no action
    rolling_out   the rollout shifts the traffic to the version
    promoted, proposed, left, rolled_back, failed         final

`training.py` contains the first two steps.
"""

import logging
from collections.abc import Hashable
from dataclasses import replace
from datetime import timedelta
from functools import partial

from mlflow_deploy_plugin.core.errors import (
    AlreadyExists,
    GateRefused,
    InvalidConfig,
    NotReady,
    OnnxserveError,
    StoreUnavailable,
)
from mlflow_deploy_plugin.core.messages import one_line
from mlflow_deploy_plugin.core.processes.durable_work import TRANSIENT_ERRORS, WorkRunner
from mlflow_deploy_plugin.core.registry.policy import choose_policy
from mlflow_deploy_plugin.core.registry.resolution import registered_version, resolve
from mlflow_deploy_plugin.core.registry.tags import CANDIDATE_TAG, PASSED_STATES, tag_version
from mlflow_deploy_plugin.core.store.retrainings import Retraining, Retrainings, WaitsFor
from mlflow_deploy_plugin.core.store.store import Rollout
from mlflow_deploy_plugin.promote.gate.run import gate_version
from mlflow_deploy_plugin.promote.rollouts.commands import RolloutRequest, start_rollout
from mlflow_deploy_plugin.promote.rollouts.leadership import reaches
from mlflow_deploy_plugin.promote.rollouts.snapshot import ServedModelChanged, answering_version
from mlflow_deploy_plugin.watch.retraining import training
from mlflow_deploy_plugin.watch.retraining.plan import (
    RetrainingContext,
    RetrainingState,
    RetrainPlan,
    plan_of,
)
from mlflow_deploy_plugin.watch.retraining.trigger import RetrainingSchedule

_log = logging.getLogger(__name__)

MAX_DEFECTS = 6
"""The number of consecutive unexpected errors (about one minute) after which a
retraining ends to free its model.
"""
_NOT_COMPARED = (
    "not compared with the served version, because the labelled rows are too few, have only one "
    "label, or lack a column of the model"
)
_AT_ONCE = 32
_LOOK_SECONDS = 1.0
_RETRY_SECONDS = 10.0
MAX_SERVER_WAIT = timedelta(hours=1)
"""The longest wait for an endpoint's server to run. After this time, the new version is
proposed to a user.
"""


def judge_version(context: RetrainingContext, retraining: Retraining) -> None:
    """Compare the version with the served version by the model's gate policy, and store
    the verdict.

    If the policy does not name a dataset, the newest labelled rows are used, which
    neither version was trained on.
    """
    plan = plan_of(retraining)
    served = answering_version(context.deployments, plan.endpoint, plan.model)
    against = served if served not in ("", retraining.version) else plan.base_version
    choice = choose_policy(plan.model)
    evaluation = choice.policy.evaluation
    dataset = retraining.figures.dataset
    if dataset and not evaluation.dataset:
        evaluation = evaluation.model_copy(
            update={"dataset": dataset, "target": retraining.figures.target or ""}
        )
        choice = replace(
            choice,
            policy=choice.policy.model_copy(update={"evaluation": evaluation}),
            where=f"{choice.where}, on the newest labelled rows",
        )
    gated = gate_version(
        registered_version(plan.model, retraining.version),
        resolve(f"models:/{plan.model}/{against}"),
        choice,
        context.actor,
        context.deployments.store,
        lambda _: None,
    )
    verdict = gated.verdict
    measured = {**retraining.figures.evaluation}
    is_skipped = False
    for check in verdict.checks:
        if check.name == "evaluation":
            measured |= check.figures
            is_skipped |= check.state == "skipped"
    figures = replace(
        retraining.figures,
        evaluation=measured,
        gate=verdict.state,
        gate_reason=verdict.reason,
        gate_report=gated.report,
        # The policy itself may skip the evaluation.
        compared=not is_skipped or "evaluation" in verdict.policy.get("skip", ()),
        against=against,
        gated_at=context.now(),
    )
    context.write(replace(retraining, state="gated", figures=figures, reason=""))


def deploy_version(context: RetrainingContext, retraining: Retraining) -> None:
    """Follow the rollout that an earlier attempt has started. Otherwise, roll out,
    propose or leave the version by its gate's verdict and the plan's `then`.

    If the served version is no longer the one that the gate has compared, the version
    returns to the gate.
    """
    plan = plan_of(retraining)
    if retraining.figures.gate not in PASSED_STATES:
        context.finish(
            retraining,
            "left",
            f"the version did not pass its gate: {retraining.figures.gate_reason}",
        )
        return
    served = answering_version(context.deployments, plan.endpoint, plan.model)
    against = retraining.figures.against or plan.base_version
    passed = _passed_text(retraining)
    of_version = {"model": plan.model, "version": retraining.version}
    rollouts = [
        rollout
        for rollout in context.deployments.store.rollouts(plan.endpoint)
        if rollout.created_at >= retraining.created_at
        and rollout.spec.items() >= of_version.items()
    ]
    if rollouts:
        _follow(context, retraining, rollouts[0])
    elif served == retraining.version:
        context.finish(retraining, "promoted", "the version is already served")
    elif served not in ("", against):
        reason = f"version {served} is served now, but the new version was compared with {against}"
        context.write(replace(retraining, state="registered", reason=reason))
    elif plan.then == "rollout" and retraining.figures.compared is not False:
        _roll_out(context, retraining, plan)
    elif plan.then in ("rollout", "propose"):
        remedy = f"`onnxserve rollout start {plan.endpoint} --to {retraining.version}` rolls it out"
        if plan.then == "rollout":
            remedy = f"{_NOT_COMPARED}: {remedy}"
        context.finish(retraining, "proposed", f"{passed}; {remedy}")
    else:
        context.finish(retraining, "left", f"{passed} and is not deployed")


def watch_rollout(context: RetrainingContext, retraining: Retraining) -> None:
    """End the retraining with its rollout."""
    rollout = context.deployments.store.rollout(retraining.rollout_id or 0)
    if rollout is None:
        context.fail(retraining, f"rollout {retraining.rollout_id} was deleted")
    elif not rollout.is_live:
        state: RetrainingState = "promoted" if rollout.state == "promoted" else "rolled_back"
        context.end(retraining, state, rollout.reason)


def _roll_out(context: RetrainingContext, retraining: Retraining, plan: RetrainPlan) -> None:
    """Start a rollout of the version, or store why the retraining must wait for it. If
    people must approve the version first, it is proposed.
    """
    live = context.deployments.store.rollouts(plan.endpoint, live=True)
    if live:
        context.wait(retraining, f"waiting for the end of rollout {live[0].id} of the endpoint")
    elif not reaches(context.deployments, plan.endpoint):
        obstacle = (
            "this controller cannot reach its server, and no controller that can reach it has "
            "started the rollout"
        )
        _wait_for_server(context, retraining, obstacle, "local_controller")
    else:
        request = RolloutRequest(
            to=f"models:/{plan.model}/{retraining.version}",
            steps=plan.steps,
            every=plan.step_every,
            min_requests=plan.min_requests,
            why=f"retraining {retraining.id}: {retraining.cause['why']}",
        )
        try:
            rollout = start_rollout(context.deployments, plan.endpoint, request, context.actor)
        except AlreadyExists as error:  # Another rollout was started after the check.
            context.wait(retraining, error.message)
        except NotReady as error:
            _wait_for_server(context, retraining, error.message)
        except GateRefused as error:  # People must approve the version before its first request.
            context.finish(retraining, "proposed", error.message)
        else:
            _follow(context, retraining, rollout)


def _follow(context: RetrainingContext, retraining: Retraining, rollout: Rollout) -> None:
    """Tag the version with its rollout, and store the state "rolling_out"."""
    text = f"rollout {rollout.id} of endpoint {retraining.endpoint}"
    tag_version(retraining.model, retraining.version, CANDIDATE_TAG, text)
    context.write(replace(retraining, state="rolling_out", rollout_id=rollout.id, reason=""))


def _passed_text(retraining: Retraining) -> str:
    """Return the verdict of the gate that the version has passed, with its reason."""
    gate = (retraining.figures.gate or "").replace("passed", "passed its gate")
    return f"the version {gate} ({retraining.figures.gate_reason})"


def _wait_for_server(
    context: RetrainingContext, retraining: Retraining, obstacle: str, waits_for: WaitsFor = ""
) -> None:
    """Store the obstacle for which the rollout waits. After `MAX_SERVER_WAIT`, propose
    the version instead.
    """
    since = retraining.figures.gated_at or retraining.created_at
    if context.now() - since < MAX_SERVER_WAIT:
        context.wait(retraining, f"waiting for the endpoint: {obstacle}", waits_for)
        return
    context.finish(
        retraining,
        "proposed",
        f"{_passed_text(retraining)}, but the endpoint was not ready for a rollout "
        f"for {MAX_SERVER_WAIT.total_seconds():g} s ({obstacle}): "
        f"`onnxserve rollout start {retraining.endpoint} --to {retraining.version}` rolls it out",
    )


_STEPS = {
    "waiting": training.start_training,
    "running": training.watch_training,
    "registered": judge_version,
    "gated": deploy_version,
    "rolling_out": watch_rollout,
}


class RetrainingRunner:
    """Takes the steps of live retrainings, several retrainings at a time."""

    def __init__(self, context: RetrainingContext, retry_seconds: float = _RETRY_SECONDS) -> None:
        self._context = context
        self._retry_seconds = retry_seconds
        self._schedule = RetrainingSchedule(context.deployments, context.actor)
        # Steps run in daemon threads: a step may take minutes and may be interrupted at
        # any time.
        self.work = WorkRunner("retraining", _AT_ONCE, retry_seconds, self._end_if_defective)

    def advance(self) -> None:
        """Add scheduled retrainings, and start steps of live retrainings without a
        wait. Call this repeatedly.
        """
        self._schedule.request_due()
        for retraining in Retrainings(self._context.deployments.store).find(live=True):
            self.start(retraining)

    def start(self, retraining: Retraining) -> None:
        self.work.start(retraining.id, partial(self._attempt, retraining))

    def _attempt(self, retraining: Retraining) -> float:
        """Take steps of the retraining until a step must wait. Return the seconds until
        the next attempt.
        """
        retrainings = Retrainings(self._context.deployments.store)
        current = retraining
        try:
            while current.is_live and try_step(self._context, current):
                stored = retrainings.get(retraining.id)
                has_moved = stored is not None and stored.state != current.state
                if stored is None or not stored.is_live or not has_moved:
                    return _LOOK_SECONDS  # The retraining has ended, or waits for something.
                current = stored
        except OnnxserveError as error:
            _log.warning("retraining %d: %s", retraining.id, error.message)
        return self._retry_seconds

    def _end_if_defective(self, number: Hashable, error: Exception, defects: int) -> None:
        """Fail the retraining of this number after `MAX_DEFECTS` consecutive unexpected
        errors.
        """
        if defects < MAX_DEFECTS:
            return
        assert isinstance(number, int)
        try:
            current = Retrainings(self._context.deployments.store).get(number)
            if current is not None and current.is_live:
                self._context.fail(current, f"{type(error).__name__}: {one_line(error, 300)}")
        except OnnxserveError as failure:
            _log.warning("retraining %d: %s", number, failure.message)


def start_rollouts_at(context: RetrainingContext, location: str) -> None:
    """Start the rollouts that wait for a controller that can reach servers at this
    location. Call this repeatedly.
    """
    for retraining in Retrainings(context.deployments.store).find(live=True):
        if retraining.waits_for == "local_controller" and reaches(
            context.deployments, retraining.endpoint, location
        ):
            try_step(context, retraining)


def try_step(context: RetrainingContext, retraining: Retraining) -> bool:
    """Take one step of the retraining. Return True if the step is done or its failure
    has ended the retraining, and False if it must be retried later.
    """
    try:
        is_rolling_out = retraining.state == "rolling_out"
        reason = "" if is_rolling_out else _end_reason(context, retraining)
        if reason:
            training.end_training(retraining)
            context.fail(retraining, reason)
            return True
        try:
            _STEPS[retraining.state](context, retraining)
        except ServedModelChanged as error:
            context.finish(retraining, "left", error.message)
    except (*TRANSIENT_ERRORS, NotReady) as error:
        reason = one_line(error.message)
        if retraining.reason != reason:
            _log.warning(
                "retraining %d, %s: retried every %g s: %s",
                retraining.id,
                retraining.state,
                _RETRY_SECONDS,
                error.message,
            )
        if not isinstance(error, StoreUnavailable):
            context.wait(retraining, reason)
        return False
    except OnnxserveError as error:
        context.fail(retraining, one_line(error.message))
    return True


def _end_reason(context: RetrainingContext, retraining: Retraining) -> str:
    """Return the reason to end the retraining (the endpoint was deleted, the plan
    cannot be read); empty if none.

    While the endpoint's spec cannot be read, only a running training is watched. Raises
    NotReady to retry the step.
    """
    try:
        stored = context.deployments.store.endpoint(retraining.endpoint)
        # A new endpoint may have the same name.
        if stored is None or stored.created_at > retraining.created_at:
            return f"endpoint {retraining.endpoint!r} was deleted during the retraining"
    except InvalidConfig as error:
        if retraining.state != "running" or not retraining.reason:
            raise NotReady(error.message) from None
    try:
        plan_of(retraining)
    except InvalidConfig as error:
        command = f"onnxserve retrain run {retraining.endpoint}"
        return f"{error.message}: `{command}` starts a new retraining"
    return ""
