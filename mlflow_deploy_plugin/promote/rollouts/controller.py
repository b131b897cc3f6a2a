"""Runs the rollouts of a location: the holder of the location's lease repeatedly
advances each rollout by one decision.

A location is a machine or a namespace of a cluster: a process that can reach one of its
servers can reach all. After a crash, the next holder continues from the store
(`state_machine.py`). Decisions use only the monotonic clock.
"""

import logging
import re
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from mlflow_deploy_plugin.core.errors import (
    InvalidConfig,
    NotFound,
    OnnxserveError,
    StoreUnavailable,
)
from mlflow_deploy_plugin.core.processes.durable_work import TRANSIENT_ERRORS, WorkRunner
from mlflow_deploy_plugin.core.registry.model_uri import parse_model_uri
from mlflow_deploy_plugin.core.registry.tags import tag_version, untag_version
from mlflow_deploy_plugin.core.registry.transitions import (
    ROLLED_BACK_TAG,
    current_version,
    move_version,
)
from mlflow_deploy_plugin.core.spec.parts import VariantSpec
from mlflow_deploy_plugin.core.store.audit import move_detail
from mlflow_deploy_plugin.core.store.leases import Lease, LeaseKeeper
from mlflow_deploy_plugin.core.store.store import Rollout, Store
from mlflow_deploy_plugin.promote.rollouts import leadership, state_machine
from mlflow_deploy_plugin.promote.rollouts.leadership import BackgroundTask
from mlflow_deploy_plugin.promote.rollouts.plan import RolloutPlan, plan_of
from mlflow_deploy_plugin.promote.rollouts.snapshot import EndpointSnapshot, take_snapshot
from mlflow_deploy_plugin.promote.rollouts.state_machine import Progress, RolloutAction
from mlflow_deploy_plugin.ship.deployments.lifecycle import Deployments

_log = logging.getLogger(__name__)

_MAX_PAUSE_SECONDS = 2.0
_MIN_PAUSE_SECONDS = 0.2
_FAILURE_SECONDS = 30.0
_PLACES_SECONDS = 3.0
_MAX_PLACES = 100
_AT_ONCE = 8
"""The number of rollouts that are advanced at the same time, so that a slow server does
not delay other rollouts.
"""


@dataclass(frozen=True)
class RolloutActions:
    """The actions of rollouts: add and remove deployments, set the traffic, and move
    the stage, alias or tag.

    An action that is already done has no effect, so it may be repeated after a crash.
    `say` receives a line per change.
    """

    deployments: Deployments
    actor: str
    say: Callable[[str], None]

    def reaches(self, endpoint: str, place: str) -> bool:
        return leadership.reaches(self.deployments, endpoint, place)

    def take_snapshot(self, endpoint: str) -> EndpointSnapshot | None:
        try:
            observed = self.deployments.get_endpoint(endpoint)
        except NotFound:
            return None
        return take_snapshot(observed, self.deployments.server_metrics(observed))

    def do(self, action: RolloutAction, plan: RolloutPlan, progress: Progress) -> None:
        """Do the action. Raises the errors of `Deployments` and of the registry; the
        action may then be repeated.
        """
        match action:
            case "prepare":
                variants = self._variants(plan)
                why = f"rollout to version {plan.version}"
                for name in (plan.candidate, plan.shadow):
                    if not name or name in variants:
                        continue
                    # The user consented by naming the version.
                    config = {f"variants.{name}.allow_pyfunc": True}
                    if name == plan.shadow:
                        config[f"variants.{name}.shadow"] = True
                    self.deployments.add(plan.endpoint, name, plan.to_uri, config, why, self.actor)
            case "set_traffic":
                why = f"step {plan.steps[progress.step]} % of a rollout"
                self._set_weights(plan, state_machine.step_weights(plan, progress.step), why)
            case "promote":
                why = f"rollout to version {plan.version} has passed its steps"
                if plan.kind == "pinned":
                    self._set_model(plan, plan.to_uri, why)
                    return
                before = current_version(parse_model_uri(plan.before_uri))
                if before != plan.version:
                    self._move_reference(plan, before, plan.version, why)
            case "finish":
                self._clear(plan, f"rollout to version {plan.version} has promoted it")
                with suppress(NotFound):  # The version may have been deleted.
                    untag_version(plan.model, plan.version, ROLLED_BACK_TAG)
            case "roll_back":
                self.roll_back(plan, progress.reason)

    def roll_back(self, plan: RolloutPlan, why: str) -> None:
        """Restore the earlier version: set the traffic first, then the registry."""
        self._clear(plan, why)
        reference = parse_model_uri(plan.before_uri)
        if plan.kind == "pinned":
            if self._variants(plan)[plan.main].model == plan.to_uri:
                self._set_model(plan, plan.before_uri, why, restores=True)
        elif current_version(reference) == plan.version:
            self._move_reference(plan, plan.version, plan.before_version, why)
        with suppress(NotFound):  # The version may have been deleted.
            tag_version(plan.model, plan.version, ROLLED_BACK_TAG, f"{plan.endpoint}: {why}")

    def _move_reference(
        self,
        plan: RolloutPlan,
        before: str,
        version: str,
        why: str,
    ) -> None:
        """Move the stage, alias or tag from the version `before` (empty if there is
        none) to `version`, and record the move in the audit trail.
        """
        reference = parse_model_uri(plan.before_uri)
        move_version(reference, version)
        self.deployments.poll_registry(reference.name)
        self.say(f"{plan.endpoint}: {plan.before_uri} is now version {version}")
        action = "alias" if plan.kind == "alias" else "transition"
        self.deployments.store.record(
            action,
            endpoint=plan.endpoint,
            model=plan.model,
            version=version,
            before=f"version {before} in {reference.selector}" if before else "",
            after=f"version {version} in {reference.selector}",
            why=why,
            detail={"stood_there": before} | move_detail(reference.place, before),
            actor=self.actor,
        )

    def _clear(self, plan: RolloutPlan, why: str) -> None:
        """Send all traffic to the main deployment, and remove the deployments that the
        rollout added.
        """
        self._set_weights(plan, {plan.main: 100}, why, restores=True)
        for name in (plan.candidate, plan.shadow):
            if name and name in self._variants(plan):
                self.deployments.remove(plan.endpoint, name, why, self.actor)

    def _set_weights(
        self,
        plan: RolloutPlan,
        weights: dict[str, int],
        why: str,
        restores: bool = False,
    ) -> None:
        """Set the weights in percent, unless all deployments have theirs."""
        variants = self._variants(plan)
        if any(
            variants[name].weight != weight for name, weight in weights.items() if name in variants
        ):
            self.deployments.set_traffic(
                plan.endpoint,
                weights,
                why,
                self.actor,
                by_rollout=True,
                restores=restores,
            )

    def _set_model(
        self,
        plan: RolloutPlan,
        model_uri: str,
        why: str,
        restores: bool = False,
    ) -> None:
        """Set the model of the main deployment, unless it has this model."""
        if self._variants(plan)[plan.main].model != model_uri:
            config = {f"variants.{plan.main}.model": model_uri}
            self.deployments.update_endpoint(plan.endpoint, config, why, self.actor, restores)

    def _variants(self, plan: RolloutPlan) -> dict[str, VariantSpec]:
        """Return the stored deployments of the endpoint. Raises InvalidConfig if the
        main deployment was deleted.
        """
        stored = self.deployments.store.endpoint(plan.endpoint)
        if stored is None or plan.main not in stored.spec.variants:
            raise InvalidConfig(
                f"the deployment {plan.main} of endpoint {plan.endpoint} was deleted"
            )
        return stored.spec.variants


@dataclass(eq=False)
class RolloutController:
    """A controller for the rollouts of one location (`Deployments.place`). `servers`
    names its servers in messages.

    The `background` tasks run while the lease is held, each in its own thread.
    """

    store: Store
    actions: RolloutActions
    holder: str
    place: str
    servers: str = "the servers here"
    lease_seconds: float = leadership.LEASE_SECONDS
    monotonic: Callable[[], float] = time.monotonic
    background: Sequence[BackgroundTask] = ()
    _looked_at: dict[int, float] = field(default_factory=dict, init=False)

    def run(self, ended: threading.Event) -> None:
        """Run the rollouts and the background tasks whenever this holder has the lease
        of the location, until `ended` is set.
        """
        leadership.lead(
            self.store,
            leadership.rollouts_lease_name(self.place),
            f"runs the rollouts of {self.servers}",
            (self._work, *self.background),
            self.holder,
            self.lease_seconds,
            self.actions.say,
            ended,
            self.monotonic,
        )

    def _work(self, keeper: LeaseKeeper, over: threading.Event) -> None:
        """Advance the live rollouts until the lease is lost or `over` is set. The pause
        is a tenth of the shortest step.
        """
        self._looked_at.clear()  # Do not count time without the lease.
        runner = WorkRunner("rollout", _AT_ONCE, _FAILURE_SECONDS, monotonic=self.monotonic)
        try:
            while keeper.is_held and not over.is_set():
                pause = _MAX_PAUSE_SECONDS
                for rollout in self.store.rollouts(live=True):
                    runner.start(rollout.id, partial(self._attempt, rollout, keeper))
                    with suppress(InvalidConfig):  # The attempt reports the error.
                        pause = min(pause, plan_of(rollout).every / 10)
                over.wait(max(_MIN_PAUSE_SECONDS, pause))
        finally:
            runner.stop(wait=True)

    def advance(self, rollout: Rollout, keeper: LeaseKeeper) -> None:
        """Decide the next action, store the progress, do the action, and store its
        result. Nothing is done if the lease is lost or a user has changed the rollout.
        """
        plan = plan_of(rollout)
        progress = state_machine.progress_of(rollout)
        snapshot = self.actions.take_snapshot(plan.endpoint)
        now = self.monotonic()
        seconds = now - self._looked_at.get(rollout.id, now)
        decision = state_machine.decide(plan, progress, snapshot, seconds)
        self._looked_at[rollout.id] = now
        written = self._write(rollout, decision.progress, keeper)
        if written is None or decision.action == "wait" or not keeper.is_held:
            return
        try:
            self.actions.do(decision.action, plan, decision.progress)
        except OnnxserveError as error:
            after = state_machine.after_failure(
                plan,
                decision.progress,
                decision.action,
                error.message,
                is_transient=isinstance(error, TRANSIENT_ERRORS),
            )
        else:
            after = state_machine.after_success(decision.then or decision.progress)
        self._looked_at[rollout.id] = self.monotonic()
        if after != decision.progress:
            self._write(written, after, keeper)
        if decision.action in ("prepare", "set_traffic", "promote"):
            # A user may have ended the rollout in the meantime.
            current = self.store.rollout(rollout.id) or rollout
            if not current.is_live and current.state != "promoted":
                self.actions.roll_back(plan_of(current), current.reason)

    def _attempt(self, rollout: Rollout, keeper: LeaseKeeper) -> float:
        """Advance a rollout at this location, and return the seconds until the next
        attempt.
        """
        # This thread checks the place, because the check can be slow.
        if not self.actions.reaches(rollout.endpoint, self.place):
            return _PLACES_SECONDS
        try:
            self.advance(rollout, keeper)
        except OnnxserveError as error:
            _log.warning("%s: %s", rollout.endpoint, error.message)
            if isinstance(error, InvalidConfig):
                return _FAILURE_SECONDS  # An early retry would fail.
        return 0.0

    def _write(self, rollout: Rollout, progress: Progress, keeper: LeaseKeeper) -> Rollout | None:
        """Write the progress. Return None if the lease is lost or a user has changed
        the rollout in the meantime.
        """
        written = write_progress(self.store, rollout, progress, self.actions.actor, keeper.lease)
        if written is not None and _reported_values(written) != _reported_values(rollout):
            self.actions.say(state_machine.rollout_summary(written))
        return written


def write_progress(
    store: Store,
    rollout: Rollout,
    progress: Progress,
    actor: str,
    lease: Lease | None = None,
) -> Rollout | None:
    """Write the progress and its audit event, and return the rollout.

    Return None if the lease was lost (None: no lease is required), or if the rollout
    has ended or was changed since it was read.
    """
    now = store.now()
    event = state_machine.progress_event(rollout, progress, actor, now)
    return store.update_rollout(state_machine.with_progress(rollout, progress, now), lease, event)


def run_rollouts(
    deployments: Deployments,
    controller_at: Callable[[str, str], RolloutController],
    ended: threading.Event,
) -> None:
    """Run a controller for each location that this process can reach, including new
    locations, until `ended` is set.

    If a location can no longer be reached, its controller is stopped, because the lease
    would block another controller that can reach the location.
    """
    with ThreadPoolExecutor(_MAX_PLACES, "rollouts") as pool:
        controllers = _Controllers(deployments, controller_at, ended, pool)
        try:
            while not ended.is_set():
                controllers.follow_places()
                ended.wait(_PLACES_SECONDS)
        finally:
            ended.set()
            for controller in controllers.running.values():
                controller.over.set()
    for controller in controllers.running.values():
        controller.future.result()


class _Running(NamedTuple):
    """A controller in a thread. `over` ends it."""

    future: Future[None]
    over: threading.Event


@dataclass(eq=False)
class _Controllers:
    """The controllers by location. The failure of one sets `ended`."""

    deployments: Deployments
    controller_at: Callable[[str, str], RolloutController]
    ended: threading.Event
    pool: ThreadPoolExecutor
    running: dict[str, _Running] = field(default_factory=dict)
    reported: set[str] = field(default_factory=set)

    def follow_places(self) -> None:
        """Start a controller at each location that can be reached, unless it is running
        or has failed. Stop the others, and report new failures of targets.
        """
        failures = set[str]()
        reached = set[str]()
        try:
            for location, servers in leadership.reached_places(self.deployments, failures.add):
                reached.add(location)
                if location in self.running:
                    last = self.running[location].future
                    if not last.done() or last.exception() is not None:
                        continue
                over = threading.Event()
                future = self.pool.submit(self.controller_at(location, servers).run, over)
                self.running[location] = _Running(future, over)
                future.add_done_callback(self._end_after_failure)
        except (StoreUnavailable, OSError) as error:
            _log.warning("%s", error)
            return
        for line in failures - self.reported:
            self.deployments.progress(line)
        self.reported = failures
        for location in self.running.keys() - reached:
            self.running[location].over.set()

    def _end_after_failure(self, done: Future[None]) -> None:
        if done.exception() is not None:
            self.ended.set()


def _reported_values(rollout: Rollout) -> tuple[object, ...]:
    """Return the state, the step, the reason and the trouble, whose changes are
    reported.
    """
    reason = re.sub(r"\d+", "", rollout.reason)  # Do not report a reason again for new counts.
    return rollout.state, rollout.step, reason, rollout.figures.get("trouble", "")
