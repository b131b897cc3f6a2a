"""Which window of a monitor is next: what is written down and not judged, else what has become due since."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from mlflow_deploy_plugin.controller.monitors.schedule import (
    MAX_BACKOFF,
    due_at,
    window_from,
    window_of,
    windows_between,
)
from mlflow_deploy_plugin.inference_log.windows import Window
from mlflow_deploy_plugin.spec import MonitorSpec
from mlflow_deploy_plugin.store import Endpoint
from mlflow_deploy_plugin.store.monitors import MonitorState, MonitorWindow

MAX_CATCH_UP = 100
"""Windows that are made up by themselves; a person may ask for more."""


@dataclass(frozen=True)
class DueWindow:
    """The oldest window that is due and was not begun.

    Attributes:
        left_out: windows before it that are not made up.
        left_out_from: where the first of them begins.
    """

    window: Window
    left_out: int = 0
    left_out_from: datetime | None = None


def next_due_window(
    endpoint: Endpoint, monitor: str, spec: MonitorSpec, state: MonitorState, now: datetime, most: int = MAX_CATCH_UP
) -> DueWindow | None:
    """None where nothing is due; of more than `most` windows the newest.

    A monitor begins with the window that holds the endpoint's creation. Where the clock has gone back behind what was
    judged already, it goes on with the window that holds now: what was judged too early is judged again when its rows
    come (`late.py`).

    Raises:
        InvalidConfig: the schedule cannot be read.
    """
    starts = windows_between(spec, _begin(endpoint, spec, state, now), now)
    due = _count_due(endpoint, monitor, spec, starts, now)
    if due == 0:
        return None
    left_out = max(0, due - most)
    first = window_from(spec, starts[0]).start if left_out else None
    return DueWindow(window_from(spec, starts[left_out]), left_out, first)


def next_due_time(endpoint: Endpoint, monitor: str, spec: MonitorSpec, state: MonitorState, now: datetime) -> datetime:
    """When the next window may be judged; in the past where it waits already. Raises as `next_window`."""
    begin = _begin(endpoint, spec, state, now)
    first = windows_between(spec, begin, begin + timedelta(seconds=2 * window_of(spec, begin).length.total_seconds()))
    return due_at(endpoint.name, monitor, spec, window_from(spec, first[0]).end)


def oldest_unjudged_start(
    endpoint: Endpoint, monitor: str, spec: MonitorSpec, state: MonitorState, now: datetime
) -> datetime:
    """Where the oldest window begins that is not written down yet and will be, however long ago somebody looked: now,
    or when the first one is due. Raises as `next_window`."""
    begin = _begin(endpoint, spec, state, now)
    over = windows_between(spec, begin, now)
    if not over:
        return begin
    first_due = due_at(endpoint.name, monitor, spec, window_from(spec, over[0]).end)
    left_out = max(0, _count_due(endpoint, monitor, spec, over, max(now, first_due)) - MAX_CATCH_UP)
    return window_from(spec, over[left_out]).start


def oldest_pending(windows: Sequence[MonitorWindow], now: datetime) -> MonitorWindow | None:
    """Of windows that are written down and not judged the oldest, where it may be tried; those behind it wait.

    A time that lies further ahead than the longest pause comes from a clock that was wrong, and does not count.
    """
    if not windows:
        return None
    oldest = min(windows, key=lambda window: (window.start, window.revision))
    is_waiting = oldest.not_before is not None and now < oldest.not_before <= now + MAX_BACKOFF
    return None if is_waiting else oldest


def _begin(endpoint: Endpoint, spec: MonitorSpec, state: MonitorState, now: datetime) -> datetime:
    created = window_of(spec, endpoint.created_at).start
    begin = created if state.made_up_to is None else max(state.made_up_to, created)
    return min(begin, window_of(spec, now).start)


def _count_due(endpoint: Endpoint, monitor: str, spec: MonitorSpec, starts: range, now: datetime) -> int:
    """How many of the windows that begin there, ascending, are due."""
    return bisect_right(
        starts, now, key=lambda start: due_at(endpoint.name, monitor, spec, window_from(spec, start).end)
    )
