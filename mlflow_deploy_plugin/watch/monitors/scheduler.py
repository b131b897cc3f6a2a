"""Runs all monitors of the store: finds the due windows and judges several windows at a
time.

All persistent state is in the store and is read in each round, so monitors may change
at any time. The windows of a monitor are judged in order under the monitor's lease,
which `onnxserve monitor run` also takes.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from datetime import datetime
from functools import partial

from mlflow_deploy_plugin.core.errors import OnnxserveError
from mlflow_deploy_plugin.core.processes.durable_work import WorkRunner
from mlflow_deploy_plugin.core.processes.worker import ProcessEnded, WorkerPool
from mlflow_deploy_plugin.core.store.leases import LeaseKeeper
from mlflow_deploy_plugin.core.store.monitor_tables import (
    MonitorKey,
    Monitors,
    MonitorState,
    MonitorWindow,
)
from mlflow_deploy_plugin.core.store.store import Endpoint
from mlflow_deploy_plugin.promote.rollouts.leadership import log_errors
from mlflow_deploy_plugin.ship.deployments.lifecycle import Deployments
from mlflow_deploy_plugin.watch.alerts.record import announce, record_failure, resolve_orphaned
from mlflow_deploy_plugin.watch.monitors.evaluation import (
    IDLE_SECONDS,
    REPORTING_IDLE_SECONDS,
    Evaluator,
    evaluator_in,
    judging_worker,
)
from mlflow_deploy_plugin.watch.monitors.maintenance import EVERY_SECONDS
from mlflow_deploy_plugin.watch.monitors.schedule import (
    MAX_CATCH_UP,
    is_ahead,
    next_due_window,
    oldest_pending,
)
from mlflow_deploy_plugin.watch.monitors.window_runner import MAX_ATTEMPTS, Idle, WindowRunner

AT_ONCE = 2
JUDGING_SECONDS = 1800.0
_LOOK_SECONDS = 5.0
_FAILURE_SECONDS = 60.0
_HELD_SECONDS = 2.0


@dataclass
class _Watched:
    """The state of a monitor in this controller, which a restart may lose.

    `looked_for_late` is the monotonic time of the last search for late data. `troubles`
    and `late_troubles` are the numbers of consecutive failures of the monitor and of
    this search.
    """

    looked_for_late: float = float("-inf")
    troubles: int = 0
    late_troubles: int = 0
    last_reason: str = ""

    def is_late_data_due(self, now: float) -> bool:
        return now - self.looked_for_late > EVERY_SECONDS


@dataclass(eq=False)
class MonitorScheduler:
    """Runs the monitors while the controller holds its lease.

    Attributes:
        at_once: the number of judgements that run at the same time, each in its own
            process.
        judging_seconds: the time after which a judgement is stopped and retried.
        evaluator: replaces the processes of the judgements.
    """

    deployments: Deployments
    holder: str
    _: KW_ONLY
    at_once: int = AT_ONCE
    judging_seconds: float = JUDGING_SECONDS
    lease_seconds: float = 15.0
    look_seconds: float = _LOOK_SECONDS
    max_catch_up: int = MAX_CATCH_UP
    evaluator: Evaluator | None = None
    monotonic: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._store = self.deployments.store
        self._monitors = Monitors(self._store)
        self._watched: dict[MonitorKey, _Watched] = {}
        self._said_unreadable: set[str] = set()

    def run(self, keeper: LeaseKeeper, over: threading.Event) -> None:
        """Judge due windows until the controller's lease is lost or `over` is set. Then
        end the judging processes.
        """
        judging = WorkerPool([judging_worker() for _ in range(self.at_once)])
        # A report takes as long as a judgement, and more memory.
        reporting = WorkerPool([judging_worker() for _ in range((self.at_once + 1) // 2)])
        evaluator = self.evaluator or evaluator_in(judging, reporting, self.judging_seconds)
        windows = WindowRunner(
            self.deployments,
            evaluator,
            self.deployments.progress,
            max_catch_up=self.max_catch_up,
        )
        work = WorkRunner("monitor", self.at_once, _FAILURE_SECONDS, monotonic=self.monotonic)
        self._watched.clear()
        try:
            while keeper.is_held and not over.is_set():
                work.finished.clear()
                log_errors(lambda: self._start_due_attempts(work, keeper, windows))
                judging.end_idle(IDLE_SECONDS)
                reporting.end_idle(REPORTING_IDLE_SECONDS)
                # If an attempt finishes, the monitor's next window may be due.
                deadline = time.monotonic() + self.look_seconds
                while (
                    not over.is_set()
                    and not work.finished.wait(0.1)
                    and time.monotonic() < deadline
                ):
                    pass
        finally:
            work.stop(wait=False)
            judging.end()
            reporting.end()
            work.stop(wait=True)

    def _start_due_attempts(
        self,
        work: WorkRunner,
        keeper: LeaseKeeper,
        windows: WindowRunner,
    ) -> None:
        """Start an attempt of each free monitor that has one due, and close the windows
        and alerts of deleted monitors.
        """
        now = self._store.now()
        states = {(state.endpoint, state.monitor): state for state in self._monitors.states()}
        pending: dict[MonitorKey, list[MonitorWindow]] = {}
        for window in self._monitors.windows(states=("pending", "running"), by_hand=False):
            pending.setdefault((window.endpoint, window.monitor), []).append(window)
        keys: set[MonitorKey] = set()
        for endpoint in self._store.endpoints():
            for name in endpoint.spec.monitors:
                key = endpoint.name, name
                keys.add(key)
                self._watched.setdefault(key, _Watched())
                state = states.get(key, MonitorState(*key))
                if state.paused or not work.is_free(key):
                    continue
                try:
                    is_due = self._is_attempt_due(endpoint, state, pending.get(key, []), now)
                except OnnxserveError as error:
                    reason = error.message
                # The schedule exceeds the range of `datetime`.
                except (ValueError, OverflowError) as error:
                    reason = f"the schedule cannot be computed: {error}"
                else:
                    if is_due:
                        work.start(key, partial(self._attempt, key, keeper, windows))
                    continue
                self._report_trouble(key, reason)
                work.pause(key, _FAILURE_SECONDS)
        # Report once for each unreadable endpoint why it is skipped.
        unreadable = {endpoint.name: endpoint.reason for endpoint in self._store.unreadable()}
        for name in unreadable.keys() - self._said_unreadable:
            self.deployments.progress(unreadable[name])
        self._said_unreadable = set(unreadable)
        for key in pending.keys() - keys:
            # The spec, which cannot be read, may still contain the monitor.
            if key[0] in unreadable:
                continue
            lease = self._store.lease(lease_name(*key))
            if lease is not None and lease.is_current:  # A user is judging the window.
                continue
            for window in pending[key]:
                self._monitors.close(window, "the monitor was deleted before the window was judged")
        resolve_orphaned(self._store)

    def _is_attempt_due(
        self,
        endpoint: Endpoint,
        state: MonitorState,
        pending: Sequence[MonitorWindow],
        now: datetime,
    ) -> bool:
        """Return True if the oldest of the `pending` windows may be judged. If there is
        none, return True if a new window or a search for late data is due.

        Raises InvalidConfig if the schedule cannot be read, and ValueError or
        OverflowError if it exceeds the range of `datetime`.
        """
        if pending:
            return oldest_pending(pending, now) is not None
        watched = self._watched[(state.endpoint, state.monitor)]
        return (
            watched.is_late_data_due(self.monotonic())
            or is_ahead(endpoint, state, now)
            or next_due_window(endpoint, state, now, self.max_catch_up) is not None
        )

    def _attempt(self, key: MonitorKey, keeper: LeaseKeeper, windows: WindowRunner) -> float:
        """Judge the monitor's oldest due window under its lease. Return the seconds
        until the next attempt.
        """
        if not keeper.is_held:
            return 0.0
        watched = self._watched[key]
        try:
            lease = self._store.acquire_lease(lease_name(*key), self.holder, self.lease_seconds)
            # A user runs the monitor, or a killed controller's lease has not expired.
            if lease is None:
                return min(_HELD_SECONDS, self.lease_seconds / 4)
            with LeaseKeeper(self._store, lease, self.monotonic) as held_lease:
                outcome = windows.run_next(*key, held_lease)
                watched.troubles = 0  # If the reason recurs, report it again.
                watched.last_reason = ""
                if isinstance(outcome, Idle) and watched.is_late_data_due(self.monotonic()):
                    # Even a failed search is not repeated soon.
                    watched.looked_for_late = self.monotonic()
                    self._look_for_late_data(key, watched, windows)
            self._store.clear_if_deleted(key[0])
        except ProcessEnded:
            return 0.0
        except OnnxserveError as error:
            self._report_trouble(key, error.message)
            return _FAILURE_SECONDS
        if outcome is Idle.WAITS_FOR_ROWS:
            return self.look_seconds
        return 0.0

    def _look_for_late_data(
        self,
        key: MonitorKey,
        watched: _Watched,
        windows: WindowRunner,
    ) -> None:
        """Add revisions for late rows and labels. Repeated failures are announced but
        do not stop the judgements.
        """
        try:
            windows.add_late_revisions(*key)
        except ProcessEnded:
            raise
        except OnnxserveError as error:
            watched.late_troubles += 1
            note = f"cannot search for late data: {error.message}"
            line = f"{key[0]}: monitor {key[1]} {note}"
            if self._monitors.state(*key).note != note:
                self.deployments.progress(line)
                self._monitors.update_state(*key, note=note, note_kind="late_data_failed")
            if watched.late_troubles == MAX_ATTEMPTS:
                announce(self._store, *key, line)
        else:
            watched.late_troubles = 0
            if self._monitors.state(*key).note_kind == "late_data_failed":
                self._monitors.update_state(*key, note="")

    def _report_trouble(self, key: MonitorKey, reason: str) -> None:
        """Report once why the monitor cannot run, and store the reason for `onnxserve
        monitor list`. After the `MAX_ATTEMPTS`-th consecutive failure, record an alert.
        """
        watched = self._watched[key]
        if watched.last_reason != reason:
            watched.last_reason = reason
            note = f"cannot be run: {reason}"
            self.deployments.progress(f"{key[0]}: monitor {key[1]} {note}")
            log_errors(lambda: self._monitors.update_state(*key, note=note, note_kind="cannot_run"))
        watched.troubles += 1
        if watched.troubles == MAX_ATTEMPTS:
            log_errors(lambda: record_failure(self._store, self.deployments.settings, *key, reason))


def lease_name(endpoint: str, monitor: str) -> str:
    return f"monitor/{endpoint}/{monitor}"
