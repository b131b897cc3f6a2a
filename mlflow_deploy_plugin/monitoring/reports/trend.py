"""The picture of a monitor's last windows: each figure that a result names, beside its bound."""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

from mlflow_deploy_plugin.monitoring.reports.history import PastWindow
from mlflow_deploy_plugin.monitoring.reports.metrics import (
    criterion_metrics,
    drift_score_metric,
    score_metric,
    state_in,
)
from mlflow_deploy_plugin.monitoring.result import ALARMS, EXACT, UNDECIDED, Finding, MonitorResult

MOST_WINDOWS = 60
_MOST_PANELS = 6
"""Five columns are as many as an alert names."""
_ALARM, _FINE, _LINE, _SOFT = "#cf222e", "#1a7f37", "#57606a", "#9a9a9a"


@dataclass(frozen=True)
class TrendLine:
    """A figure that is drawn over the windows, and the names of its metrics.

    Attributes:
        threshold: empty: anything above 0 is an alarm, and a judged window that lacks the figure has 0.
        state: of a requirement, which has a state of its own in each window; empty: the window's.
        is_column: it is the score of one column, an alarm where it is above the threshold.
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
                colours.append(_ALARM if values[-1] > bounds[-1] else _FINE)
            else:
                colours.append(_colour(state_in(window.figures, self.state) or window.state))
        return values, bounds, colours


def trend_lines(result: MonitorResult, figures: Mapping[str, float]) -> list[TrendLine]:
    """Return what is drawn of this result: a line for each that is named as an alarm, the worst first, and for each
    requirement of all rows; without requirements the largest score of all columns comes first.

    Args:
        figures: the result's metrics.
    """
    drawn: dict[str, TrendLine] = {}
    if not any(found.check == "criterion" for found in result.findings):
        drawn[""] = TrendLine("largest score of a column", "statistic", "threshold")
    alarms = [found for found in result.findings if found.is_alarm]
    required = [found for found in result.findings if found.check == "criterion" and not found.segment]
    for found in (*alarms, *required):  # of a column's checks the worst comes first
        name = _shown(found)
        one = _series(name, found, figures)
        if name not in drawn and one.value:
            drawn[name] = one
    return list(drawn.values())[:_MOST_PANELS]


def _series(name: str, found: Finding, figures: Mapping[str, float]) -> TrendLine:
    """Return the line of a finding; its value has no name if the window has no such figure."""
    if found.check == "criterion":
        metrics = criterion_metrics(found, figures)
        return TrendLine(name, metrics.value, metrics.threshold, metrics.state)
    if found.check in EXACT:
        return TrendLine(f"{name}: {found.change or found.check}", score_metric(found, figures), is_column=True)
    return TrendLine(
        name, drift_score_metric(found, figures) or score_metric(found, figures), "threshold", is_column=True
    )


def _colour(state: str) -> str:
    return _ALARM if state in ALARMS else _SOFT if state in UNDECIDED else _FINE


def _shown(finding: Finding) -> str:
    return f"{finding.subject} ({finding.segment})" if finding.segment else finding.subject


def draw_trend(series: Sequence[TrendLine], windows: Sequence[PastWindow], length: timedelta) -> bytes:
    """Return a PNG with one panel for each line; empty if no window has a value.

    Args:
        windows: in any order; those without a value are marked at the foot.
        length: of a window.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # here: half a second
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
    from matplotlib.figure import Figure

    ordered = sorted(windows, key=lambda window: window.start)[-MOST_WINDOWS:]
    drawn = [one for one in series if any(math.isfinite(w.figures.get(one.value, math.nan)) for w in ordered)]
    if not drawn:
        return b""
    figure = Figure(figsize=(7.2, 1.7 * len(drawn)), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    for panel, one in zip(figure.subplots(len(drawn), squeeze=False, sharex=True)[:, 0], drawn, strict=True):
        times = [window.start for window in ordered]
        values, bounds, colours = one.points(ordered)
        panel.plot(times, values, color=_LINE, linewidth=1, zorder=1)
        panel.plot(times, bounds, color=_ALARM, linewidth=1, linestyle="--", marker="_", zorder=1)
        panel.scatter(times, values, color=colours, s=16, zorder=2)
        open_times = [window.start for window in ordered if window.state == "not judged"]
        foot = panel.get_xaxis_transform()
        panel.scatter(open_times, [0.03] * len(open_times), marker="|", color=_SOFT, transform=foot)
        panel.set_title(one.title, fontsize=8, loc="left")
        panel.tick_params(labelsize=7)
        panel.margins(y=0.15)
        panel.set_xlim(times[0] - length, times[-1] + length)
        panel.spines[["top", "right"]].set_visible(False)
        locator = AutoDateLocator(minticks=3, maxticks=8)  # of five, four days would be told in half days
        panel.xaxis.set_major_locator(locator)
        panel.xaxis.set_major_formatter(ConciseDateFormatter(locator))
        panel.xaxis.get_offset_text().set_size(7)
    file = io.BytesIO()
    canvas.print_png(file)
    return file.getvalue()
