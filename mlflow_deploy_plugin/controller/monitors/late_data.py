"""What came after its window was judged: the window gets a further revision, and is judged again.

Looked for where the files of the window's hours have changed, in windows that have ended within a day; of a monitor of
kind performance also where the files of labels have, for a week after its labels should have been in. Files change
without anything new, too, where small ones are made into one; so rows and labels are counted.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from mlflow_deploy_plugin.controller.monitors.evaluation import digest, files_digest
from mlflow_deploy_plugin.inference_log.label_join import labels_folder
from mlflow_deploy_plugin.inference_log.reader import InferenceLog
from mlflow_deploy_plugin.inference_log.storage import DAY, list_days, list_files
from mlflow_deploy_plugin.inference_log.windows import Window
from mlflow_deploy_plugin.spec import MonitorSpec, duration_seconds
from mlflow_deploy_plugin.store.monitors import Monitors, MonitorWindow

EVERY_SECONDS = 3600.0
MAX_REVISIONS = 24
_ROWS_LOOKED_FOR = timedelta(days=1)
_LABELS_LOOKED_FOR = timedelta(days=7)
_MOST_LABELLED = 200
"""Windows whose labels are counted in one look, the newest."""
_MATERIAL_SHARE = 0.05
"""Of the rows of a window that are looked at: with so many more labels it is judged again."""

LateData = Literal["rows", "labels"]


@dataclass(frozen=True)
class LogCounts:
    """What counts what is in the log by now.

    Attributes:
        rows: of a window.
        labels: rows that have a label, by window.
    """

    rows: Callable[[MonitorWindow], int]
    labels: Callable[[Sequence[MonitorWindow]], Sequence[int]]


def revision_period(spec: MonitorSpec) -> timedelta:
    """How long after its end a window may get a further revision."""
    if spec.kind != "performance":
        return _ROWS_LOOKED_FOR
    within = duration_seconds(spec.labels_within) if spec.labels_within is not None else 0
    return timedelta(seconds=within) + _LABELS_LOOKED_FOR


def files_digests(log: InferenceLog, windows: Sequence[MonitorWindow], spec: MonitorSpec) -> list[str]:
    """By window what changes with the files that its judgement reads; empty where it has no rows.

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
    """Writes down a further revision of each window that has more rows, or materially more labels, by now than when it
    was judged.

    Args:
        windows: the schedule's, of one monitor.

    Returns:
        The revisions, which are to be judged, and what came.
    """
    ordered = sorted(windows, key=lambda one: (one.start, one.revision))
    newest = {(window.start, window.end): window for window in ordered}
    looked_at = [one for one in newest.values() if _may_be_judged_again(one, spec, now)]
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
            monitors.saw_files(window, new)
    return added


def _may_be_judged_again(window: MonitorWindow, spec: MonitorSpec, now: datetime) -> bool:
    return (
        window.state == "judged"
        and window.revision < MAX_REVISIONS
        and window.end <= now <= window.end + revision_period(spec)
    )


def _late(windows: Sequence[MonitorWindow], spec: MonitorSpec, counts: LogCounts, now: datetime) -> dict[int, LateData]:
    """What came, by the id of each window that is to be judged again, of those whose files have changed."""
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
    """Whether so many labels say more than those that it was judged on: there are enough of them, where there were not;
    or those that came are a twentieth of the rows that are looked at.
    """
    before = int(window.figures["labelled_rows"])
    if before < spec.min_rows:
        return labels >= spec.min_rows
    looked_at = before / float(window.figures["labelled_share"])  # of many columns fewer rows are looked at than it has
    return labels - before >= max(1, _MATERIAL_SHARE * looked_at)
