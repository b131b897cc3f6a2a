"""Runs every monitor of the store: looks which windows are due, and has them judged, a few at a time.

Everything that has to last stands in the store, and is read anew at each look; so a monitor may be changed, paused or
deleted at any time, and whoever has the lease next goes on. A monitor's windows are judged one after the other, oldest
first, under a lease of the monitor's own: a person's `onnxserve monitor run` takes the same.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime

from mlflow_deploy_plugin.controller.leadership import LeaseKeeper, log_errors
from mlflow_deploy_plugin.controller.monitors.evaluation import Judge
from mlflow_deploy_plugin.controller.monitors.judging_pool import JudgingPool, ProcessEnded
from mlflow_deploy_plugin.controller.monitors.late_data import EVERY_SECONDS
from mlflow_deploy_plugin.controller.monitors.schedule import MAX_CATCH_UP, next_due_window, oldest_pending
from mlflow_deploy_plugin.controller.monitors.window_runner import (
    LATE_TROUBLE,
    MAX_ATTEMPTS,
    TROUBLE,
    Attempts,
    WindowRunner,
)
from mlflow_deploy_plugin.deployments.lifecycle import Deployments
from mlflow_deploy_plugin.errors import OnnxserveError
from mlflow_deploy_plugin.monitoring.alerts import announce, record_failure, resolve_orphaned
from mlflow_deploy_plugin.monitoring.request import WindowRequest
from mlflow_deploy_plugin.spec import MonitorSpec
from mlflow_deploy_plugin.store import Endpoint
from mlflow_deploy_plugin.store.monitors import Monitors, MonitorState, MonitorWindow

_log = logging.getLogger(__name__)

AT_ONCE = 2
JUDGING_SECONDS = 1800.0
_LOOK_SECONDS = 5.0
_FAILURE_SECONDS = 60.0
_HELD_SECONDS = 2.0
Key = tuple[str, str]


@dataclass
class _Memory:
    """What this controller remembers of a monitor; nothing is lost with it."""

    not_before: float = 0.0
    looked_for_late: float = float("-inf")
    troubles: int = 0
    late_troubles: int = 0
    told: str = ""
    job: "Future[None] | None" = field(default=None)

    @property
    def is_busy(self) -> bool:
        return self.job is not None and not self.job.done()


class MonitorScheduler:
    """Runs monitors while the controller's lease lasts.

    Args:
        holder: of the monitors' leases, for people.
        judging_seconds: a judgement that takes longer is ended, and tried again.
        at_once: judgements at the same time, each in a process of its own.
        most_made_up: of windows that nobody looked at in time, the newest so many are judged.
        judge / count / count_labels: what judges a window, and counts its rows and labels; default: that process.
    """

    def __init__(
        self,
        deployments: Deployments,
        holder: str,
        say: Callable[[str], None] = lambda line: None,
        *,
        at_once: int = AT_ONCE,
        judging_seconds: float = JUDGING_SECONDS,
        lease_seconds: float = 15.0,
        look_seconds: float = _LOOK_SECONDS,
        most_made_up: int = MAX_CATCH_UP,
        judge: Judge | None = None,
        count: Callable[[WindowRequest], int] | None = None,
        count_labels: Callable[[Sequence[WindowRequest]], list[int]] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._deployments = deployments
        self._store = deployments.store
        self._monitors = Monitors(deployments.store)
        self._holder = holder
        self._say = say
        self._at_once = at_once
        self._judging_seconds = judging_seconds
        self._lease_seconds = lease_seconds
        self._look_seconds = look_seconds
        self._most_made_up = most_made_up
        self._monotonic = monotonic
        self._memories: dict[Key, _Memory] = {}
        self._told_unreadable: set[str] = set()
        self._wake = threading.Event()
        self._judge = judge
        self._count = count
        self._count_labels = count_labels

    def run(self, keeper: LeaseKeeper, over: threading.Event) -> None:
        """Works until the lease is lost or `over` is set; what is being judged then is left to the next one."""
        processes = JudgingPool(self._at_once, self._judging_seconds)
        attempts = Attempts(self._deployments, self._judge or processes.judge, self._say)
        turns = WindowRunner(
            attempts, self._count or processes.count, self._most_made_up, self._count_labels or processes.count_labels
        )
        self._memories.clear()
        with ThreadPoolExecutor(self._at_once, "monitor") as pool:
            try:
                while keeper.is_held and not over.is_set():
                    self._wake.clear()
                    log_errors(lambda: self._look(pool, keeper, turns))
                    processes.rest()
                    self._wait(over)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
                processes.end()

    def _look(self, pool: ThreadPoolExecutor, keeper: LeaseKeeper, turns: WindowRunner) -> None:
        """Gives each monitor that has something due to the pool."""
        now = self._store.now()
        states = {(one.endpoint, one.monitor): one for one in self._monitors.states()}
        written: dict[Key, list[MonitorWindow]] = {}
        for window in self._monitors.windows(states=("pending", "running"), by_hand=False):
            written.setdefault((window.endpoint, window.monitor), []).append(window)
        known: set[Key] = set()
        for endpoint in self._store.endpoints():
            for name, spec in endpoint.spec.monitors.items():
                key = endpoint.name, name
                known.add(key)
                memory = self._memories.setdefault(key, _Memory())
                state = states.get(key, MonitorState(*key))
                if state.paused or memory.is_busy or memory.not_before > self._monotonic():
                    continue
                if self._is_due(endpoint, name, spec, state, written.get(key, []), memory, now):
                    memory.job = pool.submit(self._work, endpoint, name, keeper, turns)
                    memory.job.add_done_callback(lambda _: self._wake.set())
        self._close_what_is_gone(written, known, self._unreadable_endpoints())
        resolve_orphaned(self._store)

    def _is_due(
        self,
        endpoint: Endpoint,
        name: str,
        spec: MonitorSpec,
        state: MonitorState,
        written: list[MonitorWindow],
        memory: _Memory,
        now: datetime,
    ) -> bool:
        if written:
            return oldest_pending(written, now) is not None
        if self._monotonic() - memory.looked_for_late > EVERY_SECONDS:
            return True
        try:
            return next_due_window(endpoint, name, spec, state, now, self._most_made_up) is not None
        except OnnxserveError as error:
            self._trouble(endpoint.name, name, error.message)
        except (ValueError, OverflowError) as error:  # of a time that no calendar has: the others are looked at
            self._trouble(endpoint.name, name, f"its times cannot be reckoned: {error}")
        return False

    def _work(self, endpoint: Endpoint, name: str, keeper: LeaseKeeper, turns: WindowRunner) -> None:
        """Judges a monitor's oldest due window, in a thread of the pool; what it raises never leaves it."""
        memory = self._memories[endpoint.name, name]
        if not keeper.is_held:
            return
        try:
            lease = self._store.acquire_lease(lease_name(endpoint.name, name), self._holder, self._lease_seconds)
            if lease is None:  # somebody runs it by hand, or a controller that was killed has had it
                memory.not_before = self._monotonic() + min(_HELD_SECONDS, self._lease_seconds / 4)
                return
            with LeaseKeeper(self._store, lease, self._monotonic) as own:
                self._take(endpoint.name, name, own, memory, turns)
        except ProcessEnded:
            return
        except OnnxserveError as error:
            self._trouble(endpoint.name, name, error.message)
        except Exception:  # noqa: BLE001 — one monitor must not end the others
            _log.exception("%s: monitor %s cannot be run; again in %g s", endpoint.name, name, _FAILURE_SECONDS)
            memory.not_before = self._monotonic() + _FAILURE_SECONDS

    def _take(self, endpoint: str, name: str, own: LeaseKeeper, memory: _Memory, turns: WindowRunner) -> None:
        taken = turns.take(endpoint, name, own)
        memory.troubles, memory.told = 0, ""  # what comes back is said again
        if taken == "waits for rows":
            memory.not_before = self._monotonic() + self._look_seconds
        if isinstance(taken, str) and self._monotonic() - memory.looked_for_late > EVERY_SECONDS:
            memory.looked_for_late = self._monotonic()  # also of a look that fails: it may have read hours of rows
            self._look_for_late(endpoint, name, memory, turns)

    def _look_for_late(self, endpoint: str, name: str, memory: _Memory, turns: WindowRunner) -> None:
        """What keeps it from being looked for is noted, and in the end told; windows are judged meanwhile."""
        try:
            turns.look_for_late(endpoint, name)
        except ProcessEnded:
            raise
        except OnnxserveError as error:
            memory.late_troubles += 1
            note = f"{LATE_TROUBLE}: {error.message}"
            if self._monitors.state(endpoint, name).note != note:
                self._say(f"{endpoint}: monitor {name} {note}")
                self._monitors.remember(endpoint, name, note=note)
            if memory.late_troubles == MAX_ATTEMPTS:
                announce(self._store, endpoint, name, f"{endpoint}: monitor {name} {note}")
        else:
            memory.late_troubles = 0
            if self._monitors.state(endpoint, name).note.startswith(LATE_TROUBLE):
                self._monitors.remember(endpoint, name, note="")

    def _close_what_is_gone(
        self, written: dict[Key, list[MonitorWindow]], known: set[Key], unreadable: set[str]
    ) -> None:
        for key in written.keys() - known:
            if key[0] in unreadable:  # its monitors may be there still
                continue
            held = self._store.lease(lease_name(*key))
            if held is not None and held.expires_at > self._store.now():  # somebody judges it by hand
                continue
            for window in written[key]:
                self._monitors.close(window, "the monitor was deleted before the window was judged")

    def _unreadable_endpoints(self) -> set[str]:
        """Their names; once of each it is said why."""
        unreadable = {one.name: one.reason for one in self._store.unreadable()}
        for name in unreadable.keys() - self._told_unreadable:
            self._say(unreadable[name])
        self._told_unreadable = set(unreadable)
        return self._told_unreadable

    def _trouble(self, endpoint: str, monitor: str, reason: str) -> None:
        """Says once what keeps a monitor from being run, and keeps it for `onnxserve monitor list`."""
        memory = self._memories[endpoint, monitor]
        memory.not_before = self._monotonic() + _FAILURE_SECONDS
        if memory.told != reason:
            memory.told = reason
            self._say(f"{endpoint}: monitor {monitor} {TROUBLE}: {reason}")
            log_errors(lambda: self._monitors.remember(endpoint, monitor, note=f"{TROUBLE}: {reason}"))
        memory.troubles += 1
        if memory.troubles == MAX_ATTEMPTS:
            log_errors(lambda: record_failure(self._store, self._deployments.settings, endpoint, monitor, reason))

    def _wait(self, over: threading.Event) -> None:
        """Until the next look: sooner where a window was judged, for the next one may be due."""
        deadline = time.monotonic() + self._look_seconds
        while not over.is_set() and not self._wake.wait(0.1) and time.monotonic() < deadline:
            pass


def lease_name(endpoint: str, monitor: str) -> str:
    """Of the lease that whoever judges a window of the monitor has."""
    return f"monitor/{endpoint}/{monitor}"
