"""Runs a window of a monitor under the monitor's lease: the oldest due window is
stored, judged and closed.

An attempt has one of three results: the window is judged, will be retried, or has
permanently failed. Alerts and retrainings are started before the verdict is stored. If
the controller crashes before the verdict is stored, the next controller judges the
window again and reuses its MLflow run. An alert may therefore be sent twice, but is
never lost.
"""

import logging
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import Enum
from itertools import chain, takewhile

from mlflow_deploy_plugin.core.errors import OnnxserveError, Refused
from mlflow_deploy_plugin.core.messages import one_line
from mlflow_deploy_plugin.core.processes.durable_work import TRANSIENT_ERRORS, backoff
from mlflow_deploy_plugin.core.processes.worker import ProcessEnded
from mlflow_deploy_plugin.core.settings import Settings
from mlflow_deploy_plugin.core.spec.monitors import MonitorSpec
from mlflow_deploy_plugin.core.store.leases import LeaseKeeper
from mlflow_deploy_plugin.core.store.monitor_tables import (
    Monitors,
    MonitorState,
    MonitorWindow,
    NoteKind,
)
from mlflow_deploy_plugin.core.store.store import Endpoint
from mlflow_deploy_plugin.serve.inference_log.stats import read_watermarks
from mlflow_deploy_plugin.serve.inference_log.storage import locate_log
from mlflow_deploy_plugin.serve.inference_log.windows import Window, microseconds, window_at
from mlflow_deploy_plugin.ship.deployments.lifecycle import Deployments
from mlflow_deploy_plugin.watch.alerts.record import record_failure, record_result
from mlflow_deploy_plugin.watch.history import usual_rows
from mlflow_deploy_plugin.watch.monitors import evaluation, schedule
from mlflow_deploy_plugin.watch.monitors.evaluation import SelectedMonitor
from mlflow_deploy_plugin.watch.monitors.maintenance import add_revisions, files_digests
from mlflow_deploy_plugin.watch.monitors.schedule import Readiness
from mlflow_deploy_plugin.watch.result import OPEN, UNDECIDED, MonitorResult
from mlflow_deploy_plugin.watch.retraining.trigger import retrain_on_alarm
from mlflow_deploy_plugin.watch.sequential.evidence import Evidence

_log = logging.getLogger(__name__)

MAX_ATTEMPTS = 5
MAX_OUTAGE = timedelta(days=1)
"""The time for which a window is retried during an outage. Failures of other kinds
count as attempts.
"""
KILLED = "the process that judged the window was killed or lost the lease"

_LOOKED_BACK = 200


class Idle(Enum):
    """The reasons why no window of a monitor was judged."""

    NOTHING_DUE = "nothing due"
    WAITS_FOR_ROWS = "waits for rows"


@dataclass(frozen=True)
class Attempt:
    """A window after an attempt to judge it; `result` is None if it was not judged or
    has no rows.
    """

    window: MonitorWindow
    result: MonitorResult | None = None


@dataclass(frozen=True)
class WindowRunner:
    """Judges the windows of monitors.

    Attributes:
        say: a function that receives a line for each change.
        max_catch_up: the number of newest missed windows that are judged.
    """

    deployments: Deployments
    evaluator: evaluation.Evaluator
    say: Callable[[str], None]
    max_catch_up: int = schedule.MAX_CATCH_UP

    @property
    def monitors(self) -> Monitors:
        return Monitors(self.deployments.store)

    def run_next(
        self,
        name: str,
        monitor: str,
        keeper: LeaseKeeper,
    ) -> MonitorWindow | Idle | None:
        """Judge a window of the monitor and return it. If no window is judged, return
        why, or None if the attempt was stopped or lost its lease.

        Raises InvalidConfig if the monitor's schedule cannot be read, and
        OnnxserveError if the log cannot be read.
        """
        store = self.deployments.store
        # Read the clock before the spec, so that a changed `every` applies only to
        # later windows.
        now = store.now()
        endpoint = store.endpoint(name)
        state = self.monitors.state(name, monitor)
        if endpoint is None or monitor not in endpoint.spec.monitors or state.paused:
            return Idle.NOTHING_DUE
        spec = endpoint.spec.monitors[monitor]
        if schedule.is_ahead(endpoint, state, now):
            self.monitors.go_back(
                name,
                monitor,
                window_at(microseconds(now), spec.every).start,
            )
            state = self.monitors.state(name, monitor)
        ready = log_readiness(self.deployments.settings, name, now)
        pending = self.monitors.windows(
            endpoint.name,
            state.monitor,
            states=("pending", "running"),
            by_hand=False,
        )
        if not pending:
            window = self._add_next(endpoint, state, ready, now)
        else:
            window = schedule.oldest_pending(pending, now) or Idle.NOTHING_DUE
        # The note may have changed since the state was read.
        if (
            state.note_kind == "cannot_run"
            and self.monitors.state(name, monitor).note == state.note
        ):
            self.monitors.update_state(name, monitor, note="")
        if isinstance(window, Idle):
            return window
        selected = SelectedMonitor(name, monitor, spec, endpoint.spec.capture)
        attempt = self.judge_window(window, selected, keeper, ready.notes)
        return attempt.window if attempt is not None else None

    def judge_window(
        self,
        window: MonitorWindow,
        monitor: SelectedMonitor,
        keeper: LeaseKeeper,
        notes: Sequence[str] = (),
    ) -> Attempt | None:
        """Attempt to judge the window, and return the attempt; None if the attempt was
        stopped or lost its lease. A window by hand sends no alert and starts no
        retraining, because a user sees the result, and is not retried.
        """
        # The process that judged the window was killed.
        if window.state == "running" and not window.by_hand:
            if window.attempts + 1 >= MAX_ATTEMPTS:
                return self._fail(window, OnnxserveError(KILLED), keeper)
            window = replace(window, attempts=window.attempts + 1, reason=KILLED)
        running = self.monitors.update(replace(window, state="running"), keeper.lease)
        if running is None:
            return None
        try:
            store = self.deployments.store
            settings = self.deployments.settings
            span = Window(running.start, running.end)
            log = evaluation.endpoint_log(settings, store.endpoint(running.endpoint))
            (digest,) = files_digests(log, [running], monitor.spec)
            window = replace(running, log_digest=digest)
            has_rows = digest and evaluation.has_rows(
                log,
                window.endpoint,
                span,
                monitor.spec.kind,
            )
            request = evaluation.request_from_store(
                store,
                settings,
                monitor,
                span,
                window.revision,
                notes,
            )
            usual = usual_rows(request)
            if not has_rows and isinstance(usual, Refused):
                window = replace(
                    window,
                    state="judged",
                    not_before=None,
                    verdict="not judged",
                    reason="; ".join([usual.reason, *notes]),
                )
                judged = Attempt(window)
            else:
                # A window without rows is judged and reported only if rows are usual.
                result = self.evaluator.judge(request)
                if not window.by_hand:
                    self._report(window, monitor.spec, result)
                judged = Attempt(as_judged(window, result, notes), result)
        except ProcessEnded:
            if keeper.is_held:
                self.monitors.update(
                    replace(running, state="pending", not_before=None),
                    keeper.lease,
                )
            return None
        except OnnxserveError as error:
            return self._fail(running, error, keeper)
        except KeyboardInterrupt:
            self.monitors.close(running, "the judgement was interrupted by the user")
            raise
        except Exception as error:  # noqa: BLE001 — a failed window must not prevent the others
            _log.exception("%s", window_summary(running))
            return self._fail(running, OnnxserveError(f"{type(error).__name__}: {error}"), keeper)
        if keeper.is_held:
            return self._write(judged, keeper)
        return None

    def add_late_revisions(self, name: str, monitor: str) -> list[MonitorWindow]:
        """Store and return new revisions of judged windows with late rows or labels."""
        added = add_revisions(self.deployments, self.evaluator, name, monitor)
        for window, late_data in added:
            self.say(
                f"{name}: monitor {monitor}: {late_data} arrived after window "
                f"{window.start:%FT%H:%M} was judged",
            )
        return [window for window, _ in added]

    def _add_next(
        self,
        endpoint: Endpoint,
        state: MonitorState,
        ready: Readiness,
        now: datetime,
    ) -> MonitorWindow | Idle:
        """Store and return the next window that is due and complete. Skip windows that
        were already judged.
        """
        monitor = state.monitor
        while True:
            due = schedule.next_due_window(endpoint, state, now, self.max_catch_up)
            if due is None:
                return Idle.NOTHING_DUE
            if not ready.covers(due.window.end):
                return Idle.WAITS_FOR_ROWS
            note: str | None = None  # The stored note stays.
            note_kind: NoteKind = ""
            if due.left_out:
                note_kind = "left_out"
                begin = f"{due.oldest:%FT%H:%M}"
                end = f"{due.window.start:%FT%H:%M}"
                note = (
                    f"{due.left_out:,} windows from {begin} to {end} were skipped, because no "
                    "controller was running and only the newest windows are judged afterwards: "
                    f"onnxserve monitor backfill {endpoint.name} {monitor} --from {begin} "
                    f"--to {end}"
                )
                self.say(f"{endpoint.name}: monitor {monitor}: {note}")
            elif state.note_kind == "cannot_run":
                note = ""
            # After a change of `every`, a stored window with the same start may have a
            # different end.
            key = endpoint.name, monitor, due.window.start, due.window.end
            scheduled = [row for row in self.monitors.revisions(*key) if not row.by_hand]
            if scheduled:
                window = scheduled[-1]
            else:
                window = self.monitors.add(*key)
            self.monitors.update_state(
                endpoint.name,
                monitor,
                made_up_to=due.window.end,
                note=note,
                note_kind=note_kind,
            )
            if window.state in ("pending", "running"):
                return window
            state = self.monitors.state(endpoint.name, monitor)

    def _report(self, window: MonitorWindow, spec: MonitorSpec, result: MonitorResult) -> None:
        """Send alerts and start retrainings if this is the monitor's newest window and
        enough consecutive windows are alarms.
        """
        store = self.deployments.store
        settings = self.deployments.settings
        endpoint = store.endpoint(window.endpoint)
        if endpoint is None or window.monitor not in endpoint.spec.monitors:
            return
        key = (window.endpoint, window.monitor)
        length = window.end - window.start
        judged = self.monitors.windows(
            *key,
            states=("judged",),
            by_hand=False,
            limit=_LOOKED_BACK,
        )
        of_same_schedule = [
            row
            for row in judged
            if row.end - row.start == length and not (row.start - window.start) % length
        ]
        if any(row.start > window.start for row in of_same_schedule):
            return
        consecutive = consecutive_alarms([*of_same_schedule, as_judged(window, result, ())])
        self.monitors.update_state(*key, consecutive=consecutive if result.is_alarm else 0)
        if result.state in OPEN and consecutive < spec.consecutive:
            self.say(
                f"{window_summary(window)}: {consecutive} of {spec.consecutive} consecutive "
                "windows needed for an alarm",
            )
            return
        try:
            record_result(store, settings, result, spec)
            if result.rows:
                retrain_on_alarm(self.deployments, result, spec)
        except TRANSIENT_ERRORS:
            raise  # The window is retried, including its alerts and retrainings.
        except Exception:  # noqa: BLE001 — the verdict must be stored even if its alert or retraining fails
            _log.exception("%s: an alert or a retraining failed", window_summary(window))

    def _fail(
        self,
        window: MonitorWindow,
        error: OnnxserveError,
        keeper: LeaseKeeper,
    ) -> Attempt | None:
        """Store that an attempt failed, and return it; None if the lease is lost. The
        window is retried, unless a user runs it or it has failed too often.
        """
        now = self.deployments.store.now()
        reason = error.message
        attempts = window.attempts + 1
        is_outage = isinstance(error, TRANSIENT_ERRORS) and now - window.created_at < MAX_OUTAGE
        is_given_up = window.by_hand or (attempts >= MAX_ATTEMPTS and not is_outage)
        failed = replace(window, state="failed", attempts=attempts, reason=reason, not_before=None)
        if not is_given_up:
            failed = replace(failed, state="pending", not_before=now + backoff(attempts))
        if not keeper.is_held:
            return None
        if not window.by_hand and (is_given_up or attempts == MAX_ATTEMPTS):
            record_failure(
                self.deployments.store,
                self.deployments.settings,
                window.endpoint,
                window.monitor,
                reason,
            )
        return self._write(Attempt(failed), keeper)

    def _write(self, attempt: Attempt, keeper: LeaseKeeper) -> Attempt | None:
        """Store the attempt's window and return the attempt; None if the lease is
        lost.
        """
        written = self.monitors.update(attempt.window, keeper.lease)
        if written is None:
            return None
        self.say(window_summary(written))
        return replace(attempt, window=written)


def log_readiness(
    settings: Settings,
    endpoint: str,
    now: datetime,
    silent_after: timedelta = schedule.SILENT_AFTER,
    ignored: Container[str] = (),
) -> Readiness:
    """Return until when the endpoint's log is complete, without the `ignored` agents
    and without agents that are silent. Raises OnnxserveError if the log cannot be read.
    """
    try:
        marks = read_watermarks(locate_log(settings.inference_log))
    except OSError as error:
        raise OnnxserveError(f"the inference log cannot be read: {one_line(error)}") from None
    marks = [mark for mark in marks if mark.agent not in ignored]
    return schedule.readiness(marks, endpoint, now, silent_after)


def consecutive_alarms(windows: Sequence[MonitorWindow]) -> int:
    """Return the number of consecutive windows, up to the newest, with an alarm or a
    change of the same column or criterion.

    Windows that were stored without their alarms count by their verdict, and accepted
    alarms do not count. Use newest revisions of decided windows.
    """
    newest = {
        row.start: row
        for row in sorted(windows, key=lambda window: (window.start, window.revision))
    }
    decided = [row for row in reversed(newest.values()) if row.verdict not in UNDECIDED]
    in_a_row = takewhile(lambda row: row.outcome in OPEN, decided)
    alarms = [Evidence.from_json(row.evidence).open_alarms for row in in_a_row]
    lasting = {*chain.from_iterable(alarms)}
    count = 0
    for keys in alarms:
        if keys:
            lasting &= {*keys}
            if not lasting:
                break
        count += 1
    return count


def unsaved_window(
    result: MonitorResult,
    now: datetime,
    notes: Sequence[str],
) -> MonitorWindow:
    """Return a judged window that is not stored: its result is only in MLflow."""
    unsaved = MonitorWindow(
        id=0,
        endpoint=result.endpoint,
        monitor=result.monitor,
        start=result.window.start,
        end=result.window.end,
        revision=0,
        by_hand=True,
        state="pending",
        created_at=now,
        updated_at=now,
    )
    return as_judged(unsaved, result, notes)


def as_judged(window: MonitorWindow, result: MonitorResult, notes: Sequence[str]) -> MonitorWindow:
    """Return the window in the state "judged" with the verdict and figures of its
    result. The notes are added to the reason.
    """
    return replace(
        window,
        state="judged",
        not_before=None,
        verdict=result.state,
        reason="; ".join([result.reason, *notes]),
        rows=result.rows,
        log_rows=result.log_rows,
        run_id=result.run.run_id,
        run_url=result.run.url,
        figures=dict(result.figures),
        evidence=result.evidence.to_json(),
    )


def window_summary(window: MonitorWindow) -> str:
    """Return a line about the state of the window: its verdict with the run or the
    reason, or the failure.
    """
    revision = f" revision {window.revision}" if window.revision > 1 else ""
    name = (
        f"{window.endpoint}: monitor {window.monitor} {Window(window.start, window.end)}{revision}"
    )
    if window.state == "judged":
        verdict = f"{name}: {window.verdict}"
        if window.run_url:
            return f"{verdict}; {window.run_url}"
        if window.run_id:
            return f"{verdict}; run {window.run_id}"
        return f"{verdict}: {window.reason}"
    if window.state == "failed":
        return f"{name}: failed after {window.attempts} attempts: {window.reason}"
    if window.state == "pending" and window.reason:
        return f"{name}: attempt {window.attempts} failed and will be retried: {window.reason}"
    return name
