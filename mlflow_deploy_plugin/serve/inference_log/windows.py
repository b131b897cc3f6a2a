"""Windows and time ranges: half-open time intervals in UTC, in microseconds.

A `Window` limits the event time. A `TimeRange` (`--since`, `--until`) limits the event
time and the time of receipt.
"""

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.spec.types import (
    EPOCH,
    duration_seconds,
    is_duration,
    parse_duration,
    parse_interval,
    parse_time,
)

HOUR_US = 3_600_000_000
CLOCK_SKEW = timedelta(hours=1)
"""The maximum expected clock difference between a server and a bucket."""
_FIRST = datetime(1, 1, 2, tzinfo=UTC)
_LAST = datetime(9999, 12, 30, tzinfo=UTC)
_EXPECTED_WINDOW = (
    "a window is START/END or START/DURATION in UTC, e.g. 2013-07-01/2013-07-02, "
    "2013-07-01T12:00/6h"
)
_EXPECTED_TIME = (
    "a duration before now (90s, 15m, 1h, 7d), a time of the events (2013-07-01, 2013-07-01T12:00Z)"
)


@dataclass(frozen=True)
class Window:
    """The event times t with start <= t < end, in UTC."""

    start: datetime
    end: datetime

    @property
    def start_us(self) -> int:
        """The start of the window in microseconds since 1970."""
        return microseconds(self.start)

    @property
    def end_us(self) -> int:
        return microseconds(self.end)

    @property
    def length(self) -> timedelta:
        return self.end - self.start

    @property
    def end_text(self) -> str:
        return _format(self.end)

    @property
    def times(self) -> "TimeRange":
        return TimeRange(self.start, self.end)

    def __str__(self) -> str:
        return f"{_format(self.start)}/{self.end_text}"


@dataclass(frozen=True)
class TimeRange:
    """Two half-open intervals: the event time (`start`, `end`), and the time of receipt
    by the server's wall clock (`received_from`, `received_until`). A row must be in
    both intervals.
    """

    start: datetime = _FIRST
    end: datetime = _LAST
    received_from: datetime = _FIRST
    received_until: datetime = _LAST

    @property
    def window(self) -> Window | None:
        """The interval of event time, or None if event time is unbounded."""
        if (self.start, self.end) == (_FIRST, _LAST):
            return None
        return Window(self.start, self.end)

    @property
    def received_us(self) -> tuple[int, int] | None:
        """The interval of receipt in microseconds since 1970, or None if the time of
        receipt is unbounded.
        """
        if (self.received_from, self.received_until) == (_FIRST, _LAST):
            return None
        return microseconds(self.received_from), microseconds(self.received_until)

    def may_have_rows(self, written: datetime) -> bool:
        """Return False if a file last `written` at this time can only contain rows
        received before the range.
        """
        return self.received_from == _FIRST or written >= self.received_from - CLOCK_SKEW


ALL_TIMES = TimeRange()


def microseconds(time: datetime) -> int:
    """Return the time in microseconds since 1970, without rounding."""
    return (time - EPOCH) // timedelta(microseconds=1)


def parse_window(text: str) -> Window:
    """Parse `2013-07-01/2013-07-02`, `2013-07-01/1d` or `2013-07-01T12:00Z/6h`, in UTC;
    raises InvalidConfig.
    """
    try:
        return Window(*parse_interval(text.strip()))
    except OverflowError:
        raise InvalidConfig(f"window {text!r} is not within the years 1 to 9999") from None
    except ValueError as error:
        raise InvalidConfig(f"window {text!r}: {error}; {_EXPECTED_WINDOW}") from None


def window_at(time_us: int, every: str) -> Window:
    """Return the window of length `every` that contains the time. Windows count from
    1970, so days begin at 00:00.
    """
    length = duration_seconds(every)
    start = EPOCH + timedelta(seconds=time_us // (length * 1_000_000) * length)
    return Window(start, start + timedelta(seconds=length))


def parse_time_range(since: str | None, until: str | None, now: datetime) -> TimeRange:
    """Parse `--since` and `--until` (exclusive). `--since 1h` selects the rows received
    in the last hour, `--since 2013-07-01` selects event times from that day on, and
    `--since 2013-07-01/1d` selects the event times in that window. Raises InvalidConfig
    if a value cannot be parsed or the range is empty.
    """
    times = TimeRange()
    if since is not None:
        if is_duration(since):
            times = replace(times, received_from=time_before(now, since, "--since"))
        elif "/" in since:
            window = parse_window(since)
            times = replace(times, start=window.start, end=window.end)
        else:
            times = replace(times, start=_parse_bound(since, "--since"))
    if until is not None:
        if since is not None and "/" in since:
            raise InvalidConfig(f"--since {since} is already a window: remove --until {until}")
        if is_duration(until):
            times = replace(times, received_until=time_before(now, until, "--until"))
        else:
            times = replace(times, end=_parse_bound(until, "--until"))
    if times.end <= times.start or times.received_until <= times.received_from:
        raise InvalidConfig(f"the range from --since {since} to --until {until} is empty")
    return times


def time_before(now: datetime, duration: str, option: str) -> datetime:
    try:
        return now - parse_duration(duration, option)
    except OverflowError:
        raise InvalidConfig(f"{option} {duration} is before the year 1") from None


def _parse_bound(text: str, option: str) -> datetime:
    """Return a time of the events; raise InvalidConfig, which names the option."""
    try:
        return parse_time(text)
    except ValueError:
        window = ", or a window of them (2013-07-01/1d)" if option == "--since" else ""
        raise InvalidConfig(
            f"{option} {text!r} cannot be read; it is {_EXPECTED_TIME}{window}",
        ) from None
    except OverflowError:
        raise InvalidConfig(f"{option} {text!r} is not within the years 1 to 9999") from None


def _format(time: datetime) -> str:
    is_midnight = time.time() == datetime.min.time()
    if is_midnight:
        return time.date().isoformat()
    return time.replace(tzinfo=None).isoformat()
