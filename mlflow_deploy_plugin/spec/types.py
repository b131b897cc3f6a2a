"""The types of a spec's fields: names, durations, times, references of monitors, and schedules (crontab(5))."""

import ast
import inspect
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from functools import cache
from ipaddress import ip_address
from itertools import pairwise
from math import ceil
from typing import Annotated, Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError
from pydantic import BaseModel, ConfigDict, StringConstraints

from mlflow_deploy_plugin.errors import InvalidConfig

_LENGTH = r"[1-9][0-9]{0,5}[smhd]"
_NAME, _DURATION = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$", f"^{_LENGTH}$"
Name = Annotated[str, StringConstraints(pattern=_NAME)]
Duration = Annotated[str, StringConstraints(pattern=_DURATION)]

REFERENCE = f"^(training|rolling:{_LENGTH}|window:[^ ]+/[^ ]+|dataset:.+)$"
TIME_ZONE = r"^[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+){0,3}$"
VARIABLE_VALUE = r"^[^\x00]*$"
VARIABLE, NETWORK = r"^[A-Za-z_][A-Za-z0-9_]{0,127}$", r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$"
DNS_NAME = r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$"
_LABEL = r"([A-Za-z0-9.-]{1,253}/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?"
_LABEL_VALUE = r"([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?"
NODE_LABEL = f"^{_LABEL}={_LABEL_VALUE}$"
TAINT = f"^{_LABEL}(={_LABEL_VALUE})?(:(NoSchedule|PreferNoSchedule|NoExecute))?$"
IMAGE = r"^\S+$"
SECRET_KEY = r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?/[A-Za-z0-9._-]+$"
PATTERNS_IN_WORDS = {
    DNS_NAME: "the name of a Kubernetes object is expected: small letters, digits, - and .",
    NODE_LABEL: "a label of Kubernetes is expected, as pool=gpu",
    TAINT: "a taint of Kubernetes is expected, as dedicated=ml:NoSchedule",
    IMAGE: "the name of an image is expected, which has no spaces",
    SECRET_KEY: "SECRET/KEY is expected",
    VARIABLE: "the name of an environment variable is expected: letters, digits and _",
    VARIABLE_VALUE: "a text without the character NUL is expected: no environment variable can have it",
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
    """Return an ISO 8601 time in UTC, the default zone. Raises ValueError, or OverflowError outside years 1 to 9999."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a time") from None
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).astimezone(UTC)


def parse_interval(text: str) -> tuple[datetime, datetime]:
    """Return the start and the end of `START/END` or `START/DURATION` in UTC. Raises as `parse_time`."""
    begin, _, end = text.partition("/")
    start = parse_time(begin)
    stop = start + length_of(end) if is_duration(end) else parse_time(end)
    if stop <= start:
        raise ValueError("it ends before it begins")
    return start, stop


def is_duration(text: str) -> bool:
    """Return True if the text is a duration such as `"90s"`, `"5m"`, `"1h"` or `"1d"`."""
    return re.fullmatch(_LENGTH, text) is not None


def parse_duration(text: str, option: str) -> timedelta:
    """Return a duration that a person has written for an option; raise InvalidConfig for any other text."""
    if not is_duration(text):
        raise InvalidConfig(f"{option} {text!r} cannot be read; a duration like 30s, 5m, 1h or 90d is expected")
    return length_of(text)


def length_of(duration: str) -> timedelta:
    return timedelta(seconds=duration_seconds(duration))


def duration_seconds(duration: str) -> int:
    return int(duration[:-1]) * _SECONDS[duration[-1]]


def duration_text(seconds: int) -> str:
    """Return a duration in the largest unit that it is a multiple of, as `"7d"`."""
    unit = max((one for one in _SECONDS if seconds % _SECONDS[one] == 0), key=_SECONDS.__getitem__)
    return f"{seconds // _SECONDS[unit]}{unit}"


def split_list(value: object) -> object:
    """Split a list that a command line writes as `"8,32"`; return anything else as it is."""
    return value.split(",") if isinstance(value, str) else value


@cache
def field_descriptions(model: type[BaseModel]) -> Mapping[str, str]:
    """Return the text below each field of a class, by the field's name.

    It is read on demand, because pydantic's `use_attribute_docstrings` would delay each process by 25 ms.
    """
    (declared,) = ast.parse(inspect.getsource(model)).body
    assert isinstance(declared, ast.ClassDef)
    found = {}
    for pair in pairwise(declared.body):
        match pair:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                found[name] = " ".join(text.split())
    return found


def _describe(schema: dict[str, Any], part: type[BaseModel]) -> None:
    for name, description in field_descriptions(part).items():
        schema["properties"][name]["description"] = description


class SpecPart(BaseModel):
    """A part of a spec. The text below a field is its description in the help, the reference and the schema."""

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra=_describe)


def rolling_span(lag: timedelta, length: timedelta, false_alarm_rate: float) -> timedelta:
    """Return how far before a window of this length `rolling:LAG` reads the log: the pairs of windows before it."""
    pairs = ceil(_PAIRS / max(false_alarm_rate, SMALLEST_ROLLING_RATE))
    return lag + max(lag, min(pairs * length, _LONGEST_SPAN))


def bin_period(first: datetime, start: datetime, span: timedelta) -> tuple[datetime, datetime]:
    """Return the period of the log whose rows define the bins of a `rolling:` reference, which reads `span` of the log.

    It is the span before the last change of the bins, or the first span of a younger log. The bins change once in four
    spans, so that the stored counts of each hour serve many windows.
    """
    era = _SPANS_AN_ERA * span
    turn = _EPOCH + (start - _EPOCH) // era * era
    return (turn - span, turn) if first <= turn - span else (first, min(first + span, start))


def validate_reference(text: str) -> str:
    """Return the reference; raise ValueError if its window is malformed, or its lag is longer than `LONGEST_DAYS`."""
    kind, _, said = text.partition(":")
    if kind == "rolling":
        validate_length(said)
    if kind != "window":
        return text
    try:
        parse_interval(said)
    except (ValueError, OverflowError) as error:
        form = "a window is START/END or START/DURATION in UTC, as window:2013-01-01/2013-04-01"
        raise ValueError(f"{form}: {error}") from None
    return text


def validate_length(duration: str) -> str:
    """Return the duration as it is; raise ValueError if it is longer than `LONGEST_DAYS`."""
    if duration_seconds(duration) > LONGEST_DAYS * 86400:
        raise ValueError(f"at most {LONGEST_DAYS}d are expected")
    return duration


def validate_lag(lag: str, every: str) -> None:
    """Raise ValueError if no window of a monitor begins the lag of its rolling reference before another."""
    long_ago, length = duration_seconds(lag), duration_seconds(every)
    if long_ago < length:
        raise ValueError(f"reference rolling:{lag} lies in the window itself, which is {every} long")
    if long_ago % length:
        raise ValueError(f"reference rolling:{lag}: no window of {every} begins {lag} before another; take a multiple")


def validate_crontab(text: str) -> str:
    """Return the line as it is; raise as `crontab_times`."""
    crontab_times(text, _EPOCH)
    return text


def crontab_times(text: str, after: datetime) -> Iterator[datetime]:
    """Return the times after `after`, in its zone, of a line like `15 6 * * 1-5`, as Debian's cron has them.

    Sunday is 0 and 7. If both a day of the month and a day of the week are specified, either suffices. A time that a
    change of clocks skips comes just after it. A repeated time comes once, unless the line has an asterisk for the
    hour. Raises ValueError if a field cannot be read, or the line has no day.
    """
    try:
        if len(text.split()) != 5:
            raise CronSimError("five fields are expected")
        return CronSim(re.sub("-sun", "-7", text, flags=re.IGNORECASE), after)  # it has Sunday before Saturday
    except CronSimError as error:
        raise ValueError(f"{error}; minute, hour, day, month and weekday are expected, as 15 6 * * 1-5") from None


def load_time_zone(name: str) -> ZoneInfo:
    """Return the time zone; raise InvalidConfig if this machine does not know it. Machines know different zones."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise InvalidConfig(f"time_zone {name!r} is not known; as Europe/Berlin") from None
