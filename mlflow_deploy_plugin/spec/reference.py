"""The reference that a monitor compares its windows with: its validation, and the spans that a rolling one reads."""

from datetime import UTC, datetime, timedelta
from math import ceil

from mlflow_deploy_plugin.spec.types import duration_seconds, is_duration, parse_time

LONGEST_DAYS = 3660
"""Ten years; a monitor would never see the end of anything longer."""
_PAIRS = 2.0
"""The pairs of windows that are read, as a multiple of the least number that the rate needs: 40 for 5 %."""
SMALLEST_ROLLING_RATE = 0.002
"""The smallest rate that the stored past of the log can tell (`monitoring/drift/references/windows.py`)."""
_LONGEST_SPAN = timedelta(days=10 * LONGEST_DAYS)
_SPANS_AN_ERA = 4
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def rolling_span(lag: timedelta, length: timedelta, false_alarm_rate: float) -> timedelta:
    """Return how far before a window of this length `rolling:LAG` reads the log: the pairs of windows before it."""
    pairs = ceil(_PAIRS / max(false_alarm_rate, SMALLEST_ROLLING_RATE))
    return lag + max(lag, min(pairs * length, _LONGEST_SPAN))


def bin_period(first: datetime, start: datetime, span: timedelta) -> tuple[datetime, datetime]:
    """Return the period of the log whose rows define the bins of a `rolling:` reference.

    It changes once in four spans, so that the stored counts of each hour serve many windows. It is the span before the
    last change, or the first span of a log that is younger than that.

    Args:
        first: when the log begins.
        start: the start of the judged window.
        span: how far before the window the log is read.
    """
    era = _SPANS_AN_ERA * span
    turn = _EPOCH + (start - _EPOCH) // era * era
    return (turn - span, turn) if first <= turn - span else (first, min(first + span, start))


def validate_reference(text: str) -> str:
    """Return the reference as it is.

    Raises:
        ValueError: its window is malformed, or its lag is longer than `LONGEST_DAYS`.
    """
    kind, _, said = text.partition(":")
    if kind == "rolling":
        validate_length(said)
    if kind != "window":
        return text
    begin, _, end = said.partition("/")
    try:
        start = parse_time(begin)
        stop = start + timedelta(seconds=duration_seconds(end)) if is_duration(end) else parse_time(end)
    except (ValueError, OverflowError):
        raise ValueError("a window is START/END or START/DURATION in UTC, as window:2013-01-01/2013-04-01") from None
    if stop <= start:
        raise ValueError("the window ends before it begins")
    return text


def validate_length(duration: str) -> str:
    """Return the duration as it is; raise ValueError if it is longer than `LONGEST_DAYS`."""
    if duration_seconds(duration) > LONGEST_DAYS * 86400:
        raise ValueError(f"at most {LONGEST_DAYS}d are expected")
    return duration


def validate_lag(lag: str, every: str) -> str:
    """Return the lag of a rolling reference as it is.

    Raises:
        ValueError: no window of the monitor begins so long before another.
    """
    long_ago, length = duration_seconds(lag), duration_seconds(every)
    if long_ago < length:
        raise ValueError(f"reference rolling:{lag} lies in the window itself, which is {every} long")
    if long_ago % length:
        raise ValueError(f"reference rolling:{lag}: no window of {every} begins {lag} before another; take a multiple")
    return lag
