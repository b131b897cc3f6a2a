"""The history of a monitor: the metrics of its windows in MLflow, the history of a finding, and the trend plot.

A finding's history is the change of its metric and the start of its alarm. Columns are compared with the reference;
other metrics are compared with earlier windows. Windows without a state are skipped when alarms are counted.
"""

import hashlib
import io
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, get_args

import numpy as np

from mlflow_deploy_plugin.core.messages import one_line
from mlflow_deploy_plugin.serve.inference_log.windows import microseconds
from mlflow_deploy_plugin.watch.result import (
    ALARMS,
    EXACT,
    UNDECIDED,
    Check,
    Finding,
    MonitorResult,
    State,
    describe_span,
    mark_of,
    same_phase,
)
from mlflow_deploy_plugin.watch.sequential.evidence import LevelSeries, alarm_key

_WINDOWS_BEFORE = 8
_LONGEST_NAME = 200  # MLflow's limit is 250.
_NO_PATH = "\0"
_CRITERION = ("criterion", "criterion_threshold", "criterion_state")
_STATES: Mapping[State, float] = {"kept": 0.0, "cannot tell": 0.5, "violated": 1.0}
MOST_WINDOWS = 60
_MOST_PANELS = 6
"""The maximum number of panels: the overall line, and the five columns that an alert lists."""
_SHIFT_STATE = "shift_state"
"""The metric of a shift's state: 1 for an alarm. The detector restarts, so its score does not show a lasting alarm."""
_LARGEST = 1e300  # The range of an axis is a float64.
_TITLE_LENGTH = 72  # A longer title would not fit on the picture.
_SHORTEST_NAME, _SCORE = 20, ", score in SD"
_DEVIATIONS = 2
"""Half of the width of the usual band of a level, in standard deviations of the reference's windows."""
_ALARM, _FINE, _LINE, _SOFT, _BAND = "#cf222e", "#1a7f37", "#57606a", "#9a9a9a", "#b9d3f2"
_COLOURS = {"alarm": _ALARM, "undecided": _SOFT, "fine": _FINE}
_MARKERS = {_FINE: "o", _ALARM: "X", _SOFT: "D", _LINE: "."}  # Markers show the state without colour.

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class PastWindow:
    """A window and its metrics from MLflow."""

    start: datetime
    state: str
    figures: Mapping[str, float]


def add_history(result: MonitorResult, past: Sequence[PastWindow]) -> MonitorResult:
    ordered = sorted(past, key=lambda window: window.start)
    findings = tuple(_with_history(result, finding, ordered) for finding in result.findings)
    reason = result.reason
    # The reason quotes the first finding of the window, and shifts with their own history.
    first = next((finding for finding in findings if finding.check != "shift"), None)
    if first and first.state in (*ALARMS, *UNDECIDED) and first.history and first.reason:
        reason = reason.replace(first.reason, f"{first.history}; {first.reason}", 1)
    return replace(result, findings=findings, reason=reason)


def _with_history(result: MonitorResult, finding: Finding, past: Sequence[PastWindow]) -> Finding:
    first = result.window.start
    if finding.is_alarm and not finding.since:  # A shift has its own start, before the first window with its alarm.
        in_a_row = 1
        for window in reversed(past):
            was_alarm = _was_alarm(result, finding, window)
            if was_alarm is False:
                break
            if was_alarm:
                first, in_a_row = window.start, in_a_row + 1
        end = first + result.window.length
        finding = replace(finding, since=first.isoformat(), since_end=end.isoformat(), in_a_row=in_a_row)
    if finding.check != "criterion" or finding.value is None or finding.change:
        return finding
    earlier = {
        microseconds(window.start): window.figures[name]
        for window in past
        if window.start < first and (name := metric_of("criterion", finding, window.figures))
    }
    if not earlier:
        return finding
    length_us, values = result.window.end_us - result.window.start_us, [*earlier.values()]
    indices, named = same_phase(result.window.start_us, length_us, [*earlier])
    before = ([values[index] for index in indices] or values)[-_WINDOWS_BEFORE:]
    usual = float(np.median(before))
    several = f"the median of the {len(before)} {named or 'windows'} before"
    windows = "the window before" if len(before) == 1 else several
    then, now = f"{usual:.4g}", f"{finding.value:.4g}"
    where = "unchanged" if then == now else "higher" if finding.value > usual else "lower"
    return replace(finding, change=f"{then} ({windows}) → {now}, {where}")


def _was_alarm(result: MonitorResult, finding: Finding, window: PastWindow) -> bool | None:
    """Return True if the finding was an alarm in the past `window` (a column: in any check); None if unknown."""
    if window.state not in (*ALARMS, *UNDECIDED):
        return False
    if finding.check == "criterion":
        if state := state_in(window.figures, metric_of("criterion_state", finding, window.figures)):
            return None if state in UNDECIDED else state in ALARMS
        # Data quality has findings only for columns that violate a requirement, so other columns were not an alarm.
        return False if result.kind == "data_quality" and window.state not in UNDECIDED else None
    named = {check: metric_of(f"{check}_score", finding, window.figures) for check in get_args(Check)}
    scores = {check: window.figures[name] for check, name in named.items() if name}
    shift = window.figures.get(metric_of(_SHIFT_STATE, finding, window.figures), 0.0)
    if shift or any(scores.get(check, 0.0) > 0 for check in EXACT):
        return True
    if window.state == "not judged" or "threshold" not in window.figures:
        return None
    others = (*EXACT, "shift")
    return any(score > window.figures["threshold"] for check, score in scores.items() if check not in others)


def to_metrics(result: MonitorResult) -> dict[str, float]:
    """Return the figures, and the finite values of the findings: `distribution_score/COLUMN`, … for a column;
    `shift_state/COLUMN` (1 for an alarm) for a shift of its level; `criterion/accuracy`, `criterion_threshold/accuracy`
    and `criterion_state/accuracy` (0 kept, 0.5 cannot tell, 1 violated) for a requirement."""
    named: list[tuple[str, float | None]] = [("rows", result.rows), ("is_alarm", float(result.is_alarm))]
    named += result.figures.items()
    for finding in result.findings:
        subject = _subject(finding)
        if finding.check == "criterion":
            judged = finding.value, finding.threshold, _STATES.get(finding.state)
            named += zip((f"{kind}/{subject}" for kind in _CRITERION), judged, strict=True)
        else:
            named.append((f"{finding.check}_score/{subject}", finding.value))
        if finding.check == "shift":
            named.append((f"{_SHIFT_STATE}/{subject}", float(finding.is_alarm)))
    values: dict[str, float] = {}
    for name, value in named:
        if value is not None and math.isfinite(value):
            values.setdefault(name, float(value))
    counts = Counter(metric_name(name) for name in values)
    return {_own_name(name, counts[metric_name(name)] > 1): value for name, value in values.items()}


def metric_of(prefix: str, finding: Finding, figures: Mapping[str, float]) -> str:
    """Return the name of a finding's metric in a window, with a prefix of `_CRITERION` or `CHECK_score`; empty if the
    window lacks the metric."""
    return _found(f"{prefix}/{_subject(finding)}", figures)


def state_in(figures: Mapping[str, float], name: str) -> State | None:
    """Return the state of a criterion in a window from the metric with this name; None without the metric."""
    value = figures.get(name)
    return next((state for state, number in _STATES.items() if number == value), None)


def _found(name: str, figures: Mapping[str, float]) -> str:
    return next((candidate for candidate in (_own_name(name, True), metric_name(name)) if candidate in figures), "")


def _own_name(name: str, is_shared: bool) -> str:
    """Return a valid MLflow name, with a digest if several names would become the same valid name."""
    plain = metric_name(name)
    return f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:6]}" if is_shared and plain != name else plain


def metric_name(name: str) -> str:
    """Return a valid MLflow name: most punctuation is replaced, and the name is not a relative path."""
    parts = [re.sub(r"[^\w.\- ]", "_", part) for part in name.split("/")]
    return "/".join(re.sub(r"^\.+|\.+$|\.\.+", "_", part).strip() or "_" for part in parts)[:_LONGEST_NAME]


def _subject(finding: Finding) -> str:
    parts = [finding.subject, finding.segment] if finding.segment else [finding.subject]
    return "/".join(part.replace("/", _NO_PATH) for part in parts)


@dataclass(frozen=True)
class TrendLine:
    """A figure that is drawn over the windows. If `threshold` is empty, any value above 0 is an alarm, and a judged
    window without the figure has the value 0. `state` is the metric of a requirement's state; if empty, the window's
    state is used. If `is_column`, values above the threshold are alarms."""

    title: str
    value: str
    threshold: str = ""
    state: str = ""
    is_column: bool = False

    def points(self, windows: Sequence[PastWindow]) -> tuple[list[float], list[float], list[str]]:
        """Return the values, thresholds and colours of the windows; an unknown value is NaN."""
        values, bounds, colours = [], [], []
        for window in windows:
            lacking = math.nan if self.threshold or window.state == "not judged" else 0.0
            values.append(window.figures.get(self.value, lacking))
            bounds.append(window.figures.get(self.threshold, math.nan) if self.threshold else 0.0)
            state = state_in(window.figures, self.state) or window.state
            if self.is_column:
                state = "drift" if values[-1] > bounds[-1] else "no drift"
            colours.append(_COLOURS[mark_of(state)])
        return _drawable(values), _drawable(bounds), colours


@dataclass(frozen=True)
class LevelLine:
    """A level that is drawn over the windows. `key` is the `alarm_key` of its column if the column is an alarm, and
    `alarms` are the starts of the windows in which the column was an alarm. `judged` is the start of the judged window,
    which may be before windows of the reference."""

    series: LevelSeries
    judged: datetime
    key: str = ""
    alarms: Set[datetime] = frozenset()

    @property
    def title(self) -> str:
        """The title of the panel, with the first window of the shift. A long name is cut, so that it is visible."""
        onset = self.series.onset
        if onset is None:
            return self.series.title
        since = f", since the window of {describe_span(onset.start, onset.end)}"
        return f"{_cut(self.series.title, max(_TITLE_LENGTH - len(since), _SHORTEST_NAME))}{since}"

    def describe(self) -> str:
        """Return a text about the newest known value until the judged window."""
        known = [index for index, value in enumerate(self.series.values) if math.isfinite(value)]
        newest = max([index for index in known if self.series.starts[index] <= self.judged] or known)
        onset = self.series.onset
        interval = f" (95 % interval: {describe_span(onset.earliest, onset.latest)})" if onset else ""
        text = f"{self.title}{interval}: newest {self.series.values[newest]:.4g}"
        if len(self.series.usual):
            text += f", usual {self.series.usual[newest]:.4g} ± {_DEVIATIONS * self.series.deviation:.2g}"
        return text

    def draw_reference(self, panel: "Axes") -> None:
        """Draw the usual band, and the start of the shift's first window with the interval."""
        from matplotlib.dates import date2num

        if len(self.series.usual):
            usual, half = np.asarray(self.series.usual), _DEVIATIONS * self.series.deviation
            times = date2num(list(self.series.starts))
            panel.fill_between(times, usual - half, usual + half, color=_BAND, linewidth=0, zorder=0)
        if onset := self.series.onset:
            first = date2num(onset.earliest)
            panel.axvspan(first, date2num(onset.latest), color=_SOFT, alpha=0.35, linewidth=0, zorder=0.5)
            panel.axvline(date2num(onset.start), color=_LINE, linewidth=1.2, linestyle=":", zorder=1)


def level_lines(result: MonitorResult, windows: Sequence[PastWindow]) -> list[LevelLine]:
    """Return the levels of the report, each over the last `MOST_WINDOWS` windows."""
    alarms = {alarm_key(one.subject, one.segment): one for one in reversed(result.findings) if one.is_alarm}
    lines: list[LevelLine] = []
    last = slice(-MOST_WINDOWS, None)
    for series in result.report.levels:
        values = _drawable(series.values[last])
        shown = replace(series, starts=series.starts[last], values=values, usual=series.usual[last])
        own = [key for key in alarms if series.title.startswith(f"{key}, ")] if len(series.usual) else []
        key = max(own, key=len, default="")
        starts = {window.start for window in windows if key in alarms and _was_alarm(result, alarms[key], window)}
        lines.append(LevelLine(shown, result.window.start, key, starts))
    return lines


def trend_lines(
    result: MonitorResult, figures: Mapping[str, float], levels: Sequence[LevelLine] = ()
) -> list[TrendLine]:
    """Return a line for each alarm of this result without a level, the worst first, and for each requirement on all
    rows. Without requirements, the first line is the largest score of all columns."""
    drawn: dict[str, TrendLine] = {}
    if not any(finding.check == "criterion" for finding in result.findings):
        drawn[""] = TrendLine("largest score of a column, in SD", "statistic", "threshold")
    judged = [line.key for line in levels if line.key]
    alarms = [one for one in result.findings if one.is_alarm and one.key not in judged]
    required = [finding for finding in result.findings if finding.check == "criterion" and not finding.segment]
    for finding in (*alarms, *required):  # The worst check of a column comes first.
        name = finding.title
        score = metric_of(f"{finding.check}_score", finding, figures)
        if finding.check == "criterion":
            value, threshold, state = (metric_of(kind, finding, figures) for kind in _CRITERION)
            line = TrendLine(f"{name}, in {finding.unit}" if finding.unit else name, value, threshold, state)
        elif finding.check in EXACT:
            line = TrendLine(f"{name}: {finding.change or finding.check}", score, is_column=True)
        else:
            largest = f"drift_score/{finding.segment}/" if finding.segment else "drift_score/"
            own = "" if finding.check == "shift" else score  # The threshold is not the threshold of a shift.
            title = f"{_cut(name, _TITLE_LENGTH - len(_SCORE))}{_SCORE}"
            line = TrendLine(title, _found(largest + finding.subject, figures) or own, "threshold", is_column=True)
        if line.value:  # The window may lack the metric.
            drawn.setdefault(name, line)
    return list(drawn.values())[: _MOST_PANELS - len(judged)]


def _drawable(values: Sequence[float]) -> list[float]:
    """Return the values. Unknown values, and values that are too large for an axis, are NaN."""
    return [value if abs(value) < _LARGEST else math.nan for value in values]


def _cut(text: str, most: int) -> str:
    line = one_line(text)
    return line if len(line) <= most else f"{line[: most - 1]}…"


def draw_trend(
    series: Sequence[TrendLine], windows: Sequence[PastWindow], length: timedelta, levels: Sequence[LevelLine] = ()
) -> tuple[bytes, str]:
    """Return a PNG with a panel per line of two or more values, the levels first, and a description; both are empty
    without panels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # The import takes half a second.
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
    from matplotlib.figure import Figure

    ordered = sorted(windows, key=lambda window: window.start)[-MOST_WINDOWS:]
    drawn: list[TrendLine | LevelLine] = []
    drawn += [line for line in levels if sum(map(math.isfinite, line.series.values)) > 1]
    drawn += [line for line in series if sum(map(math.isfinite, line.points(ordered)[0])) > 1]
    if not drawn:
        return b"", ""
    words = []
    width, height = 5.2, 1.55 * len(drawn) + 0.1
    figure = Figure(figsize=(width, height), dpi=160)
    # Margins are in inches. An automatic layout, which measures all labels, would take a third of the time.
    figure.subplots_adjust(0.62 / width, 0.4 / height, 1 - 0.2 / width, 1 - 0.32 / height, hspace=0.5)
    canvas = FigureCanvasAgg(figure)
    times = [window.start for window in ordered]
    all_times = [time for line in drawn for time in (line.series.starts if isinstance(line, LevelLine) else times)]
    for panel, line in zip(figure.subplots(len(drawn), squeeze=False, sharex=True)[:, 0], drawn, strict=True):
        if isinstance(line, LevelLine):
            starts, values = line.series.starts, line.series.values
            other = _FINE if len(line.series.usual) else _LINE  # A level without a reference is not judged.
            colours = [_ALARM if start in line.alarms else other for start in starts]
            words.append(line.describe())
            line.draw_reference(panel)
        else:
            starts, (values, bounds, colours) = times, line.points(ordered)
            known = [index for index, value in enumerate(values) if math.isfinite(value)]
            alarms = sum(colours[index] == _ALARM for index in known)
            newest = f"newest {values[known[-1]]:.4g}, threshold {bounds[known[-1]]:.4g}"
            words.append(f"{line.title}: {newest}, an alarm in {alarms} of {len(known)} windows")
            panel.plot(times, bounds, color=_ALARM, linewidth=1, linestyle="--", marker="_", zorder=1)
            open_times = [window.start for window in ordered if window.state == "not judged"]
            foot = panel.get_xaxis_transform()
            panel.scatter(open_times, [0.03] * len(open_times), marker="|", color=_SOFT, transform=foot)
        panel.plot(starts, values, color=_LINE, linewidth=1, zorder=1)
        for colour, marker in _MARKERS.items():
            marked = [value if own == colour else math.nan for value, own in zip(values, colours, strict=True)]
            panel.scatter(starts, marked, color=colour, marker=marker, s=20, zorder=2)
        panel.set_title(_cut(line.title, _TITLE_LENGTH), fontsize=8, loc="left", parse_math=False)
        panel.tick_params(labelsize=8)
        panel.margins(y=0.15)
        panel.set_xlim(min(all_times) - length, max(all_times) + length)
        panel.spines[["top", "right"]].set_visible(False)
        locator = AutoDateLocator(minticks=3, maxticks=8)  # With five ticks, four days would get half-day ticks.
        panel.xaxis.set_major_locator(locator)
        panel.xaxis.set_major_formatter(ConciseDateFormatter(locator))
        for axis in (panel.xaxis, panel.yaxis):
            axis.get_offset_text().set_size(8)
    file = io.BytesIO()
    canvas.print_png(file)
    return file.getvalue(), "; ".join(words)
