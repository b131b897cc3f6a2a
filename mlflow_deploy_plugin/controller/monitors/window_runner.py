"""A monitor's turn, under its lease: the oldest window that is due is written down and judged."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal

from mlflow_deploy_plugin.controller.leadership import LeaseKeeper
from mlflow_deploy_plugin.controller.monitors.evaluation import (
    Judge,
    LoggedResult,
    count_labels,
    endpoint_log,
    window_request,
)
from mlflow_deploy_plugin.controller.monitors.judging_pool import TRANSIENT_ERRORS, ProcessEnded
from mlflow_deploy_plugin.controller.monitors.late_data import LogCounts, add_revisions, files_digests, revision_period
from mlflow_deploy_plugin.controller.monitors.schedule import (
    MAX_CATCH_UP,
    DueWindow,
    Readiness,
    backoff,
    next_due_window,
    oldest_pending,
    readiness,
)
from mlflow_deploy_plugin.controller.retraining.trigger import retrain_on_alarm
from mlflow_deploy_plugin.deployments.lifecycle import Deployments
from mlflow_deploy_plugin.errors import OnnxserveError
from mlflow_deploy_plugin.inference_log import locate_log
from mlflow_deploy_plugin.inference_log.watermarks import read_watermarks
from mlflow_deploy_plugin.inference_log.windows import Window
from mlflow_deploy_plugin.monitoring.alerts import record_failure, record_result
from mlflow_deploy_plugin.monitoring.request import WindowRequest
from mlflow_deploy_plugin.monitoring.result import ALARMS, UNDECIDED
from mlflow_deploy_plugin.spec import MonitorSpec
from mlflow_deploy_plugin.store import Endpoint
from mlflow_deploy_plugin.store.monitors import Monitors, MonitorState, MonitorWindow

_log = logging.getLogger(__name__)

MAX_ATTEMPTS = 5
MAX_OUTAGE = timedelta(days=1)
"""How long a window is tried again while MLflow or the store is down; any other failure counts."""
NO_ROWS = "the window has no rows"
KILLED = "whoever judged it was killed, or lost the lease, in the middle of it"
_NOT_JUDGED = "not judged"
_LOOKED_BACK = 200


@dataclass(frozen=True)
class Attempts:
    """Judges windows.

    Attributes:
        judge: here, or in a process of its own.
        say: is told in one line each what has changed.
        by_hand: somebody has asked for this window and sees what becomes of it: nobody else is told, nothing is
            started, and what fails is not tried again.
    """

    deployments: Deployments
    judge: Judge
    say: Callable[[str], None]
    by_hand: bool = False

    @property
    def monitors(self) -> Monitors:
        return Monitors(self.deployments.store)

    def take(
        self, window: MonitorWindow, spec: MonitorSpec, keeper: LeaseKeeper, notes: Sequence[str] = ()
    ) -> MonitorWindow | None:
        """The window as it stands afterwards: judged, to be tried again, or given up.

        Returns:
            None where nothing was written: the lease is lost, or the attempt was ended on purpose.
        """
        if window.state == "running" and not self.by_hand:  # nobody has the lease: whoever judged it was killed
            if window.attempts + 1 >= MAX_ATTEMPTS:
                return self._failed(window, spec, KILLED, False, keeper)
            window = replace(window, attempts=window.attempts + 1, reason=KILLED)
        running = self.monitors.update(replace(window, state="running"), keeper.lease)
        if running is None:
            return None
        try:
            found = self._found(running, spec, notes)
        except ProcessEnded:
            if keeper.is_held:
                self.monitors.update(replace(running, state="pending", not_before=None), keeper.lease)
            return None
        except OnnxserveError as error:
            return self._failed(running, spec, error.message, isinstance(error, TRANSIENT_ERRORS), keeper)
        except KeyboardInterrupt:
            self.monitors.close(running, "it was ended by hand")
            raise
        except Exception as error:  # noqa: BLE001 — one window must not end the others
            _log.exception("%s", window_summary(running))
            return self._failed(running, spec, f"{type(error).__name__}: {error}", False, keeper)
        written = self.monitors.update(found, keeper.lease) if keeper.is_held else None
        if written is not None:
            self.say(window_summary(written))
        return written

    def _found(self, window: MonitorWindow, spec: MonitorSpec, notes: Sequence[str]) -> MonitorWindow:
        endpoint = self.deployments.store.endpoint(window.endpoint)
        log = endpoint_log(self.deployments.settings, endpoint)
        (digest,) = files_digests(log, [window], spec)
        if not digest:
            reason = "; ".join([NO_ROWS, *notes])
            return replace(window, state="judged", not_before=None, log_digest="", verdict=_NOT_JUDGED, reason=reason)
        answer = self.judge(window_request(window, spec, self.deployments.settings, endpoint, notes))
        if not self.by_hand:
            self._tell(window, spec, answer)
        return as_judged(replace(window, log_digest=digest), answer, notes)

    def _tell(self, window: MonitorWindow, spec: MonitorSpec, answer: LoggedResult) -> None:
        """Tells of the monitor's newest window: what an older one is found to be later changes nothing any more.

        Only windows that the schedule has come to count: a clock that was wrong may have had it judge such that lie
        ahead.
        """
        store, settings = self.deployments.store, self.deployments.settings
        endpoint = store.endpoint(window.endpoint)
        if endpoint is None or window.monitor not in endpoint.spec.monitors:
            return
        length, nothing = window.end - window.start, timedelta()
        until = max(self.monitors.state(window.endpoint, window.monitor).made_up_to or window.end, window.end)
        judged = self.monitors.windows(
            window.endpoint, window.monitor, states=("judged",), by_hand=False, limit=_LOOKED_BACK
        )
        earlier = [
            one
            for one in judged
            if one.end - one.start == length and (one.start - window.start) % length == nothing and one.end <= until
        ]
        if any(one.start > window.start for one in earlier):
            return
        in_a_row = consecutive_alarms([*earlier, replace(window, verdict=answer.judgement.state)])
        self.monitors.remember(window.endpoint, window.monitor, consecutive=in_a_row)
        if answer.judgement.is_alarm and in_a_row < spec.consecutive:
            self.say(f"{window_summary(window)}: {in_a_row} of {spec.consecutive} windows in a row that make an alarm")
            return
        try:
            record_result(store, settings, answer.judgement, answer.run.url, spec)
            retrain_on_alarm(self.deployments, answer.judgement, answer.run, spec)
        except TRANSIENT_ERRORS:
            raise  # to be told again with the next attempt
        except Exception:  # noqa: BLE001 — the window is judged, whatever keeps its verdict from being followed
            _log.exception("%s: what follows from the verdict has failed", window_summary(window))

    def _failed(
        self, window: MonitorWindow, spec: MonitorSpec, reason: str, is_passing: bool, keeper: LeaseKeeper
    ) -> MonitorWindow | None:
        now = self.deployments.store.now()
        attempts = window.attempts + 1
        may_pass = is_passing and now - window.created_at < MAX_OUTAGE
        is_given_up = self.by_hand or (attempts >= MAX_ATTEMPTS and not may_pass)
        failed = replace(
            window,
            state="failed" if is_given_up else "pending",
            attempts=attempts,
            reason=reason,
            not_before=None if is_given_up else now + backoff(attempts),
        )
        if not keeper.is_held:
            return None
        if not self.by_hand and (is_given_up or attempts == MAX_ATTEMPTS):
            record_failure(self.deployments.store, self.deployments.settings, window.endpoint, window.monitor, reason)
        written = self.monitors.update(failed, keeper.lease)
        if written is not None:
            self.say(window_summary(written))
        return written


def consecutive_alarms(windows: Sequence[MonitorWindow]) -> int:
    """Return how many of the newest windows are alarms, each by its newest revision; undecided ones are passed over."""
    newest = {(one.start): one.verdict for one in sorted(windows, key=lambda one: (one.start, one.revision))}
    count = 0
    for verdict in reversed(newest.values()):
        if verdict in UNDECIDED:
            continue
        if verdict not in ALARMS:
            break
        count += 1
    return count


def unsaved_window(endpoint: str, monitor: str, window: Window, now: datetime) -> MonitorWindow:
    """A window that is not in the store: what is found of it stands in MLflow alone."""
    return MonitorWindow(0, endpoint, monitor, window.start, window.end, 0, True, "pending", now, now)


def as_judged(window: MonitorWindow, answer: LoggedResult, notes: Sequence[str]) -> MonitorWindow:
    """The window with what was found in it."""
    judgement = answer.judgement
    return replace(
        window,
        state="judged",
        not_before=None,
        verdict=judgement.state,
        reason="; ".join([judgement.reason, *notes]),
        rows=judgement.rows,
        log_rows=answer.log_rows,
        run_id=answer.run.run_id,
        run_url=answer.run.url,
        figures=dict(judgement.figures),
    )


def window_summary(window: MonitorWindow) -> str:
    """Where a window is, in one line."""
    revision = f" revision {window.revision}" if window.revision > 1 else ""
    name = f"{window.endpoint}: monitor {window.monitor} {Window(window.start, window.end)}{revision}"
    if window.state == "judged":
        run = window.run_url or (f"run {window.run_id}" if window.run_id else "")
        return f"{name}: {window.verdict}{f'; {run}' if run else f': {window.reason}'}"
    if window.state == "failed":
        return f"{name}: given up after {window.attempts} attempts: {window.reason}"
    if window.state == "pending" and window.reason:
        return f"{name}: attempt {window.attempts} has failed, tries again: {window.reason}"
    return name


TROUBLE = "cannot be run"
"""How a note begins that says what keeps a monitor from being run."""
LATE_TROUBLE = "cannot look for what came late"
"""How one begins that says what keeps rows and labels from being looked for that came after their window was judged."""
NothingJudged = Literal["nothing due", "waits for rows"]


@dataclass(frozen=True)
class WindowRunner:
    """Judges what is due.

    Attributes:
        count / count_labels: rows of a window that are in the log, and of each of several those with a label.
        most_made_up: of windows that nobody looked at in time, the newest so many are judged.
    """

    attempts: Attempts
    count: Callable[[WindowRequest], int]
    most_made_up: int = MAX_CATCH_UP
    count_labels: Callable[[Sequence[WindowRequest]], list[int]] = count_labels

    @property
    def monitors(self) -> Monitors:
        return self.attempts.monitors

    def take(self, name: str, monitor: str, keeper: LeaseKeeper) -> MonitorWindow | NothingJudged | None:
        """Judges one window of the monitor, as everything stands now.

        Returns:
            The window as it stands afterwards, or why none was judged; None: as `Attempts.take`.

        Raises:
            InvalidConfig: the monitor's schedule cannot be read.
            OnnxserveError: the log cannot be read.
        """
        store = self.attempts.deployments.store
        now = store.now()  # before the spec: one that was changed since must not cut windows that are due only now
        endpoint, state = store.endpoint(name), self.monitors.state(name, monitor)
        if endpoint is None or monitor not in endpoint.spec.monitors or state.paused:
            return "nothing due"
        spec = endpoint.spec.monitors[monitor]
        written = self.monitors.windows(name, monitor, states=("pending", "running"), by_hand=False)
        ready = self._readiness(name, now)
        window = oldest_pending(written, now) if written else self._begin(endpoint, monitor, spec, state, ready, now)
        if state.note.startswith(TROUBLE) and self.monitors.state(name, monitor).note == state.note:
            self.monitors.remember(name, monitor, note="")  # it is over
        if window is None:
            return "nothing due"
        if isinstance(window, str):
            return window
        return self.attempts.take(window, spec, keeper, ready.notes)

    def look_for_late(self, name: str, monitor: str) -> list[MonitorWindow]:
        """Writes down further revisions of windows that rows or labels came for since they were judged."""
        deployments = self.attempts.deployments
        now, endpoint = deployments.store.now(), deployments.store.endpoint(name)
        if endpoint is None or monitor not in endpoint.spec.monitors:
            return []
        spec, settings = endpoint.spec.monitors[monitor], deployments.settings

        def asked(window: MonitorWindow) -> WindowRequest:
            return window_request(window, spec, settings, endpoint)

        counts = LogCounts(
            lambda window: self.count(asked(window)), lambda windows: self.count_labels([*map(asked, windows)])
        )
        windows = self.monitors.windows(name, monitor, since=now - revision_period(spec), by_hand=False)
        added = add_revisions(self.monitors, windows, spec, endpoint_log(settings, endpoint), counts, now)
        for window, what in added:
            self.attempts.say(f"{name}: monitor {monitor}: {what} came after {window.start:%FT%H:%M} was judged")
        return [window for window, _ in added]

    def _begin(
        self, endpoint: Endpoint, monitor: str, spec: MonitorSpec, state: MonitorState, ready: Readiness, now: datetime
    ) -> MonitorWindow | NothingJudged:
        """Writes down the next window that is due and complete; passes over what was judged under another clock."""
        while True:
            found = next_due_window(endpoint, monitor, spec, state, now, self.most_made_up)
            if found is None:
                return "nothing due"
            if not ready.covers(found.window.end):
                return "waits for rows"
            note = _left_out(endpoint.name, monitor, found)
            if note:
                self.attempts.say(f"{endpoint.name}: monitor {monitor}: {note}")
            elif not state.note.startswith(TROUBLE):
                note = state.note
            window = self._written(endpoint.name, monitor, found.window)
            self.monitors.remember(endpoint.name, monitor, made_up_to=found.window.end, note=note)
            if window.state in ("pending", "running"):
                return window
            state = self.monitors.state(endpoint.name, monitor)

    def _written(self, endpoint: str, monitor: str, window: Window) -> MonitorWindow:
        """The window as it is written down; a further revision where another one stands there that begins with it."""
        found = self.monitors.windows(endpoint, monitor, since=window.start, by_hand=False)
        same = [one for one in found if (one.start, one.end) == (window.start, window.end)]
        if same:
            return same[-1]
        revision = self.monitors.next_revision(endpoint, monitor, window.start)
        return self.monitors.add(endpoint, monitor, window.start, window.end, revision)

    def _readiness(self, endpoint: str, now: datetime) -> Readiness:
        try:
            marks = read_watermarks(locate_log(self.attempts.deployments.settings.inference_log))
        except OSError as error:
            raise OnnxserveError(f"the inference log cannot be read: {' '.join(str(error).split())}") from None
        return readiness(marks, endpoint, now)


def _left_out(endpoint: str, monitor: str, found: DueWindow) -> str:
    if not found.left_out or found.left_out_from is None:
        return ""
    begin, end = f"{found.left_out_from:%FT%H:%M}", f"{found.window.start:%FT%H:%M}"
    return (
        f"{found.left_out:,} windows from {begin} to {end} are left out, for no controller ran and only the newest are "
        f"made up: onnxserve monitor backfill {endpoint} {monitor} --from {begin} --to {end}"
    )
