"""Line charts over time as plain values, which the templates render as SVG and HTML.

A plot is an SVG of 1000 × 100 units, stretched to any width. Labels and numbers are
HTML next to the SVG, so that their size is the text size of the page. Colours are
classes of the stylesheet, because inline styles are not allowed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Literal

WIDTH = 1000
HEIGHT = 100
COLOURS = 6
"""The number of line styles (colour and dashes). Additional lines reuse the styles."""
_LARGEST = 1e12
"""The largest plausible value. A chart shows a gap instead of a larger value."""
_LEAST_TOP = 1.0
_LEAST_RATE = 0.1
"""The smallest tops of value axes, so that noise around 0 does not fill the chart. A
single request in ten seconds fills the chart of a rate.
"""
_STEPS = (1, 2, 4, 5, 6, 8, 10)
"""The tops of value axes, to be multiplied by a power of ten. Each top and its half are
short numbers.
"""
_LENGTHS = (60, 120, 240, 480, 1200, 2400, 3600, 7200, 14400, 28800, 43200, 86400, 172800, 345600)
"""Lengths of time axes in seconds. A quarter of a length, the distance of the labels,
is a short number.
"""
_PARTS = 4
_UNITS = (
    (86400, "d"),
    (3600, "h"),
    (60, "min"),
    (1, "s"),
)

Unit = Literal["/s", "/min", "ms", "s", "%"]
Values = Sequence[float | None]


@dataclass(frozen=True)
class Series:
    """Values at equal distances; None, NaN and infinity are gaps.

    Attributes:
        colour: the colour index, which is the same for a version in all charts.
        is_thin: True for a second line of the same colour, which the legend shows after
            the first line.
        label: the name in the legend; if it is empty, the legend shows `name`.
    """

    name: str
    values: Values
    colour: int = 0
    is_thin: bool = False
    label: str = ""

    def scaled(self, factor: float) -> "Series":
        values = [None if value is None else factor * value for value in self.values]
        return replace(self, values=values)


@dataclass(frozen=True)
class Line:
    """A line of a chart. `path` is its SVG path within WIDTH × HEIGHT, and `last` is
    the last value with its unit.
    """

    name: str
    label: str
    path: str
    last: str
    colour: int
    is_thin: bool


@dataclass(frozen=True)
class TimeAxis:
    """A time axis. `ticks` are the labels at equal distances, starting at the left
    end.
    """

    begin: datetime
    end: datetime
    ticks: tuple[str, ...]


@dataclass(frozen=True)
class LineChart:
    """A chart of lines over time.

    Attributes:
        ticks: the labels of the value axis, highest label first.
        top: the value at the upper end of the chart; the value at the lower end is 0.
        limit: the height of the marked limit in the chart, or None without a limit.
        empty: the reason for an empty chart, or an empty text.
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
    """Return the chart of these series, whose values extend from the left end to the
    right end of the chart.

    Args:
        limit: a value to mark.
        is_growing: True if the right end is in the future, so that the legend shows the
            last known value of a series.
        empty: the text of a chart without values.
    """
    plots = [_Plot(line, unit, is_growing) for line in series]
    top = nice_top(
        max(
            _LEAST_RATE if unit == "/s" else _LEAST_TOP,
            limit or 0.0,
            *(plot.highest for plot in plots),
        )
    )
    limit_height = None
    if limit is not None:
        limit_height = round(HEIGHT * (1 - min(limit / top, 1)), 1)
    summary = "; ".join(plot.summary for plot in plots if plot.numbers)
    span = f"{title}, from {axis.begin:%Y-%m-%d %H:%M} to {axis.end:%H:%M} UTC"
    content = summary or empty or "no values"
    return LineChart(
        id=id,
        title=title,
        unit=unit,
        axis=axis,
        lines=tuple(plot.line(top) for plot in plots),
        ticks=(_number(top), _number(top / 2), _number(0)),
        top=top,
        summary=f"{span}. {content}.",
        limit=limit_height,
        empty="" if summary else content,
    )


class _Plot:
    """A series in a chart, with gaps instead of implausible values. With `is_growing`,
    the last number is the last known one.

    A series of which most values stand alone, as of an endpoint with a request in some
    minutes, is connected across the gaps.
    """

    def __init__(self, series: Series, unit: Unit, is_growing: bool) -> None:
        self.series = series
        self.unit = unit
        self.values: list[float | None] = []
        for value in series.values:
            if value is None or math.isnan(value) or value > _LARGEST:
                self.values.append(None)
            else:
                self.values.append(max(value, 0.0))
        self.numbers = [value for value in self.values if value is not None]
        self.highest = max(self.numbers, default=0.0)
        begins = [
            after is not None and before is None for before, after in pairwise((None, *self.values))
        ]
        self.is_sparse = 3 * sum(begins) > 2 * len(self.numbers) > 2
        values: Values = self.numbers if is_growing or self.is_sparse else self.values
        self.last = shown(next(reversed(values), None), unit)

    @property
    def summary(self) -> str:
        when = "last" if self.is_sparse else "now"
        return f"{self.series.name}: {when} {self.last}, highest {shown(self.highest, self.unit)}"

    def line(self, top: float) -> Line:
        series = self.series
        path = []
        has_line = False
        for index, value in enumerate(self.values):
            if value is None:
                has_line = has_line and self.is_sparse
                continue
            x = WIDTH * index / max(len(self.values) - 1, 1)
            command = "L" if has_line else "M"
            path.append(f"{command}{x:.1f} {HEIGHT * (1 - value / top):.1f}")
            follows = index + 1 < len(self.values) and self.values[index + 1] is not None
            # A single value between gaps becomes a dot: a line of length 0 with round
            # ends.
            if not has_line and not follows:
                path.append("h0")
            has_line = True
        return Line(
            name=series.name,
            label=series.label or series.name,
            path=" ".join(path),
            last=self.last,
            colour=series.colour % COLOURS,
            is_thin=series.is_thin,
        )


def ago_axis(end: datetime, seconds: float) -> TimeAxis:
    """Return the axis of the `seconds` before `end`, which is now."""
    ticks = [duration(seconds * (_PARTS - part) / _PARTS) for part in range(_PARTS)]
    begin = end - timedelta(seconds=seconds)
    return TimeAxis(begin, end, (f"{ticks[0]} ago", *ticks[1:], "now"))


def axis_seconds(seconds: float) -> int:
    """Return the length of the shortest time axis that contains `seconds`."""
    longest = _LENGTHS[-1]
    return next(
        (length for length in _LENGTHS if length >= seconds),
        math.ceil(seconds / longest) * longest,
    )


def since_axis(begin: datetime, seconds: float) -> TimeAxis:
    """Return the axis of a process that has run for `seconds`, with space for its
    remaining time.
    """
    length = axis_seconds(seconds)
    ticks = (duration(length * part / _PARTS) for part in range(1, _PARTS + 1))
    return TimeAxis(begin, begin + timedelta(seconds=length), ("start", *ticks))


def nice_top(value: float) -> float:
    """Return the top of a value axis whose largest value is `value`. The top and its
    half are short numbers.
    """
    exponent = math.floor(math.log10(value))
    ends = (step * 10.0**exponent for step in _STEPS)
    return next(
        (end for end in ends if end >= value),
        10.0 ** (exponent + 1),
    )


def shown(value: float | None, unit: str) -> str:
    """Return the value with its unit, such as `12.3 /s`, `9.5 s`, `4 ms` (below a
    second), `0.2 %`; – for None.
    """
    if value is None:
        return "–"
    if unit == "s" and value < 0.9995:  # From 0.9995 s on, rounding would give 1,000 ms.
        value = 1000 * value
        unit = "ms"
    return f"{_number(value)} {unit}"


def duration(seconds: float) -> str:
    """Return a duration with its unit, such as `90 s`, `45 min`, `1.5 h` or `2 d`."""
    for unit_seconds, unit in _UNITS:
        if seconds >= 2 * unit_seconds:
            return f"{seconds / unit_seconds:.3g} {unit}"
    return f"{seconds:.3g} s"


def _number(value: float) -> str:
    """Return the number with at most three digits (`0.05`, `12.3`), or with thousands
    separators (`1,234`).
    """
    for least, divisor, letter in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if value >= least:
            return f"{value / divisor:.3g} {letter}"
    if value >= 100:
        return f"{value:,.0f}"
    if value >= 0.001:
        return f"{value:.3g}"
    return "0"
