"""Windows: half-open intervals of event time, in UTC and to the microsecond."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from mlflow_deploy_plugin.errors import InvalidConfig
from mlflow_deploy_plugin.spec import duration_seconds, parse_time

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
HOUR_US = 3_600_000_000
DURATION = re.compile(r"[1-9][0-9]{0,5}[smhd]")
_EXPECTED = "a window is START/END or START/DURATION in UTC, e.g. 2013-07-01/2013-07-02, 2013-07-01T12:00/6h"


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
        return f"{_shown(self.start)}/{_shown(self.end)}"


def microseconds(time: datetime) -> int:
    """Microseconds since 1970, exactly."""
    return (time - EPOCH) // timedelta(microseconds=1)


def parse_window(text: str) -> Window:
    """`2013-07-01/2013-07-02`, `2013-07-01/1d`, `2013-07-01T12:00Z/6h`; times without a zone are UTC.

    Raises:
        InvalidConfig: it cannot be read, or ends before it begins.
    """
    start_text, _, end_text = text.strip().partition("/")
    if not end_text:
        raise InvalidConfig(f"window {text!r}: {_EXPECTED}")
    try:
        start = _time(start_text, text)
        is_length = DURATION.fullmatch(end_text) is not None
        end = start + timedelta(seconds=duration_seconds(end_text)) if is_length else _time(end_text, text)
    except OverflowError:
        raise InvalidConfig(f"window {text!r} is not within the years 1 to 9999") from None
    if end <= start:
        raise InvalidConfig(f"window {text!r} ends before it begins")
    return Window(start, end)


def window_at(time_us: int, every: str) -> Window:
    """The window of length `every` that holds the time; windows are counted from 1970, so that days begin at 00:00."""
    length = duration_seconds(every)
    start = EPOCH + timedelta(seconds=time_us // (length * 1_000_000) * length)
    return Window(start, start + timedelta(seconds=length))


def _time(text: str, window: str) -> datetime:
    try:
        return parse_time(text)
    except ValueError:
        raise InvalidConfig(f"window {window!r}: {text!r} is not a time; {_EXPECTED}") from None


def _shown(time: datetime) -> str:
    is_midnight = time.time() == datetime.min.time()
    return time.strftime("%Y-%m-%d") if is_midnight else time.replace(tzinfo=None).isoformat()
