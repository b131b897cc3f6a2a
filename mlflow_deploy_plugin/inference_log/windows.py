"""Windows and time ranges: half-open intervals of time, in UTC and to the microsecond.

A `Window` is of event time. A `TimeRange`, as `--since` and `--until` give it, is of event time and of receipt.
"""

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from mlflow_deploy_plugin.errors import InvalidConfig
from mlflow_deploy_plugin.spec import duration_seconds, parse_duration, parse_time
from mlflow_deploy_plugin.spec.types import is_duration, parse_interval

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
HOUR_US = 3_600_000_000
CLOCK_SKEW = timedelta(hours=1)
"""The clocks of a server and of a bucket differ by less."""
_FIRST = datetime(1, 1, 2, tzinfo=UTC)
_LAST = datetime(9999, 12, 30, tzinfo=UTC)
_EXPECTED_WINDOW = "a window is START/END or START/DURATION in UTC, e.g. 2013-07-01/2013-07-02, 2013-07-01T12:00/6h"
_EXPECTED_TIME = "a duration before now (90s, 15m, 1h, 7d), a time of the events (2013-07-01, 2013-07-01T12:00Z)"


@dataclass(frozen=True)
class Window:
    """Event times t with start <= t < end; both carry the zone UTC."""

    start: datetime
    end: datetime

    @property
    def start_us(self) -> int:
        """Microseconds since 1970."""
        return microseconds(self.start)

    @property
    def end_us(self) -> int:
        return microseconds(self.end)

    @property
    def length(self) -> timedelta:
        return self.end - self.start

    def __str__(self) -> str:
        return f"{_format(self.start)}/{_format(self.end)}"


@dataclass(frozen=True)
class TimeRange:
    """Half-open intervals of two clocks; a row lies in both: event time (`start`, `end`), and the wall clock of the
    server when it got the request (`received_from`, `received_until`)."""

    start: datetime = _FIRST
    end: datetime = _LAST
    received_from: datetime = _FIRST
    received_until: datetime = _LAST

    @property
    def window(self) -> Window | None:
        """The interval of event time, or None if it has no bounds."""
        return None if (self.start, self.end) == (_FIRST, _LAST) else Window(self.start, self.end)

    @property
    def received_us(self) -> tuple[int, int] | None:
        """The interval of receipt in microseconds since 1970, or None if it has no bounds."""
        if (self.received_from, self.received_until) == (_FIRST, _LAST):
            return None
        return microseconds(self.received_from), microseconds(self.received_until)

    def may_have_rows(self, written: datetime) -> bool:
        """Return True if a file written then may have rows of the range: none was received after it was written."""
        return self.received_from == _FIRST or written >= self.received_from - CLOCK_SKEW


def microseconds(time: datetime) -> int:
    """Return the microseconds since 1970, exactly."""
    return (time - EPOCH) // timedelta(microseconds=1)


def parse_window(text: str) -> Window:
    """Parse `2013-07-01/2013-07-02`, `2013-07-01/1d` or `2013-07-01T12:00Z/6h`, in UTC, or raise InvalidConfig."""
    try:
        return Window(*parse_interval(text.strip()))
    except OverflowError:
        raise InvalidConfig(f"window {text!r} is not within the years 1 to 9999") from None
    except ValueError as error:
        raise InvalidConfig(f"window {text!r}: {error}; {_EXPECTED_WINDOW}") from None


def window_at(time_us: int, every: str) -> Window:
    """Return the window of length `every` that holds the time. Windows count from 1970, so that days begin at 00:00."""
    length = duration_seconds(every)
    start = EPOCH + timedelta(seconds=time_us // (length * 1_000_000) * length)
    return Window(start, start + timedelta(seconds=length))


def parse_time_range(since: str | None, until: str | None, now: datetime) -> TimeRange:
    """Parse `--since` and `--until`, whose end is excluded. `--since 1h` selects the rows received in the last hour,
    `--since 2013-07-01` event times from then on, and `--since 2013-07-01/1d` the event times of that window. Raises
    InvalidConfig if one of them cannot be read, or nothing can lie between them."""
    found = TimeRange()
    if since is not None:
        if is_duration(since):
            found = replace(found, received_from=_before(now, since, "--since"))
        elif "/" in since:
            window = parse_window(since)
            found = replace(found, start=window.start, end=window.end)
        else:
            found = replace(found, start=_parse_bound(since, "--since"))
    if until is not None:
        if since is not None and "/" in since:
            raise InvalidConfig(f"--since {since} is a window already: leave --until {until} out")
        if is_duration(until):
            found = replace(found, received_until=_before(now, until, "--until"))
        else:
            found = replace(found, end=_parse_bound(until, "--until"))
    if found.end <= found.start or found.received_until <= found.received_from:
        raise InvalidConfig(f"nothing lies between --since {since} and --until {until}")
    return found


def _before(now: datetime, duration: str, option: str) -> datetime:
    try:
        return now - parse_duration(duration, option)
    except OverflowError:
        raise InvalidConfig(f"{option} {duration} is before the year 1") from None


def _parse_bound(text: str, option: str) -> datetime:
    try:
        return parse_time(text)
    except ValueError:
        window = ", or a window of them (2013-07-01/1d)" if option == "--since" else ""
        raise InvalidConfig(f"{option} {text!r} cannot be read; it is {_EXPECTED_TIME}{window}") from None
    except OverflowError:
        raise InvalidConfig(f"{option} {text!r} is not within the years 1 to 9999") from None


def _format(time: datetime) -> str:
    is_midnight = time.time() == datetime.min.time()
    return time.date().isoformat() if is_midnight else time.replace(tzinfo=None).isoformat()
