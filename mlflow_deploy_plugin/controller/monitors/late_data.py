"""Finds rows and labels that came after their window was judged: the window gets a further revision.

Late rows are looked for if the files of the window's hours have changed, for a day after the window's end. A monitor of
kind performance also looks for late labels if the files of labels have changed, for a week after its labels should have
been in. Files also change without new rows, when small ones are merged; so rows and labels are counted.
"""

from collections.abc import Sequence
from datetime import timedelta
from typing import Literal

from mlflow_deploy_plugin.controller.monitors.evaluation import (
    Evaluator,
    digest,
    endpoint_log,
    files_digest,
    window_request,
)
from mlflow_deploy_plugin.deployments import Deployments
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
    deployments: Deployments, evaluator: Evaluator, name: str, monitor: str
) -> list[tuple[MonitorWindow, LateData]]:
    """Add a further revision of each window that has more rows, or materially more labels, than when it was judged.

    Returns:
        The revisions, which are to be judged, and what came late.
    """
    store, settings, monitors = deployments.store, deployments.settings, Monitors(deployments.store)
    now, endpoint = store.now(), store.endpoint(name)
    if endpoint is None or monitor not in endpoint.spec.monitors:
        return []
    spec = endpoint.spec.monitors[monitor]
    windows = monitors.windows(name, monitor, since=now - revision_period(spec), by_hand=False)
    looked_at = [
        one
        for one in {(window.start, window.end): window for window in windows}.values()  # the newest revisions
        if one.state == "judged" and one.revision < MAX_REVISIONS and one.end <= now <= one.end + revision_period(spec)
    ]
    if spec.kind == "performance":
        looked_at = looked_at[-_MOST_LABELLED:]
    digests = files_digests(endpoint_log(settings, endpoint), looked_at, spec)
    changed = {
        one.id: (one, new, window_request(one, spec, settings, endpoint))
        for one, new in zip(looked_at, digests, strict=True)
        if new != one.log_digest
    }
    late: dict[int, LateData] = {
        window.id: "rows"
        for window, _, request in changed.values()
        if now <= window.end + _ROWS_LOOKED_FOR and evaluator.count_rows(request) > window.log_rows
    }
    labelled = [one for one, *_ in changed.values() if one.id not in late and "labelled_rows" in one.figures]
    labels = evaluator.count_labels([changed[one.id][2] for one in labelled]) if labelled else []
    late |= {
        window.id: "labels" for window, count in zip(labelled, labels, strict=True) if is_material(count, window, spec)
    }
    for window, new, _ in changed.values():
        if window.id not in late:
            monitors.set_log_digest(window, new)
    return [
        (monitors.add(name, monitor, one.start, one.end), late[one.id])
        for one, *_ in changed.values()
        if one.id in late
    ]


def is_material(labels: int, window: MonitorWindow, spec: MonitorSpec) -> bool:
    """Return True if so many labels say more than those that the window was judged on.

    Either there are enough of them now and were not before, or the new ones are a twentieth of the judged rows.
    """
    before = int(window.figures["labelled_rows"])
    if before < spec.min_rows:
        return labels >= spec.min_rows
    looked_at = before / float(window.figures["labelled_share"])  # of many columns fewer rows are looked at than it has
    return labels - before >= max(1, _MATERIAL_SHARE * looked_at)
