"""The required metrics, or the complaints, of labelled windows over time, and their
labels: a lasting shift for the worse, or of the labels, is a finding.

Labels that are late or missing change a metric as well. Therefore a shift that comes
with a change of the share of labelled rows is no drift, and its new level becomes
usual. A shift of the labels that comes with one of the predictions is a change of the
data, which monitors of kind `drift` judge.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from types import MappingProxyType

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
    Levels,
    SeriesKey,
)

COMPLAINTS = "complaints per 1,000 rows"
_METRIC = "metric"
LABEL = "label"
PREDICTED = "predicted"
"""The share of a class among the labels and among the predictions."""
LABELLED = SeriesKey("", "labelled")
"""The share of rows with a label."""
_NO_LABELS: Levels = MappingProxyType({})
_MOST_CLASSES = 4
_MOVED = 2.5
"""The standard errors by which a figure differs from the 20 windows before a shift, if
it has changed too.
"""
_LATE = (
    "the share of labelled rows has changed too, so labels that are late or missing may be the "
    "cause"
)
_NEW_LABELS = (
    "the labels have changed and the predictions have not: labels are defined or collected "
    "differently, or the model misses a change"
)
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
    labels: Levels,
) -> tuple[Evidence, list[Finding]]:
    """Return the evidence of a window, whose metrics are measured on this number of
    rows, and a finding for each open shift of the labels, and of each metric for the
    worse.

    Without a budget, or with fewer than 20 earlier windows that have the same metrics,
    there is no finding.
    """
    required = {SeriesKey(name, _METRIC): value for name, value in metrics.items()}
    if labels:
        required[LABELLED] = labels[LABELLED]
    evidence = Evidence(
        f"labels: {request.spec.labels}",
        {**required, **labels, _ROWS: float(rows)},
    )
    past = [
        window
        for window in request.past
        if window.evidence.basis == evidence.basis
        and window.evidence.levels.keys() >= required.keys()
    ]
    if not request.false_per_year or not request.follows_levels:
        return evidence, []
    if not metrics or len(past) < FEWEST_WINDOWS:
        return evidence, []
    past.append(JudgedWindow(request.window.start, "", evidence))
    course = _follow(request, past, [*required], request.false_per_year)
    findings = {
        course.keys[shift.series]: course.finding(shift, request.window.length)
        for shift in course.shown_shifts()
    }
    shifts = {key: finding.since for key, finding in findings.items() if finding.is_alarm}
    return replace(evidence, shifts=shifts), [*findings.values()]


@dataclass(frozen=True, eq=False)
class _Course:
    """The figures of all windows, and the shifts that the detector has found.

    Attributes:
        late: the last shift of each series that came with a change of the share of
            labelled rows.
    """

    keys: Sequence[SeriesKey]
    windows: Sequence[JudgedWindow]
    tracking: Tracking
    late: Mapping[int, Shift]

    def shown_shifts(self) -> Sequence[Shift]:
        """Return the open shifts, those of labels first, and the metrics' recent shifts
        that came with a change of the share of labelled rows.
        """
        newest = len(self.windows) - FEWEST_WINDOWS
        late = [
            shift
            for shift in self.late.values()
            if shift.onset >= newest and self.keys[shift.series].figure == _METRIC
        ]
        drifts = [shift for shift in self.tracking.shifts if not self.is_excused(shift)]
        found = {shift.series: shift for shift in (*late, *drifts)}
        return sorted(found.values(), key=lambda shift: self.keys[shift.series].figure != LABEL)

    def moves_since(self, key: SeriesKey, onset: int) -> int:
        """Return the sign of the figure's change from the 20 windows before the onset;
        0 if it has hardly changed.
        """
        if key not in self.keys:
            return 0
        innovations = self.tracking.innovations[:, self.keys.index(key)]
        before = innovations[onset - FEWEST_WINDOWS : onset]
        since = innovations[onset:]
        change = since.mean() - before.mean()
        error = np.sqrt(1 / len(since) + 1 / len(before))
        return int(np.sign(change)) if abs(change) > _MOVED * error else 0

    def predicted_since(self, key: SeriesKey, onset: int) -> int:
        return self.moves_since(key._replace(figure=PREDICTED), onset)

    def is_excused(self, shift: Shift) -> bool:
        """Return True if the share of labelled rows has changed with the shift, or the
        predictions with the shift of a label.
        """
        if self.moves_since(LABELLED, shift.onset):
            return True
        key = self.keys[shift.series]
        return key.figure == LABEL and self.predicted_since(key, shift.onset) == shift.sign

    def finding(self, shift: Shift, length: timedelta) -> Finding:
        """Return the finding about a shift: its mean size since it began, in standard
        deviations, and the interval in which it began.
        """
        key = self.keys[shift.series]
        is_late = shift is self.late.get(shift.series)
        baseline = self.tracking.baseline
        levels = self.tracking.levels[:, shift.series]
        usual = baseline.mean[shift.series]
        if is_late:  # The baseline begins with the shift.
            usual = levels[shift.onset - FEWEST_WINDOWS : shift.onset].mean()
        change = _worse_sign(key) * (levels[shift.onset :].mean() - usual)
        deviations = change / baseline.deviation[shift.series]
        now = _levels(self.windows[shift.onset :], key).mean()
        direction = "higher" if change > 0 else "lower"
        start = self.windows[shift.onset].start
        reason = (
            f"{deviations:+.1f} standard deviations of the earlier windows, on average since then"
        )
        if is_late:
            reason += f"; {_LATE}"
        elif any(
            key.figure == LABEL
            and self.moves_since(key, shift.onset)
            not in (0, self.predicted_since(key, shift.onset))
            for key in self.keys
        ):
            reason += f"; {_NEW_LABELS}"
        return Finding(
            subject=f"label {key.column}" if key.figure == LABEL else key.column,
            check="shift",
            state="cannot tell" if is_late else "drift",
            reason=reason,
            value=float(deviations),
            change=f"{now - change:.4g} → {now:.4g}, {direction}",
            since=start.isoformat(),
            since_end=(start + length).isoformat(),
            in_a_row=len(levels) - shift.onset,
            since_range=(
                self.windows[shift.earliest - 1].start.isoformat(),
                (self.windows[shift.latest].start + length).isoformat(),
            ),
            unit="SD",
        )


def _worse_sign(key: SeriesKey) -> int:
    """Return the sign of a change for the worse: 1 for losses and complaints."""
    metric = MONITOR_METRICS["performance"].get(key.column if key.figure == _METRIC else "")
    return -1 if metric is not None and metric.sign == ">=" else 1


def _follow(
    request: WindowRequest,
    windows: Sequence[JudgedWindow],
    required: Sequence[SeriesKey],
    false_per_year: float,
) -> _Course:
    """Follow the windows, the last of which is the judged window. Shifts that come with
    a change of the share of labelled rows, or of labels with one of the predictions,
    begin a new baseline.
    """
    totals: Counter[SeriesKey] = Counter()
    for window in windows:
        levels = window.evidence.levels
        totals.update({key: levels[key] for key in levels if key.figure == LABEL})
    # The shares of all classes add up to 1.
    labels = [*dict(totals.most_common(1 + _MOST_CLASSES))][1:]
    keys = [*required, *labels, *(key._replace(figure=PREDICTED) for key in labels)]
    followed = _detector_windows(request, windows, keys)
    limit = limit_for(followed, lasting_rate(request.spec, false_per_year))
    late: dict[int, Shift] = {}
    while True:
        course = _Course(keys, windows, track(followed, limit), late)
        excused = [
            shift
            for shift in course.tracking.shifts
            if course.is_excused(shift)
            and (shift.series not in late or shift.onset > late[shift.series].onset)
        ]
        if not excused:
            return course
        for shift in excused:
            late[shift.series] = shift
            followed.restarts[shift.series] = shift.onset


def _levels(windows: Sequence[JudgedWindow], key: SeriesKey) -> Array:
    """Return the level of each window, [N] float64; a class that a window does not have
    has a share of 0.
    """
    return np.array([window.evidence.levels.get(key, 0.0) for window in windows])


def _detector_windows(
    request: WindowRequest,
    windows: Sequence[JudgedWindow],
    keys: Sequence[SeriesKey],
) -> Windows:
    """Return the windows of the detector. Its figures increase if a metric becomes
    worse.
    """
    # The reference has 20 to 90 windows: up to half of the earlier windows, and only
    # windows before the first shift that was found. Otherwise a shift would become
    # usual.
    shifts = [since for window in windows for since in window.evidence.shifts.values()]
    first = (len(windows) - 1) // 2
    if shifts:
        shifted_at = datetime.fromisoformat(min(shifts))
        first = min(first, sum(window.start < shifted_at for window in windows))
    first = min(max(first, FEWEST_WINDOWS), _MOST_WINDOWS)
    starts = [window.start for window in windows]
    length = request.window.length
    numbers = np.array([(start - EPOCH) // length for start in starts])
    season = season_windows(request.spec, first, length // timedelta(microseconds=1))
    values = np.stack([_levels(windows, key) for key in keys], axis=1)
    rows = _levels(windows, _ROWS)
    usual_rows = np.median(rows[:first])
    is_metric = np.array([key.figure == _METRIC for key in keys])
    # One row, or one complaint, in the usual number of rows.
    smallest = np.where(is_metric, _SMALLEST, 1 / usual_rows)
    smallest[[key.column == COMPLAINTS for key in keys]] = 1_000 / usual_rows
    return Windows(
        values=np.array([*map(_worse_sign, keys)]) * values,
        reference=first,
        phases=numbers % season,
        season=season,
        gaps=np.diff(numbers, prepend=numbers[0] - 1),
        floors=np.maximum(_FLOOR * np.abs(values[:first].mean(axis=0)), smallest),
        restarts=np.array(
            [bisect_left(starts, request.baseline.get(key.column, _NEVER)) for key in keys]
        ),
        scales=np.broadcast_to(
            np.sqrt(usual_rows / np.minimum(rows, usual_rows))[:, None], values.shape
        ),
        is_upward=is_metric,
        is_followed=is_metric | np.array([key.figure == LABEL for key in keys]),
    )
