"""The required metrics, or the complaints, of labelled windows over time: a lasting
shift for the worse is a finding.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import numpy as np

from mlflow_deploy_plugin.core.spec.monitors import MONITOR_METRICS
from mlflow_deploy_plugin.core.spec.types import EPOCH
from mlflow_deploy_plugin.serve.runtime.feeds import Array
from mlflow_deploy_plugin.watch.result import Finding, WindowRequest
from mlflow_deploy_plugin.watch.sequential.budget import (
    FEWEST_WINDOWS,
    lasting_rate,
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
    SeriesKey,
)

COMPLAINTS = "complaints per 1,000 rows"
_METRIC = "metric"
_ROWS = SeriesKey("", "rows")
"""The number of rows that the metrics of a window are measured on."""
_MOST_WINDOWS = 90
_NEVER = datetime.max.replace(tzinfo=UTC)
_FLOOR = 0.005
"""The smallest standard deviation of a metric, as a share of its usual value."""
_SMALLEST = 1e-9
"""The smallest standard deviation of all metrics. For complaints, it is one complaint
in the usual number of rows.
"""


def follow_metrics(
    request: WindowRequest,
    metrics: Mapping[str, float],
    rows: int,
) -> tuple[Evidence, list[Finding]]:
    """Return the evidence of a window, whose metrics are measured on this number of
    rows, and a finding for each metric with an open shift for the worse.

    Without a budget, or with fewer than 20 earlier windows that have the same metrics,
    there is no finding.
    """
    levels = {SeriesKey(name, _METRIC): value for name, value in metrics.items()}
    evidence = Evidence(f"labels: {request.spec.labels}", {**levels, _ROWS: float(rows)})
    past = [
        window
        for window in request.past
        if window.evidence.basis == evidence.basis
        and window.evidence.levels.keys() >= levels.keys()
    ]
    is_followed = request.follows_levels and metrics and len(past) >= FEWEST_WINDOWS
    if not request.false_per_year or not is_followed:
        return evidence, []
    judged = JudgedWindow(request.window.start, "", evidence)
    course = _follow(request, [*past, judged], request.false_per_year)
    length = request.window.length
    findings = [course.finding(shift, length) for shift in course.tracking.shifts if shift.sign > 0]
    shifts = {SeriesKey(finding.subject, _METRIC): finding.since for finding in findings}
    return replace(evidence, shifts=shifts), findings


@dataclass(frozen=True, eq=False)
class _Course:
    """The metrics of all windows, [N, m], and the shifts that the detector has
    found.
    """

    names: Sequence[str]
    starts: Sequence[datetime]
    values: Array
    tracking: Tracking

    def finding(self, shift: Shift, length: timedelta) -> Finding:
        """Return the finding about a shift: its mean size since it began, in standard
        deviations, and the interval in which it began.
        """
        name = self.names[shift.series]
        baseline = self.tracking.baseline
        levels = self.tracking.levels[shift.onset :, shift.series]
        change = _worse_sign(name) * (levels.mean() - baseline.mean[shift.series])
        deviations = change / baseline.deviation[shift.series]
        now = self.values[shift.onset :, shift.series].mean()
        direction = "higher" if change > 0 else "lower"
        start = self.starts[shift.onset]
        return Finding(
            subject=name,
            check="shift",
            state="drift",
            reason=(
                f"{deviations:+.1f} standard deviations of the earlier windows, on average since "
                "then"
            ),
            value=float(deviations),
            change=f"{now - change:.4g} → {now:.4g}, {direction}",
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
    keys = [key for key in windows[-1].evidence.levels if key != _ROWS]
    names = [key.column for key in keys]
    values = np.stack([_levels(windows, key) for key in keys], axis=1)
    first = _reference_size(windows)
    followed = _detector_windows(request, windows, names, values, first)
    rate = lasting_rate(request.spec, false_per_year)
    starts = [window.start for window in windows]
    return _Course(names, starts, values, track(followed, limit_for(followed, rate)))


def _levels(windows: Sequence[JudgedWindow], key: SeriesKey) -> Array:
    """Return the level of each window, [N] float64."""
    return np.array([window.evidence.levels[key] for window in windows])


def _detector_windows(
    request: WindowRequest,
    windows: Sequence[JudgedWindow],
    names: Sequence[str],
    values: Array,
    first: int,
) -> Windows:
    """Return the windows of the detector, the first of which are the reference. Its
    figures increase if a metric becomes worse.
    """
    starts = [window.start for window in windows]
    length = request.window.length
    numbers = np.array([(start - EPOCH) // length for start in starts])
    season = season_windows(request.spec, first, length // timedelta(microseconds=1))
    usual = values[:first].mean(axis=0)
    rows = _levels(windows, _ROWS)
    usual_rows = np.median(rows[:first])
    scales = np.sqrt(usual_rows / np.minimum(rows, usual_rows))[:, None]
    smallest = [1_000 / usual_rows if name == COMPLAINTS else _SMALLEST for name in names]
    return Windows(
        values=np.array([*map(_worse_sign, names)]) * values,
        reference=first,
        phases=numbers % season,
        season=season,
        gaps=np.diff(numbers, prepend=numbers[0] - 1),
        floors=np.maximum(_FLOOR * np.abs(usual), smallest),
        restarts=np.array(
            [bisect_left(starts, request.baseline.get(name, _NEVER)) for name in names]
        ),
        scales=np.broadcast_to(scales, values.shape),
        is_upward=np.ones(len(names), bool),
        is_followed=np.ones(len(names), bool),
    )


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
