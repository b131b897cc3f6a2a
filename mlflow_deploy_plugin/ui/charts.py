"""Pictures as plain values: lines over time, and windows in a row. The templates turn them into SVG and HTML.

A plot is an SVG of 1000 × 100 units, stretched to any width; words and numbers are HTML next to it, so that they have
the size of the page's text. Colours are classes of the stylesheet, since the page allows no inline styles.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

WIDTH, HEIGHT = 1000, 100
COLOURS = 6
"""The lines that differ by colour and dash; further lines repeat them."""
_LARGEST = 1e12
"""A larger number is not a server's figure."""
_LEAST_TOP = 1.0
"""No value axis ends lower, so that noise around 0 does not fill the picture."""
_STEPS = (1, 2, 4, 5, 6, 8, 10)
"""Times a power of ten: the ends of an axis whose half is as short to read."""
_LENGTHS = (60, 120, 240, 480, 1200, 2400, 4800, 7200, 14400, 28800, 86400, 172800, 345600)
"""Seconds whose quarters are short to read."""
_PARTS = 4
_UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))

Unit = Literal["/s", "/min", "ms", "s", "%"]
Values = Sequence[float | None]


@dataclass(frozen=True)
class Series:
    """Values at the same distance from each other; None, NaN and infinity are gaps.

    Attributes:
        colour: the same for a version in all pictures.
        is_thin: True for a second line of the same colour; the legend has it behind the one before it.
        label: its name there; empty: the same.
    """

    name: str
    values: Values
    colour: int = 0
    is_thin: bool = False
    label: str = ""


@dataclass(frozen=True)
class Line:
    """A series as it is drawn: `path` is of SVG, within WIDTH × HEIGHT, and `last` the last value with its unit."""

    name: str
    label: str
    path: str
    last: str
    colour: int
    is_thin: bool


@dataclass(frozen=True)
class TimeAxis:
    """The time from left to right; `ticks` stand at equal distances, the first at the left end."""

    begin: datetime
    end: datetime
    ticks: tuple[str, ...]


@dataclass(frozen=True)
class LineChart:
    """A chart of lines over time.

    Attributes:
        ticks: of the value axis, the highest first.
        top: the value at the upper end; the lower end is 0.
        limit: the height of a marked limit, or None.
        empty: the reason for an empty chart.
    """

    id: str
    title: str
    unit: Unit
    axis: TimeAxis
    lines: tuple[Line, ...]
    ticks: tuple[str, ...]
    top: float
    summary: str
    limit: float | None = None
    empty: str = ""


def line_chart(
    id: str,
    title: str,
    unit: Unit,
    axis: TimeAxis,
    series: Sequence[Series],
    *,
    limit: float | None = None,
    is_growing: bool = False,
    empty: str = "",
) -> LineChart:
    """Return the chart of these series, each from the left end to the right end.

    `limit` is a marked value, and `empty` the text if no series has a value. With `is_growing` the right end lies in
    the future, and the last known value is the present one.
    """
    drawn = [
        [None if value is None or math.isnan(value) or value > _LARGEST else max(value, 0.0) for value in one.values]
        for one in series
    ]
    known = [value for values in drawn for value in values if value is not None]
    top = nice_top(max([_LEAST_TOP, *known, *([limit] if limit is not None else [])]))
    lines, said = [], []
    for one, values in zip(series, drawn, strict=True):
        found = [value for value in values if value is not None]
        last = shown(next(reversed(found if is_growing else values), None), unit)
        lines.append(
            Line(one.name, one.label or one.name, " ".join(_path(values, top)), last, one.colour % COLOURS, one.is_thin)
        )
        if found:
            said.append(f"{one.name}: now {last}, highest {shown(max(found), unit)}")
    span = f"{title}, from {axis.begin:%Y-%m-%d %H:%M} to {axis.end:%H:%M} UTC"
    return LineChart(
        id=id,
        title=title,
        unit=unit,
        axis=axis,
        lines=tuple(lines),
        ticks=tuple(_number(top * share) for share in (1, 0.5, 0)),
        top=top,
        summary=f"{span}. {'; '.join(said) or empty or 'no values'}.",
        limit=None if limit is None else round(HEIGHT * (1 - min(limit / top, 1)), 1),
        empty="" if known else empty or "no values",
    )


def ago_axis(end: datetime, seconds: float) -> TimeAxis:
    ticks = [duration(seconds * (_PARTS - part) / _PARTS) for part in range(_PARTS)]
    return TimeAxis(end - timedelta(seconds=seconds), end, (f"{ticks[0]} ago", *ticks[1:], "now"))


def since_axis(begin: datetime, seconds: float) -> TimeAxis:
    """Return the axis of a process that has lasted for `seconds` so far, with room for its future."""
    length = next((one for one in _LENGTHS if one >= seconds), math.ceil(seconds / _LENGTHS[-1]) * _LENGTHS[-1])
    ticks = (duration(length * part / _PARTS) for part in range(1, _PARTS + 1))
    return TimeAxis(begin, begin + timedelta(seconds=length), ("start", *ticks))


def nice_top(value: float) -> float:
    """Return the end of an axis that holds the value and is short to read, as its half is."""
    exponent = math.floor(math.log10(value))
    ends = (step * 10.0**exponent for step in _STEPS)
    return next((end for end in ends if end >= value), 10.0 ** (exponent + 1))


def shown(value: float | None, unit: str) -> str:
    """Return the value with its unit: `12.3 /s`, `4 ms` for less than a second, `9.5 s`, `0.2 %`; – for none."""
    if value is None:
        return "–"
    if unit == "s" and value < 0.9995:  # above that, three digits are 1,000 ms
        value, unit = 1000 * value, "ms"
    return f"{_number(value)} {unit}"


def duration(seconds: float) -> str:
    """Return `90 s`, `45 min`, `1.5 h` or `2 d`."""
    size, unit = next((one for one in _UNITS if seconds >= 2 * one[0]), _UNITS[-1])
    return f"{seconds / size:.3g} {unit}"


def _number(value: float) -> str:
    """Return three digits at most, and whole numbers with their thousands: `0.05`, `12.3`, `1,234`."""
    for least, size, letter in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if value >= least:
            return f"{value / size:.3g} {letter}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}" if value >= 0.001 else "0"


def _path(values: Values, top: float) -> Iterator[str]:
    """Yield the pieces of a path; a single value between gaps is a dot, which a stroke with round ends shows."""
    is_down = False
    for index, value in enumerate(values):
        if value is None:
            is_down = False
            continue
        x = WIDTH * index / max(len(values) - 1, 1)
        yield f"{'L' if is_down else 'M'}{x:.1f} {HEIGHT * (1 - value / top):.1f}"
        follows = index + 1 < len(values) and values[index + 1] is not None
        if not is_down and not follows:
            yield "h0"
        is_down = True
