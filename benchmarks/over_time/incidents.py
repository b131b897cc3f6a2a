"""Measure whether incidents of a single day are found on that day in a shop's rows: 14
columns of all kinds, with levels of days that depend on the day before and fewer rows
on weekends.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from benchmarks.drifting.judging import Line, found_line, on_all_cores
from benchmarks.drifting.worlds import Array
from benchmarks.over_time.streams import Monitor, Stream, World, stream_of
from mlflow_deploy_plugin.watch.drift.sketches.sketch import sketch_groups

_SHOP = World(14, 0.15, 460, correlation=0.5)
_REFERENCE = 90
_CALM_DAYS = 14
_WORLDS = 10
_FEWEST_WORLDS = 3
_COUNTRIES = ("de", "fr", "it", "es", "nl", "be", "at", "pl", "ch", "cz", "dk", "se")
_COUNTRY_SHARES = (0.27, 0.19, 0.14, 0.1, 0.07, 0.06, 0.05, 0.04, 0.03, 0.02, 0.02, 0.01)
_DEVICES = ("android", "ios", "web")
_CHANNELS = ("Search", "Direct", "Mail", "Partner")

Columns = Mapping[str, Array]
"""The columns of a table; a missing value is None or NaN."""
Change = Callable[[Columns], Columns]


class _Day(NamedTuple):
    """The verdict on a day.

    Attributes:
        is_found: True if the day is red.
        closest: the figure that comes closest to its limit: its series, score and
            limit; then the exact checks that are alarms.
    """

    is_found: bool
    closest: str = ""


def lines(share: float) -> Iterator[Line]:
    """Yield the lines of the table; `share` is the part of the worlds that is used."""
    worlds = on_all_cores(_judge_world, range(max(round(_WORLDS * share), _FEWEST_WORLDS)))
    calm = [days[""] for days in worlds]
    yield _calm_line(calm)
    for what in _INCIDENTS:
        days = [world[what][0] for world in worlds]
        least = None if what in _SMALL else 0.9
        line = found_line(f"{what}: found on the day", [[day.is_found] for day in days], least)
        yield replace(line, figure=f"{line.figure}; {days[0].closest}")


def _calm_line(calm: list[list[_Day]]) -> Line:
    flagged = sum(day.is_found for days in calm for day in days)
    judged = sum(map(len, calm))
    named = ", ".join(day.closest for days in calm for day in days if day.is_found)
    figure = f"{flagged} of {judged} {named}".strip()
    return Line("calm days that are red", figure, "none", "missed" if flagged else "met")


def _judge_world(seed: int) -> dict[str, list[_Day]]:
    """Return the verdicts on the calm days (empty name) and on the day of each
    incident.
    """
    rng = np.random.default_rng([seed, 14])
    columns, days = _rows(rng, _REFERENCE + _CALM_DAYS + 1)
    is_last = days == _REFERENCE + _CALM_DAYS
    table = pa.table({name: values[~is_last] for name, values in columns.items()})
    stream = stream_of(table, days[~is_last], _SHOP, _REFERENCE, _CALM_DAYS)
    last = {name: values[is_last] for name, values in columns.items()}
    with Monitor(_with_day(stream, last), 1.0) as monitor:
        verdicts = {
            "": [
                _judge(monitor, day) if is_red else _Day(False)
                for day, is_red in enumerate(monitor.red.tolist())
            ]
        }
    for what, change in _INCIDENTS.items():
        with Monitor(_with_day(stream, change(last)), 1.0) as monitor:
            verdicts[what] = [_judge(monitor, _CALM_DAYS, what.partition(":")[0])]
    return verdicts


def _with_day(stream: Stream, columns: Columns) -> Stream:
    """Return the stream with a day of these columns after its windows."""
    table = pa.table({name: pa.array(values, from_pandas=True) for name, values in columns.items()})
    profiles = sketch_groups(stream.reference.bins, table, np.zeros(len(table), np.int64), 1)
    return replace(stream, profiles=[*stream.profiles, *profiles])


def _judge(monitor: Monitor, number: int, column: str = "") -> _Day:
    """Return the verdict on a day. The closest figure is one of the `column`, if the
    rows have it.
    """
    comparison = monitor.comparison(number)
    verdict = comparison.verdict(())
    shifts = comparison.shifts(verdict).findings
    is_found = verdict.state == "drift" or bool(shifts)
    if verdict.course is None:
        return _Day(is_found, verdict.reason)
    tests = [*verdict.course.tests()]
    of_column = [test for test in tests if test.series.column == column]
    closest = max(of_column or tests, key=lambda test: test.ratio)
    shown = f"{closest.series.series_key} {closest.score:.1f} of {closest.threshold:.1f}"
    exact = [
        f"{item.subject} {item.check}"
        for item in verdict.findings
        if item.is_alarm and item.threshold == 0
    ]
    return _Day(is_found, ", ".join([shown, *exact]))


def _rows(rng: np.random.Generator, windows: int) -> tuple[Columns, Array]:
    """Return the columns of all rows, and the number of each row's day, [N] int64."""
    is_weekend = np.arange(windows) % 7 >= 5
    expected = (
        np.where(is_weekend, 0.72, 1.11) * _SHOP.rows * np.exp(0.06 * rng.normal(size=windows))
    )
    days = np.repeat(np.arange(windows), rng.poisson(expected))
    levels = _SHOP.levels(rng, windows)[days].T
    normal = levels + rng.normal(size=levels.shape)
    hours = np.round(14 + 4.5 * normal[6]) % 24
    columns = {
        "age": np.round(41 + 13 * normal[0]).clip(18, 95),
        "amount": np.exp(3.4 + 0.8 * normal[1]).round(2),
        "temperature": (12 + 6 * normal[2]).round(2),
        "country": _drawn(rng, _COUNTRIES, _COUNTRY_SHARES, levels[3]),
        "device": _drawn(rng, _DEVICES, (0.45, 0.35, 0.2), levels[4]),
        "product": _drawn(rng, [f"p{rank}" for rank in range(60)], _zipf(60), levels[5]),
        "hour": hours,
        "channel": _drawn(rng, _CHANNELS, (0.4, 0.3, 0.2, 0.1), levels[7]),
        "comment": _drawn(rng, [f"Text {rank}" for rank in range(400)], _zipf(400), levels[8]),
        "is_member": normal[9] > 0.5,
        "is_gift": normal[10] > 1.3,
        "items": rng.poisson(np.exp(0.6 + 0.2 * levels[11])) + 1.0,
        "weight": np.exp(0.5 * normal[12]).round(3),
        "prediction": 1 / (1 + np.exp(-(0.4 * normal[0] + 0.6 * normal[1] + 0.5 * normal[13]))),
    }
    return columns, days


def _zipf(count: int) -> Array:
    shares = 1 / np.arange(1, count + 1)
    return shares / shares.sum()


def _drawn(rng: np.random.Generator, names: object, shares: object, levels: Array) -> Array:
    """Return names that are drawn with these shares; a high level of the day makes the
    first names less frequent.
    """
    frequencies = np.asarray(shares, np.float64)
    tilt = np.linspace(-1, 1, len(frequencies))
    uniform = rng.random(len(levels))
    drawn = np.empty(len(levels), np.int64)
    for level in np.unique(levels):
        is_level = levels == level
        tilted = np.cumsum(frequencies * np.exp(level * tilt))
        drawn[is_level] = np.searchsorted(tilted / tilted[-1], uniform[is_level])
    return np.asarray(names, object)[drawn]


def _with(name: str, change: Callable[[Array], Array], columns: Columns) -> Columns:
    return {**columns, name: change(columns[name])}


def _only(chosen: Callable[[Columns], Array], columns: Columns) -> Columns:
    """Return only the rows of a mask or of positions."""
    rows = chosen(columns)
    return {name: values[rows] for name, values in columns.items()}


def _some(values: Array, share: float) -> Array:
    """Return a random part of the rows, [N] bool."""
    return np.random.default_rng(5).random(len(values)) < share


def _set(share: float, value: float, values: Array) -> Array:
    return np.where(_some(values, share), value, values)


def _times(share: float, factor: float, values: Array) -> Array:
    return np.where(_some(values, share), factor * values, values)


def _renamed(name: str, values: Array) -> Array:
    return np.where(values == name, f"{name}-new", values)


def _lower(values: Array) -> Array:
    return np.array([value.lower() for value in values], object)


def _later(values: Array) -> Array:
    return (values + 6) % 24


def _constant(values: Array) -> Array:
    return np.full(len(values), np.median(values))


def _dead(values: Array) -> Array:
    """Return the values, of which the last 30 % are the value before."""
    alive = int(0.7 * len(values))
    return np.where(np.arange(len(values)) < alive, values, values[alive])


def _clipped(values: Array) -> Array:
    return values.clip(max=np.quantile(values, 0.9))


def _without(column: str, name: str) -> Change:
    return partial(_only, lambda columns: columns[column] != name)


def _kept(share: float) -> Change:
    return partial(_only, lambda columns: _some(columns["age"], share))


_INCIDENTS: dict[str, Change] = {
    "age: all missing": partial(_with, "age", partial(_set, 1.0, np.nan)),
    "age: 50 % missing": partial(_with, "age", partial(_set, 0.5, np.nan)),
    "age: 15 % missing": partial(_with, "age", partial(_set, 0.15, np.nan)),
    "age: -999 in 5 %": partial(_with, "age", partial(_set, 0.05, -999.0)),
    "age: constant": partial(_with, "age", _constant),
    "amount: × 1000": partial(_with, "amount", partial(_times, 1.0, 1000.0)),
    "amount: × 1000 in 10 %": partial(_with, "amount", partial(_times, 0.1, 1000.0)),
    "amount: clipped at the 90 % quantile": partial(_with, "amount", _clipped),
    "country: largest renamed": partial(_with, "country", partial(_renamed, "de")),
    "country: 2 % renamed": partial(_with, "country", partial(_renamed, "cz")),
    "country: 5 % gone": _without("country", "at"),
    "device: 35 % gone": _without("device", "ios"),
    "channel: lower case": partial(_with, "channel", _lower),
    "hour + 6": partial(_with, "hour", _later),
    "temperature: dead in 30 %": partial(_with, "temperature", _dead),
    "half of the rows gone": _kept(0.5),
    "90 % of the rows gone": _kept(0.1),
    "every row twice": partial(
        _only,
        lambda columns: np.repeat(np.arange(len(columns["age"])), 2),
    ),
    "the feed stops at noon": partial(_only, lambda columns: columns["hour"] < 12),
}
_SMALL = (
    "amount: clipped at the 90 % quantile",
    "country: 2 % renamed",
    "country: 5 % gone",
)
"""Incidents without a target."""
