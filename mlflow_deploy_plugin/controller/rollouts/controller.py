"""Rollouts: whoever has the lease of the servers here takes each that is live one decision further, again and again.

A second controller beside them waits for the lease. Where the first was killed, the second goes on from what is written
in the store; see `controller/rollouts/state_machine.py`. Only the monotonic clock decides anything.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
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
    with_progress,
)
from mlflow_deploy_plugin.errors import OnnxserveError, RegistryUnavailable, StoreUnavailable
from mlflow_deploy_plugin.store import Rollout, Store
from mlflow_deploy_plugin.store.database import utc_now

_log = logging.getLogger(__name__)

_LONGEST_PAUSE_SECONDS = 2.0
_SHORTEST_PAUSE_SECONDS = 0.2
_FAILURE_SECONDS = 30.0
_AT_ONCE = 8
"""Rollouts that are taken further at the same time: one that waits for a server holds up no other."""


class RolloutController:
    """Runs the rollouts of the servers that stand here.

    Args:
        holder: who holds the lease, for people.
        actions: what rollouts do to endpoints; its `actor` stands in the audit trail.
        say: is told in one line each what has changed.
        beside: what else is done while the lease is held, each in a thread of its own.
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
        beside: Sequence[BackgroundTask] = (),
    ) -> None:
        self._store = store
        self._actions = actions
        self._holder = holder
        self._lease_seconds = lease_seconds
        self._say = say
        self._monotonic = monotonic
        self._clock = clock
        self._beside = beside
        self._looked: dict[int, float] = {}
        self._not_before: dict[int, float] = {}

    def run(self, ended: threading.Event) -> None:
        """Waits for the lease, and works under it until `ended` is set."""

        def who(name: str) -> None:
            told = f"{name} takes rollouts of the servers here further"
            self._say(told if name == self._holder else f"waits: {told}")

        name, work = self._actions.lease_name, partial(self._work, ended=ended)
        work_under_lease(self._store, name, self._holder, self._lease_seconds, work, ended, who, self._monotonic)

    def advance(self, rollout: Rollout, keeper: LeaseKeeper) -> None:
        """Takes one rollout one decision further."""
        plan, progress = plan_of(rollout), progress_of(rollout)
        seen = self._actions.see(plan.endpoint)
        now = self._monotonic()
        decision = decide(plan, progress, seen, now - self._looked.get(rollout.id, now))
        self._looked[rollout.id] = now
        written = self._write(rollout, decision.progress, keeper)
        if written is None or decision.action == "wait" or not keeper.is_held:
            return
        try:
            self._actions.do(decision.action, plan, decision.progress)
        except OnnxserveError as error:
            is_passing = isinstance(error, (RegistryUnavailable, StoreUnavailable))
            after = after_failure(plan, decision.progress, decision.action, error.message, is_passing)
        else:
            after = after_success(decision.then or decision.progress)
        self._looked[rollout.id] = self._monotonic()
        if after != decision.progress:
            written = self._write(written, after, keeper)
        if decision.action in ("prepare", "set_traffic", "promote"):
            self._clear_after_the_end(rollout)

    def _work(self, keeper: LeaseKeeper, ended: threading.Event) -> None:
        under_way: dict[int, Future[None]] = {}
        self._looked.clear()  # while another had the lease, nobody here watched
        with running_tasks(self._beside, keeper), ThreadPoolExecutor(_AT_ONCE, "rollout") as pool:
            while keeper.is_held and not ended.is_set():
                live = [one for one in self._store.rollouts(live=True) if self._actions.stands_here(one.endpoint)]
                for rollout in live:
                    future = under_way.get(rollout.id)
                    is_due = self._not_before.get(rollout.id, 0.0) <= self._monotonic()
                    if is_due and (future is None or future.done()):
                        under_way[rollout.id] = pool.submit(self._advance_safely, rollout, keeper)
                pauses = [plan_of(rollout).every / 10 for rollout in live]
                ended.wait(max(_SHORTEST_PAUSE_SECONDS, min([_LONGEST_PAUSE_SECONDS, *pauses])))

    def _advance_safely(self, rollout: Rollout, keeper: LeaseKeeper) -> None:
        try:
            self.advance(rollout, keeper)
        except OnnxserveError as error:
            _log.warning("%s: %s", rollout.endpoint, error.message)
        except Exception:  # noqa: BLE001 — one rollout must not end the others
            _log.exception("%s: the rollout cannot be taken further; again in %g s", rollout.endpoint, _FAILURE_SECONDS)
            self._not_before[rollout.id] = self._monotonic() + _FAILURE_SECONDS

    def _write(self, rollout: Rollout, progress: Progress, keeper: LeaseKeeper) -> Rollout | None:
        """None where the lease is lost, or a person has said otherwise meanwhile."""
        now = self._clock()
        event = progress_event(rollout, progress, self._actions.actor, now)
        written = self._store.update_rollout(with_progress(rollout, progress, now), keeper.lease, event)
        if written is not None and _news(written) != _news(rollout):
            self._say(rollout_summary(written))
        return written

    def _clear_after_the_end(self, rollout: Rollout) -> None:
        """Goes back again where a person has ended the rollout while it put the candidate in, or promoted it."""
        current = next((one for one in self._store.rollouts(rollout.endpoint) if one.id == rollout.id), rollout)
        if not current.is_live and current.state != "promoted":
            self._actions.roll_back(plan_of(current), current.reason)


def rollout_summary(rollout: Rollout) -> str:
    """Where a rollout is, in one line."""
    plan = plan_of(rollout)
    where = f"{rollout.endpoint}: version {plan.before_version} → {plan.version}: {rollout.state.replace('_', ' ')}"
    if rollout.state in ("stepping", "paused"):
        where += f" {plan.steps[rollout.step]} % (step {rollout.step + 1} of {len(plan.steps)})"
    where += f"; {rollout.reason}" if rollout.reason else ""
    trouble = rollout.figures.get("trouble", "")
    return f"{where}; tries again: {trouble}" if trouble else where


def _news(rollout: Rollout) -> tuple[object, ...]:
    return rollout.state, rollout.step, rollout.reason, rollout.figures.get("trouble", "")
