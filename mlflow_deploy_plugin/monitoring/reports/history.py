"""The history of a finding: how its figure changed, and since when it is an alarm.

A column's check stands beside a reference and says itself what it changed from. Any other requirement stands beside the
windows before, as MLflow has them of the monitor. For both, a window in which the state could not be told neither
counts in a row of alarms nor breaks it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import get_args

import numpy as np

from mlflow_deploy_plugin.monitoring.reports.metrics import criterion_metrics, score_metric, state_in
from mlflow_deploy_plugin.monitoring.result import ALARMS, EXACT, UNDECIDED, Check, Finding, MonitorResult

_WINDOWS_BEFORE = 8


@dataclass(frozen=True)
class PastWindow:
    """A window as its run in MLflow tells of it.

    Attributes:
        figures: the run's metrics.
    """

    start: datetime
    state: str
    figures: Mapping[str, float]


def add_history(result: MonitorResult, past: Sequence[PastWindow]) -> MonitorResult:
    """Return the result with the history of its findings, which its reason quotes, too.

    Args:
        past: windows of the monitor before this one, in any order.
    """
    ordered = sorted(past, key=lambda window: window.start)
    findings = tuple(_with_change(result, found, ordered) for found in result.findings)
    reason = result.reason
    first = findings[0] if findings else None  # the one that the reason quotes
    if first and first.state in (*ALARMS, *UNDECIDED) and first.history and first.reason:
        reason = reason.replace(first.reason, f"{first.history}; {first.reason}", 1)
    return replace(result, findings=findings, reason=reason)


def _with_change(result: MonitorResult, found: Finding, past: Sequence[PastWindow]) -> Finding:
    first = result.window.start
    if found.is_alarm:
        row = _alarms_in_a_row(result, found, past)
        first = row[0].start if row else first
        found = replace(found, since=first.isoformat(), in_a_row=len(row) + 1)
    if found.check != "criterion" or found.value is None or found.change:
        return found
    known = [value for window in past if window.start < first and (value := _value_in(window, found)) is not None]
    return replace(found, change=_change(known[-_WINDOWS_BEFORE:], found.value)) if known else found


def _alarms_in_a_row(result: MonitorResult, found: Finding, past: Sequence[PastWindow]) -> list[PastWindow]:
    """Return the windows before, ascending, in which the same was an alarm up to now."""
    row: list[PastWindow] = []
    for window in reversed(past):
        is_alarm = _was_alarm(result, found, window)
        if is_alarm is False:
            break
        if is_alarm:
            row.insert(0, window)
    return row


def _was_alarm(result: MonitorResult, found: Finding, window: PastWindow) -> bool | None:
    """Return True if the same was an alarm then; None if it was not judged or could not be told."""
    if window.state not in (*ALARMS, *UNDECIDED):
        return False
    if found.check == "criterion":
        return _was_violated(result, found, window)
    return _was_drifted(found, window)


def _was_violated(result: MonitorResult, found: Finding, window: PastWindow) -> bool | None:
    state = state_in(window.figures, criterion_metrics(found, window.figures).state)
    if state:
        return None if state in UNDECIDED else state in ALARMS
    if window.state in UNDECIDED:
        return None
    value = _value_in(window, found)
    if value is None:  # data quality has findings of the columns that break a requirement, and of no others
        return False if result.kind == "data_quality" else None
    # a run of before there were states among its metrics
    assert found.value is not None
    return found.threshold is not None and (value - found.threshold) * (found.value - found.threshold) > 0


def _value_in(window: PastWindow, criterion: Finding) -> float | None:
    return window.figures.get(criterion_metrics(criterion, window.figures).value)


def _was_drifted(found: Finding, window: PastWindow) -> bool | None:
    """Return the same as `_was_violated` for a column, whatever was odd about it."""
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


def _change(before: Sequence[float], after: float) -> str:
    """Return the change in the words in which a column's check says it."""
    usual = float(np.median(before))
    windows = "the window before" if len(before) == 1 else f"the median of the {len(before)} windows before"
    first, last = f"{usual:.4g}", f"{after:.4g}"
    where = "unchanged" if first == last else "higher" if after > usual else "lower"
    return f"{first} ({windows}) → {last}, {where}"
