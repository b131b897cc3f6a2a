"""The types of fields that several parts of a spec share."""

import re
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, StringConstraints

_NAME, _DURATION = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$", r"^[1-9][0-9]{0,5}[smhd]$"
Name = Annotated[str, StringConstraints(pattern=_NAME)]
Duration = Annotated[str, StringConstraints(pattern=_DURATION)]

REFERENCE = r"^(training|rolling:[1-9][0-9]{0,5}[smhd]|window:[^ ]+/[^ ]+|dataset:.+)$"
TIME_ZONE = r"^[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+){0,3}$"
PATTERNS_IN_WORDS = {
    _NAME: "letters, digits, . _ - are expected, at most 63, the first a letter or digit",
    _DURATION: "a duration like 30s, 5m, 1h or 1d is expected",
    REFERENCE: "training, rolling:7d, window:START/END or dataset:URI is expected",
    TIME_ZONE: "the name of a time zone is expected, as Europe/Berlin",
}
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def is_duration(text: str) -> bool:
    return re.match(_DURATION, text) is not None


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
