"""The history of a finding: the change of its value, and the start of its alarm; and
the number of rows that earlier windows have.

Columns are compared with the reference; criteria are compared with earlier windows.
Undecided windows are skipped when alarms are counted.
"""

import math
from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime

import numpy as np

from mlflow_deploy_plugin.core.errors import Refused
from mlflow_deploy_plugin.core.spec.monitors import MonitorKind
from mlflow_deploy_plugin.core.spec.types import length_of
from mlflow_deploy_plugin.serve.inference_log.windows import microseconds
from mlflow_deploy_plugin.watch.result import (
    ALARMS,
    UNDECIDED,
    Finding,
    WindowRequest,
    describe_change,
    format_number,
    same_phase,
)
from mlflow_deploy_plugin.watch.sequential.evidence import ROWS_KEY, JudgedWindow

NO_ROWS = "the window has no rows"
_WINDOWS_BEFORE = 8
_FEWEST_WINDOWS = 7
_LATEST = 30
_USUAL_SHARE = 0.95


def with_history(request: WindowRequest, findings: Iterable[Finding]) -> list[Finding]:
    """Return the findings with their history in the past windows of the request."""
    dated = []
    for finding in findings:
        # A shift has its own start, before the first window with its alarm.
        if finding.is_alarm and not finding.since:
            first = request.window.start
            in_a_row = 1
            for window in reversed(request.past):
                is_alarm = was_alarm(request.spec.kind, finding, window)
                if is_alarm is False:
                    break
                if is_alarm:  # It is None if it is unknown whether it was an alarm.
                    first = window.start
                    in_a_row += 1
            finding = replace(
                finding,
                since=first.isoformat(),
                since_end=(first + request.window.length).isoformat(),
                in_a_row=in_a_row,
            )
        dated.append(_with_change(request, finding))
    return dated


def was_alarm(kind: MonitorKind, finding: Finding, window: JudgedWindow) -> bool | None:
    """Return True if the finding was an alarm in the past window (a column: in any
    check), False if it was not, and None if it is unknown.
    """
    outcomes = window.evidence.outcomes
    if finding.key in window.evidence.alarms:
        return True
    if window.state not in (*ALARMS, *UNDECIDED):
        return False
    if finding.check != "criterion":
        # Earlier releases have stored only the alarms.
        is_of_earlier_release = not outcomes and len(window.evidence.alarms) > 0
        if is_of_earlier_release or ("" in outcomes and window.state != "not judged"):
            return False
        return None
    if finding.key in outcomes:
        if outcomes[finding.key].state in UNDECIDED:
            return None
        return False
    # A requirement on columns has findings only for columns that violate it, so other
    # columns were not an alarm.
    if kind == "drift" and window.state not in UNDECIDED:
        return False
    return None


def _with_change(request: WindowRequest, finding: Finding) -> Finding:
    """Return the finding with the change from the windows before its alarm."""
    if finding.check != "criterion" or finding.value is None or finding.change:
        return finding
    start = datetime.fromisoformat(finding.since) if finding.since else request.window.start
    values = earlier_values(request, finding.key, start)
    if not values:
        return finding
    # The median of the last windows, by preference of the same phase, is usual.
    window = request.window
    before = [*values.values()]
    indices, phase = same_phase(window.start_us, window.end_us - window.start_us, [*values])
    if indices:
        before = [before[index] for index in indices]
    before = before[-_WINDOWS_BEFORE:]
    usual = float(np.median(before))
    source = "the window before"
    if len(before) > 1:
        source = f"the median of the {len(before)} {phase or 'windows'} before"
    direction = "higher" if finding.value > usual else "lower"
    change = describe_change(format_number(usual), source, format_number(finding.value), direction)
    return replace(finding, change=change)


def earlier_values(request: WindowRequest, key: str, until: datetime) -> dict[int, float]:
    """Return the values of a criterion (`alarm_key`) in the windows that start earlier,
    by start in microseconds.
    """
    values: dict[int, float] = {}
    for window in request.past:
        outcome = window.evidence.outcomes.get(key)
        if window.start < until and outcome is not None and outcome.value is not None:
            values[microseconds(window.start)] = outcome.value
    return values


def usual_rows(request: WindowRequest) -> float | Refused:
    """Return the median number of rows of the latest windows in the same phase of the
    season. Refused if so few of them were judged with rows that a window without rows
    is not an alarm. Earlier such alarms are skipped.
    """
    spec = request.spec
    if spec.kind != "drift" or not request.follows_levels:
        return Refused(NO_ROWS)
    rows: dict[datetime, float] = {}
    for window in request.past:
        level = window.evidence.levels.get(ROWS_KEY, -math.inf)
        if level > 0 or ROWS_KEY.column not in window.evidence.alarms:
            rows[window.start] = math.exp(level)
    if len(rows) < _FEWEST_WINDOWS:
        return Refused(f"{NO_ROWS}, and fewer than {_FEWEST_WINDOWS} earlier windows are known")
    season = spec.season or spec.every
    start = request.window.start
    in_phase = [rows[each] for each in rows if not (start - each) % length_of(season)]
    latest = in_phase[-_LATEST:]
    known = np.count_nonzero(latest)
    if 0 < _USUAL_SHARE * len(latest) <= known:
        return float(np.median(latest))
    return Refused(
        f"{NO_ROWS}; {known} of {len(latest)} earlier windows, one per {season}, had rows to judge"
    )
