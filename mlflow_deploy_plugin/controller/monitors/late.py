"""Rows that came after their window was judged: the window gets a further revision, and is judged again.

Looked for where the files of the window's hours have changed, in windows that have ended within a day. Files change
without new rows too, where small ones are made into one; so the rows are counted.
"""

from collections.abc import Callable, Iterable
from datetime import datetime, timedelta

from mlflow_deploy_plugin.controller.monitors.judging import digest_of_files
from mlflow_deploy_plugin.inference_log.reader import InferenceLog
from mlflow_deploy_plugin.inference_log.windows import Window
from mlflow_deploy_plugin.store.monitors import Monitors, MonitorWindow

LOOKED_FOR = timedelta(days=1)
EVERY_SECONDS = 3600.0
MOST_REVISIONS = 24


def add_revisions(
    monitors: Monitors,
    windows: Iterable[MonitorWindow],
    log: InferenceLog,
    count: Callable[[MonitorWindow], int],
    now: datetime,
) -> list[MonitorWindow]:
    """Writes down a further revision of each window that has more rows by now than when it was judged.

    Args:
        windows: of one monitor.
        count: rows of a window that are in the log.

    Returns:
        The revisions, which are to be judged.
    """
    ordered = sorted(windows, key=lambda one: (one.start, one.revision))
    revisions = {window.start: window.revision for window in ordered}  # by hand others are asked for that begin with it
    newest = {(window.start, window.end): window for window in ordered}
    added = []
    for window in newest.values():
        if window.state != "judged" or not window.end <= now <= window.end + LOOKED_FOR:
            continue
        digest = digest_of_files(log, window.endpoint, Window(window.start, window.end))
        if digest == window.log_digest or window.revision >= MOST_REVISIONS:
            continue
        if count(window) > window.log_rows:
            revisions[window.start] += 1
            revision = revisions[window.start]
            added.append(monitors.add(window.endpoint, window.monitor, window.start, window.end, revision))
        else:
            monitors.saw_files(window, digest)
    return added
