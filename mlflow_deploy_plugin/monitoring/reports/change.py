"""What has changed since the windows before: which way a figure went, from what, and since when it violates.

The windows before are those that MLflow has of the monitor. A row of violated windows is counted as alarms are: an
undecided window neither counts nor breaks it.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mlflow_deploy_plugin.inference_log.windows import Window
from mlflow_deploy_plugin.monitoring.judgement import UNDECIDED, Finding, Judgement
from mlflow_deploy_plugin.monitoring.reports.metrics import value_in
from mlflow_deploy_plugin.monitoring.reports.trend import PastWindow

CHANGING = ("performance", "shadow", "service_level")
"""Those whose findings are figures that a window before has, too."""
_WINDOWS_BEFORE = 8


def with_change(judgement: Judgement, windows: Sequence[PastWindow]) -> Judgement:
    """Return the judgement whose criteria say what has changed; its reason says it of the finding that it quotes.

    Args:
        windows: before this one, in any order.
    """
    ordered = sorted(windows, key=lambda window: window.start)
    findings, reason = [], judgement.reason
    for found in judgement.findings:
        said = _change(judgement, found, ordered)
        if said:
            told = replace(found, reason=f"{found.reason}; {said}")
            reason = reason.replace(found.reason, told.reason, 1) if _is_quoted(found, reason) else reason
            found = told
        findings.append(found)
    return replace(judgement, findings=tuple(findings), reason=reason)


def _is_quoted(found: Finding, reason: str) -> bool:
    where = f" of {found.segment}" if found.segment else ""
    return reason.startswith(f"{found.subject}{where}: {found.reason}")


def _change(judgement: Judgement, found: Finding, windows: Sequence[PastWindow]) -> str:
    if found.check != "criterion" or found.value is None or found.threshold is None:
        return ""
    known = [(window, value) for window in windows if (value := value_in(window.figures, found)) is not None]
    row = _violated_in_a_row(found, known) if found.state == "violated" else []
    first = row[0].start if row else judgement.window.start
    before = [value for window, value in known if window.start < first][-_WINDOWS_BEFORE:]
    parts = []
    if before:
        usual = float(np.median(before))
        parts.append(f"{_way(usual, found.value)} {_of_windows(usual, len(before))}")
    if found.state == "violated" and known:
        since = str(Window(first, first + judgement.window.length)).partition("/")[0]
        parts.append(f"violated since {since}, window {len(row) + 1} in a row")
    return "; ".join(parts)


def _violated_in_a_row(found: Finding, known: Sequence[tuple[PastWindow, float]]) -> list[PastWindow]:
    """The windows before, ascending, in which it was violated up to now."""
    assert found.value is not None
    assert found.threshold is not None
    row: list[PastWindow] = []
    for window, value in reversed(known):
        if window.state in UNDECIDED:
            continue
        is_beyond = (value - found.threshold) * (found.value - found.threshold) > 0
        if window.state != "violated" or not is_beyond:  # violated by another figure
            break
        row.insert(0, window)
    return row


def _way(before: float, after: float) -> str:
    if f"{before:.4g}" == f"{after:.4g}":
        return "unchanged from"
    return "fell from" if after < before else "rose from"


def _of_windows(usual: float, windows: int) -> str:
    if windows == 1:
        return f"{usual:.4g} in the window before"
    return f"{usual:.4g}, the median of the {windows} windows before"
