"""Runs the rollouts of this machine's servers: the holder of their lease takes each one a decision further, again and
again.

A second controller here waits for the lease. If the first one is killed, the second goes on from what is written in the
store; see `state_machine.py`. Only the monotonic clock decides anything.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial

from mlflow_deploy_plugin.controller.leadership import (
    LEASE_SECONDS,
    BackgroundTask,
    LeaseKeeper,
    running_tasks,
    work_under_lease,
)
from mlflow_deploy_plugin.controller.rollouts.actions import RolloutActions
from mlflow_deploy_plugin.controller.rollouts.state_machine import (
    Progress,
    after_failure,
    after_success,
    decide,
    plan_of,
    progress_event,
    progress_of,
    rollout_summary,
    with_progress,
)
from mlflow_deploy_plugin.controller.work import TRANSIENT_ERRORS, WorkRunner
from mlflow_deploy_plugin.errors import OnnxserveError
from mlflow_deploy_plugin.store import Rollout, Store, utc_now

_log = logging.getLogger(__name__)

_MAX_PAUSE_SECONDS = 2.0
_MIN_PAUSE_SECONDS = 0.2
_FAILURE_SECONDS = 30.0
_AT_ONCE = 8
"""Rollouts that are taken further at the same time: one that waits for a server holds up no other."""


class RolloutController:
    """Runs the rollouts of the servers of this machine.

    Args:
        holder: the name under which the lease is held.
        actions: change the endpoints; their `actor` stands in the audit trail.
        say: takes one line for each change.
        background: tasks that run while the lease is held, each in a thread of its own.
    """

    def __init__(
        self,
        store: Store,
        actions: RolloutActions,
        holder: str,
        lease_seconds: float = LEASE_SECONDS,
        say: Callable[[str], None] = lambda line: None,
        monotonic: Callable[[], float] = time.monotonic,
        clock: Callable[[], datetime] = utc_now,
        background: Sequence[BackgroundTask] = (),
    ) -> None:
        self._store = store
        self._actions = actions
        self._holder = holder
        self._lease_seconds = lease_seconds
        self._say = say
        self._monotonic = monotonic
        self._clock = clock
        self._background = background
        self._looked_at: dict[int, float] = {}

    def run(self, ended: threading.Event) -> None:
        """Wait for the lease, and work under it until `ended` is set."""

        def on_holder(name: str) -> None:
            line = f"{name} takes rollouts of the servers here further"
            self._say(line if name == self._holder else f"waits: {line}")

        name, work = self._actions.lease_name, partial(self._work, ended=ended)
        work_under_lease(self._store, name, self._holder, self._lease_seconds, work, ended, on_holder, self._monotonic)

    def advance(self, rollout: Rollout, keeper: LeaseKeeper) -> None:
        """Take one rollout one decision further."""
        plan, progress = plan_of(rollout), progress_of(rollout)
        snapshot = self._actions.take_snapshot(plan.endpoint)
        now = self._monotonic()
        decision = decide(plan, progress, snapshot, now - self._looked_at.get(rollout.id, now))
        self._looked_at[rollout.id] = now
        written = self._write(rollout, decision.progress, keeper)
        if written is None or decision.action == "wait" or not keeper.is_held:
            return
        try:
            self._actions.do(decision.action, plan, decision.progress)
        except OnnxserveError as error:
            is_transient = isinstance(error, TRANSIENT_ERRORS)
            after = after_failure(plan, decision.progress, decision.action, error.message, is_transient)
        else:
            after = after_success(decision.then or decision.progress)
        self._looked_at[rollout.id] = self._monotonic()
        if after != decision.progress:
            self._write(written, after, keeper)
        if decision.action in ("prepare", "set_traffic", "promote"):
            # go back again if a person has ended the rollout while this put the candidate in, or promoted it
            current = next((one for one in self._store.rollouts(rollout.endpoint) if one.id == rollout.id), rollout)
            if not current.is_live and current.state != "promoted":
                self._actions.roll_back(plan_of(current), current.reason)

    def _work(self, keeper: LeaseKeeper, ended: threading.Event) -> None:
        self._looked_at.clear()  # while another had the lease, nobody here watched
        work = WorkRunner("rollout", _AT_ONCE, _FAILURE_SECONDS, monotonic=self._monotonic)
        with running_tasks(self._background, keeper):
            try:
                while keeper.is_held and not ended.is_set():
                    live = [one for one in self._store.rollouts(live=True) if self._actions.is_local(one.endpoint)]
                    for rollout in live:
                        work.start(rollout.id, partial(self._attempt, rollout, keeper))
                    pauses = [plan_of(rollout).every / 10 for rollout in live]
                    ended.wait(max(_MIN_PAUSE_SECONDS, min([_MAX_PAUSE_SECONDS, *pauses])))
            finally:
                work.stop(wait=True)

    def _attempt(self, rollout: Rollout, keeper: LeaseKeeper) -> float:
        try:
            self.advance(rollout, keeper)
        except OnnxserveError as error:
            _log.warning("%s: %s", rollout.endpoint, error.message)
        return 0.0

    def _write(self, rollout: Rollout, progress: Progress, keeper: LeaseKeeper) -> Rollout | None:
        """Write the progress. Return None if the lease is lost, or a person has changed the rollout meanwhile."""
        now = self._clock()
        event = progress_event(rollout, progress, self._actions.actor, now)
        written = self._store.update_rollout(with_progress(rollout, progress, now), keeper.lease, event)
        if written is not None and _news(written) != _news(rollout):
            self._say(rollout_summary(written))
        return written


def _news(rollout: Rollout) -> tuple[object, ...]:
    return rollout.state, rollout.step, rollout.reason, rollout.figures.get("trouble", "")
