"""What a monitor compares with, checked when it is written."""

from datetime import UTC, datetime, timedelta
from math import ceil

from mlflow_deploy_plugin.spec.types import duration_seconds, is_duration, parse_time

LONGEST_DAYS = 3660
"""Beyond ten years a monitor waits for what never comes."""
_PAIRS = 2.0
"""So many times as many as the rate needs at least, where the log is as old: 40 for 5 %."""
SMALLEST_ROLLING_RATE = 0.002
"""What is kept of the log's past tells no smaller one (`monitoring/drift/references/windows.py`)."""
_LONGEST_SPAN = timedelta(days=10 * LONGEST_DAYS)
_SPANS_AN_ERA = 4
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def rolling_span(lag: timedelta, length: timedelta, false_alarm_rate: float) -> timedelta:
    """How far before a window of this length the log is read that `rolling:LAG` compares it with: the pairs before it
    (`monitoring/drift/references/log_reference.py`).
    """
    pairs = ceil(_PAIRS / max(false_alarm_rate, SMALLEST_ROLLING_RATE))
    return lag + max(lag, min(pairs * length, _LONGEST_SPAN))


def bin_period(first: datetime, start: datetime, span: timedelta) -> tuple[datetime, datetime]:
    """The part of the log whose rows say which bins a `rolling:` reference has, once in four spans, so that what is
    kept of each hour serves many windows: the span before the last turn, or the log's first one where it is younger.

    Args:
        first: when the log begins.
        start: of the judged window.
        span: how far before it is read.
    """
    era = _SPANS_AN_ERA * span
    turn = _EPOCH + (start - _EPOCH) // era * era
    return (turn - span, turn) if first <= turn - span else (first, min(first + span, start))


def validate_reference(text: str) -> str:
    """The reference as it is.

    Raises:
        ValueError: it is a window that is none, or lies longer ago than `LONGEST_DAYS`.
    """
    kind, _, said = text.partition(":")
    if kind == "window":
        _check_window(said)
    if kind == "rolling":
        validate_length(said)
    return text


def validate_length(duration: str) -> str:
    """The duration as it is. Raises ValueError where it is longer than `LONGEST_DAYS`."""
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


def _check_window(text: str) -> None:
    begin, _, end = text.partition("/")
    try:
        start = parse_time(begin)
        stop = start + timedelta(seconds=duration_seconds(end)) if is_duration(end) else parse_time(end)
    except (ValueError, OverflowError):
        raise ValueError("a window is START/END or START/DURATION in UTC, as window:2013-01-01/2013-04-01") from None
    if stop <= start:
        raise ValueError("the window ends before it begins")
