"""Finds rows and labels that came after their window was judged: the window gets a further revision.

Late rows are looked for if the files of the window's hours have changed, for a day after the window's end. A monitor of
kind performance also looks for late labels if the files of labels have changed, for a week after its labels should have
been in. Files also change without new rows, when small ones are merged; so rows and labels are counted.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from mlflow_deploy_plugin.controller.monitors.evaluation import digest, files_digest
from mlflow_deploy_plugin.inference_log import DAY, InferenceLog, Window, labels_folder, list_days, list_files
from mlflow_deploy_plugin.spec import MonitorSpec, duration_seconds
from mlflow_deploy_plugin.store import Monitors, MonitorWindow

EVERY_SECONDS = 3600.0
MAX_REVISIONS = 24
_ROWS_LOOKED_FOR = timedelta(days=1)
_LABELS_LOOKED_FOR = timedelta(days=7)
_MOST_LABELLED = 200
"""Labels are counted in so many windows at once, the newest."""
_MATERIAL_SHARE = 0.05
"""A window is judged again if so large a share of its judged rows has got a label since."""

LateData = Literal["rows", "labels"]


@dataclass(frozen=True)
class LogCounts:
    """Functions that count what the log has now.

    Attributes:
        rows: counts the rows of a window.
        labels: counts the labelled rows of each window.
    """

    rows: Callable[[MonitorWindow], int]
    labels: Callable[[Sequence[MonitorWindow]], Sequence[int]]


def revision_period(spec: MonitorSpec) -> timedelta:
    """Return how long after its end a window may get a further revision."""
    if spec.kind != "performance":
        return _ROWS_LOOKED_FOR
    within = duration_seconds(spec.labels_within) if spec.labels_within is not None else 0
    return timedelta(seconds=within) + _LABELS_LOOKED_FOR


def files_digests(log: InferenceLog, windows: Sequence[MonitorWindow], spec: MonitorSpec) -> list[str]:
    """Return for each window a digest of the files that its judgement reads; empty if it has no rows.

    Args:
        windows: of one monitor.
    """
    rows = [files_digest(log, one.endpoint, Window(one.start, one.end)) for one in windows]
    if spec.kind != "performance" or not any(rows):
        return rows
    since = min(one.start for one in windows) - DAY  # two machines' clocks may differ
    labels = [
        (day, file.path, file.size)
        for day, folder in list_days(log.location, labels_folder(log.location, windows[0].endpoint))
        if day + DAY > since
        for file in list_files(log.location, folder)
    ]
    return [
        digest((of_rows, [file for file in labels if file[0] + DAY > window.start - DAY])) if of_rows else ""
        for of_rows, window in zip(rows, windows, strict=True)
    ]


def add_revisions(
    monitors: Monitors,
    windows: Iterable[MonitorWindow],
    spec: MonitorSpec,
    log: InferenceLog,
    counts: LogCounts,
    now: datetime,
) -> list[tuple[MonitorWindow, LateData]]:
    """Add a further revision of each window that has more rows, or materially more labels, than when it was judged.

    Args:
        windows: of one monitor's schedule.

    Returns:
        The revisions, which are to be judged, and what came late.
    """
    ordered = sorted(windows, key=lambda one: (one.start, one.revision))
    newest = {(window.start, window.end): window for window in ordered}
    looked_at = [
        one
        for one in newest.values()
        if one.state == "judged" and one.revision < MAX_REVISIONS and one.end <= now <= one.end + revision_period(spec)
    ]
    if spec.kind == "performance":
        looked_at = looked_at[-_MOST_LABELLED:]
    digests = files_digests(log, looked_at, spec)
    changed = [(one, new) for one, new in zip(looked_at, digests, strict=True) if new != one.log_digest]
    late = _late([window for window, _ in changed], spec, counts, now)
    added: list[tuple[MonitorWindow, LateData]] = []
    for window, new in changed:
        if window.id in late:
            revision = monitors.next_revision(window.endpoint, window.monitor, window.start)
            one = monitors.add(window.endpoint, window.monitor, window.start, window.end, revision)
            added.append((one, late[window.id]))
        else:
            monitors.set_log_digest(window, new)
    return added


def _late(windows: Sequence[MonitorWindow], spec: MonitorSpec, counts: LogCounts, now: datetime) -> dict[int, LateData]:
    """Return what came late, by the id of each window that is to be judged again.

    Args:
        windows: those whose files have changed.
    """
    late: dict[int, LateData] = {
        window.id: "rows"
        for window in windows
        if now <= window.end + _ROWS_LOOKED_FOR and counts.rows(window) > window.log_rows
    }
    labelled = [one for one in windows if one.id not in late and "labelled_rows" in one.figures]
    for window, labels in zip(labelled, counts.labels(labelled) if labelled else (), strict=True):
        if is_material(labels, window, spec):
            late[window.id] = "labels"
    return late


def is_material(labels: int, window: MonitorWindow, spec: MonitorSpec) -> bool:
    """Return True if so many labels say more than those that the window was judged on.

    Either there are enough of them now and were not before, or the new ones are a twentieth of the judged rows.
    """
    before = int(window.figures["labelled_rows"])
    if before < spec.min_rows:
        return labels >= spec.min_rows
    looked_at = before / float(window.figures["labelled_share"])  # of many columns fewer rows are looked at than it has
    return labels - before >= max(1, _MATERIAL_SHARE * looked_at)
