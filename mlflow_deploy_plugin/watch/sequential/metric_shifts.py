"""The required metrics, or the complaints, of labelled windows over time, and their
labels: a lasting shift for the worse, or of the labels, is a finding.

Labels that are late or missing change a metric as well. If the share of labelled rows
changes with a shift, the best value that the lost labels permit replaces each figure
(Manski, American Economic Review 80, 1990).
If these figures have shifted too, the shift is drift. Otherwise the cause is unknown,
and the level becomes usual after `FEWEST_WINDOWS` windows. A shift of the labels that
comes with one of the predictions is a change of the data, which monitors of kind
`drift` judge.
"""

import math
from bisect import bisect_left
from collections import Counter
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
_MOST_CLASSES = 4
_MOVED = 2.5
"""The standard errors by which a figure differs from the 20 windows before a shift, if
it has changed too.
"""
_FAR = 4.0
"""The same, if many classes are compared."""
_LATE = (
    "the share of labelled rows has changed too, and labels that are late or missing can explain "
    "all of it"
)
_PARTLY_LATE = (
    "the share of labelled rows has changed too, but labels that are late or missing cannot "
    "explain all of it"
)
_OFTEN = {1: "more often", -1: "less often"}
_NEW_LABELS = (
    "the labels have changed and the predictions have not: labels are defined or collected "
    "differently, or the model misses a change"
)
_ERRORS = {SeriesKey(name, _METRIC) for name in ("mae", "rmse", "mape", "log_loss", "r2")}
"""The metrics that a single row can change without limit. Their root is followed, and
only up to `_FARTHEST` times the distance of the reference's ninth decile from its
median: neither a row nor a window must decide.
"""
_ROOT = 0.25
_FARTHEST = 2.0
_OF_CLASSES = ("f1", "precision", "recall", "roc_auc")
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
            labelled rows, or of the predictions.
        excuses: the part of each figure that late or missing labels can explain, [N,
            m].
    """

    keys: Sequence[SeriesKey]
    windows: Sequence[JudgedWindow]
    tracking: Tracking
    late: Mapping[int, Shift]
    excuses: Array

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
        drifts = []
        for shift in self.tracking.shifts:
            key = self.keys[shift.series]
            # An alarm also opens the shifts of other series, with less evidence.
            is_sure = shift.is_confirmed or self.moves_since(key, shift.onset, _FAR) != 0
            if not self.is_excused(shift) and (is_sure or key.figure != LABEL):
                drifts.append(shift)
        found = {shift.series: shift for shift in (*late, *drifts)}
        return sorted(found.values(), key=lambda shift: self.keys[shift.series].figure != LABEL)

    def moves_since(self, key: SeriesKey, onset: int, least: float = _MOVED) -> int:
        """Return the sign of the figure's change from the 20 windows before the onset;
        0 if it has changed by less than this number of standard errors.
        """
        if key not in self.keys:
            return 0
        innovations = self.tracking.innovations[:, self.keys.index(key)]
        before = innovations[onset - FEWEST_WINDOWS : onset]
        since = innovations[onset:]
        change = since.mean() - before.mean()
        error = np.sqrt(1 / len(since) + 1 / len(before))
        return int(np.sign(change)) if abs(change) > least * error else 0

    def is_of_data(self, shift: Shift) -> bool:
        """Return True if the predictions have changed with the shift of a label."""
        key = self.keys[shift.series]
        predicted = key._replace(figure=PREDICTED)
        return key.figure == LABEL and self.moves_since(predicted, shift.onset) == shift.sign

    def is_excused(self, shift: Shift) -> bool:
        """Return True if the predictions have changed with the shift of a label, or the
        share of labelled rows with a shift whose excuse is unknown.
        """
        if self.excuses[shift.onset :, shift.series].any():
            return self.is_of_data(shift)
        return self.moves_since(LABELLED, shift.onset) != 0 or self.is_of_data(shift)

    def excuse(self, shift: Shift) -> Array:
        """Return the part of the figure that labels can explain in the first 20 windows
        of the shift, [20]: rows that have lost their label may have the best values,
        and rows that have a label now the worst values.
        """
        key = self.keys[shift.series]
        sign = _worse_sign(key) * shift.sign
        before = self.windows[shift.onset - FEWEST_WINDOWS : shift.onset]
        since = self.windows[shift.onset : shift.onset + FEWEST_WINDOWS]
        share = _levels(since, LABELLED)
        lost = _levels(before, LABELLED).mean() - share
        lost = lost.clip(0) if lost.mean() > 0 else lost.clip(max=0)
        counted = share
        if key.column in _OF_CLASSES and key.figure == _METRIC:
            # A row counts most in the rarest class.
            for label in self.keys:
                if label.figure == LABEL:
                    counted = np.minimum(counted, share * _levels(since, label))
        loss = _losses(_levels(since, key), sign)
        best = (loss * counted + lost.clip(max=0)).clip(0) / np.maximum(counted + lost, _SMALLEST)
        if key in _ERRORS and lost.max() <= 0:
            best = np.zeros_like(loss)
        usual = _figures(key, _losses(_levels(before, key), sign))
        # The figure without its excuse stays close to the usual ones.
        best = np.maximum(_figures(key, best), usual.mean() - 2 * usual.std())
        excuse: Array = shift.sign * (_figures(key, loss) - best).clip(0)
        return excuse

    def causes(self, shift: Shift) -> Sequence[str]:
        """Return the possible causes of a shift in the labels and predictions."""
        answers = {
            each.column: self.moves_since(each, shift.onset, _FAR)
            for each in self.keys
            if each.figure == PREDICTED
            and not self.moves_since(each._replace(figure=LABEL), shift.onset)
        }
        answered = [f"{name!r} {_OFTEN[sign]}" for name, sign in answers.items() if sign]
        causes = []
        if shift is self.late.get(shift.series):
            causes.append(_LATE)
        elif self.moves_since(LABELLED, shift.onset):
            causes.append(_PARTLY_LATE)
        if any(self.keys[other.series].figure == LABEL for other in self.shown_shifts()):
            causes.append(_NEW_LABELS)
        elif answered:
            causes.append(
                f"the labels have not changed, and the model answers {', '.join(answered)}"
            )
        return causes

    def finding(self, shift: Shift, length: timedelta) -> Finding:
        """Return the finding about a shift: its mean size since it began, in standard
        deviations, and the interval in which it began.
        """
        key = self.keys[shift.series]
        is_late = shift is self.late.get(shift.series)
        baseline = self.tracking.baseline
        levels = self.tracking.levels[:, shift.series]
        change = levels[shift.onset :].mean() - baseline.mean[shift.series]
        worse = _worse_sign(key)
        deviations = worse * change / baseline.deviation[shift.series]
        now = _figures(key, _losses(_levels(self.windows[shift.onset :], key), worse)).mean()
        shown = np.array([now - change, now])
        if key in _ERRORS:
            shown = shown ** (1 / _ROOT)
        shown = _losses(shown, worse)
        direction = "higher" if shown[1] > shown[0] else "lower"
        start = self.windows[shift.onset].start
        size = (
            f"{deviations:+.1f} standard deviations of the earlier windows, on average since then"
        )
        return Finding(
            subject=f"label {key.column}" if key.figure == LABEL else key.column,
            check="shift",
            state="cannot tell" if is_late else "drift",
            reason="; ".join([size, *self.causes(shift)]),
            value=float(deviations),
            change=f"{shown[0]:.4g} → {shown[1]:.4g}, {direction}",
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
    """Follow the windows, the last of which is the judged window. A shift of labels
    that comes with one of the predictions begins a new baseline. A shift that labels
    can explain does so after 20 windows.
    """
    totals: Counter[SeriesKey] = Counter()
    for window in windows:
        shares = window.evidence.levels
        totals.update({key: shares[key] for key in shares if key.figure == LABEL})
    labels = [key for key, _ in totals.most_common()]
    keys = [*required, *labels, *(key._replace(figure=PREDICTED) for key in labels)]
    # The shares of all classes add up to 1.
    sought = {*required, *labels[1 : 1 + _MOST_CLASSES]} - {LABELLED}
    followed = _detector_windows(request, windows, keys)
    followed = replace(followed, is_followed=np.array([key in sought for key in keys]))
    limit = limit_for(followed, lasting_rate(request.spec, false_per_year))
    late: dict[int, Shift] = {}
    excuses = np.zeros_like(followed.values)
    renewals = np.zeros(excuses.shape, bool)
    while True:
        tracking = track_excused(followed, limit, excuses, renewals)
        course = _Course(keys, windows, tracking, late, excuses)
        excused = [
            shift
            for shift in tracking.shifts
            if course.is_excused(shift)
            and (shift.series not in late or shift.onset > late[shift.series].onset)
        ]
        if not excused:
            return course
        for shift in excused:
            late[shift.series] = shift
            if course.is_of_data(shift):
                renewals[shift.onset, shift.series] = True
                continue
            since = slice(shift.onset, shift.onset + FEWEST_WINDOWS)
            excuses[since, shift.series] = course.excuse(shift)
            renewals[since.stop :][:1, shift.series] = True


def track_excused(windows: Windows, limit: float, excuses: Array, renewals: Array) -> Tracking:
    """Follow all windows like `track`, without the `excuses`, [N, m], of the figures. A
    figure without an open shift begins a new baseline at its `renewals`, [N, m] bool.
    """
    windows = replace(windows, restarts=windows.restarts.copy())
    tracking = Tracking(windows, limit, math.inf)
    levels = tracking.levels.copy()
    for now in range(windows.reference, len(levels)):
        # A shift that is open does not end because more labels are late.
        is_open = np.zeros(levels.shape[1], bool)
        is_open[[shift.series for shift in tracking.shifts]] = True
        windows.restarts[renewals[now] & ~is_open] = now
        tracking.levels[now] -= np.where(is_open, 0, excuses[now])
        tracking.add(now)
    tracking.levels = levels
    return tracking


def _losses(values: Array, worse_sign: int) -> Array:
    """Return the distances from the best value, which is 1 if lower values are worse,
    and otherwise 0; or the values at these distances.
    """
    return 1 - values if worse_sign < 0 else values


def _figures(key: SeriesKey, losses: Array) -> Array:
    """Return the figures that are followed."""
    return np.maximum(losses, 0) ** _ROOT if key in _ERRORS else losses


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
    levels = [_levels(windows, key) for key in keys]
    figures = [
        _figures(key, _losses(values, _worse_sign(key)))
        for key, values in zip(keys, levels, strict=True)
    ]
    values = np.stack(figures, axis=1)
    is_error = [key in _ERRORS for key in keys]
    usual = np.abs(levels)[:, :first].mean(axis=1)
    usual[is_error] = _ROOT * values[:first, is_error].mean(axis=0)
    middle, high = np.quantile(values[:first, is_error], [0.5, 0.9], axis=0)
    values[:, is_error] = np.minimum(values[:, is_error], middle + _FARTHEST * (high - middle))
    rows = _levels(windows, _ROWS)
    usual_rows = np.median(rows[:first])
    is_metric = np.array([key.figure == _METRIC for key in keys])
    # One row, or one complaint, in the usual number of rows.
    smallest = np.where(is_metric, _SMALLEST, 1 / usual_rows)
    smallest[[key.column == COMPLAINTS for key in keys]] = 1_000 / usual_rows
    return Windows(
        values=values,
        reference=first,
        phases=numbers % season,
        season=season,
        gaps=np.diff(numbers, prepend=numbers[0] - 1),
        floors=np.maximum(_FLOOR * usual, smallest),
        restarts=np.array(
            [bisect_left(starts, request.baseline.get(key.column, _NEVER)) for key in keys]
        ),
        scales=np.broadcast_to(
            np.sqrt(usual_rows / np.minimum(rows, usual_rows))[:, None], values.shape
        ),
        is_upward=is_metric,
        is_followed=is_metric,
    )
