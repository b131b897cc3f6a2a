"""The history of a monitor: the metrics of its windows in MLflow, their part in a finding, and their picture.

A finding's history has the change of its metric and the start of its alarm. A column's check is compared with the
reference, any other requirement with the windows before. A window without a state neither counts nor breaks a row.
"""

import hashlib
import io
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import get_args

import numpy as np

from mlflow_deploy_plugin.monitoring.result import ALARMS, EXACT, UNDECIDED, Check, Finding, MonitorResult, State

_WINDOWS_BEFORE = 8
_LONGEST_NAME = 200  # MLflow takes 250
_NO_PATH = "\0"
_CRITERION = ("criterion", "criterion_threshold", "criterion_state")
_STATES: Mapping[State, float] = {"kept": 0.0, "cannot tell": 0.5, "violated": 1.0}
MOST_WINDOWS = 60
_MOST_PANELS = 6
"""Five columns are as many as an alert names."""
_ALARM, _FINE, _LINE, _SOFT = "#cf222e", "#1a7f37", "#57606a", "#9a9a9a"
_MARKERS = {_FINE: "o", _ALARM: "X", _SOFT: "D"}  # The state must not depend on colours.


@dataclass(frozen=True)
class PastWindow:
    """A window and its metrics, as its run in MLflow has them."""

    start: datetime
    state: str
    figures: Mapping[str, float]


def add_history(result: MonitorResult, past: Sequence[PastWindow]) -> MonitorResult:
    ordered = sorted(past, key=lambda window: window.start)
    findings = tuple(_with_history(result, found, ordered) for found in result.findings)
    reason = result.reason
    first = findings[0] if findings else None  # the one that the reason quotes
    if first and first.state in (*ALARMS, *UNDECIDED) and first.history and first.reason:
        reason = reason.replace(first.reason, f"{first.history}; {first.reason}", 1)
    return replace(result, findings=findings, reason=reason)


def _with_history(result: MonitorResult, found: Finding, past: Sequence[PastWindow]) -> Finding:
    first = result.window.start
    if found.is_alarm:
        in_a_row = 1
        for window in reversed(past):
            was_alarm = _was_alarm(result, found, window)
            if was_alarm is False:
                break
            if was_alarm:
                first, in_a_row = window.start, in_a_row + 1
        found = replace(found, since=first.isoformat(), in_a_row=in_a_row)
    if found.check != "criterion" or found.value is None or found.change:
        return found
    earlier = [window.figures for window in past if window.start < first]
    values = [figures.get(criterion_metric("criterion", found, figures)) for figures in earlier]
    known = [value for value in values if value is not None]
    if not known:
        return found
    # The words are those of a column's check.
    before = known[-_WINDOWS_BEFORE:]
    usual = float(np.median(before))
    windows = "the window before" if len(before) == 1 else f"the median of the {len(before)} windows before"
    then, now = f"{usual:.4g}", f"{found.value:.4g}"
    where = "unchanged" if then == now else "higher" if found.value > usual else "lower"
    return replace(found, change=f"{then} ({windows}) → {now}, {where}")


def _was_alarm(result: MonitorResult, found: Finding, window: PastWindow) -> bool | None:
    """Return True if the finding was an alarm then; None if that is not known. Any check of a column counts."""
    if window.state not in (*ALARMS, *UNDECIDED):
        return False
    if found.check == "criterion":
        if state := state_in(window.figures, criterion_metric("criterion_state", found, window.figures)):
            return None if state in UNDECIDED else state in ALARMS
        # Data quality has findings only for columns that break a requirement.
        return False if result.kind == "data_quality" and window.state not in UNDECIDED else None
    scores = {
        check: window.figures[name]
        for check in get_args(Check)
        if (name := score_metric(replace(found, check=check), window.figures))
    }
    if any(scores.get(check, 0.0) > 0 for check in EXACT):
        return True
    if window.state == "not judged" or "threshold" not in window.figures:
        return None
    return any(score > window.figures["threshold"] for check, score in scores.items() if check not in EXACT)


def to_metrics(result: MonitorResult) -> dict[str, float]:
    """Return the figures, and the finite value that each finding was judged on: `distribution_score/COLUMN`, … of a
    column; `criterion/accuracy`, `criterion_threshold/accuracy` and `criterion_state/accuracy` (0 kept, 0.5 cannot
    tell, 1 violated) of a requirement."""
    named: list[tuple[str, float | None]] = [("rows", result.rows), ("is_alarm", float(result.is_alarm))]
    named += result.figures.items()
    for finding in result.findings:
        subject = _subject(finding)
        if finding.check == "criterion":
            judged = finding.value, finding.threshold, _STATES.get(finding.state)
            named += zip((f"{kind}/{subject}" for kind in _CRITERION), judged, strict=True)
        else:
            named.append((f"{finding.check}_score/{subject}", finding.value))
    values: dict[str, float] = {}
    for name, value in named:
        if value is not None and math.isfinite(value):
            values.setdefault(name, float(value))
    counts = Counter(metric_name(name) for name in values)
    return {_own_name(name, counts[metric_name(name)] > 1): value for name, value in values.items()}


def score_metric(finding: Finding, figures: Mapping[str, float]) -> str:
    """Return the metric, among those of a window, that a column's check was judged on; empty: the window has none."""
    return _found(f"{finding.check}_score/{_subject(finding)}", figures)


def criterion_metric(kind: str, finding: Finding, figures: Mapping[str, float]) -> str:
    """Return the metric of a criterion of one of the kinds `_CRITERION`, as `score_metric`."""
    return _found(f"{kind}/{_subject(finding)}", figures)


def state_in(figures: Mapping[str, float], name: str) -> State | None:
    """Return the state of a criterion in a window, by the name of its metric; None: it has none."""
    value = figures.get(name)
    return next((state for state, number in _STATES.items() if number == value), None)


def _found(name: str, figures: Mapping[str, float]) -> str:
    return next((one for one in (_own_name(name, True), metric_name(name)) if one in figures), "")


def _own_name(name: str, is_shared: bool) -> str:
    """Return the name as MLflow takes it, with a digest if MLflow's rules make several names the same."""
    taken = metric_name(name)
    return f"{taken}-{hashlib.sha256(name.encode()).hexdigest()[:6]}" if is_shared and taken != name else taken


def metric_name(name: str) -> str:
    """Return the name as MLflow takes it: without most punctuation, and not like a path."""
    parts = [re.sub(r"[^\w.\- ]", "_", part) for part in name.split("/")]
    return "/".join(re.sub(r"^\.+|\.+$|\.\.+", "_", part).strip() or "_" for part in parts)[:_LONGEST_NAME]


def _subject(finding: Finding) -> str:
    parts = [finding.subject, finding.segment] if finding.segment else [finding.subject]
    return "/".join(part.replace("/", _NO_PATH) for part in parts)


@dataclass(frozen=True)
class TrendLine:
    """A figure that is drawn over the windows. An empty `threshold`: any value above 0 is an alarm, and a judged window
    without the figure has 0. `state` is a requirement's (empty: the window's). `is_column`: values above it are alarms.
    """

    title: str
    value: str
    threshold: str = ""
    state: str = ""
    is_column: bool = False

    def points(self, windows: Sequence[PastWindow]) -> tuple[list[float], list[float], list[str]]:
        """Return the values, bounds and colours of the windows; a value that is not known is NaN."""
        values, bounds, colours = [], [], []
        for window in windows:
            lacking = math.nan if self.threshold or window.state == "not judged" else 0.0
            values.append(window.figures.get(self.value, lacking))
            bounds.append(window.figures.get(self.threshold, math.nan) if self.threshold else 0.0)
            if self.is_column:
                is_alarm, is_open = values[-1] > bounds[-1], False
            else:
                state = state_in(window.figures, self.state) or window.state
                is_alarm, is_open = state in ALARMS, state in UNDECIDED
            colours.append(_ALARM if is_alarm else _SOFT if is_open else _FINE)
        return values, bounds, colours


def trend_lines(result: MonitorResult, figures: Mapping[str, float]) -> list[TrendLine]:
    """Return a line for each alarm of this result, the worst first, and for each requirement of all rows; without
    requirements the largest score of all columns comes first."""
    drawn: dict[str, TrendLine] = {}
    if not any(found.check == "criterion" for found in result.findings):
        drawn[""] = TrendLine("largest score of a column", "statistic", "threshold")
    alarms = [found for found in result.findings if found.is_alarm]
    required = [found for found in result.findings if found.check == "criterion" and not found.segment]
    for found in (*alarms, *required):  # The worst check of a column comes first.
        name = f"{found.subject} ({found.segment})" if found.segment else found.subject
        if found.check == "criterion":
            value, threshold, state = (criterion_metric(kind, found, figures) for kind in _CRITERION)
            line = TrendLine(name, value, threshold, state)
        elif found.check in EXACT:
            title = f"{name}: {found.change or found.check}"
            line = TrendLine(title, score_metric(found, figures), is_column=True)
        else:
            # the largest score that the column has in any check (`drift/verdict.py`)
            largest = f"drift_score/{found.segment}/" if found.segment else "drift_score/"
            score = _found(largest + found.subject, figures) or score_metric(found, figures)
            line = TrendLine(name, score, "threshold", is_column=True)
        if line.value:  # Without a value, the window lacks the metric.
            drawn.setdefault(name, line)
    return list(drawn.values())[:_MOST_PANELS]


def draw_trend(series: Sequence[TrendLine], windows: Sequence[PastWindow], length: timedelta) -> tuple[bytes, str]:
    """Return a PNG with one panel for each line of two values at least, and its content in words; empty if none has."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # here: half a second
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
    from matplotlib.figure import Figure

    ordered = sorted(windows, key=lambda window: window.start)[-MOST_WINDOWS:]
    drawn = [one for one in series if sum(map(math.isfinite, one.points(ordered)[0])) > 1]
    if not drawn:
        return b"", ""
    words = []
    width, height = 7.2, 1.7 * len(drawn) + 0.1
    figure = Figure(figsize=(width, height), dpi=100)
    # The sizes are in inches; a layout that measures all labels takes a third of the time.
    figure.subplots_adjust(0.65 / width, 0.4 / height, 1 - 0.3 / width, 1 - 0.4 / height, hspace=0.45)
    canvas = FigureCanvasAgg(figure)
    for panel, one in zip(figure.subplots(len(drawn), squeeze=False, sharex=True)[:, 0], drawn, strict=True):
        times = [window.start for window in ordered]
        values, bounds, colours = one.points(ordered)
        known = [place for place, value in enumerate(values) if math.isfinite(value)]
        alarms = sum(colours[place] == _ALARM for place in known)
        newest = f"newest {values[known[-1]]:.4g}, threshold {bounds[known[-1]]:.4g}"
        words.append(f"{one.title}: {newest}, an alarm in {alarms} of {len(known)} windows")
        panel.plot(times, values, color=_LINE, linewidth=1, zorder=1)
        panel.plot(times, bounds, color=_ALARM, linewidth=1, linestyle="--", marker="_", zorder=1)
        for colour, marker in _MARKERS.items():
            shown = [value if own == colour else math.nan for value, own in zip(values, colours, strict=True)]
            panel.scatter(times, shown, color=colour, marker=marker, s=24, zorder=2)
        open_times = [window.start for window in ordered if window.state == "not judged"]
        foot = panel.get_xaxis_transform()
        panel.scatter(open_times, [0.03] * len(open_times), marker="|", color=_SOFT, transform=foot)
        panel.set_title(one.title, fontsize=8, loc="left")
        panel.tick_params(labelsize=7)
        panel.margins(y=0.15)
        panel.set_xlim(times[0] - length, times[-1] + length)
        panel.spines[["top", "right"]].set_visible(False)
        locator = AutoDateLocator(minticks=3, maxticks=8)  # With five ticks, four days get half days.
        panel.xaxis.set_major_locator(locator)
        panel.xaxis.set_major_formatter(ConciseDateFormatter(locator))
        for axis in (panel.xaxis, panel.yaxis):
            axis.get_offset_text().set_size(7)
    file = io.BytesIO()
    canvas.print_png(file)
    return file.getvalue(), "; ".join(words)
