"""The figures of a judged window that the store keeps, and the past windows that a judgement uses, as plain values."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

Levels = Mapping[str, float]
"""The signed figures of a window by series, such as `delay/level` or `carrier=AA/delay/missing`."""


@dataclass(frozen=True)
class Evidence:
    """The figures and alarms of a window that later judgements use.

    Attributes:
        basis: identifies the bins and the reference. Figures with another basis are not comparable.
        levels: the signed figures of the window. A figure is omitted if it is unknown.
        alarms: the columns and criteria that raised an alarm, as `alarm_key`.
        accepted: the alarms that a user has accepted since then.
        shifts: the series with an open alarm of the detector, each with the start of the shift in ISO 8601.
    """

    basis: str = ""
    levels: Levels = field(default_factory=dict)
    alarms: tuple[str, ...] = ()
    shifts: Mapping[str, str] = field(default_factory=dict)
    accepted: tuple[str, ...] = ()

    @property
    def open_alarms(self) -> tuple[str, ...]:
        return tuple(key for key in self.alarms if key not in self.accepted)

    def to_json(self) -> dict[str, object]:
        """Return the evidence for the store. NaN and infinity are omitted, because JSON does not have them."""
        levels = {series: level for series, level in self.levels.items() if math.isfinite(level)}
        alarms = {"alarms": list(self.alarms), "accepted": list(self.accepted)}
        return {"basis": self.basis, "levels": levels, **alarms, "shifts": dict(self.shifts)}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Evidence":
        """Return the stored evidence. A document of another form, such as of a window without evidence, is empty."""
        try:
            levels = {series: float(level) for series, level in document["levels"].items()}
            shifts = {series: datetime.fromisoformat(since).isoformat() for series, since in document["shifts"].items()}
            alarms = tuple(map(str, document["alarms"]))
            accepted = tuple(map(str, document.get("accepted", ())))
            return cls(str(document["basis"]), levels, alarms, shifts, accepted)
        except (AttributeError, KeyError, TypeError, ValueError):
            return cls()


def alarm_key(subject: str, segment: str = "") -> str:
    """Return the name of a column or criterion for all windows: `delay`, or `carrier=AA/delay` in a segment."""
    return f"{segment}/{subject}" if segment else subject


@dataclass(frozen=True)
class PastLevels:
    """The figures of an earlier window of the same monitor."""

    start: datetime
    evidence: Evidence


@dataclass(frozen=True)
class Onset:
    """The window in which a shift began by estimation, [start, end), and the 95 % interval, [earliest, latest)."""

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
        usual: the usual level in each window, including the cycle of the season; empty without a reference.
        deviation: the standard deviation of the reference's windows around `usual`; 0 without a reference.
        onset: the start of the shift; None without an alarm.
    """

    title: str
    starts: Sequence[datetime]
    values: Sequence[float]
    usual: Sequence[float] = ()
    deviation: float = 0.0
    onset: Onset | None = None


@dataclass(frozen=True)
class AlarmContext:
    """The endpoint's alarms and earlier windows, for the judgement of a window.

    Attributes:
        false_per_year: the monitor's share of the endpoint's budget; None without a budget.
        past: the earlier windows of the monitor in their last revision, oldest first.
        baseline: the columns whose shift a user has accepted (`alarm_key`), each with the start of the new baseline.
        accuracy: a metric of the model over the same windows, from a monitor of kind performance; None if unknown.
    """

    false_per_year: float | None = None
    past: tuple[PastLevels, ...] = ()
    baseline: Mapping[str, datetime] = field(default_factory=dict)
    accuracy: LevelSeries | None = None
