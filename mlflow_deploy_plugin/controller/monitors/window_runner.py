"""A monitor's turn, under its lease: the oldest window that is due is written down and judged."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from mlflow_deploy_plugin.controller.leadership import LeaseKeeper
from mlflow_deploy_plugin.controller.monitors.attempt import Attempts
from mlflow_deploy_plugin.controller.monitors.evaluation import endpoint_log, window_request
from mlflow_deploy_plugin.controller.monitors.labels import count_labels
from mlflow_deploy_plugin.controller.monitors.late_data import LogCounts, add_revisions, revision_period
from mlflow_deploy_plugin.controller.monitors.next_window import (
    MAX_CATCH_UP,
    DueWindow,
    next_due_window,
    oldest_pending,
)
from mlflow_deploy_plugin.controller.monitors.readiness import Readiness, readiness
from mlflow_deploy_plugin.errors import OnnxserveError
from mlflow_deploy_plugin.inference_log import locate_log
from mlflow_deploy_plugin.inference_log.watermarks import read_watermarks
from mlflow_deploy_plugin.inference_log.windows import Window
from mlflow_deploy_plugin.monitoring.question import Question
from mlflow_deploy_plugin.spec import MonitorSpec
from mlflow_deploy_plugin.store import Endpoint
from mlflow_deploy_plugin.store.monitors import Monitors, MonitorState, MonitorWindow

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
    count: Callable[[Question], int]
    most_made_up: int = MAX_CATCH_UP
    count_labels: Callable[[Sequence[Question]], list[int]] = count_labels

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

        def asked(window: MonitorWindow) -> Question:
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
