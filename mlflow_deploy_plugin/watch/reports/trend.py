"""The pictures of a report: the scores, requirements and levels of a monitor over its
windows.
"""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mlflow_deploy_plugin.serve.runtime.feeds import Array
from mlflow_deploy_plugin.watch.history import was_alarm
from mlflow_deploy_plugin.watch.result import (
    EXACT,
    Check,
    MonitorResult,
    describe_interval,
    describe_span,
    format_number,
    mark_of,
)
from mlflow_deploy_plugin.watch.sequential.evidence import JudgedWindow, LevelSeries, Onset, Outcome

MOST_WINDOWS = 60
_MOST_PANELS = 6
"""The maximum number of panels: the overall line, and the five columns that an alert
lists.
"""
_LARGEST = 1e300  # The range of an axis is a float64.
_SCORE = ", score in SD"
_DEVIATIONS = 2
"""Half of the width of the usual band of a level, in standard deviations of the
reference's windows.
"""
_FARTHEST = 4
"""A value is cut if its distance from the mean of most values is greater than this
number of ranges of these values.
"""
WIDTH = 4.4  # In inches.
HEIGHT = 2.0
LABEL_POINTS = 12
"""The size of a label in points: 12 pixels if a phone shows the picture with a width of
320 pixels.
"""
_EDGE = 0.3
"""The distance of a cut mark from the other values, in ranges of these values."""
_ALARM = "#cf222e"
_CHANGED = "#9a6700"
_FINE = "#1a7f37"
_LINE = "#57606a"
_SOFT = "#9a9a9a"
_BAND = "#b9d3f2"
_COLOURS = {"alarm": _ALARM, "changed": _CHANGED, "undecided": _SOFT, "fine": _FINE}
# Markers show the state without colour.
_MARKERS = {
    _FINE: "o",
    _ALARM: "X",
    _CHANGED: "^",
    _SOFT: "D",
    _LINE: ".",
}

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Picture(NamedTuple):
    """A chart as PNG, its caption, and its content in words."""

    caption: str
    png: bytes
    words: str


@dataclass(frozen=True)
class TrendLine:
    """A figure that is drawn over K windows.

    Attributes:
        starts: the starts of the windows, [K].
        values: the figure in each window, [K]; NaN if it is unknown.
        bounds: the threshold, [1, K], or the lower and the upper end of the usual band,
            [2, K]; [0, K] without either. NaN if it is unknown.
        colours: the colours of the windows, [K].
        judged: the start of the judged window, which may be before other windows.
        show: returns a value as text; of a logarithm, its number.
        key: the `alarm_key` of the column of a level if the column is an alarm;
            otherwise empty.
        unjudged: the starts of windows without a verdict.
        onset: the start of a shift; None without a shift.
    """

    title: str
    starts: Sequence[datetime]
    values: Sequence[float]
    bounds: Array
    colours: Sequence[str]
    judged: datetime
    show: Callable[[float], str] = format_number
    key: str = ""
    unjudged: Sequence[datetime] = ()
    onset: Onset | None = None
    is_logarithmic: bool = False

    def describe(self) -> str:
        """Return a text about the newest known value until the judged window."""
        finite = [index for index, value in enumerate(self.values) if math.isfinite(value)]
        until_judged = [index for index in finite if self.starts[index] <= self.judged]
        newest = max(until_judged or finite)
        text = self.title
        if self.onset is not None:
            text += f" ({describe_interval(self.onset.earliest, self.onset.latest)})"
        text += f": newest {self.show(self.values[newest])}"
        bounds = [self.show(bound) for bound in self.bounds[:, newest].tolist()]
        if len(bounds) == 2:
            return f"{text}, usual {bounds[0]} to {bounds[1]}"
        if bounds:
            alarms = sum(self.colours[index] == _ALARM for index in finite)
            text += f", threshold {bounds[0]}, an alarm in {alarms} of {len(finite)} windows"
        return text


def level_lines(result: MonitorResult, windows: Sequence[JudgedWindow]) -> list[TrendLine]:
    """Return the levels of the report, each over the last `MOST_WINDOWS` windows."""
    alarms = {finding.key: finding for finding in reversed(result.findings) if finding.is_open}
    lines = []
    for series in result.report.levels:
        marked = {}
        alarm = alarms.get(series.key)
        if alarm is not None:
            marked = {
                window.start: _CHANGED if window.state == "changed" else _ALARM
                for window in windows
                if was_alarm(result.kind, alarm, window)
            }
        line = _level_line(series, result.window.start, marked)
        lines.append(replace(line, key="" if alarm is None else series.key))
    return lines


def _level_line(series: LevelSeries, judged: datetime, marked: Mapping[datetime, str]) -> TrendLine:
    """Return the line of a level. `marked` has the colours of the windows in which its
    column was an alarm or a change.
    """
    last = slice(-MOST_WINDOWS, None)
    starts = series.starts[last]
    title = series.title
    if series.onset is not None:
        span = describe_span(series.onset.start, series.onset.end)
        title += f", since the window of {span}"
    bounds: Array = np.empty((0, len(starts)))
    other = _LINE  # A level without a reference is not judged.
    if len(series.usual):
        half = _DEVIATIONS * series.deviation
        bounds = np.add([[-half], [half]], series.usual[last])
        other = _FINE
    show = partial(format_number, digits=3)
    return TrendLine(
        title,
        starts,
        [_drawable(value) for value in series.values[last]],
        bounds,
        [marked.get(start, other) for start in starts],
        judged,
        (lambda value: show(math.exp(value))) if series.is_logarithmic else show,
        onset=series.onset,
        is_logarithmic=series.is_logarithmic,
    )


def trend_lines(
    result: MonitorResult,
    windows: Sequence[JudgedWindow],
    levels: Sequence[TrendLine] = (),
) -> list[TrendLine]:
    """Return a line for each alarm of this result without a level, the worst first, and
    for each requirement on all rows. Without requirements, the first line is the
    largest score of all columns.
    """
    drawn: dict[str, TrendLine] = {}
    if not any(finding.check == "criterion" for finding in result.findings):
        drawn[""] = _make_line("largest score of a column, in SD", windows, "", "distribution")
    with_level = [line.key for line in levels if line.key]
    alarms = [
        finding for finding in result.findings if finding.is_open and finding.key not in with_level
    ]
    required = [
        finding
        for finding in result.findings
        if finding.check == "criterion" and not finding.segment
    ]
    for finding in (*alarms, *required):  # The worst check of a column comes first.
        # A shift has no score of its own.
        if finding.value is not None and finding.key in result.evidence.outcomes:
            name = finding.title
            if finding.check == "criterion":
                title = f"{name}, in {finding.unit}" if finding.unit else name
            elif finding.check in EXACT:
                change = finding.change or finding.check
                title = f"{name}: {change}"
            else:
                title = name + _SCORE
            line = _make_line(title, windows, finding.key, finding.check)
            drawn.setdefault(finding.title, line)
    return list(drawn.values())[: _MOST_PANELS - len(with_level)]


def _make_line(
    title: str,
    windows: Sequence[JudgedWindow],
    key: str,
    check: Check,
) -> TrendLine:
    outcomes = []
    for window in windows:
        outcome = window.evidence.outcomes.get(key)
        # Earlier releases have stored only the alarms.
        if outcome is None and key in window.evidence.alarms:
            outcome = Outcome(check, "not judged")
        elif check in EXACT:
            # In judged windows in which it is not an alarm, an exact check has the
            # value 0, which cannot be compared with scores.
            if outcome is None or outcome.check != check:
                value = None if window.state == "not judged" else 0.0
                outcome = Outcome(check, "no drift", value, 0.0)
        elif outcome is None or outcome.check in EXACT:
            outcome = Outcome(check, "not judged")
        outcomes.append(outcome)
    return TrendLine(
        title,
        [window.start for window in windows],
        [_drawable(outcome.value) for outcome in outcomes],
        np.array([[_drawable(outcome.threshold) for outcome in outcomes]]),
        [_COLOURS[mark_of(outcome.state)] for outcome in outcomes],
        max(window.start for window in windows),
        unjudged=[window.start for window in windows if window.state == "not judged"],
    )


def _drawable(value: float | None) -> float:
    """Return the value; NaN if it is unknown or too large for an axis."""
    if value is None or not abs(value) < _LARGEST:
        return math.nan
    return value


def draw_trend(
    lines: Sequence[TrendLine],
    length: timedelta,
) -> list[Picture]:
    """Return a picture per line of two or more values, all with the same axis of times.
    `length` is the length of a window.
    """
    # The imports take half a second.
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
    from matplotlib.figure import Figure

    drawn = [line for line in lines if sum(map(math.isfinite, line.values)) > 1]
    if not drawn:
        return []
    starts = list(chain.from_iterable(line.starts for line in drawn))
    limits = _to_days([min(starts) - length, max(starts) + length])
    pictures = []
    for line in drawn:
        figure = Figure(figsize=(WIDTH, HEIGHT), dpi=160)
        panel = figure.subplots()
        # An automatic layout, which measures all labels, takes a third of the time.
        figure.subplots_adjust(0.9 / WIDTH, 0.6 / HEIGHT, 1 - 0.25 / WIDTH, 1 - 0.3 / HEIGHT)
        _draw_background(panel, line)
        _draw_values(panel, line)
        panel.tick_params(labelsize=LABEL_POINTS)
        panel.margins(y=0.15)
        panel.spines[["top", "right"]].set_visible(False)
        # With five ticks, four days would get half-day ticks.
        locator = AutoDateLocator(minticks=3, maxticks=6)
        panel.xaxis.set_major_locator(locator)
        panel.xaxis.set_major_formatter(ConciseDateFormatter(locator))
        for axis in (panel.xaxis, panel.yaxis):
            axis.get_offset_text().set_fontsize(LABEL_POINTS)
        panel.set_xlim(*limits)
        file = io.BytesIO()
        figure.savefig(file)
        pictures.append(Picture(line.title, file.getvalue(), line.describe()))
    return pictures


def _to_days(times: Sequence[datetime]) -> Array:
    """Return the times, [N], as matplotlib's number of days, float64."""
    from matplotlib.dates import date2num

    return np.asarray(date2num(list(times)))


def _draw_background(panel: "Axes", line: TrendLine) -> None:
    """Draw the threshold or the usual band, a mark at the bottom for each unjudged
    window, and the start of the shift's first window with the interval. The axis of a
    logarithm shows its numbers.
    """
    days = _to_days(line.starts)
    if len(line.bounds) == 1:
        panel.plot(
            days, line.bounds[0], color=_ALARM, linewidth=1, linestyle="--", marker="_", zorder=1
        )
    elif len(line.bounds):
        panel.fill_between(days, *line.bounds, color=_BAND, linewidth=0, zorder=0)
    panel.scatter(
        _to_days(line.unjudged),
        [0.03] * len(line.unjudged),
        marker="|",
        color=_SOFT,
        transform=panel.get_xaxis_transform(),
    )
    if line.is_logarithmic:
        panel.yaxis.set_major_formatter(lambda value, _: line.show(value))
    if onset := line.onset:
        first, earliest, latest = _to_days([onset.start, onset.earliest, onset.latest])
        panel.axvspan(earliest, latest, color=_SOFT, alpha=0.35, linewidth=0, zorder=0.5)
        panel.axvline(first, color=_LINE, linewidth=1.2, linestyle=":", zorder=1)


def _draw_values(panel: "Axes", line: TrendLine) -> None:
    days = _to_days(line.starts)
    values = np.array(line.values)
    drawn = np.clip(values, *_cut_axis(values, line.bounds))
    panel.plot(days, drawn, color=_LINE, linewidth=1, zorder=1)
    for colour, marker in _MARKERS.items():
        marked = np.where(np.array(line.colours) == colour, drawn, math.nan)
        panel.scatter(
            days,
            marked,
            color=colour,
            marker=marker,
            s=20,
            zorder=2,
            clip_on=False,
        )
    # Write the most extreme of consecutive cut values next to their marks, on the side
    # with more room. The white background interrupts the line below the marks.
    beyond = np.sign(np.nan_to_num(values - drawn))
    for run in np.split(np.arange(len(days)), np.flatnonzero(np.diff(beyond)) + 1):
        sign = beyond[run[0]]
        if not sign:
            continue
        extreme = line.show(sign * (sign * values[run]).max())
        is_early = run[0] < len(days) / 2
        place = run[-1] if is_early else run[0]
        panel.text(
            days[place],
            drawn[place],
            f"  {'↑' if sign > 0 else '↓'} {extreme}  ",
            horizontalalignment="left" if is_early else "right",
            verticalalignment="center",
            fontsize=LABEL_POINTS,
            backgroundcolor="white",
            zorder=1.5,
        )


def _cut_axis(values: Array, bounds: Array) -> tuple[float, float]:
    """Return the smallest and the largest value that can be drawn, so that a few faulty
    windows do not flatten the others. All other values and the `bounds` lie between
    them.
    """
    known = np.sort(values[np.isfinite(values)])
    few = (len(known) + 5) // 10
    most = np.array([*known[few : len(known) - few], *bounds[np.isfinite(bounds)]])
    # Constant values have no scale for a distance.
    farthest = _FARTHEST * np.ptp(most) or math.inf
    near = [*known[np.abs(known - most.mean()) <= farthest], *most]
    edge = _EDGE * np.ptp(near)
    return min(near) - edge, max(near) + edge
