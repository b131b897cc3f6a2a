"""Schedules as crontab(5) writes them, `15 6 * * 1-5`, validated with the spec, long before anybody waits for them."""

import re
from collections.abc import Mapping
from typing import NamedTuple
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from mlflow_deploy_plugin.errors import InvalidConfig

_PART = re.compile(r"(?:(\*)|([0-9]{1,2}|[a-z]{3})(?:-([0-9]{1,2}|[a-z]{3}))?)(?:/([0-9]{1,2}))?", re.IGNORECASE)
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_LONGEST = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
EXPECTED = "minute, hour, day, month and weekday are expected, as 15 6 * * *"


class _Field(NamedTuple):
    name: str
    least: int
    most: int
    names: Mapping[str, int]


_FIELDS = (
    _Field("minute", 0, 59, {}),
    _Field("hour", 0, 23, {}),
    _Field("day", 1, 31, {}),
    _Field("month", 1, 12, {name: number for number, name in enumerate(MONTHS, 1)}),
    _Field("weekday", 0, 7, {name: number for number, name in enumerate(WEEKDAYS)}),
)


def validate_crontab(text: str) -> str:
    """Return the line as it is.

    Raises:
        ValueError: a field cannot be read, or the schedule has no day; the message says which.
    """
    given = text.split()
    if len(given) != len(_FIELDS):
        raise ValueError(EXPECTED)
    _, _, days, months, _ = (
        {value for part in said.split(",") for value in _parse_part(field, part)}
        for field, said in zip(_FIELDS, given, strict=True)
    )
    is_of_any_weekday = given[4].startswith("*")
    if is_of_any_weekday and min(days) > max(_LONGEST[month - 1] for month in months):
        raise ValueError(f"no month that is named has a day {min(days)}")
    return text


def load_time_zone(name: str) -> ZoneInfo:
    """Return the time zone of this name. Reading a spec does not load it: machines know different zones.

    Raises:
        InvalidConfig: this machine does not know the zone.
    """
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise InvalidConfig(f"time_zone {name!r} is not known; as Europe/Berlin") from None


def _parse_part(field: _Field, part: str) -> range:
    found = _PART.fullmatch(part)
    if found is None:
        raise ValueError(f"{field.name} {part!r}: numbers, lists, ranges and steps are expected, as 5, 1-5, */15")
    everything, first, last, step = found.groups()
    low = field.least if everything else _parse_number(field, first)
    high = _parse_number(field, last) if last else low
    if everything or (step and not last):
        high = 6 if field.name == "weekday" else field.most
    if field.name == "weekday" and last and last.lower() == "sun":
        high = 7
    if high < low:
        raise ValueError(f"{field.name} {part!r} ends before it begins")
    if step and not 1 <= int(step) <= high - low:
        raise ValueError(f"{field.name} {part!r}: the step has to be at least 1 and to lie within the range")
    return range(low, high + 1, int(step) if step else 1)


def _parse_number(field: _Field, text: str) -> int:
    number = int(text) if text.isdigit() else field.names.get(text.lower())
    if number is None or not field.least <= number <= field.most:
        names = f", or {' '.join(field.names)}" if field.names else ""
        raise ValueError(f"{field.name} {text!r}: {field.least} to {field.most} are expected{names}")
    return number
