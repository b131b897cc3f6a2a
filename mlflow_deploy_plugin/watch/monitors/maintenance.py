"""The hourly maintenance of the inference log, and new revisions of windows whose rows
or labels arrived late.

A child process compacts the log and deletes expired rows and old watermarks of agents,
because this work needs the memory for complete hours. This process deletes the expired
rows of the store.

For one day after a window's end, a change of the files of its hours starts a search for
late rows. For a monitor of kind performance, a change of label files also starts a
search for late labels, until a week after the labels are due. A search counts the rows
or labels, because compaction changes files too.
"""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Literal

from mlflow_deploy_plugin.core.errors import OnnxserveError
from mlflow_deploy_plugin.core.processes.worker import ProcessEnded, Worker
from mlflow_deploy_plugin.core.settings import Settings
from mlflow_deploy_plugin.core.spec.monitors import MonitorSpec
from mlflow_deploy_plugin.core.spec.types import bin_period, length_of
from mlflow_deploy_plugin.core.store.expiry import expire
from mlflow_deploy_plugin.core.store.holds import held_endpoints, retention_floor
from mlflow_deploy_plugin.core.store.leases import LeaseKeeper
from mlflow_deploy_plugin.core.store.monitor_tables import Monitors, MonitorWindow
from mlflow_deploy_plugin.core.store.store import Endpoint
from mlflow_deploy_plugin.serve.inference_log.labels import labels_folder
from mlflow_deploy_plugin.serve.inference_log.log_reader import InferenceLog, open_log
from mlflow_deploy_plugin.serve.inference_log.maintenance import MaintenanceResult, maintain
from mlflow_deploy_plugin.serve.inference_log.stats import GONE_AFTER, expire_watermarks
from mlflow_deploy_plugin.serve.inference_log.storage import (
    DAY,
    list_days,
    list_files,
    wrap_log_errors,
)
from mlflow_deploy_plugin.serve.inference_log.windows import Window, parse_window
from mlflow_deploy_plugin.ship.deployments.lifecycle import Deployments
from mlflow_deploy_plugin.watch.monitors import evaluation
from mlflow_deploy_plugin.watch.monitors.evaluation import (
    Evaluator,
    SelectedMonitor,
    window_request,
)
from mlflow_deploy_plugin.watch.monitors.schedule import oldest_unjudged_start
from mlflow_deploy_plugin.watch.result import WindowRequest

_log = logging.getLogger(__name__)

EVERY_SECONDS = 3600.0
"""The seconds between two rounds of maintenance, and between two searches for late rows
and labels.
"""
MAX_REVISIONS = 24
_ROWS_LOOKED_FOR = timedelta(days=1)
_LABELS_LOOKED_FOR = timedelta(days=7)
_MOST_LABELLED = 200
"""The number of newest windows whose labels are counted in one round."""
_MATERIAL_SHARE = 0.05
"""The share of a window's judged rows that must receive a label before the window is
judged again.
"""

LateData = Literal["rows", "labels"]
_LabelFile = tuple[datetime, str, int]
"""The day, the path and the size of a file of labels."""
_TIMEOUT_SECONDS = 1800.0


def revision_period(spec: MonitorSpec) -> timedelta:
    """Return the time after a window's end in which late rows or labels lead to a new
    revision.
    """
    if spec.kind != "performance":
        return _ROWS_LOOKED_FOR
    return length_of(spec.labels_within or "0s") + _LABELS_LOOKED_FOR


def files_digests(
    log: InferenceLog,
    windows: Sequence[MonitorWindow],
    spec: MonitorSpec,
) -> list[str]:
    """Return for each window a digest of the files that its judgement reads: those of
    its rows, and for a monitor of kind performance also of labels. A window without
    rows has an empty digest.
    """
    rows = [
        evaluation.files_digest(
            log,
            window.endpoint,
            Window(window.start, window.end),
            spec.kind,
        )
        for window in windows
    ]
    if spec.kind != "performance" or not any(rows):
        return rows
    # Label files count from one day before the window, because clocks may differ.
    start = min(window.start for window in windows)
    labels: list[_LabelFile] = []
    for day, folder in list_days(log.location, labels_folder(log.location, windows[0].endpoint)):
        if day + DAY > start - DAY:
            labels += [(day, file.path, file.size) for file in list_files(log.location, folder)]
    digests = []
    for rows_digest, window in zip(rows, windows, strict=True):
        recent = [file for file in labels if file[0] + DAY > window.start - DAY]
        digests.append(evaluation.digest((rows_digest, recent)) if rows_digest else "")
    return digests


def add_revisions(
    deployments: Deployments,
    evaluator: Evaluator,
    name: str,
    monitor: str,
) -> list[tuple[MonitorWindow, LateData]]:
    """Add revisions of windows with late rows or enough late labels. Return each
    revision with its kind of data. Of other windows with changed files, store the new
    digest, so that they are not searched again.
    """
    monitors = Monitors(deployments.store)
    now = deployments.store.now()
    endpoint = deployments.store.endpoint(name)
    if endpoint is None or monitor not in endpoint.spec.monitors:
        return []
    selected = SelectedMonitor(
        name, monitor, endpoint.spec.monitors[monitor], endpoint.spec.capture
    )
    since = now - revision_period(selected.spec)
    # The newest revisions of windows that may still get late rows or labels.
    revisions = {
        (row.start, row.end): row
        for row in monitors.windows(name, monitor, since=since, by_hand=False)
    }
    candidates = [
        row
        for row in revisions.values()
        if row.state == "judged" and row.revision < MAX_REVISIONS and since <= row.end <= now
    ]
    if selected.spec.kind == "performance":
        candidates = candidates[-_MOST_LABELLED:]
    changed = [
        _ChangedWindow(
            row,
            digest,
            window_request(selected, Window(row.start, row.end), deployments.settings, endpoint),
        )
        for row, digest in zip(
            candidates,
            files_digests(
                evaluation.endpoint_log(deployments.settings, endpoint), candidates, selected.spec
            ),
            strict=True,
        )
        if digest != row.log_digest
    ]
    late = _find_late_data(evaluator, changed, now)
    for item in changed:
        if item.stored.id not in late:
            monitors.set_log_digest(item.stored, item.log_digest)
    return [
        (monitors.add(name, monitor, row.start, row.end), late[row.id])
        for row in candidates
        if row.id in late
    ]


@dataclass(frozen=True)
class _ChangedWindow:
    """A judged window whose files have changed since its judgement."""

    stored: MonitorWindow
    log_digest: str
    request: WindowRequest


def _find_late_data(
    evaluator: Evaluator,
    changed: Sequence[_ChangedWindow],
    now: datetime,
) -> dict[int, LateData]:
    """Return the kind of late data of windows by id. Labels are counted only for
    windows without late rows that were judged by labels.
    """
    late: dict[int, LateData] = {}
    labelled = []
    for window in changed:
        stored = window.stored
        may_have_rows = now <= stored.end + _ROWS_LOOKED_FOR
        if may_have_rows and evaluator.count_rows(window.request) > stored.log_rows:
            late[stored.id] = "rows"
        elif "labelled_rows" in stored.figures:
            labelled.append(window)
    if not labelled:
        return late
    counts = evaluator.count_labels([window.request for window in labelled])
    for window, count in zip(labelled, counts, strict=True):
        if is_material(count, window.stored, window.request.spec):
            late[window.stored.id] = "labels"
    return late


def is_material(labels: int, window: MonitorWindow, spec: MonitorSpec) -> bool:
    """Return True if there are enough labels for the first time, or 5 % of the judged
    rows have new labels. Enough are `min_rows` labels, or a single reported label,
    because it bounds the metrics.
    """
    labels_before = int(window.figures["labelled_rows"])
    enough = 1 if spec.labels == "reported" else spec.min_rows
    if labels_before < enough:
        return labels >= enough
    # With many columns, a sample is judged.
    judged_rows = labels_before / float(window.figures["labelled_share"])
    return labels - labels_before >= max(1, _MATERIAL_SHARE * judged_rows)


@dataclass(frozen=True)
class RetainedWindows:
    """The periods of the log that an endpoint's monitors will read again, so rows of
    these periods must not be deleted.

    `rolling` contains, for each `rolling:` reference, the history before the next
    window. The bins of this reference may have been computed from much older rows.
    """

    windows: list[Window] = field(default_factory=list)
    rolling: list[Window] = field(default_factory=list)

    def of(self, log: InferenceLog, endpoint: str) -> list[Window]:
        """Return all periods to retain. Raises OnnxserveError if the log is down."""
        hours = log.hours(endpoint) if self.rolling else []
        frozen = [
            Window(*bin_period(hours[0].start, past.end, past.length))
            for past in self.rolling
            if hours
        ]
        return [*self.windows, *frozen]


def maintain_logs(
    deployments: Deployments,
    keeper: LeaseKeeper,
    over: threading.Event,
    every_seconds: float = EVERY_SECONDS,
) -> None:
    """Maintain the store and its endpoints' logs every hour until the lease is lost or
    `over` is set.
    """
    process = evaluation.judging_worker()

    def end() -> None:
        over.wait()
        process.end()

    threading.Thread(
        target=end,
        daemon=True,
    ).start()  # This thread can stop the worker, whose call may take minutes.
    try:
        while not over.wait(every_seconds) and keeper.is_held:
            _maintain_all(deployments, process, lambda: keeper.is_held and not over.is_set())
            process.end_if_idle(0)
    except ProcessEnded:
        return
    finally:
        process.end()


def _maintain_all(
    deployments: Deployments,
    process: Worker,
    goes_on: Callable[[], bool],
) -> None:
    """Maintain the logs of all endpoints, then the watermarks of agents, then the
    store. An error in one of them is logged and does not prevent the others.

    Rows of the store are deleted while `goes_on` returns True.
    """
    store = deployments.store
    settings = deployments.settings
    call = partial(process.call, seconds=_TIMEOUT_SECONDS)
    now = store.now()
    held = held_endpoints(store)
    for endpoint in store.endpoints():
        with _logged_errors(f"{endpoint.name}: the maintenance of the log failed"):
            retention = None if endpoint.name in held else endpoint.spec.capture.retention
            needed = RetainedWindows()
            if retention:
                needed = retained_windows(Monitors(store), endpoint, now)
            result = call(maintain_log, settings, endpoint.name, now, retention, needed)
            if result.expired_files:
                _log.info(
                    "%s: %s older than capture.retention %s were deleted",
                    endpoint.name,
                    f"{result.expired_files:,} files ({result.expired_bytes:,} bytes)",
                    endpoint.spec.capture.retention,
                )
    with _logged_errors("old watermarks of agents cannot be deleted"):
        agents = call(forget_agents, settings, now)
        if agents:
            _log.info(
                "the watermarks of agents that were silent for %d days were deleted: %s",
                GONE_AFTER.days,
                ", ".join(agents),
            )
    if settings.monitor_retention_days is None:
        return
    with _logged_errors("old windows and alerts cannot be deleted from the store"):
        days = max(settings.monitor_retention_days, settings.retention_floor_days or 0)
        expired = expire(store, timedelta(days=days), goes_on=goes_on)
        if expired.windows or expired.alerts:
            _log.info(
                "%s older than %d days were deleted from the store",
                f"{expired.windows:,} windows and {expired.alerts:,} alerts",
                days,
            )


@contextmanager
def _logged_errors(failure: str) -> Iterator[None]:
    try:
        yield
    except ProcessEnded:
        raise
    except OnnxserveError as error:
        _log.warning("%s; next attempt in an hour: %s", failure, error.message)


def maintain_log(
    settings: Settings,
    endpoint: str,
    now: datetime,
    retention: str | None,
    needed: RetainedWindows,
) -> MaintenanceResult:
    """Compact the endpoint's log, and delete the files that are older than `retention`,
    except those of the `needed` windows. Without a retention, no file is deleted.
    """
    keep = max(length_of(retention), retention_floor()) if retention is not None else None
    log = open_log(settings.inference_log)
    return maintain(log, endpoint, now, keep, needed.of(log, endpoint))


def forget_agents(settings: Settings, now: datetime) -> list[str]:
    """Delete the watermarks of agents that have been silent for days, such as old pods,
    and return their names.
    """
    location = open_log(settings.inference_log).location
    with wrap_log_errors(location):
        return expire_watermarks(location, now)


def retained_windows(monitors: Monitors, endpoint: Endpoint, now: datetime) -> RetainedWindows:
    """Return the periods of pinned references and of the rows that the judgements of
    unjudged windows will read.
    """
    needed = RetainedWindows()
    for name, spec in endpoint.spec.monitors.items():
        if spec.reference_kind == "window":
            needed.windows.append(parse_window(spec.reference_value))
        waiting = monitors.windows(endpoint.name, name, states=("pending", "running"))
        begin = oldest_unjudged_start(endpoint, monitors.state(endpoint.name, name), now)
        oldest = min([begin, *(window.start for window in waiting)])
        if oldest < now:
            needed.windows.append(Window(oldest - spec.history, now))
        if spec.is_rolling:
            needed.rolling.append(Window(oldest - spec.history, oldest))
    return needed
