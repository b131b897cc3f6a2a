"""The state of a store's monitors, for people and programs."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from mlflow_deploy_plugin.controller.monitors.schedule import Readiness, next_due_time, next_due_window, readiness
from mlflow_deploy_plugin.errors import InvalidConfig
from mlflow_deploy_plugin.inference_log import Watermark
from mlflow_deploy_plugin.spec import MonitorSpec
from mlflow_deploy_plugin.store import Endpoint, Monitors, MonitorState, MonitorWindow, Store

MonitorStatus = Literal["waiting", "judging", "failing", "paused", "broken"]


@dataclass(frozen=True)
class MonitorOverview:
    """One monitor.

    Attributes:
        status: waiting for its next window; judging one; failing: its last attempt failed, and is made again;
            paused by a person; broken: its schedule cannot be read.
        last: the newest window that was judged, by the schedule or by hand.
        open: the schedule's window that is being judged, or tried again.
        given_up: scheduled windows that could not be judged, among the newest hundred.
        next_due: when the next window may be judged; None if that is unknown, or the monitor is paused.
        why: the reason for `status`, in a sentence.
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


def overviews(store: Store, endpoint: str | None = None, marks: Sequence[Watermark] = ()) -> list[MonitorOverview]:
    """Return all monitors, or those of one endpoint, by name.

    Args:
        marks: the watermarks of the log's agents; they say which window waits for its rows.

    Raises:
        NotFound: there is no such endpoint.
    """
    endpoints = store.endpoints() if endpoint is None else [store.require_endpoint(endpoint)]
    return [
        overview(store, one, name, readiness(marks, one.name, store.now()))
        for one in endpoints
        for name in sorted(one.spec.monitors)
    ]


def overview(store: Store, endpoint: Endpoint, name: str, ready: Readiness) -> MonitorOverview:
    """Return one monitor of the endpoint's spec."""
    monitors, spec = Monitors(store), endpoint.spec.monitors[name]
    state = monitors.state(endpoint.name, name)
    newest = monitors.windows(endpoint.name, name, limit=100)
    judged = [window for window in newest if window.state == "judged"]
    scheduled = [window for window in newest if not window.by_hand]
    written = [window for window in scheduled if window.state in ("pending", "running")]
    status: MonitorStatus = "waiting"
    due, why = None, state.note
    try:
        due = next_due_time(endpoint, name, spec, state, store.now())
        found = next_due_window(endpoint, name, spec, state, store.now())
        if found is not None and not ready.covers(found.window.end):
            why = f"waits for rows: the log is complete until {ready.complete_until:%F %T} UTC"
    except InvalidConfig as error:
        status, why = "broken", error.message
    if written and written[0].state == "running":
        status = "judging"
    elif written and written[0].attempts:
        status, due = "failing", written[0].not_before
        why = f"attempt {written[0].attempts}: {written[0].reason}"
    if state.paused:
        status, due, why = "paused", None, f"by {state.paused_by}"
    return MonitorOverview(
        endpoint=endpoint.name,
        monitor=name,
        spec=spec,
        status=status,
        state=state,
        last=judged[-1] if judged else None,
        open=written[0] if written else None,
        given_up=sum(window.state == "failed" for window in scheduled),
        next_due=due,
        why=why,
    )
