"""Takes retrainings further, each a step at a time and without waiting for another.

Every state is written down before the next one's work begins, and every step looks first whether its work is done
already. So a step may be done again after a crash in the middle of it.

    waiting       the rows are collected and the MLflow run is made
    running       `mlflow run` trains; it outlives the controller, and the next one adopts it
    registered    the run has registered a version; the gate judges it against what is served
    gated         by the spec's `then`: a rollout, a proposal, or nothing
    rolling_out   the rollout brings it
    promoted, proposed, left, rolled_back, failed         the end
"""

import logging
from collections.abc import Hashable
from functools import partial

from mlflow_deploy_plugin.controller.leadership import is_local
from mlflow_deploy_plugin.controller.retraining import deploy, training
from mlflow_deploy_plugin.controller.retraining.plan import RetrainingContext, plan_of
from mlflow_deploy_plugin.controller.retraining.trigger import RetrainingSchedule
from mlflow_deploy_plugin.controller.snapshot import ServedModelChanged
from mlflow_deploy_plugin.controller.work import TRANSIENT_ERRORS, WorkRunner
from mlflow_deploy_plugin.errors import InvalidConfig, NotReady, OnnxserveError, StoreUnavailable
from mlflow_deploy_plugin.store import Retraining, Retrainings

_log = logging.getLogger(__name__)

MAX_DEFECTS = 6
"""After so many unexpected errors in a row, about a minute, it is ended: its model could not be trained otherwise."""
_AT_ONCE = 32
_LOOK_SECONDS = 1.0
_RETRY_SECONDS = 10.0
_STEPS = {
    "waiting": training.start_training,
    "running": training.watch_training,
    "registered": deploy.judge_version,
    "gated": deploy.deploy_version,
    "rolling_out": deploy.watch_rollout,
}


class RetrainingRunner:
    """Runs the retrainings of a store, in the process that holds the store's lease.

    Args:
        retry_seconds: the pause after a step that could not be taken.
    """

    def __init__(self, context: RetrainingContext, retry_seconds: float = _RETRY_SECONDS) -> None:
        self._context = context
        self._retry_seconds = retry_seconds
        self._schedule = RetrainingSchedule(context.deployments, context.actor)
        # a step may take minutes: its thread is a daemon, which may be cut off anywhere
        self.work = WorkRunner("retraining", _AT_ONCE, retry_seconds, self._end_if_defective)

    def advance(self) -> None:
        """Add the retrainings that are scheduled, and start a step of each that has not ended. Never wait for one.

        This is to be called again and again. What a step was doing when the process ends is done again by the next one.

        Raises:
            StoreUnavailable: the store cannot be read.
        """
        self._schedule.request_due()
        for one in Retrainings(self._context.deployments.store).find(live=True):
            self.start(one)

    def start(self, one: Retraining) -> None:
        """Start its next step, unless one runs or its pause is not over."""
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
                reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
                self._context.fail(current, reason)
        except OnnxserveError as failure:
            _log.warning("retraining %d: %s", number, failure.message)


def start_local_rollouts(context: RetrainingContext) -> None:
    """Start the rollouts that wait for a controller that sees the server, for the servers of this machine.

    This is to be called again and again by the process that runs the rollouts here.

    Raises:
        StoreUnavailable: the store cannot be read.
    """
    for one in Retrainings(context.deployments.store).find(live=True):
        if one.waits_for == "local_controller" and is_local(one.endpoint, context.deployments.settings):
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
        reason = " ".join(error.message.split())
        if one.reason != reason:
            _log.warning("retraining %d, %s: again every %g s: %s", one.id, one.state, _RETRY_SECONDS, error.message)
        if not isinstance(error, StoreUnavailable):
            context.wait(one, reason)
        return False
    except OnnxserveError as error:
        context.fail(one, " ".join(error.message.split()))
    return True


def _end_reason(context: RetrainingContext, one: Retraining) -> str:
    """Return why it cannot go on: its endpoint was deleted, or its plan cannot be read; empty if it can.

    While the endpoint's spec cannot be read, nothing new begins; a training that runs is watched.

    Raises:
        NotReady: it is to be tried again.
    """
    try:
        stored = context.deployments.store.endpoint(one.endpoint)
        if stored is None or stored.created_at > one.created_at:  # there may be a namesake by now
            return f"endpoint {one.endpoint!r} was deleted meanwhile"
    except InvalidConfig as error:
        if one.state != "running" or not one.reason:
            raise NotReady(error.message) from None
    try:
        plan_of(one)
    except InvalidConfig as error:
        return f"{error.message}: `onnxserve retrain {one.endpoint}` starts another"
    return ""
