"""The required metrics, or the complaints, of labelled windows over time: a lasting
shift for the worse is a finding.
"""

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import numpy as np

from mlflow_deploy_plugin.core.spec.monitors import MONITOR_METRICS
from mlflow_deploy_plugin.core.spec.types import EPOCH, length_of
from mlflow_deploy_plugin.serve.runtime.feeds import Array
from mlflow_deploy_plugin.watch.result import Finding, WindowRequest
from mlflow_deploy_plugin.watch.sequential.budget import (
    FEWEST_WINDOWS,
    LASTING_SHARE,
    season_windows,
)
from mlflow_deploy_plugin.watch.sequential.detector import (
    Shift,
    Tracking,
    Windows,
    limit_for,
    track,
)
from mlflow_deploy_plugin.watch.sequential.evidence import (
    Evidence,
    JudgedWindow,
    Levels,
    SeriesKey,
)

COMPLAINTS = "complaints per 1,000 rows"
_METRIC = "metric"
_ROWS = SeriesKey("", "rows")
"""The number of rows that the metrics of a window are measured on."""
_MOST_WINDOWS = 90
_FLOOR = 0.005
"""The smallest standard deviation of a metric, as a share of its usual value."""
_SMALLEST = 1e-9


def metric_levels(values: Mapping[str, float], names: Sequence[str], rows: int) -> Levels:
    """Return the levels of a window whose values are measured on this number of rows:
    the known values (not NaN) of these metrics.
    """
    known = [name for name in names if math.isfinite(values.get(name, math.nan))]
    levels = {SeriesKey(name, _METRIC): values[name] for name in known}
    return {**levels, _ROWS: float(rows)} if levels else {}


def follow_metrics(request: WindowRequest, levels: Levels) -> tuple[Evidence, list[Finding]]:
    """Return the evidence of a window with these levels, and a finding for each metric
    with an open shift for the worse.

    Without a budget, or with fewer than 20 earlier windows that have the same metrics,
    there is no finding.
    """
    evidence = Evidence(f"labels: {request.spec.labels}", levels)
    past = [
        window
        for window in request.past
        if window.start < request.window.start
        and window.evidence.basis == evidence.basis
        and window.evidence.levels.keys() >= levels.keys()
    ]
    is_followed = request.follows_levels and levels and len(past) >= FEWEST_WINDOWS
    if not request.false_per_year or not is_followed:
        return evidence, []
    judged = JudgedWindow(request.window.start, "", evidence)
    course = _follow(request, [*past, judged], request.false_per_year)
    worse = [shift for shift in course.tracking.shifts if shift.sign > 0]
    since = {
        SeriesKey(course.names[shift.series], _METRIC): course.starts[shift.onset].isoformat()
        for shift in worse
    }
    findings = [course.finding(shift, request.window.length) for shift in worse]
    return replace(evidence, shifts=since), findings


@dataclass(frozen=True, eq=False)
class _Course:
    """The metrics of all windows, [N, m], and the shifts that the detector has found.
    The detector's figures increase if a metric becomes worse.
    """

    names: Sequence[str]
    starts: Sequence[datetime]
    values: Array
    reference: int
    tracking: Tracking

    def finding(self, shift: Shift, length: timedelta) -> Finding:
        """Return the finding about a shift: its mean size since it began, in standard
        deviations, and the interval in which it began.
        """
        name = self.names[shift.series]
        values = self.values[:, shift.series]
        baseline = self.tracking.baseline
        levels = self.tracking.levels[shift.onset :, shift.series]
        size = levels.mean() - baseline.mean[shift.series]
        sizes = _worse_sign(name) * size / baseline.deviation[shift.series]
        before = values[: self.reference].mean()
        now = values[shift.onset :].mean()
        direction = "higher" if now > before else "lower"
        start = self.starts[shift.onset]
        return Finding(
            subject=name,
            check="shift",
            state="drift",
            reason=(
                f"{sizes:+.1f} standard deviations of the earlier windows, on average since then"
            ),
            value=float(sizes),
            change=f"{before:.4g} → {now:.4g}, {direction}",
            since=start.isoformat(),
            since_end=(start + length).isoformat(),
            in_a_row=len(levels),
            since_range=(
                self.starts[shift.earliest - 1].isoformat(),
                (self.starts[shift.latest] + length).isoformat(),
            ),
            unit="SD",
        )


def _worse_sign(name: str) -> int:
    """Return the sign of a change for the worse: 1 for losses and complaints."""
    metric = MONITOR_METRICS["performance"].get(name)
    return -1 if metric is not None and metric.sign == ">=" else 1


def _follow(
    request: WindowRequest,
    windows: Sequence[JudgedWindow],
    false_per_year: float,
) -> _Course:
    """Follow the windows, the last of which is the judged window."""
    spec = request.spec
    names = [key.column for key in windows[-1].evidence.levels if key != _ROWS]
    starts = [window.start for window in windows]
    keys = [SeriesKey(name, _METRIC) for name in names]
    levels = [window.evidence.levels for window in windows]
    values = np.array([[of_window[key] for key in keys] for of_window in levels])
    rows = np.array([of_window[_ROWS] for of_window in levels])
    first = _reference_size(windows)
    numbers = np.array([(start - EPOCH) // length_of(spec.every) for start in starts])
    season = season_windows(spec, first)
    usual = values[:first].mean(axis=0)
    usual_rows = np.median(rows[:first])
    # The deviation of a metric depends on the number of rows, so deviations in windows
    # with few rows are reduced.
    weights = np.sqrt(np.minimum(rows / usual_rows, 1))[:, None]
    signs = np.array([_worse_sign(name) for name in names])
    one_complaint = [1_000 / usual_rows if name == COMPLAINTS else _SMALLEST for name in names]
    accepted = [request.baseline.get(name) for name in names]
    followed = Windows(
        values=signs * (usual + weights * (values - usual)),
        reference=first,
        phases=numbers % season,
        season=season,
        gaps=np.diff(numbers, prepend=numbers[0] - 1),
        floors=np.maximum(_FLOOR * np.abs(usual), one_complaint),
        restarts=np.array(
            [bisect_left(starts, since) if since else len(starts) for since in accepted]
        ),
    )
    rate = LASTING_SHARE * false_per_year / spec.windows_per_year
    return _Course(names, starts, values, first, track(followed, limit_for(followed, rate)))


def _reference_size(windows: Sequence[JudgedWindow]) -> int:
    """Return the number of windows in the reference, 20 to 90: up to half of the
    earlier windows, and only windows before the first shift that was found. Otherwise a
    shift would become usual.
    """
    shifts = [since for window in windows for since in window.evidence.shifts.values()]
    size = (len(windows) - 1) // 2
    if shifts:
        first = datetime.fromisoformat(min(shifts))
        size = min(size, sum(window.start < first for window in windows))
    return min(max(size, FEWEST_WINDOWS), _MOST_WINDOWS)
