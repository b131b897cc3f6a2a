"""The types of a spec's fields: names, durations, times, references of monitors, and
schedules (crontab(5)).
"""

import ast
import inspect
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from functools import cache
from ipaddress import ip_address
from itertools import pairwise
from math import ceil
from typing import Annotated, Any, TypeVar
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

from mlflow_deploy_plugin.core.errors import InvalidConfig

_LENGTH = r"[1-9][0-9]{0,5}[smhdw]"
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
_DURATION = f"^{_LENGTH}$"
MEMORY = r"^[1-9][0-9]{0,5}[KMGT]iB$"
Memory = Annotated[str, StringConstraints(pattern=MEMORY)]
Name = Annotated[str, StringConstraints(pattern=_NAME)]
Duration = Annotated[str, StringConstraints(pattern=_DURATION)]
NonEmpty = Annotated[str, Field(min_length=1)]
Port = Annotated[int, Field(ge=1, le=65535)]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]

REFERENCE = f"^(training|rolling:{_LENGTH}|window:[^ ]+/[^ ]+|dataset:.+)$"
TIME_ZONE = r"^[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+){0,3}$"
VARIABLE_VALUE = r"^[^\x00]*$"
VARIABLE = r"^[A-Za-z_][A-Za-z0-9_]{0,127}$"
SINK_URL = r"^(https?|([a-gi-z]|h[a-su-z])[a-z0-9+.-]{0,30})://[^@/?#\s]+([/?#][!-~]{0,500})?$"
"""The scheme of a sink of another distribution does not begin with `ht`, so that a
mistyped `https` is refused.
"""
SINK_VARIABLE = r"^ONNXSERVE_SINK_[A-Z0-9_]{1,100}$"
SOURCE_VARIABLE = r"^ONNXSERVE_SOURCE_[A-Z0-9_]{1,100}$"
NETWORK = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$"
DNS_NAME = r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$"
_LABEL = r"([A-Za-z0-9.-]{1,253}/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?"
_LABEL_VALUE = r"([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?"
NODE_LABEL = f"^{_LABEL}={_LABEL_VALUE}$"
TAINT = f"^{_LABEL}(={_LABEL_VALUE})?(:(NoSchedule|PreferNoSchedule|NoExecute))?$"
IMAGE = r"^\S+$"
HTTP_URL = r"^https?://[!-~]{1,500}$"
BUCKET_URI = r"^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]/([!-~]+/)?$"
SECRET_KEY = r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?/[A-Za-z0-9._-]+$"
REQUIREMENTS = r"^(gate=passed|(gate=passed,)?(name=true,)?signature=/[^,\x00]+)$"
PROVIDER = r"^[A-Za-z0-9]{1,60}ExecutionProvider$"
PATTERNS_IN_WORDS = {
    DNS_NAME: "the name of a Kubernetes object is expected: lower-case letters, digits, - and .",
    NODE_LABEL: "a Kubernetes label is expected, e.g. pool=gpu",
    TAINT: "a Kubernetes taint is expected, e.g. dedicated=ml:NoSchedule",
    IMAGE: "the name of an image without spaces is expected",
    HTTP_URL: "an address is expected that begins with http:// or https://",
    BUCKET_URI: "s3://BUCKET/ or s3://BUCKET/PREFIX/ with a slash at its end is expected",
    SECRET_KEY: "SECRET/KEY is expected",
    REQUIREMENTS: (
        "gate=passed, signature=FILE with the absolute path of a PEM file, or "
        "gate=passed,name=true,signature=FILE is expected"
    ),
    PROVIDER: "the name of an ONNX Runtime provider is expected, e.g. CPUExecutionProvider",
    VARIABLE: "the name of an environment variable is expected: letters, digits and _",
    SINK_URL: "an address like https://host/path, without a user or a password, is expected",
    SINK_VARIABLE: "an environment variable whose name begins with ONNXSERVE_SINK_ is expected",
    SOURCE_VARIABLE: "an environment variable whose name begins with ONNXSERVE_SOURCE_ is expected",
    VARIABLE_VALUE: (
        "a text without the character NUL is expected, which environment variables cannot contain"
    ),
    NETWORK: "the name of a docker network is expected, or host",
    _NAME: "at most 63 letters, digits, . _ - are expected, starting with a letter or digit",
    MEMORY: "a size like 512MiB or 4GiB is expected",
    _DURATION: "a duration like 30s, 5m, 1h, 1d or 1w is expected",
    REFERENCE: "training, rolling:7d, window:START/END or dataset:URI is expected",
    TIME_ZONE: "the name of a time zone is expected, e.g. Europe/Berlin",
}
_SECONDS = {
    "s": 1,
    "m": 60,
    "h": 3600,
    "d": 86400,
    "w": 7 * 86400,
}

LONGEST_DAYS = 3660
"""Ten years, the longest duration that a monitor may use."""
_PAIRS = 2.0
"""The number of window pairs to read, as a multiple of 1 / false alarm rate: 40 pairs
for 5 %.
"""
SMALLEST_ROLLING_RATE = 0.002
"""The smallest false alarm rate that the log's stored counts support
(`watch/drift/references/windows.py`).
"""
_LONGEST_SPAN = timedelta(days=10 * LONGEST_DAYS)
_SPANS_AN_ERA = 4
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def is_loopback(host: str) -> bool:
    """Return True if a host name or an address, with or without the brackets of a URL,
    is a loopback address.
    """
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def reachable_url(host: str, port: int | None, scheme: str = "http") -> str:
    """Return the URL with which this machine reaches a server that listens on
    `host`.
    """
    address = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
    shown = f"[{address}]" if ":" in address else address
    return f"{scheme}://{shown}:{port}"


def parse_time(text: str) -> datetime:
    """Return an ISO 8601 time in UTC, the default zone. Raises ValueError, or
    OverflowError outside years 1 to 9999.
    """
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a time") from None
    if time.tzinfo is None:
        return time.replace(tzinfo=UTC)
    return time.astimezone(UTC)


def check_time(text: str) -> str:
    """Return the text of a time. Raises ValueError for other texts."""
    parse_time(text)
    return text


def parse_interval(text: str) -> tuple[datetime, datetime]:
    """Return the start and the end of `START/END` or `START/DURATION` in UTC. Raises
    like `parse_time`.
    """
    begin, _, end = text.partition("/")
    start = parse_time(begin)
    stop = start + length_of(end) if is_duration(end) else parse_time(end)
    if stop <= start:
        raise ValueError("its end is not after its start")
    return start, stop


def is_duration(text: str) -> bool:
    """Return True if the text is a duration such as `"90s"`, `"5m"`, `"1h"`, `"1d"` or
    `"1w"`.
    """
    return re.fullmatch(_LENGTH, text) is not None


def parse_duration(text: str, option: str) -> timedelta:
    """Return the duration that a user specified for an option. Raise InvalidConfig for
    any other text.
    """
    if not is_duration(text):
        raise InvalidConfig(
            f"{option} {text!r} cannot be read; a duration like 30s, 5m, 1h, 90d or 1w is expected",
        )
    return length_of(text)


def parse_latency(text: str, option: str) -> float:
    """Return the seconds of a latency above 0 such as `"20ms"` or `"1.5s"`. Raise
    InvalidConfig for another text.
    """
    match = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]{1,6})?)(ms|s)", text)
    if match is None or not float(match[1]):
        raise InvalidConfig(
            f"{option} {text!r} cannot be read; a latency like 20ms or 1.5s, above 0, is expected",
        )
    number = float(match[1])
    return number / 1000 if match[2] == "ms" else number


def length_of(duration: str) -> timedelta:
    return timedelta(seconds=duration_seconds(duration))


def duration_seconds(duration: str) -> int:
    return int(duration[:-1]) * _SECONDS[duration[-1]]


def memory_bytes(memory: str) -> int:
    return int(memory[:-3]) << 10 * ("KMGT".index(memory[-3]) + 1)


def duration_text(seconds: int) -> str:
    """Return a duration as a text with a whole number of the largest possible unit up
    to a day, e.g. `"7d"`.
    """
    unit = next(key for key in "dhms" if seconds % _SECONDS[key] == 0)
    return f"{seconds // _SECONDS[unit]}{unit}"


def split_list(value: object) -> object:
    """Split a list from a command line, such as `"8,32"`; return any other value
    unchanged.
    """
    return value.split(",") if isinstance(value, str) else value


def split_providers(value: object) -> object:
    """Return the entries of a list of ONNX Runtime's providers as mappings. An entry
    may be a name without options.
    """
    entries = split_list(value)
    if type(entries) is list:
        return [{entry: {}} if isinstance(entry, str) else entry for entry in entries]
    return entries


_ItemT = TypeVar("_ItemT")
ListOf = Annotated[tuple[_ItemT, ...], BeforeValidator(split_list)]
"""A list that may be a text with commas."""


@cache
def field_descriptions(model: type[BaseModel]) -> Mapping[str, str]:
    """Return the text below each field of a class, by field name.

    The source file is read on demand, because pydantic's `use_attribute_docstrings`
    delays each process by 25 ms.
    """
    (declared,) = ast.parse(inspect.getsource(model)).body
    assert isinstance(declared, ast.ClassDef)
    descriptions = {}
    for pair in pairwise(declared.body):
        match pair:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(
                value=ast.Constant(value=str(text)),
            ):
                descriptions[name] = " ".join(text.split())
    return descriptions


def _describe(schema: dict[str, Any], part: type[BaseModel]) -> None:
    for name, description in field_descriptions(part).items():
        shown_name = part.model_fields[name].alias or name
        schema["properties"][shown_name]["description"] = description


class SpecPart(BaseModel):
    """A part of a spec. The text below a field is its description in the help, the
    reference and the schema.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra=_describe)


def rolling_span(lag: timedelta, length: timedelta, false_alarm_rate: float) -> timedelta:
    """Return the span of the log that `rolling:LAG` reads before a window, to compare
    pairs of windows.
    """
    pairs = ceil(_PAIRS / max(false_alarm_rate, SMALLEST_ROLLING_RATE))
    return lag + max(lag, min(pairs * length, _LONGEST_SPAN))


def bin_period(
    first: datetime,
    start: datetime,
    span: timedelta,
) -> tuple[datetime, datetime]:
    """Return the period of the log whose rows define the bins of a `rolling:` reference
    that reads `span` of the log.

    The period is the span before the last change of the bins, or the first span if the
    log is younger. The bins change only once every four spans, so that the stored
    counts of an hour serve many windows.
    """
    era = _SPANS_AN_ERA * span
    turn = EPOCH + (start - EPOCH) // era * era
    if first <= turn - span:
        return (turn - span, turn)
    return (first, min(first + span, start))


def validate_reference(text: str) -> str:
    """Return the reference. Raise ValueError if the reference has a malformed window,
    or a lag above `LONGEST_DAYS`.
    """
    kind, _, rest = text.partition(":")
    if kind == "rolling":
        validate_length(rest)
    if kind != "window":
        return text
    try:
        parse_interval(rest)
    except (ValueError, OverflowError) as error:
        form = "a window is START/END or START/DURATION in UTC, e.g. window:2013-01-01/2013-04-01"
        raise ValueError(f"{form}: {error}") from None
    return text


def validate_length(duration: str) -> str:
    """Return the duration unchanged. Raise ValueError if it is longer than
    `LONGEST_DAYS`.
    """
    if duration_seconds(duration) > LONGEST_DAYS * 86400:
        raise ValueError(f"at most {LONGEST_DAYS}d are expected")
    return duration


def validate_lag(lag: str, every: str) -> None:
    """Raise ValueError if the lag of a rolling reference is not a multiple of the
    window length of the monitor.
    """
    long_ago = duration_seconds(lag)
    length = duration_seconds(every)
    if long_ago < length:
        raise ValueError(f"reference rolling:{lag} is shorter than the window of {every}")
    if long_ago % length:
        raise ValueError(f"reference rolling:{lag} is not a multiple of the window of {every}")


def validate_season(season: str, every: str) -> None:
    """Raise ValueError if the season is not a multiple of the monitor's window length,
    and longer.
    """
    cycle = duration_seconds(season)
    length = duration_seconds(every)
    if cycle % length or cycle < 2 * length:
        nearest = duration_text(max(round(cycle / length), 2) * length)
        raise ValueError(
            f"season {season}: a longer multiple of the window of {every} is expected, e.g. "
            f"{nearest}",
        )


def validate_crontab(text: str) -> str:
    """Return the crontab line unchanged. Raises like `crontab_times`."""
    crontab_times(text, EPOCH)
    return text


def crontab_times(text: str, after: datetime) -> Iterator[datetime]:
    """Return the times of a crontab line like `15 6 * * 1-5` after `after`, in the zone
    of `after`, as Debian's cron.

    Sunday is 0 and 7. If the line has a day of the month and a day of the week, a day
    matches by either of them. If a clock change skips a time, the time is moved after
    the change. If a clock change repeats a time, the time occurs once, unless the hour
    is an asterisk. Raises ValueError if a field cannot be read, or if no day matches
    the line.
    """
    try:
        if len(text.split()) != 5:
            raise CronSimError("five fields are expected")
        # CronSim accepts fri-7, not fri-sun.
        return CronSim(re.sub("-sun", "-7", text, flags=re.IGNORECASE), after)
    except CronSimError as error:
        raise ValueError(
            f"{error}; minute, hour, day, month and weekday are expected, e.g. 15 6 * * 1-5",
        ) from None


def load_time_zone(name: str) -> ZoneInfo:
    """Return the time zone. Raise InvalidConfig if the time zone is not in the database
    of this machine.
    """
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise InvalidConfig(
            f"time_zone {name!r} is not known; a name like Europe/Berlin is expected",
        ) from None
