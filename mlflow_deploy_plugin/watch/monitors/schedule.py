"""The schedule of a monitor: the next window, the time of its judgement, and the
completeness of its rows.

A window is due `grace` (for a monitor of labels: plus `labels_within`) after its end.
If the monitor has a schedule, the window is due at the schedule's first time after that
moment. A due window remains due, so a controller can catch up on missed windows. All
functions depend only on times, the spec and the contents of the store.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Literal

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.processes.durable_work import MAX_BACKOFF, next_fire
from mlflow_deploy_plugin.core.spec.monitors import MonitorSpec
from mlflow_deploy_plugin.core.spec.types import duration_seconds, length_of
from mlflow_deploy_plugin.core.store.monitor_tables import Monitors, MonitorState, MonitorWindow
from mlflow_deploy_plugin.core.store.store import Endpoint, Store
from mlflow_deploy_plugin.serve.inference_log.windows import Window, microseconds, window_at

if TYPE_CHECKING:
    # At run time, this would import Arrow.
    from mlflow_deploy_plugin.serve.inference_log.stats import Watermark

MAX_CATCH_UP = 100
"""The maximum number of missed windows that a controller judges. A user may request
more windows (`backfill`).
"""
_LOOKED_AT = 100
SILENT_AFTER = timedelta(hours=1)
_MAX_JITTER = timedelta(seconds=30)


@dataclass(frozen=True)
class DueWindow:
    """The oldest window that is due and not yet in the store.

    Attributes:
        left_out: the number of earlier windows that are skipped because of the limit.
        oldest: the start of the first skipped window.
    """

    window: Window
    left_out: int
    oldest: datetime


def next_due_window(
    endpoint: Endpoint,
    state: MonitorState,
    now: datetime,
    max_catch_up: int = MAX_CATCH_UP,
) -> DueWindow | None:
    """Return the next due window; None if no window is due. Skip all due windows except
    the newest `max_catch_up`.

    The first window of a monitor contains the endpoint's creation. Raises InvalidConfig
    if the schedule cannot be read.
    """
    spec = endpoint.spec.monitors[state.monitor]
    starts = windows_between(spec, _first_unstored_start(endpoint, state, now), now)
    due = _count_due(endpoint, state, starts, now)
    if due == 0:
        return None
    left_out = max(0, due - max_catch_up)
    return DueWindow(
        window=window_at(starts[left_out], spec.every),
        left_out=left_out,
        oldest=window_at(starts[0], spec.every).start,
    )


def is_ahead(endpoint: Endpoint, state: MonitorState, now: datetime) -> bool:
    """Return True if a wrong clock has stored a time after `now`. The monitor continues
    from the current window.
    """
    return (state.made_up_to or endpoint.created_at) > now


def next_due_time(endpoint: Endpoint, state: MonitorState, now: datetime) -> datetime:
    """Return the time at which the next window may be judged, which may be past. Raises
    InvalidConfig if the schedule cannot be read.
    """
    spec = endpoint.spec.monitors[state.monitor]
    begin = _first_unstored_start(endpoint, state, now)
    starts = windows_between(
        spec,
        begin,
        begin + 2 * length_of(spec.every),
    )
    return _due_time(endpoint, state.monitor, starts[0])


def oldest_unjudged_start(endpoint: Endpoint, state: MonitorState, now: datetime) -> datetime:
    """Return the start of the oldest window that is not yet stored and will not be
    skipped. Raises InvalidConfig if the schedule cannot be read.
    """
    spec = endpoint.spec.monitors[state.monitor]
    begin = _first_unstored_start(endpoint, state, now)
    starts = windows_between(spec, begin, now)
    if not starts:
        return begin
    # At least the first window will be due.
    until = max(now, _due_time(endpoint, state.monitor, starts[0]))
    left_out = max(0, _count_due(endpoint, state, starts, until) - MAX_CATCH_UP)
    return window_at(starts[left_out], spec.every).start


def oldest_pending(windows: Sequence[MonitorWindow], now: datetime) -> MonitorWindow | None:
    """Return the oldest unjudged window. Windows are judged in order: if this window
    must still wait, return None.

    A `not_before` that is further ahead than the longest pause was set by a wrong clock
    and is ignored.
    """
    if not windows:
        return None
    oldest = min(windows, key=lambda window: (window.start, window.revision))
    is_waiting = oldest.not_before is not None and now < oldest.not_before <= now + MAX_BACKOFF
    return None if is_waiting else oldest


def due_at(endpoint: str, monitor: str, spec: MonitorSpec, end: datetime) -> datetime:
    """Return the time at which a window may be judged. Raises InvalidConfig if the
    schedule is not valid.
    """
    ready = end + length_of(spec.grace)
    if spec.kind == "performance" and spec.labels_within is not None:
        ready += length_of(spec.labels_within)
    if spec.schedule is not None:
        ready = next_fire(spec.schedule, spec.time_zone, ready - timedelta(microseconds=1))
    return ready + jitter(endpoint, monitor, spec)


def jitter(endpoint: str, monitor: str, spec: MonitorSpec) -> timedelta:
    """Return the monitor's fixed delay, which spreads the work of monitors: at most 30
    s and 1/100 of the window.
    """
    most = min(_MAX_JITTER, length_of(spec.every) / 100)
    number = int.from_bytes(hashlib.sha256(f"{endpoint}\n{monitor}".encode()).digest()[:4])
    return most * (number / 2**32)


def windows_between(spec: MonitorSpec, begin: datetime, end: datetime) -> range:
    """Return the starts, in microseconds since 1970, of the monitor's windows that are
    completely in [begin, end).
    """
    length = duration_seconds(spec.every) * 1_000_000
    first = -(-microseconds(begin) // length) * length
    return range(first, microseconds(end) - length + 1, length)


@dataclass(frozen=True)
class Readiness:
    """The completeness of an endpoint's log according to its agents' watermarks.

    Attributes:
        complete_until: the time before which every row is in the log; None if there is
            no agent to wait for.
        notes: for each ignored agent, the reason.
    """

    complete_until: datetime | None
    notes: tuple[str, ...] = ()

    def covers(self, time: datetime) -> bool:
        return self.complete_until is None or self.complete_until >= time


def readiness(
    marks: "Sequence[Watermark]",
    endpoint: str,
    now: datetime,
    silent_after: timedelta = SILENT_AFTER,
) -> Readiness:
    """Return the completeness of the log according to the agents that may still ship
    rows.

    An agent is ignored if it has ended, has been silent for longer than `silent_after`
    (a source is never ignored for this), or has a clock that is an hour or more ahead.
    """
    waited_for: list[datetime] = []
    notes = []
    for mark in marks:
        if endpoint not in mark.endpoints or mark.ended:
            continue
        if now - mark.written_at > silent_after and not mark.is_of_source:
            notes.append(
                f"agent {mark.agent} has been silent since {mark.written_at:%Y-%m-%d %H:%M:%S} "
                "UTC: the window does not wait for its rows",
            )
        elif mark.written_at - now > SILENT_AFTER:
            notes.append(
                f"the clock of agent {mark.agent} is an hour or more ahead: its rows are not "
                "waited for",
            )
        else:
            waited_for.append(mark.complete_until)
    return Readiness(min(waited_for, default=None), tuple(notes))


def _first_unstored_start(endpoint: Endpoint, state: MonitorState, now: datetime) -> datetime:
    """Return the start of the first window that is not stored, at most the current
    window's start: a wrong clock may have stored a later time.
    """
    every = endpoint.spec.monitors[state.monitor].every
    begin = state.made_up_to or window_at(microseconds(endpoint.created_at), every).start
    return min(begin, window_at(microseconds(now), every).start)


def _count_due(endpoint: Endpoint, state: MonitorState, starts: range, now: datetime) -> int:
    return bisect_right(
        starts,
        now,
        key=lambda start: _due_time(endpoint, state.monitor, start),
    )


def _due_time(endpoint: Endpoint, monitor: str, start_us: int) -> datetime:
    """Return the time at which the window that begins at `start_us` may be judged."""
    spec = endpoint.spec.monitors[monitor]
    return due_at(endpoint.name, monitor, spec, window_at(start_us, spec.every).end)


MonitorStatus = Literal["waiting", "judging", "failing", "paused", "broken"]


@dataclass(frozen=True)
class MonitorOverview:
    """The state of a monitor for users.

    Attributes:
        status: `failing` if the last attempt failed and will be retried; `broken` if
            the schedule cannot be read.
        last: the newest judged window, by the schedule or by hand.
        open: the scheduled window that is being judged or retried.
        given_up: the number of scheduled windows that have permanently failed, among
            the newest 100 windows.
        next_due: the time at which the next window is due; None if unknown or if the
            monitor is paused.
        false_per_year: the endpoint's budget of alarms, which its monitors share; None
            without a budget.
    """

    endpoint: str
    monitor: str
    spec: MonitorSpec
    status: MonitorStatus
    state: MonitorState
    last: MonitorWindow | None
    open: MonitorWindow | None
    given_up: int
    next_due: datetime | None
    why: str
    false_per_year: float | None = None


def overviews(
    store: Store,
    endpoint: str | None = None,
    marks: "Sequence[Watermark]" = (),
) -> list[MonitorOverview]:
    """Return the monitors (of one endpoint, if set) by name. `marks` are the log's
    watermarks. Raises NotFound if the endpoint does not exist.
    """
    if endpoint is None:
        endpoints = store.endpoints()
    else:
        endpoints = [store.require_endpoint(endpoint)]
    monitors = Monitors(store)
    stored = {(state.endpoint, state.monitor): state for state in monitors.states(endpoint)}
    result = []
    for monitored in endpoints:
        for name in sorted(monitored.spec.monitors):
            state = stored.get((monitored.name, name)) or MonitorState(monitored.name, name)
            # Only the last judged and the open window are read completely.
            newest = monitors.newest(monitored.name, name, _LOOKED_AT)
            scheduled = [window for window in newest if not window.by_hand]
            last_id = next(
                (window.id for window in reversed(newest) if window.state == "judged"),
                0,
            )
            open_id = next(
                (window.id for window in scheduled if window.state in ("pending", "running")),
                0,
            )
            windows = monitors.windows_by_id([last_id, open_id])
            status, due, why = _status(
                monitored,
                state,
                windows.get(open_id),
                marks,
                store.now(),
            )
            result.append(
                MonitorOverview(
                    endpoint=monitored.name,
                    monitor=name,
                    spec=monitored.spec.monitors[name],
                    status=status,
                    state=state,
                    last=windows.get(last_id),
                    open=windows.get(open_id),
                    given_up=sum(window.state == "failed" for window in scheduled),
                    next_due=due,
                    why=why,
                    false_per_year=monitored.spec.alarms.false_per_year,
                )
            )
    return result


def _status(
    endpoint: Endpoint,
    state: MonitorState,
    open: MonitorWindow | None,
    marks: "Sequence[Watermark]",
    now: datetime,
) -> tuple[MonitorStatus, datetime | None, str]:
    """Return the status, the time at which the next window is due (None if unknown or
    paused), and the explanation (may be empty). `open` is the window that is being
    judged or retried.
    """
    if state.paused:
        return "paused", None, f"by {state.paused_by}"
    is_running = open is not None and open.state == "running"
    if open is not None and open.attempts and not is_running:
        return "failing", open.not_before, f"attempt {open.attempts}: {open.reason}"
    status: MonitorStatus = "judging" if is_running else "waiting"
    due = None
    why = state.note
    try:
        due = next_due_time(endpoint, state, now)
        due_window = next_due_window(endpoint, state, now)
        if due_window is not None:
            ready = readiness(marks, endpoint.name, now)
            if not ready.covers(due_window.window.end):
                until = f"{ready.complete_until:%F %T}"
                why = f"waiting for rows: the log is complete until {until} UTC"
    except InvalidConfig as error:
        why = error.message
        if not is_running:
            status = "broken"
    return status, due, why
