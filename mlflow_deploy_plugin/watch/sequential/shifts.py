"""The judgement of lasting shifts: findings, notes, charts and evidence of a window,
from the windows before it.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

import numpy as np

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.spec.types import EPOCH
from mlflow_deploy_plugin.serve.inference_log.windows import microseconds
from mlflow_deploy_plugin.watch.drift.references.windows import DriftReference
from mlflow_deploy_plugin.watch.drift.sketches.bins import CategoryBins
from mlflow_deploy_plugin.watch.drift.sketches.relations import PROJECTIONS, shown_name
from mlflow_deploy_plugin.watch.drift.sketches.sketch import Profile
from mlflow_deploy_plugin.watch.result import Finding, WindowRequest
from mlflow_deploy_plugin.watch.sequential import budget
from mlflow_deploy_plugin.watch.sequential.detector import (
    Shift,
    Tracking,
    Windows,
    limit_for,
    track,
)
from mlflow_deploy_plugin.watch.sequential.evidence import Evidence, LevelSeries, Onset
from mlflow_deploy_plugin.watch.sequential.levels import (
    FLOORS,
    MISSING,
    FigureSeries,
    ReferenceLevels,
    reference_levels,
    window_levels,
)

_MOST_CHARTS = 5
_SHOWN_WINDOWS = 60
"""The number of windows in a chart, as in `reports/trend.py`."""


@dataclass(frozen=True)
class ShiftVerdict:
    """The shifts that are open in a window. `evidence` lacks the alarms, which other
    judgements add.
    """

    evidence: Evidence
    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()
    figures: Mapping[str, float] = field(default_factory=dict)
    charts: tuple[LevelSeries, ...] = ()


@dataclass(frozen=True, eq=False)
class Course:
    """The windows of the reference, the past and the judged window, and the shifts that
    the detector has found.
    """

    request: WindowRequest
    reference: DriftReference
    series: Sequence[FigureSeries]
    starts: Sequence[datetime]
    windows: Windows
    tracking: Tracking


def judge_shifts(
    request: WindowRequest,
    reference: DriftReference,
    window: Profile,
    segments: Mapping[str, tuple[DriftReference, Profile]],
    columns: Sequence[str],
    drifted: Collection[str] = (),
) -> ShiftVerdict:
    """Return the open shifts of the `columns`, and charts of them and of the `drifted`
    columns (`alarm_key`).

    Without a budget, or if the reference does not support one, there is only evidence,
    charts and a note.
    """
    parts = {"": (reference, window), **segments}
    current: dict[FigureSeries, float] = {}
    for segment, (part, profile) in parts.items():
        current |= window_levels(part, profile, columns, segment)
    figures = (MISSING,) if request.spec.kind == "data_quality" else FLOORS
    basis = request.spec.reference if request.spec.is_rolling else reference.bins_key
    evidence = Evidence(basis, {series.series_key: value for series, value in current.items()})
    levels = reference_levels(
        reference,
        columns,
        {name: part for name, (part, _) in segments.items()},
        figures,
    )
    per_year = request.false_per_year
    try:
        budget.require_windows(reference, levels, request.spec)
        course = follow(request, reference, levels, current, basis)
    except InvalidConfig as error:  # The reference is too short for a budget or for the season.
        return ShiftVerdict(evidence, notes=(error.message,) if per_year else ())
    if course is None:
        return ShiftVerdict(evidence)
    shifts = [shift for shift in course.tracking.shifts if per_year]
    plain = [shift for shift in shifts if course.series[shift.series].column not in PROJECTIONS]
    findings = tuple(_finding(course, shift) for shift in plain or shifts[:1])
    charts = tuple(_charts(course, plain or shifts[:1], drifted))
    if per_year is None:
        return ShiftVerdict(evidence, charts=charts)
    since = {
        course.series[shift.series].series_key: course.starts[shift.onset].isoformat()
        for shift in shifts
    }
    notes = [
        (
            f"budget of this monitor: false alarms per year {per_year:.2g}, of which "
            f"{budget.LASTING_SHARE:.0%} for lasting shifts and the rest for single windows"
        ),
        *budget.unkept(levels, request.spec, per_year),
    ]
    metrics = {"false_alarms_per_year": per_year, "shift_statistic": course.tracking.statistic}
    metrics |= {"is_drift": 1.0} if findings else {}
    return ShiftVerdict(replace(evidence, shifts=since), findings, tuple(notes), metrics, charts)


def follow(
    request: WindowRequest,
    reference: DriftReference,
    levels: ReferenceLevels,
    current: Mapping[FigureSeries, float],
    basis: str,
) -> Course | None:
    """Follow the windows until the judged window. Return None if the window is a part
    of the reference, or if no series can be compared.
    """
    start_us = request.window.start_us
    past = [
        window
        for window in (request.past if request.follows_levels else ())
        if window.evidence.basis == basis and window.start < request.window.start
    ]
    judged = np.array([*(microseconds(window.start) for window in past), start_us], np.int64)
    if request.spec.is_rolling:  # The reference contains all windows before this window.
        older = levels.starts_us < judged[0]
        if older.sum() < budget.FEWEST_WINDOWS:
            older = np.arange(len(older)) < budget.FEW_WINDOWS
        levels = levels.since(older)
    outside = ~np.isin(judged, levels.starts_us)
    if not outside[-1] or not levels.series:
        return None
    rows = [window.evidence.levels for window in past]
    rows.append({series.series_key: value for series, value in current.items()})
    keys = [series.series_key for series in levels.series]
    values = np.array([[row.get(key, np.nan) for key in keys] for row in rows])[outside]
    windows = budget.detector_windows(levels, request.spec, judged[outside], values)
    starts = [
        EPOCH + timedelta(microseconds=int(start))
        for start in (*levels.starts_us, *judged[outside])
    ]
    for key, since in request.baseline.items():
        begin = next(
            (place for place in range(windows.reference, len(starts)) if starts[place] >= since),
            len(starts),
        )
        windows.restarts[[place for place, name in enumerate(levels.series) if name.key == key]] = (
            begin
        )
    per_year = request.false_per_year
    lasting_rate = budget.LASTING_SHARE * (per_year or 0) / request.spec.windows_per_year
    limit = limit_for(windows, lasting_rate) if per_year else np.inf
    return Course(request, reference, levels.series, starts, windows, track(windows, limit))


def _finding(course: Course, shift: Shift) -> Finding:
    series = course.series[shift.series]
    tracking = course.tracking
    levels = tracking.levels[shift.onset :, shift.series]
    size = float(levels.mean() - tracking.mean[shift.series])
    deviations = size / float(tracking.deviation[shift.series])
    now = float(np.nanmean(course.windows.values[shift.onset :, shift.series]))
    onset = _onset(course, shift)
    return Finding(
        subject=shown_name(series.column),
        check="shift",
        state="drift",
        reason=(
            f"{deviations:+.1f} standard deviations of the reference's windows, on average since "
            "then"
        ),
        value=deviations,
        segment=series.segment,
        change=_change(course, series, now - size, now),
        since=onset.start.isoformat(),
        since_end=onset.end.isoformat(),
        in_a_row=len(levels),
        since_range=(onset.earliest.isoformat(), onset.latest.isoformat()),
        measure=_measure(course, series),
        unit="SD",
    )


def _onset(course: Course, shift: Shift) -> Onset:
    """Return the first shifted window and its interval. The figures of a window hardly
    change if the shift begins near its end, so the interval includes the window before
    the earliest one, and the gap between them. In simulations of shifts that begin
    within a window, 97 % to 99 % of the intervals contain the start, instead of 84 % to
    94 %.
    """
    starts = course.starts
    length = course.request.window.length
    earliest = starts[shift.earliest] - length
    if shift.earliest > course.windows.reference:
        earliest = min(earliest, starts[shift.earliest - 1])
    start = starts[shift.onset]
    return Onset(start, start + length, earliest, starts[shift.latest] + length)


def _change(course: Course, series: FigureSeries, before: float, now: float) -> str:
    is_up = now > before
    if course.request.spec.is_rolling:
        lag = course.request.spec.reference_value
        return (
            f"change of the {_name(course, series)} from {lag} before: {before:+.3g} → {now:+.3g}"
        )
    if series.figure == "level":
        return f"mean {before:.4g} → {now:.4g}, {'higher' if is_up else 'lower'}"
    if series.figure == "spread":
        return (
            f"deviation {np.exp(before):.3g} → {np.exp(now):.3g}, "
            f"{'wider' if is_up else 'narrower'}"
        )
    if series.figure == MISSING:
        direction = "more" if is_up else "fewer"
    else:
        direction = f"{'more' if is_up else 'less'} often"
    return f"{_name(course, series)} {before:.1%} → {now:.1%}, {direction}"


def _measure(course: Course, series: FigureSeries) -> str:
    if series.figure == MISSING:
        return "share of missing values"
    if series.figure == "frequent" and (value := _frequent_value(course, series)):
        return f"share of {value}"
    return _name(course, series)


def _name(course: Course, series: FigureSeries) -> str:
    if series.figure != "frequent":
        return {"level": "mean", "spread": "logarithm of the deviation"}.get(
            series.figure,
            series.figure,
        )
    return _frequent_value(course, series) or "share of the most frequent value"


def _frequent_value(course: Course, series: FigureSeries) -> str:
    """Return the most frequent value of the reference as text; empty if the column has
    intervals of numbers instead of values.
    """
    bins = course.reference.bins[series.column]
    if not isinstance(bins, CategoryBins) or not bins.codes:
        return ""
    value = next(iter(bins.codes))
    if isinstance(value, float):
        return f"{value:g}"
    return repr(value)


def _charts(
    course: Course,
    shifts: Sequence[Shift],
    drifted: Collection[str],
) -> Iterator[LevelSeries]:
    """Yield the charts of the shifts, then of the first figure of each drifted column.
    The windows are in the order of time, because judged windows may be between windows
    of the reference.
    """
    in_time = sorted(range(len(course.starts)), key=course.starts.__getitem__)
    end = max(in_time.index(len(in_time) - 1) + 1, _SHOWN_WINDOWS)
    shown_windows = in_time[max(end - _SHOWN_WINDOWS, 0) : end]
    charted: dict[int, Shift | None] = {shift.series: shift for shift in shifts}
    shown = {course.series[place].key for place in charted}
    for key in drifted:
        places = [
            place
            for place, series in enumerate(course.series)
            if series.key == key and series.figure != MISSING
        ]
        if places and key not in shown:
            charted[places[0]] = None
    for place, shift in [*charted.items()][:_MOST_CHARTS]:
        series = course.series[place]
        values = course.windows.values[:, place]
        usual = values - course.tracking.levels[:, place] + course.tracking.mean[place]
        yield LevelSeries(
            title=f"{series.key}, {_name(course, series)}",
            starts=[course.starts[index] for index in shown_windows],
            values=values[shown_windows].tolist(),
            usual=usual[shown_windows].tolist(),
            deviation=float(course.tracking.deviation[place]),
            onset=_onset(course, shift) if shift is not None else None,
            key=series.key,
        )
