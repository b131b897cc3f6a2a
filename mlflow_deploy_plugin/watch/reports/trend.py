"""The picture of a report: the scores, requirements and levels of a monitor over its
windows.
"""

import io
import math
from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np

from mlflow_deploy_plugin.core.messages import one_line
from mlflow_deploy_plugin.watch.history import was_alarm
from mlflow_deploy_plugin.watch.result import EXACT, Check, MonitorResult, describe_span, mark_of
from mlflow_deploy_plugin.watch.sequential.evidence import JudgedWindow, LevelSeries, Outcome

MOST_WINDOWS = 60
_MOST_PANELS = 6
"""The maximum number of panels: the overall line, and the five columns that an alert
lists.
"""
_LARGEST = 1e300  # The range of an axis is a float64.
_TITLE_LENGTH = 72  # A longer title would not fit on the picture.
_SHORTEST_NAME = 20
_SCORE = ", score in SD"
_DEVIATIONS = 2
"""Half of the width of the usual band of a level, in standard deviations of the
reference's windows.
"""
_ALARM = "#cf222e"
_FINE = "#1a7f37"
_LINE = "#57606a"
_SOFT = "#9a9a9a"
_BAND = "#b9d3f2"
_COLOURS = {"alarm": _ALARM, "undecided": _SOFT, "fine": _FINE}
# Markers show the state without colour.
_MARKERS = {
    _FINE: "o",
    _ALARM: "X",
    _SOFT: "D",
    _LINE: ".",
}

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class TrendLine:
    """A figure that is drawn over the windows: its outcome in each window."""

    title: str
    outcomes: Sequence[Outcome]

    @property
    def values(self) -> list[float]:
        """The values of the windows; an unknown value is NaN."""
        return _drawable([outcome.value for outcome in self.outcomes])

    @property
    def bounds(self) -> list[float]:
        return _drawable([outcome.threshold for outcome in self.outcomes])

    @property
    def colours(self) -> list[str]:
        return [_COLOURS[mark_of(outcome.state)] for outcome in self.outcomes]


@dataclass(frozen=True)
class LevelLine:
    """A level that is drawn over the windows. `key` is the `alarm_key` of its column if
    the column is an alarm, and `alarms` are the starts of the windows in which the
    column was an alarm. `judged` is the start of the judged window, which may be before
    windows of the reference.
    """

    series: LevelSeries
    judged: datetime
    key: str = ""
    alarms: Set[datetime] = frozenset()

    @property
    def title(self) -> str:
        """The title of the panel, with the first window of the shift. A long name is
        cut, so that it is visible.
        """
        onset = self.series.onset
        if onset is None:
            return self.series.title
        since = f", since the window of {describe_span(onset.start, onset.end)}"
        return f"{_cut(self.series.title, max(_TITLE_LENGTH - len(since), _SHORTEST_NAME))}{since}"

    def describe(self) -> str:
        """Return a text about the newest known value until the judged window."""
        finite = [index for index, value in enumerate(self.series.values) if math.isfinite(value)]
        newest = max(
            [index for index in finite if self.series.starts[index] <= self.judged] or finite,
        )
        onset = self.series.onset
        if onset:
            interval = f" (95 % interval: {describe_span(onset.earliest, onset.latest)})"
        else:
            interval = ""
        text = f"{self.title}{interval}: newest {self.series.values[newest]:.4g}"
        if len(self.series.usual):
            text += (
                f", usual {self.series.usual[newest]:.4g} ± "
                f"{_DEVIATIONS * self.series.deviation:.2g}"
            )
        return text

    def draw_reference(self, panel: "Axes") -> None:
        """Draw the usual band, and the start of the shift's first window with the
        interval.
        """
        from matplotlib.dates import date2num

        if len(self.series.usual):
            usual = np.asarray(self.series.usual)
            half = _DEVIATIONS * self.series.deviation
            times = date2num(list(self.series.starts))
            panel.fill_between(
                times,
                usual - half,
                usual + half,
                color=_BAND,
                linewidth=0,
                zorder=0,
            )
        if onset := self.series.onset:
            first = date2num(onset.earliest)
            panel.axvspan(
                first,
                date2num(onset.latest),
                color=_SOFT,
                alpha=0.35,
                linewidth=0,
                zorder=0.5,
            )
            panel.axvline(
                date2num(onset.start),
                color=_LINE,
                linewidth=1.2,
                linestyle=":",
                zorder=1,
            )


def level_lines(result: MonitorResult, windows: Sequence[JudgedWindow]) -> list[LevelLine]:
    """Return the levels of the report, each over the last `MOST_WINDOWS` windows."""
    alarms = {finding.key: finding for finding in reversed(result.findings) if finding.is_alarm}
    lines: list[LevelLine] = []
    last = slice(-MOST_WINDOWS, None)
    for series in result.report.levels:
        values = _drawable(series.values[last])
        shown = replace(series, starts=series.starts[last], values=values, usual=series.usual[last])
        alarm = alarms.get(series.key)
        if alarm is None:
            lines.append(LevelLine(shown, result.window.start))
            continue
        starts = {window.start for window in windows if was_alarm(result.kind, alarm, window)}
        lines.append(LevelLine(shown, result.window.start, series.key, starts))
    return lines


def trend_lines(
    result: MonitorResult,
    windows: Sequence[JudgedWindow],
    levels: Sequence[LevelLine] = (),
) -> list[TrendLine]:
    """Return a line for each alarm of this result without a level, the worst first, and
    for each requirement on all rows. Without requirements, the first line is the
    largest score of all columns.
    """
    drawn: dict[str, TrendLine] = {}
    if not any(finding.check == "criterion" for finding in result.findings):
        drawn[""] = _line("largest score of a column, in SD", windows, "", "distribution")
    with_level = [line.key for line in levels if line.key]
    alarms = [
        finding for finding in result.findings if finding.is_alarm and finding.key not in with_level
    ]
    required = [
        finding
        for finding in result.findings
        if finding.check == "criterion" and not finding.segment
    ]
    for finding in (*alarms, *required):  # The worst check of a column comes first.
        name = finding.title
        if finding.check == "criterion":
            title = f"{name}, in {finding.unit}" if finding.unit else name
        elif finding.check in EXACT:
            title = f"{name}: {finding.change or finding.check}"
        else:
            title = f"{_cut(name, _TITLE_LENGTH - len(_SCORE))}{_SCORE}"
        if (
            finding.value is not None and finding.key in result.evidence.outcomes
        ):  # A shift has no score of its own.
            drawn.setdefault(name, _line(title, windows, finding.key, finding.check))
    return list(drawn.values())[: _MOST_PANELS - len(with_level)]


def _line(title: str, windows: Sequence[JudgedWindow], key: str, check: Check) -> TrendLine:
    return TrendLine(title, [_drawn_outcome(window, key, check) for window in windows])


def _drawn_outcome(window: JudgedWindow, key: str, check: Check) -> Outcome:
    """Return the outcome to draw. An exact check has the value 0 in judged windows in
    which it is not an alarm, and its value cannot be compared with scores.
    """
    outcome = window.evidence.outcomes.get(key)
    if (
        outcome is None and key in window.evidence.alarms
    ):  # Earlier releases have stored only the alarms.
        return Outcome(check, "not judged")
    if check in EXACT:
        if outcome is None or outcome.check != check:
            return Outcome(check, "no drift", None if window.state == "not judged" else 0.0, 0.0)
    elif outcome is None or outcome.check in EXACT:
        return Outcome(check, "not judged")
    return outcome


def _drawable(values: Sequence[float | None]) -> list[float]:
    """Return the values. Unknown values, and values that are too large for an axis, are
    NaN.
    """
    return [value if value is not None and abs(value) < _LARGEST else math.nan for value in values]


def _cut(text: str, most: int) -> str:
    line = one_line(text)
    return line if len(line) <= most else f"{line[: most - 1]}…"


def draw_trend(
    series: Sequence[TrendLine],
    windows: Sequence[JudgedWindow],
    length: timedelta,
    levels: Sequence[LevelLine] = (),
) -> tuple[bytes, str]:
    """Return a PNG with a panel per line of two or more values, the levels first, and a
    description; both are empty without panels. The lines of `series` have an outcome
    for each of the windows.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # The import takes half a second.
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
    from matplotlib.figure import Figure

    drawn: list[TrendLine | LevelLine] = []
    drawn += [line for line in levels if sum(map(math.isfinite, line.series.values)) > 1]
    drawn += [line for line in series if sum(map(math.isfinite, line.values)) > 1]
    if not drawn:
        return b"", ""
    words = []
    width = 5.2
    height = 1.55 * len(drawn) + 0.1
    figure = Figure(figsize=(width, height), dpi=160)
    # Margins are in inches. An automatic layout, which measures all labels, would take
    # a third of the time.
    figure.subplots_adjust(
        0.62 / width,
        0.4 / height,
        1 - 0.2 / width,
        1 - 0.32 / height,
        hspace=0.5,
    )
    canvas = FigureCanvasAgg(figure)
    times = [window.start for window in windows]
    all_times = [
        time
        for line in drawn
        for time in (line.series.starts if isinstance(line, LevelLine) else times)
    ]
    for panel, line in zip(
        figure.subplots(len(drawn), squeeze=False, sharex=True)[:, 0],
        drawn,
        strict=True,
    ):
        if isinstance(line, LevelLine):
            starts = line.series.starts
            values = line.series.values
            # A level without a reference is not judged.
            other = _FINE if len(line.series.usual) else _LINE
            colours = [_ALARM if start in line.alarms else other for start in starts]
            words.append(line.describe())
            line.draw_reference(panel)
        else:
            starts = times
            values = line.values
            bounds = line.bounds
            colours = line.colours
            finite = [index for index, value in enumerate(values) if math.isfinite(value)]
            alarms = sum(colours[index] == _ALARM for index in finite)
            newest = f"newest {values[finite[-1]]:.4g}, threshold {bounds[finite[-1]]:.4g}"
            words.append(f"{line.title}: {newest}, an alarm in {alarms} of {len(finite)} windows")
            panel.plot(
                times,
                bounds,
                color=_ALARM,
                linewidth=1,
                linestyle="--",
                marker="_",
                zorder=1,
            )
            open_times = [window.start for window in windows if window.state == "not judged"]
            foot = panel.get_xaxis_transform()
            panel.scatter(
                open_times,
                [0.03] * len(open_times),
                marker="|",
                color=_SOFT,
                transform=foot,
            )
        panel.plot(starts, values, color=_LINE, linewidth=1, zorder=1)
        for colour, marker in _MARKERS.items():
            marked = [
                value if window_colour == colour else math.nan
                for value, window_colour in zip(values, colours, strict=True)
            ]
            panel.scatter(starts, marked, color=colour, marker=marker, s=20, zorder=2)
        panel.set_title(_cut(line.title, _TITLE_LENGTH), fontsize=8, loc="left", parse_math=False)
        panel.tick_params(labelsize=8)
        panel.margins(y=0.15)
        panel.set_xlim(min(all_times) - length, max(all_times) + length)
        panel.spines[["top", "right"]].set_visible(False)
        # With five ticks, four days would get half-day ticks.
        locator = AutoDateLocator(
            minticks=3,
            maxticks=8,
        )
        panel.xaxis.set_major_locator(locator)
        panel.xaxis.set_major_formatter(ConciseDateFormatter(locator))
        for axis in (panel.xaxis, panel.yaxis):
            axis.get_offset_text().set_size(8)
    file = io.BytesIO()
    canvas.print_png(file)
    return file.getvalue(), "; ".join(words)
