"""A monitor's last windows: since when a column is an alarm, and the picture of what was judged, beside its bounds."""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import get_args

from mlflow_deploy_plugin.monitoring.judgement import ALARMS, UNDECIDED, Check, Finding, Judgement
from mlflow_deploy_plugin.monitoring.reports.metrics import drift_score_of, score_of

MOST_WINDOWS = 60
_MOST_PANELS = 4
_EXACT: tuple[Check, ...] = ("presence", "type")
"""Checks without a threshold that others share: anything above 0 is an alarm."""
_ALARM, _FINE, _LINE, _SOFT = "#cf222e", "#1a7f37", "#57606a", "#9a9a9a"


@dataclass(frozen=True)
class PastWindow:
    """A window as its run in MLflow tells of it.

    Attributes:
        figures: the run's metrics.
    """

    start: datetime
    state: str
    figures: Mapping[str, float]


@dataclass(frozen=True)
class Series:
    """A figure that is drawn over the windows, and the names of its metrics.

    Attributes:
        is_column: it is the score of one column, an alarm where it is above the threshold.
    """

    title: str
    value: str
    threshold: str
    is_column: bool = False


def series_of(judgement: Judgement, figures: Mapping[str, float]) -> list[Series]:
    """What is drawn of this judgement: of criteria each one; of columns the largest statistic, and each one that is
    named as an alarm.

    Args:
        figures: the judgement's metrics.
    """
    criteria = [found for found in judgement.findings if found.check == "criterion" and not found.segment]
    if criteria:
        subjects = sorted({found.subject for found in criteria if found.value is not None})
        return [Series(name, f"criterion/{name}", f"criterion_threshold/{name}") for name in subjects[:_MOST_PANELS]]
    named: dict[str, Series] = {}
    for found in judgement.findings:  # of a column's checks the worst comes first
        name = drift_score_of(found, figures) or score_of(found, figures)
        if found.is_alarm and found.check not in _EXACT and name:
            named.setdefault(_shown(found), Series(_shown(found), name, "threshold", is_column=True))
    return [Series("largest score of a column", "statistic", "threshold"), *list(named.values())[: _MOST_PANELS - 1]]


def with_since(judgement: Judgement, past: Sequence[PastWindow]) -> Judgement:
    """The judgement whose alarms of columns say since when: from which window on, all that were judged had the column
    as an alarm, whatever was odd about it.

    Args:
        past: windows of the monitor before it, in any order.
    """
    if not any(found.is_alarm for found in judgement.findings):
        return judgement
    newest_first = sorted(past, key=lambda window: window.start, reverse=True)
    findings = []
    for found in judgement.findings:
        if found.is_alarm and found.check != "criterion":
            since = judgement.window.start
            for window in newest_first:
                is_alarm = _was_alarm(found, window)
                if is_alarm is False:
                    break
                since = window.start if is_alarm else since
            found = replace(found, since=since.isoformat())
        findings.append(found)
    return replace(judgement, findings=tuple(findings))


def _was_alarm(finding: Finding, window: PastWindow) -> bool | None:
    """Whether the column was an alarm then; None where it was not judged."""
    scores = {
        check: window.figures[name]
        for check in get_args(Check)
        if (name := score_of(replace(finding, check=check), window.figures))
    }
    if any(scores.get(check, 0.0) > 0 for check in _EXACT):
        return True
    if window.state == "not judged" or "threshold" not in window.figures:
        return None
    return any(score > window.figures["threshold"] for check, score in scores.items() if check not in _EXACT)


def _shown(finding: Finding) -> str:
    return f"{finding.subject} ({finding.segment})" if finding.segment else finding.subject


def trend_picture(series: Sequence[Series], windows: Sequence[PastWindow], length: timedelta) -> bytes:
    """A PNG, one panel a series; empty where no window has a value.

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
        values = [window.figures.get(one.value, math.nan) for window in ordered]
        bounds = [window.figures.get(one.threshold, math.nan) for window in ordered]
        panel.plot(times, values, color=_LINE, linewidth=1, zorder=1)
        panel.plot(times, bounds, color=_ALARM, linewidth=1, linestyle="--", marker="_", zorder=1)
        colours = [_colour(window.state) for window in ordered]
        if one.is_column:
            colours = [_ALARM if value > bound else _FINE for value, bound in zip(values, bounds, strict=True)]
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


def _colour(state: str) -> str:
    return _ALARM if state in ALARMS else _SOFT if state in UNDECIDED else _FINE
