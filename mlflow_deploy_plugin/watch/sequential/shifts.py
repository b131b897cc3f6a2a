"""The judgement of lasting shifts: findings, notes, charts and evidence of a window,
from the windows before it.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

import numpy as np

from mlflow_deploy_plugin.serve.runtime.feeds import Array
from mlflow_deploy_plugin.watch.drift.sketches.relations import PROJECTIONS, shown_name
from mlflow_deploy_plugin.watch.result import Finding
from mlflow_deploy_plugin.watch.sequential import budget
from mlflow_deploy_plugin.watch.sequential.course import Course
from mlflow_deploy_plugin.watch.sequential.detector import CONFIRMED_IN, Shift
from mlflow_deploy_plugin.watch.sequential.evidence import LevelSeries, Onset, SeriesKey
from mlflow_deploy_plugin.watch.sequential.figures import (
    LOGARITHMIC,
    VAGUE,
    describe_figure,
    figure_name,
)
from mlflow_deploy_plugin.watch.sequential.levels import (
    DISTANCE,
    LEVEL,
    MEAN,
    MISSING,
    OUTSIDE,
    QUALITY,
    ROWS_FIGURE,
    SPREAD,
    FigureSeries,
)

_SHOWN_WINDOWS = 60
"""The number of windows in a chart, as in `reports/trend.py`."""
_MOST_RED = 0.2
_MOST_ALARMS = 3
_SHARE_OF_TIME = 0.5
"""By chance, single windows of one column have so many alarms in this share of the time
between two alarms of the budget in less than one of 1,000 monitors.
"""
_EXPLAINED_BY = {OUTSIDE: LEVEL, LEVEL: MEAN}
"""With a season of the year, the mean moves, and values leave the range. A mean far
outside of the bins is known only from all values.
"""
_CLIPPED = 1.5


@dataclass(frozen=True)
class ShiftVerdict:
    """The shifts that are open in a window; `starts` are their starts in ISO 8601."""

    findings: tuple[Finding, ...] = ()
    starts: Mapping[SeriesKey, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    figures: Mapping[str, float] = field(default_factory=dict)
    charts: tuple[LevelSeries, ...] = ()


def judge_shifts(course: Course, drifted: Collection[str]) -> ShiftVerdict:
    """Return the open shifts, and charts of them and of the `drifted` columns
    (`alarm_key`). Without a budget, there are only charts.
    """
    charts = tuple(_charts(course, drifted))
    per_year = course.request.false_per_year
    if course.shortfall:
        return ShiftVerdict(notes=(course.shortfall,), charts=charts)
    if per_year is None:
        return ShiftVerdict(charts=charts)
    findings = tuple(_make_finding(course, shift) for shift in shown_shifts(course))
    red = budget.open_share(course.spec, per_year)
    notes = (
        f"budget of this monitor: false alarms per year {per_year:.2g}, of which "
        f"{budget.LASTING_SHARE:.0%} for lasting shifts and the rest for single windows; they are "
        f"open in about {red:.1%} of the windows",
        *budget.unkept(course.levels, course.spec, per_year),
        *_moving_notes(course),
    )
    figures = {"false_alarms_per_year": per_year, "shift_statistic": course.tracking.statistic}
    if findings:
        figures["is_drift"] = 1.0
    starts = {
        course.series[shift.series].series_key: course.starts[shift.onset].isoformat()
        for shift in course.tracking.shifts
    }
    return ShiftVerdict(findings, starts, notes, figures, charts)


def _moving_notes(course: Course) -> Iterator[str]:
    """Yield a note if the reference has a trend. Yield a note if many of the last
    windows are red, or if single windows of a column have several alarms: the columns
    move, or a shift is usual by now.
    """
    slopes = np.broadcast_to(course.levels.slopes, len(course.series))
    trends = [
        f"{course.series[index].series_key} {slopes[index]:+.3g}"
        for index in np.flatnonzero(slopes).tolist()
    ]
    if trends:
        yield (
            f"the reference has a trend per {course.spec.every}: {', '.join(trends)}; windows are "
            "compared with its line, and other figures of these columns, except missing and new "
            "values, and relations are not judged"
        )
    moves = (
        "if this column moves all the time, the budget cannot be kept; accept the new level, "
        "exclude the column, or use reference rolling:7d"
    )
    judged = range(course.windows.reference, len(course.starts))[-_SHOWN_WINDOWS:]
    red = [window for window in course.tracking.red if window in judged]
    columns = dict.fromkeys(course.series[shift.series].key for shift in course.tracking.shifts)
    # One false alarm is red for up to `CONFIRMED_IN` windows.
    most = max(_MOST_RED * len(judged), CONFIRMED_IN)
    if columns and len(judged) >= budget.FEW_WINDOWS and len(red) > most:
        # A step explains all red windows; a column that moves has several shifts.
        is_step = min(shift.onset for shift in course.tracking.shifts) <= red[0]
        remedy = "repair the data, or accept a level that is right" if is_step else moves
        yield (
            f"{len(red) / len(judged):.0%} of the last {len(judged)} windows have an open shift, "
            f"now of {', '.join(columns)}: {remedy}"
        )
    for column, (alarms, windows) in _unusual_windows(course).items():
        if alarms >= _MOST_ALARMS:
            yield (
                f"{alarms} times in the last {windows} windows, single windows of {column} were "
                f"unusual: {moves}"
            )


def _unusual_windows(course: Course) -> Mapping[str, tuple[int, int]]:
    """Return by column (`alarm_key`) how often a figure became unusual in a single
    window, and in how many windows: those of a share of the time in which the budget
    permits an alarm.
    """
    per_year = course.request.false_per_year or math.inf
    time = math.ceil(_SHARE_OF_TIME * course.spec.windows_per_year / per_year)
    windows = min(len(course.starts) - course.windows.reference, time)
    innovations = course.tracking.innovations[-windows:]
    scores = np.where(course.windows.is_upward, innovations, np.abs(innovations))
    is_unusual = scores > course.limits
    by_column: dict[str, Array] = {}
    for index in np.flatnonzero(is_unusual.any(axis=0)).tolist():
        key = course.series[index].key
        by_column[key] = by_column.get(key, False) | is_unusual[:, index]
    return {
        key: (int(np.count_nonzero(np.diff(flags, prepend=False) & flags)), windows)
        for key, flags in by_column.items()
    }


def shown_shifts(course: Course) -> Sequence[Shift]:
    """Return the largest shift of each column, preferably of a telling figure, of all
    rows rather than a segment, and of the mean if the mean and the deviation have
    shifted; the oldest shift of the relations if no column has a shift.
    """
    shifts = course.tracking.shifts
    shifted = {course.series[shift.series] for shift in shifts}

    def order(shift: Shift) -> tuple[bool, bool, bool, float]:
        series = course.series[shift.series]
        is_of_mean = series.figure == SPREAD and series._replace(figure=LEVEL) in shifted
        deviations, _ = _change_since(course, series, shift.onset)
        return series.figure in VAGUE, bool(series.segment), is_of_mean, -abs(deviations)

    by_column: dict[str, Shift] = {}
    for shift in sorted(shifts, key=order):
        column = course.series[shift.series].column
        if column not in PROJECTIONS:
            by_column.setdefault(column, shift)
    return [*by_column.values()] or shifts[:1]


def _change_since(course: Course, series: FigureSeries, onset: int) -> tuple[float, str]:
    """Return the median of a figure since the onset, above its usual mean and in
    standard deviations of the reference's windows, and its change in words.
    """
    index = course.series.index(series)
    baseline = course.tracking.baseline
    values = course.values[onset:, index]
    levels = course.tracking.levels[onset:, index]
    above = float(np.median(levels[np.isfinite(values)])) - float(baseline.mean[index])
    now = float(np.nanmedian(values))
    deviations = above / float(baseline.deviation[index])
    before = now - above
    name = figure_name(series, course.reference.bins)
    # For a rolling reference, most figures are themselves changes.
    if course.spec.is_rolling and series.figure not in (DISTANCE, ROWS_FIGURE):
        lag = course.spec.reference_value
        change = f"change of the {name.text} from {lag} before: {before:+.3g} → {now:+.3g}"
        return deviations, change
    return deviations, describe_figure(series.figure, name, before, now)


def _make_finding(course: Course, shift: Shift) -> Finding:
    """Return the finding about a shift: its median size since it began, and the
    interval in which it began.
    """
    series = course.series[shift.series]
    deviations, change = _change_since(course, series, shift.onset)
    other = series._replace(figure=_EXPLAINED_BY.get(series.figure, ""))
    if other in course.series:
        size, moved = _change_since(course, other, shift.onset)
        if series.figure == OUTSIDE:
            change = f"{moved}; {change}"
        elif abs(size) > _CLIPPED * abs(deviations):
            change = moved
    change += _describe_slope(course, shift)
    newest = course.windows.values[-1]
    shifted = [(each.series, course.series[each.series]) for each in course.tracking.shifts]
    onset = _onset(course, shift)
    return Finding(
        subject=shown_name(series.column),
        check="shift",
        state="drift",
        reason=(
            f"{deviations:+.1f} standard deviations of the reference's windows, the median since "
            "then"
        ),
        value=deviations,
        segment=series.segment,
        change=change,
        since=onset.start.isoformat(),
        since_end=onset.end.isoformat(),
        in_a_row=len(course.starts) - shift.onset,
        since_range=(onset.earliest.isoformat(), onset.latest.isoformat()),
        measure=figure_name(series, course.reference.bins).text,
        unit="SD",
        is_quality=any(
            newest[index] > QUALITY.get(of_column.figure, math.inf)
            for index, of_column in shifted
            if of_column.key == series.key
        ),
    )


def _describe_slope(course: Course, shift: Shift) -> str:
    """Return the change of a series' slope since a shift in words; empty without a
    trend.
    """
    index = shift.series
    slope = np.broadcast_to(course.levels.slopes, len(course.series))[index]
    is_known = np.isfinite(course.values[shift.onset :, index])
    above = course.tracking.levels[shift.onset :, index][is_known]
    if not slope or len(above) < 2:
        return ""
    slope = slope + np.diff(course.tracking.lines[-2:, index])[0]
    new = slope + np.polyfit(np.arange(len(above)), above, 1)[0]
    return f"; trend per {course.spec.every} {slope:+.3g} → {new:+.3g}"


def _onset(course: Course, shift: Shift) -> Onset:
    """Return the first shifted window and its interval. The figures of a window hardly
    change if the shift begins near its end, so the interval includes the window before
    the earliest one, and the gap between them. In simulations of shifts that begin
    within a window, 97 % to 99 % of the intervals contain the start, instead of 84 % to
    94 %.
    """
    starts = course.starts
    length = timedelta(microseconds=course.levels.length_us)
    earliest = starts[shift.earliest] - length
    if shift.earliest > course.windows.reference:
        earliest = min(earliest, starts[shift.earliest - 1])
    start = starts[shift.onset]
    return Onset(start, start + length, earliest, starts[shift.latest] + length)


def _charts(course: Course, drifted: Collection[str]) -> Iterator[LevelSeries]:
    """Yield the charts of the shifts, then of the first figure of each drifted
    column.
    """
    # Judged windows may be between windows of the reference.
    in_time = sorted(range(len(course.starts)), key=course.starts.__getitem__)
    end = max(in_time.index(len(in_time) - 1) + 1, _SHOWN_WINDOWS)
    windows = in_time[max(end - _SHOWN_WINDOWS, 0) : end]
    charted: dict[int, Shift | None] = {shift.series: shift for shift in shown_shifts(course)}
    first_figures: dict[str, int] = {}
    for index, series in enumerate(course.series):
        if series.figure != MISSING:
            first_figures.setdefault(series.key, index)
    shifted = {course.series[index].key for index in charted}
    for key in drifted:
        if key in first_figures and key not in shifted:
            charted[first_figures[key]] = None
    for index, shift in charted.items():
        series = course.series[index]
        values = course.values[:, index]
        usual = values - course.tracking.levels[:, index] + course.tracking.baseline.mean[index]
        yield LevelSeries(
            title=f"{series.key}, {figure_name(series, course.reference.bins).text}",
            starts=[*map(course.starts.__getitem__, windows)],
            values=values[windows].tolist(),
            usual=usual[windows].tolist(),
            deviation=float(course.tracking.baseline.deviation[index]),
            onset=_onset(course, shift) if shift is not None else None,
            key=series.key,
            is_logarithmic=series.figure in LOGARITHMIC,
        )
