"""The figures of a judged window that the store keeps, and the past windows that a
judgement uses, as plain values.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import lru_cache
from typing import Annotated, Any, NamedTuple

from pydantic import PlainSerializer, PlainValidator, TypeAdapter, ValidationError


class SeriesKey(NamedTuple):
    """The identity of a figure of a column in all windows.

    Attributes:
        column: the column, as `alarm_key`.
        figure: the figure, such as `level`; for a projection of the relations, the name
            of the projection.
    """

    column: str
    figure: str

    def __str__(self) -> str:
        return f"{self.column}/{self.figure}"


ROWS_KEY = SeriesKey("number of rows", "rows")
"""The identity of the logarithm of the number of all rows."""


@lru_cache(maxsize=10_000)
def _stored_key(text: str) -> SeriesKey:
    """Return the key that was stored as this text. All windows of a monitor share
    it.
    """
    column, _, figure = text.rpartition("/")
    return SeriesKey(column, figure)


Series = Annotated[SeriesKey, PlainValidator(_stored_key), PlainSerializer(str)]
Levels = Mapping[Series, float]
"""The signed figures of a window by series."""


class Outcome(NamedTuple):
    """The outcome of a check in a judged window, with the fields of
    `watch.result.Finding`.
    """

    check: str
    state: str
    value: float | None = None
    threshold: float | None = None


@dataclass(frozen=True)
class Evidence:
    """The figures and alarms of a window that later judgements use.

    Attributes:
        basis: identifies the bins and the reference. Figures with another basis are not
            comparable.
        levels: the signed figures of the window. A figure is omitted if it is unknown.
        alarms: the columns and criteria with an alarm or a change, as `alarm_key`.
        accepted: the alarms that a user has accepted since then.
        shifts: the series with an open alarm of the detector, each with the start of
            the shift in ISO 8601.
        outcomes: the worst outcome of each judged column and criterion, by `alarm_key`.
            The key of the largest score of all columns is empty.
        effects: the effects of drifted columns on the predictions, by `alarm_key`.
        limits: the last of the detector's `known_limits`, so that other processes need
            not simulate them.
    """

    basis: str = ""
    levels: Levels = field(default_factory=dict)
    alarms: tuple[str, ...] = ()
    shifts: Mapping[Series, str] = field(default_factory=dict)
    accepted: tuple[str, ...] = ()
    outcomes: Mapping[str, Outcome] = field(default_factory=dict)
    effects: Mapping[str, float] = field(default_factory=dict)
    limits: Mapping[str, float] = field(default_factory=dict)

    @property
    def open_alarms(self) -> tuple[str, ...]:
        return tuple(key for key in self.alarms if key not in self.accepted)

    def to_json(self) -> dict[str, Any]:
        """Return the evidence for the store. NaN and infinity are omitted, because JSON
        does not have them.
        """
        levels = {key: level for key, level in self.levels.items() if math.isfinite(level)}
        known = _EVIDENCE.dump_json(replace(self, levels=levels))
        document: dict[str, Any] = json.loads(known)
        return document

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Evidence":
        """Return the stored evidence; empty if it is of another form."""
        try:
            return _EVIDENCE.validate_python(document)
        except ValidationError:
            return cls()


_EVIDENCE = TypeAdapter(Evidence)


def alarm_key(subject: str, segment: str) -> str:
    """Return the name of a column or criterion for all windows: `delay`, or
    `carrier=AA/delay` in a segment.
    """
    return f"{segment}/{subject}" if segment else subject


@dataclass(frozen=True)
class JudgedWindow:
    """A judged window of a monitor, as the judgements of later windows see it. `state`
    is the state of the result.
    """

    start: datetime
    state: str
    evidence: Evidence


@dataclass(frozen=True)
class Onset:
    """The window in which a shift began by estimation, [start, end), and the 95 %
    interval, [earliest, latest).
    """

    start: datetime
    end: datetime
    earliest: datetime
    latest: datetime


@dataclass(frozen=True)
class LevelSeries:
    """A level over time, for a chart.

    Attributes:
        title: the column and the figure, such as `delay, mean`.
        starts: the starts of the windows, ascending.
        values: the level in each window; NaN if unknown.
        usual: the usual level in each window, including the cycle of the season; empty
            without a reference.
        deviation: the standard deviation of the reference's windows around `usual`; 0
            without a reference.
        onset: the start of the shift; None without an alarm.
        key: the `alarm_key` of the column; empty if the level is not a column.
        is_logarithmic: True if the values are logarithms, which charts show as numbers.
    """

    title: str
    starts: Sequence[datetime]
    values: Sequence[float]
    usual: Sequence[float] = ()
    deviation: float = 0.0
    onset: Onset | None = None
    key: str = ""
    is_logarithmic: bool = False
