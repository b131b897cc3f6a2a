"""The types of a spec's fields: names, durations, times, references of monitors, and schedules.

A schedule is written as crontab(5) has it, `15 6 * * 1-5`, and is validated with the spec, long before anybody waits
for it.
"""

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from math import ceil
from typing import Annotated, Any, NamedTuple
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BaseModel, ConfigDict, StringConstraints

from mlflow_deploy_plugin.errors import InvalidConfig

_NAME, _DURATION = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$", r"^[1-9][0-9]{0,5}[smhd]$"
Name = Annotated[str, StringConstraints(pattern=_NAME)]
Duration = Annotated[str, StringConstraints(pattern=_DURATION)]

REFERENCE = r"^(training|rolling:[1-9][0-9]{0,5}[smhd]|window:[^ ]+/[^ ]+|dataset:.+)$"
TIME_ZONE = r"^[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+){0,3}$"
VARIABLE, NETWORK = r"^[A-Za-z_][A-Za-z0-9_]{0,127}$", r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$"
DNS_NAME = r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$"
_LABEL = r"([A-Za-z0-9.-]{1,253}/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?"
_LABEL_VALUE = r"([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?"
NODE_LABEL = f"^{_LABEL}={_LABEL_VALUE}$"
TAINT = f"^{_LABEL}(={_LABEL_VALUE})?(:(NoSchedule|PreferNoSchedule|NoExecute))?$"
PATTERNS_IN_WORDS = {
    DNS_NAME: "the name of a Kubernetes object is expected: small letters, digits, - and .",
    NODE_LABEL: "a label of Kubernetes is expected, as pool=gpu",
    TAINT: "a taint of Kubernetes is expected, as dedicated=ml:NoSchedule",
    VARIABLE: "the name of an environment variable is expected: letters, digits and _",
    NETWORK: "the name of a docker network is expected, or host",
    _NAME: "letters, digits, . _ - are expected, at most 63, the first a letter or digit",
    _DURATION: "a duration like 30s, 5m, 1h or 1d is expected",
    REFERENCE: "training, rolling:7d, window:START/END or dataset:URI is expected",
    TIME_ZONE: "the name of a time zone is expected, as Europe/Berlin",
}
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}

LONGEST_DAYS = 3660
"""Ten years; a monitor would never see the end of anything longer."""
_PAIRS = 2.0
"""The pairs of windows that are read, as a multiple of the least number that the rate needs: 40 for 5 %."""
SMALLEST_ROLLING_RATE = 0.002
"""The smallest rate that the stored past of the log can tell (`monitoring/drift/references/windows.py`)."""
_LONGEST_SPAN = timedelta(days=10 * LONGEST_DAYS)
_SPANS_AN_ERA = 4
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_PART = re.compile(r"(?:(\*)|([0-9]{1,2}|[a-z]{3})(?:-([0-9]{1,2}|[a-z]{3}))?)(?:/([0-9]{1,2}))?", re.IGNORECASE)
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_LONGEST = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


def is_loopback(host: str) -> bool:
    """Return True if a name or an address, also with the brackets of a URL, is this machine's own."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def reachable_url(host: str, port: int | None, scheme: str = "http") -> str:
    """Return the address at which this machine reaches a server that listens on `host`."""
    address = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
    return f"{scheme}://[{address}]:{port}" if ":" in address else f"{scheme}://{address}:{port}"


def parse_time(text: str) -> datetime:
    """Return an ISO 8601 time in UTC. A time without a zone is in UTC.

    Raises:
        ValueError: it is no time.
        OverflowError: in UTC it lies beyond the years 1 to 9999.
    """
    time = datetime.fromisoformat(text)
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).astimezone(UTC)


def duration_seconds(duration: str) -> int:
    """Return the seconds of a duration such as `"90s"`, `"5m"`, `"1h"` or `"1d"`."""
    return int(duration[:-1]) * _SECONDS[duration[-1]]


def split_list(value: Any) -> Any:
    """Split a list that a command line writes as `"8,32"`; return anything else as it is."""
    return value.split(",") if isinstance(value, str) else value


class SpecPart(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


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
        stop = start + timedelta(seconds=duration_seconds(end)) if re.match(_DURATION, end) else parse_time(end)
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


class _Field(NamedTuple):
    """A field of a crontab line."""

    name: str
    least: int
    most: int
    names: Mapping[str, int]

    def values(self, part: str) -> range:
        """Return the numbers of one part of the field, which commas part: `*`, `5`, `1-5` or `*/15`."""
        found = _PART.fullmatch(part)
        if found is None:
            raise ValueError(f"{self.name} {part!r}: numbers, lists, ranges and steps are expected, as 5, 1-5, */15")
        everything, first, last, step = found.groups()
        low = self.least if everything else self.number(first)
        high = self.number(last) if last else low
        if everything or (step and not last):
            high = 6 if self.name == "weekday" else self.most
        if self.name == "weekday" and last and last.lower() == "sun":
            high = 7
        if high < low:
            raise ValueError(f"{self.name} {part!r} ends before it begins")
        if step and not 1 <= int(step) <= high - low:
            raise ValueError(f"{self.name} {part!r}: the step has to be at least 1 and to lie within the range")
        return range(low, high + 1, int(step) if step else 1)

    def number(self, text: str) -> int:
        number = int(text) if text.isdigit() else self.names.get(text.lower())
        if number is None or not self.least <= number <= self.most:
            names = f", or {' '.join(self.names)}" if self.names else ""
            raise ValueError(f"{self.name} {text!r}: {self.least} to {self.most} are expected{names}")
        return number


_FIELDS = (
    _Field("minute", 0, 59, {}),
    _Field("hour", 0, 23, {}),
    _Field("day", 1, 31, {}),
    _Field("month", 1, 12, {name: number for number, name in enumerate(_MONTHS, 1)}),
    _Field("weekday", 0, 7, {name: number for number, name in enumerate(_WEEKDAYS)}),
)


def validate_crontab(text: str) -> str:
    """Return the line as it is; raise as `crontab_values`."""
    crontab_values(text)
    return text


def crontab_values(text: str) -> list[set[int]]:
    """Return the values of minute, hour, day, month and weekday, where 0 and 7 are Sunday.

    Raises:
        ValueError: a field cannot be read, or the schedule has no day; the message says which.
    """
    given = text.split()
    if len(given) != len(_FIELDS):
        raise ValueError("minute, hour, day, month and weekday are expected, as 15 6 * * *")
    values = [
        {value for part in said.split(",") for value in field.values(part)}
        for field, said in zip(_FIELDS, given, strict=True)
    ]
    _, _, days, months, _ = values
    is_of_any_weekday = given[4].startswith("*")
    if is_of_any_weekday and min(days) > max(_LONGEST[month - 1] for month in months):
        raise ValueError(f"no month that is named has a day {min(days)}")
    return values


def load_time_zone(name: str) -> ZoneInfo:
    """Return the time zone of this name. Reading a spec does not load it: machines know different zones.

    Raises:
        InvalidConfig: this machine does not know the zone.
    """
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise InvalidConfig(f"time_zone {name!r} is not known; as Europe/Berlin") from None
