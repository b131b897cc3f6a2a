"""What part of the log is asked for, as `--since` and `--until` say it."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from mlflow_deploy_plugin.errors import InvalidConfig
from mlflow_deploy_plugin.inference_log.scan import RowFilter
from mlflow_deploy_plugin.inference_log.storage import CLOCK_SKEW, LogFile
from mlflow_deploy_plugin.inference_log.windows import DURATION, Window, microseconds, parse_window
from mlflow_deploy_plugin.spec import duration_seconds, parse_time

_FIRST = datetime(1, 1, 2, tzinfo=UTC)
_LAST = datetime(9999, 12, 30, tzinfo=UTC)
_EXPECTED = "a duration before now (90s, 15m, 1h, 7d), a time of the events (2013-07-01, 2013-07-01T12:00Z)"


@dataclass(frozen=True)
class TimeRange:
    """Half-open intervals of two clocks; a row lies in both.

    Attributes:
        start, end: event time, which is the clock of the traffic.
        received_from, received_until: when the server got the request, by the wall clock.
    """

    start: datetime = _FIRST
    end: datetime = _LAST
    received_from: datetime = _FIRST
    received_until: datetime = _LAST

    @property
    def window(self) -> Window | None:
        """The event times that are asked for; None: all."""
        return None if (self.start, self.end) == (_FIRST, _LAST) else Window(self.start, self.end)

    def holds(self, file: LogFile) -> bool:
        """Whether the file may have such rows: none was received after its file was written."""
        return self.received_from == _FIRST or file.changed >= self.received_from - CLOCK_SKEW

    def wanted(self, columns: list[str] | None, shadows: bool = False) -> RowFilter:
        return RowFilter(
            columns,
            microseconds(self.start),
            microseconds(self.end),
            shadows,
            None
            if (self.received_from, self.received_until) == (_FIRST, _LAST)
            else (microseconds(self.received_from), microseconds(self.received_until)),
            self.holds,
        )


def parse_time_range(since: str | None, until: str | None, now: datetime) -> TimeRange:
    """`--since 1h`: what was received in the last hour; `--since 2013-07-01`: event times from then on;
    `--since 2013-07-01/1d`: event times in that window. `--until` likewise, the end being excluded.

    Raises:
        InvalidConfig: one of them cannot be read, or nothing can lie between them.
    """
    span = TimeRange()
    if since is not None:
        if DURATION.fullmatch(since):
            span = replace(span, received_from=_before(now, since, "--since"))
        elif "/" in since:
            window = parse_window(since)
            span = replace(span, start=window.start, end=window.end)
        else:
            span = replace(span, start=_time(since, "--since"))
    if until is not None:
        if since is not None and "/" in since:
            raise InvalidConfig(f"--since {since} is a window already: leave --until {until} out")
        if DURATION.fullmatch(until):
            span = replace(span, received_until=_before(now, until, "--until"))
        else:
            span = replace(span, end=_time(until, "--until"))
    if span.end <= span.start or span.received_until <= span.received_from:
        raise InvalidConfig(f"nothing lies between --since {since} and --until {until}")
    return span


def parse_duration(text: str, option: str) -> timedelta:
    """`90d`, `12h`.

    Raises:
        InvalidConfig: it is something else.
    """
    if not DURATION.fullmatch(text):
        raise InvalidConfig(f"{option} {text!r} cannot be read; a duration like 30s, 5m, 1h or 90d is expected")
    return timedelta(seconds=duration_seconds(text))


def _before(now: datetime, duration: str, option: str) -> datetime:
    try:
        return now - parse_duration(duration, option)
    except OverflowError:
        raise InvalidConfig(f"{option} {duration} is before the year 1") from None


def _time(text: str, option: str) -> datetime:
    try:
        return parse_time(text)
    except ValueError:
        window = ", or a window of them (2013-07-01/1d)" if option == "--since" else ""
        raise InvalidConfig(f"{option} {text!r} cannot be read; it is {_EXPECTED}{window}") from None
    except OverflowError:
        raise InvalidConfig(f"{option} {text!r} is not within the years 1 to 9999") from None
